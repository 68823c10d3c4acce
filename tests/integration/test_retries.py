"""An answer that may be better next time: told, tried again with the price of then, ever later, and not for ever."""

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.order import Status
from ledger.order_events import RetryScheduled
from tests.gateway_desk import Desk, desk_in

D = Decimal
MARKET = {"symbol": "EURUSD", "order_type": "buy", "volume": 0.1}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "d", RETRY_DELAY_S="0.2", MAX_RETRIES="3") as running:
        yield running


async def test_each_failed_attempt_is_told_the_pauses_double_and_the_last_no_ends_the_order(desk: Desk) -> None:
    desk.fault("requote")
    await desk.submit("o-1", **MARKET)
    ended = await desk.ended("o-1")
    assert (ended.status, ended.attempt, desk.deals()) == (Status.REJECTED, 4, [])
    delays = [event.delay_s for event in desk.events("o-1") if isinstance(event, RetryScheduled)]
    for delay_s, longest_s in zip(delays, (D("0.2"), D("0.4"), D("0.8")), strict=True):
        assert longest_s * D("0.8") <= delay_s <= longest_s  # a fifth of it is left to chance
    told = [(subject, body.category, body.retcode_name, body.attempts) for subject, body in desk.messages("o-1")]
    assert told[1:] == [
        *(("broker.order.EURUSD", "retriable", "REQUOTE", number) for number in (1, 2, 3)),
        ("broker.error.EURUSD", "retries_exhausted", "REQUOTE", 4),
    ]


async def test_the_age_of_an_intent_goes_on_while_the_machine_sleeps(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal's process takes it up when the machine has slept for ten seconds, so it sees a later time."""
    awake = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) - 10 * (clock == time.CLOCK_BOOTTIME))
    await desk.submit("o-1", **MARKET)
    await desk.event("o-1", "order.send_abandoned")
    assert desk.deals() == []
    monkeypatch.undo()
    ended = await desk.ended("o-1")
    assert (ended.status, len(desk.deals())) == (Status.FILLED, 1)


async def test_another_attempt_is_judged_by_the_price_of_then_and_not_of_the_first(desk: Desk) -> None:
    """The symbol, with a price, was asked for a moment ago: that one is too old for it."""
    asked = desk.price() + 0.0002
    desk.fault("requote*1")
    await desk.submit("o-1", **MARKET, price=round(asked, 5), deviation=30)
    await desk.event("o-1", "order.retry_scheduled")
    desk.price(points=500)
    ended = await desk.ended("o-1")
    assert (ended.status, ended.attempt, desk.deals()) == (Status.REFUSED, 1, [])
    assert "more than the deviation of 30" in desk.messages("o-1")[-1][1].description


async def test_a_fatal_no_is_not_tried_again(desk: Desk) -> None:
    desk.fault("no_money")
    await desk.submit("o-1", **MARKET)
    ended = await desk.ended("o-1")
    assert (ended.status, ended.attempt) == (Status.REJECTED, 1)
    assert desk.messages("o-1")[-1][1].category == "fatal"
