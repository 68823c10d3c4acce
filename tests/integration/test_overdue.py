"""An order that stands still where the gateway has to act does not do so silently."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.alerts import Alerts
from gateway.overdue import Overdue
from ledger.order import Status
from tests.gateway_desk import Desk, desk_in


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "d") as running:
        yield running


def watch_over(desk: Desk) -> Overdue:
    alerts = Alerts(desk.ledger, desk.settings)
    return Overdue(desk.ledger, desk.submitter, alerts, desk.clock, stands_s=0.0)


async def test_who_waits_for_a_target_too_long_is_told_of_once_and_goes_on_waiting(desk: Desk) -> None:
    await desk.open("o-1")
    desk.fault("late=2s*1")
    await desk.submit("c-1", action="close", target_order_id="o-1", volume=0.05)
    await desk.until("c-1", Status.UNKNOWN)
    await desk.submit("c-2", action="close", target_order_id="o-1")
    overdue = watch_over(desk)
    assert [overdue.look() for _ in range(3)] == [["c-2"]] * 3
    alert = await desk.event("", "account.alert_raised")
    assert (alert.kind, alert.order_id) == ("standing_order", "c-2")
    assert "has stood at requested" in alert.text
    assert (await desk.ended("c-2")).status is Status.FILLED
    assert desk.topics("").count("account.alert_raised") == 1


async def test_an_order_that_nothing_wakes_is_asked_for_its_next_step(desk: Desk) -> None:
    opened = await desk.open("o-1")
    desk.submitter._flight.begin("nobody", frozenset({("position", opened.position_id)}))
    await desk.submit("c-1", action="close", target_order_id="o-1")
    while "c-1" not in desk.submitter._timers.waiting():
        await desk.query.account()
    desk.submitter._timers.stop()
    desk.submitter._flight.end("nobody")  # and nobody tells those that wait
    assert watch_over(desk).look() == ["c-1"]
    assert (await desk.ended("c-1")).status is Status.FILLED


async def test_who_is_parked_or_waits_for_another_attempt_is_not_overdue(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", RETRY_DELAY_S="60", PARK_RECHECK_S="60") as desk:
        desk.fault("requote*1; market_closed*1")
        for order_id, status in (("o-1", Status.WAITING), ("o-2", Status.PARKED)):
            await desk.submit(order_id, symbol="EURUSD", order_type="buy", volume=0.1)
            await desk.until(order_id, status)
        assert watch_over(desk).look() == []
