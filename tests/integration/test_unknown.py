"""Outcomes that no answer tells: found at the broker, proven absent, or left unknown with an alert. Never guessed."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.account_events import TradingHalted
from ledger.events import account_stream
from ledger.order import Status
from tests.gateway_desk import CLIENT, Desk, desk_in

D = Decimal
MARKET = {"symbol": "EURUSD", "order_type": "buy", "volume": 0.1}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "d") as running:
        yield running


# --- the reply is lost --------------------------------------------------------------------------------------------


async def test_an_opening_order_whose_reply_was_lost_is_found_with_its_deal(desk: Desk) -> None:
    desk.fault("lost*1")
    await desk.submit("o-1", **MARKET)
    filled = await desk.ended("o-1")
    assert (filled.status, filled.attempt, len(desk.deals())) == (Status.FILLED, 1, 1)
    resolved = await desk.event("o-1", "order.outcome_resolved")
    assert (resolved.resolution, resolved.by, len(resolved.deals)) == ("found", "probe", 1)


async def test_a_position_reopened_over_night_before_its_order_was_found_is_one_fill(desk: Desk) -> None:
    desk.fault("lost*1; orders_get:error=-1*3")  # it cannot be looked for at first
    await desk.submit("o-1", **MARKET)
    await desk.until("o-1", Status.UNKNOWN)
    [position] = desk.window("positions")
    desk.window("reopen", ticket=position["ticket"])
    filled = await desk.ended("o-1")
    assert (filled.status, filled.filled_volume, len(filled.deals)) == (Status.FILLED, D("0.1"), 1)
    assert "anomaly_detected" not in desk.topics("o-1")
    reopened = await desk.event("", "account.external_deal_observed")
    assert (reopened.note, reopened.order_id, len(desk.deals())) == ("rollover", "o-1", 3)


async def test_a_placed_order_whose_reply_was_lost_is_found_working(desk: Desk) -> None:
    desk.fault("lost*1")
    await desk.submit("o-1", **MARKET | {"order_type": "sell_limit", "price": 1.3})
    placed = await desk.until("o-1", Status.PLACED)
    assert [row["ticket"] for row in desk.window("orders")] == [placed.order_ticket]


async def test_a_close_whose_reply_was_lost_is_found_by_its_deal(desk: Desk) -> None:
    await desk.open("o-1", volume=0.3)
    desk.fault("lost*1")
    await desk.submit("c-1", action="close", target_order_id="o-1", volume=0.1)
    closed = await desk.ended("c-1")
    assert (closed.status, closed.filled_volume, closed.attempt) == (Status.FILLED, D("0.1"), 1)
    assert [row["volume"] for row in desk.window("positions")] == [0.2]


async def test_a_cancel_that_succeeded_and_whose_reply_was_lost_is_completed(desk: Desk) -> None:
    await desk.open("o-1", order_type="buy_limit", price=0.9)
    desk.fault("lost*1")
    await desk.submit("x-1", action="cancel", target_order_id="o-1")
    assert (await desk.ended("x-1")).status is Status.COMPLETED
    assert (await desk.ended("o-1")).status is Status.CANCELLED
    resolved = await desk.event("x-1", "order.outcome_resolved")
    assert "is cancelled" in resolved.evidence


@pytest.mark.parametrize("fields", [{"sl": 0.9}, {"tp": 1.5}])
async def test_a_change_of_stops_whose_reply_was_lost_is_seen_on_the_position(
    desk: Desk, fields: dict[str, float]
) -> None:
    await desk.open("o-1", sl=0.8)
    desk.fault("lost*1")
    await desk.submit("m-1", action="modify", target_order_id="o-1", **fields)
    assert (await desk.ended("m-1")).status is Status.COMPLETED


async def test_a_change_of_a_working_order_whose_reply_was_lost_is_seen_on_the_order(desk: Desk) -> None:
    await desk.open("o-1", order_type="buy_limit", price=0.9)
    desk.fault("lost*1")
    await desk.submit("m-1", action="modify", target_order_id="o-1", price=0.91)
    assert (await desk.ended("m-1")).status is Status.COMPLETED


async def test_a_close_by_whose_reply_was_lost_is_found_by_its_deals(desk: Desk) -> None:
    one, other = await desk.open("o-1"), await desk.open("o-2", order_type="sell")
    desk.fault("lost*1")
    await desk.submit("b-1", action="close_by", position_id=one.position_id, position_by_id=other.position_id)
    assert (await desk.ended("b-1")).status is Status.FILLED
    assert desk.window("positions") == []


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("closed", ["o-1", "o-2"])
async def test_a_lost_close_by_of_which_a_hand_closed_one_position_ends_also_after_a_restart(
    desk: Desk, arrived: bool, closed: str
) -> None:
    volumes = {"o-1": (0.3, 0.1), "o-2": (0.1, 0.3)}[closed]  # something of the one closed by hand is left
    one = await desk.open("o-1", volume=volumes[0])
    other = await desk.open("o-2", volume=volumes[1], order_type="sell")
    desk.fault("lost*1; orders_get:error=-1" if arrived else "error=-10002*1; orders_get:error=-1")
    await desk.submit("b-1", action="close_by", position_id=one.position_id, position_by_id=other.position_id)
    await desk.until("b-1", Status.UNKNOWN)
    desk.window("close", ticket={"o-1": one, "o-2": other}[closed].position_id)
    desk.window("fault", clear=True)
    await desk.restart()
    ended = await desk.ended("b-1")
    if arrived:
        assert (ended.status, ended.filled_volume) == (Status.FILLED, D("0.2"))
    else:
        assert ended.status is Status.FAILED
    await desk.submit("c-1", action="close", target_order_id="o-1")  # nothing holds the targets any more
    await desk.submit("c-2", action="close", target_order_id="o-2")
    for name in ("c-1", "c-2"):
        await desk.ended(name)
    assert desk.window("positions") == []


# --- it never arrived ---------------------------------------------------------------------------------------------


async def test_what_provably_did_not_arrive_fails_and_is_not_sent_again(desk: Desk) -> None:
    desk.fault("error=-10002*1")
    await desk.submit("o-1", **MARKET)
    failed = await desk.ended("o-1")
    assert (failed.status, failed.attempt, desk.deals()) == (Status.FAILED, 1, [])
    assert desk.topics("o-1")[-2:] == ["outcome_resolved", "failed"]


async def test_sending_again_after_proven_absence_is_opt_in(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", RESEND_AFTER_PROVEN_ABSENCE="true") as desk:
        desk.fault("error=-10002*1")
        await desk.submit("o-1", **MARKET)
        filled = await desk.ended("o-1")
        assert (filled.status, filled.attempt, len(desk.deals())) == (Status.FILLED, 2, 1)


@pytest.mark.parametrize("action", ["close", "modify", "cancel", "close_by"])
async def test_what_acts_on_a_target_is_never_sent_again_by_itself(tmp_path: Path, action: str) -> None:
    async with desk_in(tmp_path / "d", RESEND_AFTER_PROVEN_ABSENCE="true") as desk:
        one, other = await desk.open("o-1"), await desk.open("o-2", order_type="sell")
        placed = await desk.open("o-3", order_type="buy_limit", price=0.9)
        fields = {
            "close": {"position_id": one.position_id},
            "modify": {"position_id": one.position_id, "sl": 0.9},
            "cancel": {"order_ticket": placed.order_ticket},
            "close_by": {"position_id": one.position_id, "position_by_id": other.position_id},
        }[action]
        desk.fault("error=-10002*1")
        await desk.submit("r-1", action=action, **fields)
        failed = await desk.ended("r-1")
        assert (failed.status, failed.attempt) == (Status.FAILED, 1)
        # The target is free again.
        await desk.submit("r-2", action=action, **fields)
        assert (await desk.ended("r-2")).status in (Status.FILLED, Status.COMPLETED)


async def test_attempt_1_rejected_and_attempt_2_lost_leaves_one_order(desk: Desk) -> None:
    desk.fault("requote*1; lost*1")
    await desk.submit("o-1", **MARKET)
    filled = await desk.ended("o-1")
    assert (filled.status, filled.attempt) == (Status.FILLED, 2)
    assert [deal["magic"] & 0xFF for deal in desk.deals()] == [2]


async def test_a_second_close_waits_until_the_fate_of_the_first_is_known(desk: Desk) -> None:
    await desk.open("o-1", volume=0.2)
    desk.fault("lost*1")
    await desk.submit("c-1", action="close", target_order_id="o-1", volume=0.1)
    await desk.submit("c-2", action="close", target_order_id="o-1", volume=0.1)
    first, second = await desk.ended("c-1"), await desk.ended("c-2")
    assert (first.status, second.status) == (Status.FILLED, Status.FILLED)
    seq = {one: desk.store.stream(f"order/{one}")[-1].seq for one in ("c-1", "c-2")}
    started = next(one.seq for one in desk.store.stream("order/c-2") if one.topic == "order.send_started")
    assert seq["c-1"] < started


async def test_a_change_overtaken_by_a_newer_one_is_not_sent_again(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", RETRY_DELAY_S="1") as desk:
        await desk.open("o-1")
        desk.fault("price_off*1")
        await desk.submit("m-1", action="modify", target_order_id="o-1", sl=0.9)
        await desk.until("m-1", Status.WAITING)
        await desk.submit("m-2", action="modify", target_order_id="o-1", sl=0.95)
        assert (await desk.ended("m-2")).status is Status.COMPLETED
        assert (await desk.ended("m-1")).status is Status.REFUSED
        assert "overtaken by the newer change m-2" in desk.messages("m-1")[-1][1].description
        assert desk.window("positions")[0]["sl"] == 0.95


async def test_a_change_of_another_value_overtakes_nothing(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", RETRY_DELAY_S="0.5") as desk:
        await desk.open("o-1")
        desk.fault("price_off*1")
        await desk.submit("m-1", action="modify", target_order_id="o-1", sl=0.9)
        await desk.until("m-1", Status.WAITING)
        await desk.submit("m-2", action="modify", target_order_id="o-1", tp=1.5)
        assert (await desk.ended("m-1")).status is Status.COMPLETED
        [position] = desk.window("positions")
        assert (position["sl"], position["tp"]) == (0.9, 1.5)


async def test_a_lost_change_overtaken_by_hand_fails_as_superseded(desk: Desk) -> None:
    opened = await desk.open("o-1")
    desk.fault("error=-10002*1")
    await desk.submit("m-1", action="modify", target_order_id="o-1", sl=0.9)
    await desk.until("m-1", Status.UNKNOWN)
    desk.window("close", ticket=opened.position_id)
    assert (await desk.ended("m-1")).status is Status.FAILED
    assert (await desk.event("m-1", "order.outcome_resolved")).resolution == "superseded"


# --- time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [timedelta(hours=5), timedelta(hours=-5)])
async def test_a_clock_that_jumps_makes_no_absence_older_than_it_is(desk: Desk, jump: timedelta) -> None:
    desk.fault("error=-10002*1")
    await desk.submit("o-1", **MARKET)
    await desk.until("o-1", Status.UNKNOWN)
    since = time.monotonic()
    desk.ahead = jump
    assert (await desk.ended("o-1")).status is Status.FAILED
    assert time.monotonic() - since >= desk.settings.settle_s


async def test_settling_begins_anew_in_another_process(desk: Desk) -> None:
    desk.fault("error=-10002*1")
    await desk.submit("o-1", **MARKET)
    await desk.event("o-1", "order.outcome_probed")
    await asyncio.sleep(desk.settings.settle_s / 2)
    await desk.restart()
    since = time.monotonic()
    assert (await desk.ended("o-1")).status is Status.FAILED
    assert time.monotonic() - since >= desk.settings.settle_s


async def test_a_filled_order_delivered_again_after_40_s_is_a_duplicate_and_not_stale(desk: Desk) -> None:
    await desk.open("o-1")
    desk.ahead = timedelta(seconds=40)
    await desk.submit("o-1", **MARKET)
    assert desk.topics("o-1")[-1] == "duplicate_received"
    assert (desk.events("o-1")[-1].standing_topic, len(desk.deals())) == ("order.filled", 1)


async def test_what_stays_undecided_is_unknown_and_alerts_once(desk: Desk) -> None:
    desk.fault("late=1h*1")  # taken, and not dealt: nothing is proven by that
    await desk.submit("o-1", **MARKET)
    await desk.event("o-1", "order.anomaly_detected")
    subject, alert = desk.messages("o-1")[-1]
    assert (subject, alert.kind) == ("broker.alert.unresolved_outcome", "unresolved_outcome")
    await desk.restart()
    [working] = desk.window("orders")
    desk.window("fill", ticket=working["ticket"])
    assert (await desk.ended("o-1")).status is Status.FILLED
    assert desk.topics("o-1").count("anomaly_detected") == 1


# --- halted, paused -------------------------------------------------------------------------------------------


async def test_a_halt_while_200_orders_wait_sends_none_of_them_and_lets_closes_pass(desk: Desk) -> None:
    """Invariant I10."""
    opened = await desk.open("first")
    desk.window("market", symbol="GBPUSD", changes={"sessions": "never"})
    for number in range(200):
        await desk.submit(f"o-{number}", **MARKET | {"symbol": "GBPUSD"})
    await desk.until("o-199", Status.PARKED)
    desk.ledger.append(account_stream(desk.ledger.login), TradingHalted(source="operator", reason="news"), CLIENT)
    desk.window("market", symbol="GBPUSD", changes={"sessions": "always"})
    for number in range(200):
        assert (await desk.ended(f"o-{number}")).status in (Status.REFUSED, Status.FILLED)
    # Those that were at the broker when the halt came had their answer; nothing was sent after it.
    halted_at = next(one.seq for one in desk.store.stream(account_stream(desk.ledger.login)) if "halted" in one.topic)
    started = [one.seq for one in desk.store.scan() if one.topic == "order.send_started"]
    assert max(started) < halted_at
    await desk.submit("c-1", action="close", position_id=opened.position_id)
    assert (await desk.ended("c-1")).status is Status.FILLED


async def test_a_halt_between_intent_and_call_sends_nothing_that_opens_and_lets_closes_pass(desk: Desk) -> None:
    """Invariant I10: it may come while the intent is made durable, which takes as long as the disk or database does."""
    opened = await desk.open("first")
    halt = TradingHalted(source="operator", reason="news")

    def when_the_intent_is_durable() -> None:
        for order_id in ("o-1", "c-1"):
            if desk.topics(order_id)[-1:] == ["send_started"]:
                desk.ledger.append(account_stream(desk.ledger.login), halt, CLIENT)

    desk.ledger.tail.on_commit(when_the_intent_is_durable)
    await desk.submit("o-1", **MARKET)
    refused = await desk.ended("o-1")
    assert (refused.status, refused.attempt, len(desk.deals())) == (Status.REFUSED, 1, 1)
    assert "send_abandoned" in desk.topics("o-1")
    await desk.submit("c-1", action="close", position_id=opened.position_id)
    assert (await desk.ended("c-1")).status is Status.FILLED


async def test_a_gateway_paused_between_intent_and_call_sends_nothing_after_another_took_over(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "one") as paused:
        held, go_on = asyncio.Event(), asyncio.Event()
        send = paused.trade.send

        async def stopped(sends):  # as a process that is stopped just behind its commit
            held.set()
            await go_on.wait()
            return await send(sends)

        paused.trade.send = stopped  # type: ignore[method-assign]
        await paused.submit("o-1", **MARKET)
        await held.wait()

        # Another machine: its own terminal, the same broker and ledger.
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "broker").symlink_to(tmp_path / "one" / "broker")
        other = Desk(tmp_path / "two", LEDGER_URL=f"sqlite:///{tmp_path / 'one' / 'ledger.db'}")
        await other.start(take_over=True)
        assert (await other.ended("o-1")).status is Status.FAILED
        go_on.set()
        await asyncio.wait_for(paused.ledger.failure, 10)
        assert other.deals() == []
        await other.submit("o-2", **MARKET)
        assert (await other.ended("o-2")).status is Status.FILLED
        await other.stop()
        await paused.crash()
        await paused.start()
