"""What is counted of the ledger's events, and that hostile names cannot make it grow."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.exposition import Exposition, Readings, SinkReading
from gateway.health import Part
from gateway.metrics import MAX_NAMES, MAX_ORDERS, Counts, Histogram, Metrics
from ledger.account_events import AccountDisconnected, AccountReconciled, Difference, LoginRefused
from ledger.events import Envelope, Recorded, encode
from ledger.facts import OrderRequest, Raw
from ledger.order_events import AnomalyDetected, BrokerAnswered, OrderRejected, OrderRequested, SendStarted
from ledger.reconcile import CLASSES
from ledger.trade import TradeRequest, TradeResult
from tests.history import BEGINNING, full_fill, partial_fill
from tests.make_frozen_events import EXAMPLES

READINGS = Readings(
    open_orders={"placed": 2},
    halts={"operator": True},
    queues={"commits": 3},
    sinks={"clickhouse": SinkReading(state="following", position=7, lag=2, retries=1)},
    parts={"ledger": Part(state="up", needed=True)},
    reconnects={"nats": 4},
)


class Counting:
    """Metrics, and events for them; each a millisecond after the one before."""

    def __init__(self) -> None:
        self.metrics = Metrics(tail=None, after=0)  # type: ignore[arg-type]  # nothing is read from it here
        self.seq = 0

    def take(self, order_id: str, *events: Any) -> "Counting":
        for event in events:
            self.seq += 1
            at = BEGINNING + timedelta(milliseconds=self.seq)
            envelope = Envelope(seq=self.seq, event_id="x", schema_version=1, recorded_at=at, data=event)
            self.metrics.take([Recorded(self.seq, f"order/{order_id}", 1, event.topic(), encode(envelope))])
        return self

    @property
    def values(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = Exposition("1.0", self.metrics, lambda: READINGS).text().decode()
        return {
            (sample.name.removeprefix("order_ledger_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("order_ledger_")
        }

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, tuple(sorted(labels.items()))]


def requested() -> OrderRequested:
    request = OrderRequest(order_id="o", symbol="EURUSD", order_type="buy", volume=Decimal("0.3"))
    return OrderRequested(request=request, content="c", raw=Raw(size=0, sha256="", text=""), symbol="EURUSD")


def started(attempt: int = 1) -> SendStarted:
    return SendStarted(attempt=attempt, request=TradeRequest(action=1, symbol="EURUSD", volume=Decimal("0.3")))


def answered(name: str = "DONE", verdict: str = "success", latency: str = "0.0012") -> BrokerAnswered:
    result = TradeResult(retcode=10009)
    return BrokerAnswered(attempt=1, result=result, retcode_name=name, verdict=verdict, latency_s=Decimal(latency))


def test_the_way_of_an_order_is_timed_from_stage_to_stage():
    seen = Counting().take("o", requested(), started(), answered(), partial_fill(), full_fill())
    for stage, seconds in {"requested_sent": 0.001, "sent_answered": 0.001, "answered_filled": 0.003}.items():
        assert seen.value("order_stage_seconds_sum", stage=stage) == pytest.approx(seconds)
    assert seen.value("order_stage_seconds_count", stage="requested_filled") == 2
    assert seen.value("broker_call_seconds_bucket", le="0.0015") == 1
    assert seen.value("broker_call_seconds_bucket", le="0.001") == 0
    assert seen.value("order_outcomes_total", outcome="filled", category="") == 1
    assert seen.value("fills_total", symbol="EURUSD", side="buy") == 2
    assert seen.metrics._times == {}


def test_answers_are_counted_by_retcode_and_outcomes_by_category():
    rejected = OrderRejected(symbol="EURUSD", retcode=10019, retcode_name="NO_MONEY", category="fatal", description="")
    seen = Counting().take("o", requested(), started(), answered("NO_MONEY", "fatal"), rejected)
    assert seen.value("broker_answers_total", retcode="NO_MONEY", verdict="fatal") == 1
    assert seen.value("order_outcomes_total", outcome="rejected", category="fatal") == 1
    assert seen.value("events_total", topic="order.rejected") == 1


def test_an_anomaly_is_an_alert_of_its_kind():
    seen = Counting().take("o", AnomalyDetected(kind="fill_price", detail="beyond the limit"))
    assert seen.value("alerts_total", kind="anomaly") == 1
    assert seen.value("alerts_total", kind="slippage") == 0


def test_a_lost_connection_and_a_refused_login_are_alerts_of_their_kind():
    lost = AccountDisconnected(login=7, server="s", reason="cut")
    seen = Counting().take("o", lost, LoginRefused(login=7, server="s", code=-6, reason="no"))
    assert seen.value("alerts_total", kind="disconnected") == 1
    assert seen.value("alerts_total", kind="login_refused") == 1


def test_differences_are_counted_by_class_and_policy_and_a_report_of_some_is_an_alert():
    seen = Counting()
    known = {labels for name, labels in seen.values if name == "reconciliation_differences_total"}
    assert known == {
        (("kind", kind), ("policy", policy)) for kind, policies in CLASSES.items() for policy in policies
    }  # fmt: skip
    one = Difference(kind="stops", ours="", brokers="", policy="correct")
    report = AccountReconciled(trigger="demand", positions=0, orders=0, deals=0, differences=(one, one))
    seen.take("o", report, AccountReconciled(trigger="interval", positions=0, orders=0, deals=0, standing=(one,)))
    assert seen.value("reconciliation_differences_total", kind="stops", policy="correct") == 2
    assert seen.value("alerts_total", kind="reconciliation") == 1


def test_a_clock_that_was_set_back_counts_as_no_time():
    seen = Counting().take("o", requested())
    seen.seq = -1_000
    seen.take("o", started())
    assert seen.value("order_stage_seconds_sum", stage="requested_sent") == 0


def test_the_state_of_things_is_read_at_the_moment_it_is_asked_for():
    seen = Counting()
    assert seen.value("orders_open", state="placed") == 2
    assert seen.value("orders_open", state="unknown") == 0
    assert seen.value("halted", source="operator") == 1
    assert seen.value("sink_lag_events", sink="clickhouse") == 2
    assert seen.value("reconnects_total", to="nats") == 4


@given(st.lists(st.text(min_size=1), min_size=1, max_size=300))
def test_a_label_never_has_more_values_than_its_bound(names):
    counts = Counts()
    for name in names:
        counts.add((name, "buy"))
    assert len(counts.values) <= MAX_NAMES + 1
    assert sum(counts.values.values()) == len(names)


def test_symbols_and_retcodes_that_nobody_knows_do_not_make_new_series():
    seen = Counting()
    for number in range(500):
        seen.take(f"o{number}", requested(), started(), answered(f"EVIL_{number}\n# HELP x", "fatal"))
        seen.take(f"o{number}", full_fill(symbol=f'S{number}"}}\n'))
    assert seen.value("broker_answers_total", retcode="other", verdict="fatal") == 500
    assert seen.value("fills_total", symbol="other", side="other") == 500 - MAX_NAMES
    assert len(seen.values) < 1_000


def test_orders_that_wait_for_weeks_do_not_fill_the_memory():
    seen = Counting()
    event = requested()
    for number in range(MAX_ORDERS + 10):
        seen.take(f"o{number}", event)
    assert len(seen.metrics._times) == MAX_ORDERS


@given(st.lists(st.floats(-100, 1000), max_size=50))
def test_a_histogram_holds_every_value_once(values):
    histogram = Histogram((-1.0, 0.0, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert sum(histogram.counts[:3]) == sum(value <= 1.0 for value in values)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_event_there_is_can_be_counted(name):
    Counting().take("o", EXAMPLES[name].data)


def test_the_text_is_what_prometheus_reads():
    text = Exposition("1.0", Counting().metrics, lambda: READINGS).text().decode()
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)) > 30
    assert "process_resident_memory_bytes" in names
