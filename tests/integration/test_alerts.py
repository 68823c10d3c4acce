"""Alerts: an event, an error-level line and a message, once for what happens once."""

from decimal import Decimal as D

import pytest
from structlog.testing import capture_logs

from gateway import alerts as module
from gateway.alerts import Alerts
from gateway.halts import OPERATOR
from gateway.slippage import pips_worse
from gateway.watch import Watch
from ledger.account_events import AlertRaised
from ledger.events import decode
from ledger.order_events import OrderFilled
from ledger.writer import Cause
from tests.decider import answer, check, deal, evidence, start, unknown
from tests.desk import CAUSE, desk, until


async def watching(d) -> Alerts:
    watch, alerts = Watch(d.ledger.tail), Alerts(d.ledger, d.settings)
    alerts.start(watch)
    d.watch = await watch.start()
    return alerts


def raised(d) -> list[AlertRaised]:
    from ledger.events import event_of

    return [event_of(one) for one in d.store.stream("account/7") if one.topic == "account.alert_raised"]


async def test_a_slow_broker_is_an_alert(tmp_path):
    async with desk(tmp_path, SLOW_BROKER_S="0.001") as d:
        await watching(d)
        with capture_logs() as lines:
            await d.order("o-1", check(), start(1), answer("success", deal(7)))
            await until(lambda: raised(d) and lines)
        (alert,) = raised(d)
        assert (alert.kind, alert.order_id) == ("slow_broker", "o-1")
        assert alert.text == "the broker took 0.0016 s to answer, more than 0.001 s"
        assert d.store.at(alert.about).topic == "order.broker_answered"
        assert [(one["log_level"], one["event"], one["kind"]) for one in lines] == [("error", "alert", "slow_broker")]


def fill(side: str, asked: str | None, price: str, point: str) -> OrderFilled:
    requested = D(asked) if asked else None
    return OrderFilled(
        symbol="X", side=side, order_ticket=1, deal=1, position_id=1, volume=D(1), price=D(price), filled_volume=D(1),
        remaining_volume=D(0), requested_price=requested, point=D(point),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("side", "asked", "price", "point", "pips"),
    [
        ("buy", "1.08000", "1.08051", "0.00001", "5.1"),
        ("sell", "1.08000", "1.07949", "0.00001", "5.1"),
        ("buy", "1.08000", "1.07900", "0.00001", "-10"),  # better than asked for
        ("buy", "150.000", "150.031", "0.001", "3.1"),
        ("buy", "1.0800", "1.0806", "0.0001", "6"),
        ("buy", "2650.00", "2650.04", "0.01", "4"),
        ("buy", "1.2", "1.2", "0.00001", "0"),
        ("buy", None, "1.2", "0.00001", None),
    ],
)
def test_slippage_counts_in_pips_against_us(side, asked, price, point, pips):
    assert pips_worse(fill(side, asked, price, point)) == (D(pips) if pips else None)


@pytest.mark.parametrize(
    ("price", "level", "alerts"),
    [("1.10030", None, 0), ("1.10031", "warning", 0), ("1.10050", "warning", 0), ("1.10051", "error", 1)],
)
async def test_slippage_over_three_pips_is_reported_and_over_five_alerts(tmp_path, price, level, alerts):
    async with desk(tmp_path) as d:
        await watching(d)
        with capture_logs() as lines:
            done = answer("success", deal(7, price=D(price)), point=D("0.00001"))
            await d.order("o-1", check(), start(1, price=D("1.1")), done, price="1.1")
            await d.order("o-2", check())
            await until(lambda: len(raised(d)) == alerts and (not level or lines))
        assert [one["log_level"] for one in lines] == ([level] if level else [])


@pytest.mark.parametrize("price", ["1.10031", "1.10051"])
async def test_the_line_of_an_order_has_its_correlation_id(tmp_path, price):
    async with desk(tmp_path, SLOW_BROKER_S="0.001") as d:
        await watching(d)
        of_order = Cause(actor="broker", correlation_id="c-9")
        with capture_logs() as lines:
            await d.order("o-1", check(), start(1, price=D("1.1")), price="1.1")
            done = answer("success", deal(7, price=D(price)), point=D("0.00001"))
            await d.ledger.execute("o-1", done, of_order).durable
            await until(lambda: len(lines) == 2)  # the slow broker, and the slippage
        assert [one["correlation_id"] for one in lines] == ["c-9", "c-9"]


async def test_an_alert_that_cannot_be_recorded_is_a_line_still(tmp_path):
    async with desk(tmp_path) as d:
        alerts = Alerts(d.ledger, d.settings)
        await d.ledger.close()
        with capture_logs() as lines:
            alerts.raise_(AlertRaised(kind="slippage", text="far off", order_id="o-1"), correlation_id="c-9")
        assert lines == [
            {"event": "alert", "log_level": "error", "kind": "slippage", "text": "far off", "order_id": "o-1"}
            | {"correlation_id": "c-9", "recorded": False}
        ]


async def test_a_storm_of_one_kind_is_told_at_once_and_then_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.2)
    async with desk(tmp_path, SLOW_BROKER_S="0.001") as d:
        await watching(d)
        for number in range(4):
            await d.order(f"o-{number}", check(), start(1), answer("success", deal(number + 1)))
        await until(lambda: len(raised(d)) == 2)
        assert [one.order_id for one in raised(d)] == ["o-0", "o-3"]
        assert raised(d)[1].text.endswith("(the latest of 3)")


async def test_an_outcome_that_stays_unknown_alerts_once_also_after_a_restart(tmp_path):
    async with desk(tmp_path, UNRESOLVED_ALERT_S="0.05") as d:
        await watching(d)
        await d.order("o-1", check(), start(1))
        await d.ledger.execute("o-1", unknown(), Cause(actor="broker", correlation_id="c-9")).durable
        await d.order("o-2", check(), start(1), unknown(), evidence())
        await until(lambda: raised(d))
        told = [decode(one) for one in d.store.stream("account/7")][-1]
        assert (told.data, told.correlation_id) == (raised(d)[0], "c-9")
        assert [(one.kind, one.order_id) for one in raised(d)] == [("unresolved_outcome", "o-1")]
        assert "order-ledger resolve o-1" in raised(d)[0].text
    async with desk(tmp_path, UNRESOLVED_ALERT_S="0.05") as d:
        await watching(d)
        await until(lambda: len(raised(d)) == 2)


async def test_a_halt_is_an_alert_by_its_own_event(tmp_path):
    async with desk(tmp_path) as d:
        await watching(d)
        with capture_logs() as lines:
            d.halts.halt(OPERATOR, "news", CAUSE, by="ann")
            await until(lambda: lines)
        assert [(one["log_level"], one["kind"], one["by"]) for one in lines] == [("error", "halted", "ann")]
        assert raised(d) == []


async def test_a_projection_that_stopped_is_an_alert_with_its_remedy(tmp_path):
    async with desk(tmp_path) as d:
        alerts = await watching(d)
        alerts.sink_stopped("clickhouse", "disk full", "make room")
        await until(lambda: raised(d))
        assert [(one.kind, one.text) for one in raised(d)] == [("sink_stopped", "clickhouse: disk full (make room)")]


async def test_a_ledger_that_was_tampered_with_is_an_alert_that_names_the_first_bad_event(tmp_path):
    async with desk(tmp_path) as d:
        alerts = await watching(d)
        with capture_logs() as lines:
            alerts.tampered(3, "event 3 was changed")
            await until(lambda: raised(d) and lines)
        (alert,) = raised(d)
        assert (alert.kind, alert.about) == ("tamper", 3)
        assert alert.text.startswith("the ledger cannot be trusted from event 3 on: event 3 was changed (")
        assert [(one["log_level"], one["event"], one["kind"]) for one in lines] == [("error", "alert", "tamper")]
