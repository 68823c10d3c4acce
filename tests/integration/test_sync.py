"""What changes at the broker becomes events: fills and ends of working orders, closes by the server, deals by hand."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.deals import Followed, Seen
from gateway.simulated.link import stop_broker
from ledger.account_events import DealsFollowed, ExternalDealObserved
from ledger.commands import ResolveOutcome
from ledger.order import Status
from tests.gateway_desk import CLIENT, Desk, desk_in
from tests.history import History

D = Decimal


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "d") as running:
        yield running


async def external(desk: Desk, count: int = 1) -> list[ExternalDealObserved]:
    """The deals on the account's stream, once there are so many."""

    def found() -> list[ExternalDealObserved] | None:
        seen = [event for event in desk.events("") if isinstance(event, ExternalDealObserved)]
        return seen if len(seen) >= count else None

    return await desk.when(found, 15.0, lambda: str(desk.topics("")))


async def test_a_working_order_is_filled_in_parts(desk: Desk) -> None:
    placed = await desk.open("o-1", order_type="buy_limit", price=0.9, volume=0.3)
    desk.window("fill", ticket=placed.order_ticket, volume=0.1)
    await desk.until("o-1", Status.PARTIALLY_FILLED)
    desk.window("fill", ticket=placed.order_ticket)
    filled = await desk.ended("o-1")
    assert (filled.status, filled.filled_volume, len(filled.deals)) == (Status.FILLED, D("0.3"), 2)
    assert [message.remaining_volume for subject, message in desk.messages("o-1") if "fill" in subject] == [
        D("0.2"),
        D(0),
    ]


async def test_an_order_whose_rest_is_cancelled_by_hand_ends_with_what_was_filled(desk: Desk) -> None:
    placed = await desk.open("o-1", order_type="buy_limit", price=0.9, volume=0.3)
    desk.window("fill", ticket=placed.order_ticket, volume=0.1)
    desk.window("close", ticket=placed.order_ticket)
    ended = await desk.ended("o-1")
    assert (ended.status, ended.filled_volume) == (Status.CANCELLED, D("0.1"))
    assert (desk.events("o-1")[-1].by, desk.events("o-1")[-1].remaining_volume) == ("", D("0.2"))


async def test_an_order_expires_at_the_broker(desk: Desk) -> None:
    await desk.open("o-1", order_type="buy_limit", price=0.9, time_in_force="day")
    desk.window("clock", shift="24h")
    assert (await desk.ended("o-1")).status is Status.EXPIRED


async def test_a_price_changed_by_hand_is_told_without_a_name(desk: Desk) -> None:
    await desk.open("o-1", order_type="buy_stop_limit", price=1.3, stop_limit_price=1.25)
    desk.window("price", symbol="EURUSD", bid=1.3)
    modified = await desk.event("o-1", "order.modified")
    assert (modified.price, modified.by) == (D("1.25"), "")


@pytest.mark.parametrize(("stop", "moved", "reason"), [("sl", -600, "stop loss"), ("tp", 600, "take profit")])
async def test_a_close_by_the_server_is_told_with_its_reason_and_the_order_that_opened(
    desk: Desk, stop: str, moved: int, reason: str
) -> None:
    price = desk.price()
    level = round(price + (-0.005 if stop == "sl" else 0.005), 5)
    opened = await desk.open("o-1", **{stop: level})
    desk.window("price", symbol="EURUSD", points=moved)
    [closed] = await external(desk)
    assert (closed.note, closed.order_id, closed.deal.position_id) == (reason, "o-1", opened.position_id)
    assert desk.ledger.order("o-1").filled_volume == D("0.1")  # type: ignore[union-attr]


async def test_a_stop_out_is_told_as_one(desk: Desk) -> None:
    await desk.open("o-1", volume=20)
    desk.window("transfer", amount=-9_990_000)
    desk.window("price", symbol="EURUSD", points=-900)
    seen = await external(desk, 2)
    assert [(one.note, one.order_id) for one in seen if one.deal.symbol] == [("stop out", "o-1")]


async def test_trades_by_hand_are_external_deals_and_none_of_ours(desk: Desk) -> None:
    opened = await desk.open("o-1")
    desk.window("trade", type="sell", symbol="EURUSD", volume=0.2)
    desk.window("close", ticket=opened.position_id)
    seen = await external(desk, 2)
    assert [(one.deal.magic, one.order_id) for one in seen] == [(0, ""), (0, "o-1")]


async def test_a_fill_known_first_from_the_result_and_then_as_two_deals_is_corrected(desk: Desk) -> None:
    desk.window("market", symbol="ACME.US", changes={"sessions": "always", "book_levels": "2", "book_volume": "4"})
    desk.fault("history_deals_get:lag=700ms*40")
    await desk.submit("o-1", symbol="ACME.US", order_type="buy", volume=8)
    provisional = await desk.event("o-1", "order.filled")
    assert (provisional.provisional, provisional.volume, provisional.commission) == (True, D(8), D(0))
    await desk.event("o-1", "order.fill_corrected")
    order = await desk.until("o-1", Status.FILLED)
    # At one level of the book there are 4 to 7, so 8 take two.
    assert (len(order.deals), sum(deal.volume for deal in order.deals), order.filled_volume) == (2, 8, 8)
    assert not any(deal.provisional for deal in order.deals)
    assert all(deal.commission for deal in order.deals)
    fills = [message.deal for subject, message in desk.messages("o-1") if subject.startswith("broker.fill")]
    assert len(fills) == len(set(fills)) == 2


async def test_what_is_awaited_after_an_answer_is_looked_for_at_once_however_long_the_interval_is(
    tmp_path: Path,
) -> None:
    async with desk_in(tmp_path / "d", POLL_INTERVAL_S="3600") as desk:
        desk.fault("history_deals_get:lag=150ms*20")
        assert (await desk.open("o-1")).deals[0].provisional
        await desk.event("o-1", "order.fill_corrected")
        await desk.open("o-2", order_type="buy_limit", price=0.9)
        desk.window("close", ticket=desk.ledger.order("o-2").order_ticket)  # type: ignore[union-attr]
        await desk.submit("m-1", action="modify", target_order_id="o-1", sl=0.9)
        assert (await desk.ended("o-2")).status is Status.CANCELLED


async def test_costs_that_are_booked_later_are_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.open("o-1")
    ask = desk.query.activity

    async def with_swap(since_msc: int, **what: bool) -> Any:
        """As a broker does that books costs after the deal."""
        seen = await ask(since_msc, **what)
        deals = tuple(msgspec.structs.replace(deal, swap=D("-1.5")) if deal.symbol else deal for deal in seen.deals)
        return msgspec.structs.replace(seen, deals=deals)

    monkeypatch.setattr(desk.query, "activity", with_swap)
    changed = await desk.event("o-1", "order.fill_costs_changed")
    assert changed.swap == D("-1.5")


async def test_what_happens_while_the_gateway_is_away_is_told_once_when_it_is_back(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        placed = await desk.open("o-1", order_type="buy_limit", price=0.9)
        gone = await desk.open("o-2", order_type="sell_limit", price=1.3)
        opened = await desk.open("o-3")
        await desk.stop()
        desk.window("fill", ticket=placed.order_ticket)
        desk.window("close", ticket=gone.order_ticket)
        desk.window("close", ticket=opened.position_id)
        await desk.start()
        assert (await desk.ended("o-1")).status is Status.FILLED
        assert (await desk.ended("o-2")).status is Status.CANCELLED
        [closed] = await external(desk)
        assert closed.order_id == "o-3"
        for _ in range(2):  # nor is anything told again
            await desk.restart()
            await desk.open(f"after-{desk.ledger.epoch}")
        assert len(await external(desk)) == 1
        assert desk.topics("o-1").count("filled") == 1


async def test_a_deal_of_an_order_that_is_long_forgotten_finds_its_order(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        desk.fault("late=1500ms*1")  # taken, and dealt only later
        await desk.submit("o-1", symbol="EURUSD", order_type="buy", volume=0.1)
        await desk.until("o-1", Status.UNKNOWN)
        desk.ledger.execute("o-1", ResolveOutcome(resolution="absent", reason="it cannot be there"), CLIENT)
        await desk.restart()
        assert desk.ledger.order("o-1") is None
        late = await desk.event("o-1", "order.filled")
        assert late.volume == D("0.1")
        assert "late_fill" in [event.kind for event in desk.events("o-1") if event.topic().endswith("detected")]


async def test_trades_by_hand_are_told_once_across_a_restart_however_many_there_were(desk: Desk) -> None:
    desk.window("trade", type="buy", symbol="EURUSD", volume=0.2)
    [traded] = await external(desk)
    async with desk.sync.lock:
        await desk.sync._poll()  # from here on it is looked back for seconds only
        followed = desk.sync._followed
        followed.seen |= dict.fromkeys(range(1, 1_200), Seen(traded.deal.time_msc, "", None))
        followed.through_msc = traded.deal.time_msc + 10_000
        await desk.sync._poll()
        assert traded.deal.ticket in followed.seen
    await desk.restart()
    await desk.open("o-1")
    assert len(await external(desk)) == 1


async def test_a_trade_by_hand_is_told_once_when_it_is_looked_back_further_than_is_known(desk: Desk) -> None:
    desk.window("trade", type="buy", symbol="EURUSD", volume=0.2)
    [traded] = await external(desk)
    async with desk.sync.lock:
        followed = desk.sync._followed
        followed.seen.clear()  # it was long ago
        followed.known_from_msc = traded.deal.time_msc + 1
        followed.provisional[1] = traded.deal.time_msc - 1_000  # and something older is still awaited
        await desk.sync._poll()
    assert len(await external(desk)) == 1


async def test_a_fill_that_a_result_told_of_says_nothing_of_the_deals_before_it(desk: Desk) -> None:
    """A gateway that is killed again and again before its first look must not pass by what happened meanwhile."""
    async with desk.sync.lock:
        began_msc = (await desk.event("", DealsFollowed.topic())).through_msc
        await desk.open("o-1")
        followed = Followed.read(desk.store, desk.ledger.login, 0)
    assert followed.seen
    assert followed.through_msc == began_msc


async def test_a_ledger_created_by_a_clock_that_was_ahead_misses_no_deal_once_that_is_set_right(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "d")
    try:
        desk.ahead = timedelta(hours=7)
        await desk.start()
        desk.ahead = timedelta()
        await desk.restart()
        placed = await desk.open("o-1", order_type="buy_limit", price=0.9)
        desk.window("fill", ticket=placed.order_ticket)
        assert (await desk.ended("o-1")).status is Status.FILLED
        created = desk.store.at(1)
        assert created is not None
        followed = Followed()
        followed.through_msc = 1_000  # what was followed before is known by the broker's own clock
        followed.begin(created, 0, 10**15)
        assert (followed.created_msc, followed.through_msc) == (1_000, 1_000)
        await desk.stop()
    finally:
        for terminal in (desk.trade, desk.query):
            await terminal.close()
        stop_broker(tmp_path / "d" / "broker")


async def test_where_deals_are_followed_from_is_kept_from_the_first_start_on(tmp_path: Path) -> None:
    """Our clock was an hour ahead of the world, and so of the server's zone too little was seen. Then it was set right
    while the gateway was down, and an hour passed before it came back: what was dealt meanwhile is not before it."""
    desk = Desk(tmp_path / "d")
    try:
        await desk.start()
        desk.window("clock", shift="-1h")
        await desk.stop()
        for file in desk.folder.glob("ledger.db*"):
            file.unlink()
        await desk.start()
        assert desk.connection.account.server_utc_offset_s == 3600
        await desk.stop()
        desk.window("trade", type="buy", symbol="EURUSD", volume=0.1)
        desk.window("clock", shift="0")
        await desk.start()
        seen = await external(desk, 2)
        assert [one.deal.symbol for one in seen] == ["", "EURUSD"]  # the broker's deposit, by its clock of then
        await desk.stop()
    finally:
        for terminal in (desk.trade, desk.query):
            await terminal.close()
        stop_broker(tmp_path / "d" / "broker")


def test_what_was_followed_by_a_clock_far_ahead_is_looked_at_again_for_a_day() -> None:
    created = History().records[0]
    followed = Followed()
    followed.begin(created, 0, 10**15)
    ahead = followed.through_msc
    again = Followed()
    again.through_msc = again.known_from_msc = ahead
    now_msc = ahead - 10 * 86_400_000
    again.begin(created, 0, now_msc)
    assert {again.created_msc, again.through_msc, again.known_from_msc} == {now_msc - 86_400_000}


async def test_deals_of_the_hour_that_comes_twice_when_summer_time_ends_are_not_missed(desk: Desk) -> None:
    desk.window("trade", type="buy", symbol="EURUSD", volume=0.1)
    await external(desk)
    desk.sync._followed.through_msc += 3_600_000  # as it was by the server's clock until it went back
    desk.window("trade", type="buy", symbol="EURUSD", volume=0.2)
    desk.sync.poke()
    found = await external(desk, 2)
    await desk.sync._poll()
    assert (
        [deal.deal.volume for deal in await external(desk, 2)]
        == [D("0.1"), D("0.2")]
        == [one.deal.volume for one in found]
    )


def test_deals_that_are_not_ours_are_known_an_hour_longer_than_ours() -> None:
    followed = Followed()
    for number in range(1_100):
        followed.seen[number] = Seen(number, "o-1" if number % 2 else "", None)
    followed.forget_before(1_000, 500)
    assert sorted(followed.seen) == [one for one in range(500, 1_100) if one >= 1_000 or not one % 2]
    assert followed.known_from_msc == 500
