"""Spans of orders, made from events: who is the child of whom, and when it began and ended."""

import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gateway.config import load
from gateway.traces import MAX_ORDERS, Traces
from ledger.events import Envelope, Recorded, Source
from ledger.facts import OrderRequest, Raw
from ledger.order_events import BrokerAnswered, OrderRequested, OrderStale, OutcomeUnknown, SendStarted
from ledger.trade import TradeRequest, TradeResult
from tests.history import BEGINNING, full_fill

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUESTED = OrderRequested(
    request=OrderRequest(order_id="o", symbol="EURUSD", order_type="buy", volume=Decimal("0.3")),
    content="c",
    raw=Raw(size=0, sha256="", text=""),
    symbol="EURUSD",
)
STARTED = SendStarted(attempt=1, request=TradeRequest(action=1, symbol="EURUSD", volume=Decimal("0.3")))
ANSWERED = BrokerAnswered(attempt=1, result=TradeResult(retcode=10009), retcode_name="DONE", verdict="success")
UNKNOWN = OutcomeUnknown(attempt=1, code=-10005, reason="no answer in time")


class Tracing:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.traces = Traces(self.exporter, "1.0", "7")
        self.seq = 0

    def take(self, *events: Any, order_id: str = "o", traceparent: str = "") -> "Tracing":
        for event in events:
            self.seq += 1
            envelope = Envelope(
                seq=self.seq,
                event_id="x",
                schema_version=1,
                recorded_at=BEGINNING + timedelta(milliseconds=self.seq),
                account="5001",
                source=Source(subject="orders.submitted.EURUSD", traceparent=traceparent),
                correlation_id="corr-7",
                data=event,
            )
            self.traces.take([(Recorded(self.seq, f"order/{order_id}", 1, event.topic(), b""), envelope)])
        return self

    @property
    def spans(self) -> dict[str, Any]:
        self.traces.close()
        return {span.name: span for span in self.exporter.get_finished_spans()}


def test_an_order_is_a_span_with_its_attempt_inside_and_its_events_on_it():
    spans = Tracing().take(REQUESTED, STARTED, ANSWERED, full_fill()).spans
    order, attempt = spans["order"], spans["order_send"]
    assert attempt.parent.span_id == order.context.span_id
    assert (order.end_time - order.start_time, attempt.end_time - attempt.start_time) == (3_000_000, 1_000_000)
    assert [event.name for event in order.events] == ["order.send_started", "order.broker_answered", "order.filled"]
    told = order.attributes
    assert (told["order_ledger.order_id"], told["order_ledger.correlation_id"]) == ("o", "corr-7")
    assert (told["order_ledger.outcome"], told["messaging.destination.name"]) == ("filled", "orders.submitted.EURUSD")
    assert (attempt.attributes["mt5.retcode"], attempt.status.status_code) == (10009, StatusCode.UNSET)
    assert order.resource.attributes["service.name"] == "mt5-connector"


def test_it_is_a_child_of_the_senders_span():
    order = Tracing().take(REQUESTED, full_fill(), traceparent=PARENT).spans["order"]
    assert f"{order.context.trace_id:032x}" == PARENT[3:35]
    assert f"{order.parent.span_id:016x}" == PARENT[36:52]


@pytest.mark.parametrize("evil", ["", "x", "00-0-0-0", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\n" * 64])
def test_a_sender_that_names_no_span_begins_a_new_one(evil):
    assert Tracing().take(REQUESTED, full_fill(), traceparent=evil).spans["order"].parent is None


def test_an_unknown_outcome_is_an_attempt_that_failed():
    seen = Tracing().take(REQUESTED, STARTED, UNKNOWN)
    assert seen.spans["order_send"].status.status_code is StatusCode.ERROR


def test_an_order_that_began_before_is_not_traced():
    assert Tracing().take(STARTED, ANSWERED, full_fill()).spans == {}


def test_what_does_not_end_does_not_fill_the_memory():
    seen = Tracing()
    for number in range(MAX_ORDERS + 5):
        seen.take(REQUESTED, order_id=f"o{number}")
    assert len(seen.traces._orders) == MAX_ORDERS


def test_an_order_that_was_too_old_ends_its_span():
    assert Tracing().take(REQUESTED, OrderStale(symbol="EURUSD", age_s=Decimal(40), limit_s=Decimal(30))).spans["order"]


class Hanging(SpanExporter):
    """Never ends with what it is given."""

    def export(self, _):
        threading.Event().wait()


def test_an_exporter_that_hangs_does_not_hold_up_the_stop():
    traces = Traces(Hanging(), "1.0", "7")
    envelope = Envelope(seq=1, event_id="x", schema_version=1, recorded_at=BEGINNING, data=REQUESTED)
    ended = Envelope(seq=2, event_id="y", schema_version=1, recorded_at=BEGINNING, data=full_fill())
    traces.take([(Recorded(1, "order/o", 1, "order.requested", b""), envelope)])
    traces.take([(Recorded(2, "order/o", 2, "order.filled", b""), ended)])
    traces.close()


def test_nothing_is_traced_unless_an_endpoint_is_named():
    assert Traces.of(load({}, {}), "1.0") is None
