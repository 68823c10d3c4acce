"""Every action, from the request to its end, on a real simulated broker."""

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.order import Status
from tests.gateway_desk import Desk, desk_in

D = Decimal


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "d") as running:
        yield running


@pytest.fixture
async def netting(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "n", "--margin-mode", "netting") as running:
        yield running


async def test_a_position_is_closed_in_part_and_then_whole(desk: Desk) -> None:
    opened = await desk.open("o-1", volume=0.3)
    await desk.submit("c-1", action="close", position_id=opened.position_id, volume=0.1)
    assert (await desk.ended("c-1")).filled_volume == D("0.1")
    await desk.submit("c-2", action="close", target_order_id="o-1")
    assert (await desk.ended("c-2")).filled_volume == D("0.2")
    assert desk.window("positions") == []
    assert desk.topics("c-2") == ["requested", "send_started", "broker_answered", "filled"]
    subject, fill = desk.messages("c-2")[-1]
    assert (subject, fill.side, fill.position_id) == ("broker.fill.EURUSD", "sell", opened.position_id)


@pytest.mark.parametrize("action", ["close", "modify"])
@pytest.mark.parametrize("by_order_id", [True, False])
async def test_a_position_with_a_new_ticket_is_found_by_its_identifier_and_by_its_order(
    desk: Desk, action: str, by_order_id: bool
) -> None:
    opened = await desk.open("o-1")
    again = desk.window("reopen", ticket=opened.position_id)
    assert again["ticket"] != opened.position_id == again["identifier"]
    named = {"target_order_id": "o-1"} if by_order_id else {"position_id": opened.position_id}
    await desk.submit("r-1", action=action, **named, **({"sl": 0.9} if action == "modify" else {}))
    assert (await desk.ended("r-1")).status is (Status.FILLED if action == "close" else Status.COMPLETED)
    assert [row["sl"] for row in desk.window("positions")] == ([] if action == "close" else [0.9])


async def test_a_close_asks_for_no_more_than_is_left(desk: Desk) -> None:
    await desk.open("o-1", volume=0.3)
    await desk.submit("c-1", action="close", target_order_id="o-1", volume=5)
    assert (await desk.ended("c-1")).filled_volume == D("0.3")
    await desk.submit("c-2", action="close", target_order_id="o-1")
    assert (await desk.ended("c-2")).status is Status.REFUSED
    assert "closed already" in desk.messages("c-2")[-1][1].description


async def test_a_netting_close_repeated_never_opens_the_other_side(netting: Desk) -> None:
    opened = await netting.open("o-1", volume=0.3)
    for number in range(5):  # all at once: each is the whole position
        await netting.submit(f"c-{number}", action="close", position_id=opened.position_id)
    ended = [await netting.ended(f"c-{number}") for number in range(5)]
    assert sorted(order.status for order in ended) == [Status.FILLED, *[Status.REFUSED] * 4]
    assert netting.window("positions") == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_netting_close_of_an_order_takes_no_more_than_earlier_closes_of_it_have_left(
    netting: Desk, restarted: bool
) -> None:
    await netting.open("o-1", volume=0.3)
    await netting.open("o-2", volume=0.3)
    await netting.submit("c-1", action="close", target_order_id="o-1", volume=0.1)
    await netting.ended("c-1")
    if restarted:
        await netting.restart()
    await netting.submit("c-2", action="close", target_order_id="o-1")
    await netting.submit("c-3", action="close", target_order_id="o-1")
    assert (await netting.ended("c-2")).filled_volume == D("0.2")
    assert (await netting.ended("c-3")).status is Status.REFUSED
    assert "order o-1 is closed already" in netting.messages("c-3")[-1][1].description
    assert [row["volume"] for row in netting.window("positions")] == [0.3]


async def test_a_netting_close_of_an_order_leaves_alone_what_stands_on_the_other_side(netting: Desk) -> None:
    await netting.open("o-1", volume=0.3)
    await netting.open("o-2", order_type="sell", volume=0.5)
    await netting.submit("c-1", action="close", target_order_id="o-1")
    assert (await netting.ended("c-1")).status is Status.REFUSED
    assert [(row["type"], row["volume"]) for row in netting.window("positions")] == [(1, 0.2)]


async def test_a_netting_close_that_a_trade_by_hand_forestalled_is_flagged_where_it_opened_the_other_side(
    netting: Desk,
) -> None:
    opened = await netting.open("o-1", volume=0.3)

    def when_the_intent_is_durable() -> None:
        if netting.topics("c-1")[-1:] == ["send_started"]:
            netting.window("trade", type="sell", symbol="EURUSD", volume=0.2)

    netting.ledger.tail.on_commit(when_the_intent_is_durable)
    await netting.submit("c-1", action="close", position_id=opened.position_id)
    assert (await netting.event("c-1", "order.anomaly_detected")).kind == "fill_entry"
    assert [row["volume"] for row in netting.window("positions")] == [0.2]


async def test_a_netting_close_waits_for_opening_orders_of_its_symbol(netting: Desk) -> None:
    opened = await netting.open("o-1", volume=0.3)
    netting.fault("delay=300ms*1")
    await netting.submit("o-2", symbol="EURUSD", order_type="sell", volume=0.2)
    await netting.until("o-2", Status.SENDING)
    await netting.submit("c-1", action="close", position_id=opened.position_id)
    assert (await netting.ended("c-1")).filled_volume == D("0.1")
    assert netting.window("positions") == []


async def test_stops_of_a_position_are_changed_by_order_id_and_its_order_hears_of_it(desk: Desk) -> None:
    await desk.open("o-1", sl=0.9)
    await desk.submit("m-1", action="modify", target_order_id="o-1", tp=1.5)
    assert (await desk.ended("m-1")).status is Status.COMPLETED
    modified = await desk.event("o-1", "order.modified")
    assert (modified.sl, modified.tp, modified.by) == (D("0.9"), D("1.5"), "m-1")
    [position] = desk.window("positions")
    assert (position["sl"], position["tp"]) == (0.9, 1.5)


async def test_a_working_order_is_changed_and_cancelled_and_hears_by_whom(desk: Desk) -> None:
    placed = await desk.open("o-1", order_type="buy_limit", price=0.9)
    assert placed.status is Status.PLACED
    await desk.submit("m-1", action="modify", target_order_id="o-1", price=0.91, sl=0.8)
    assert (await desk.ended("m-1")).status is Status.COMPLETED
    modified = await desk.event("o-1", "order.modified")
    assert (modified.price, modified.sl, modified.by) == (D("0.91"), D("0.8"), "m-1")
    await desk.submit("x-1", action="cancel", order_ticket=placed.order_ticket)
    assert (await desk.ended("x-1")).status is Status.COMPLETED
    assert (await desk.ended("o-1")).status is Status.CANCELLED
    assert desk.events("o-1")[-1].by == "x-1"


async def test_a_cancel_of_what_was_not_sent_yet_needs_no_broker(desk: Desk) -> None:
    desk.window("market", symbol="EURUSD", changes={"sessions": "never"})
    await desk.submit("o-1", symbol="EURUSD", order_type="buy", volume=0.1)
    await desk.until("o-1", Status.PARKED)
    await desk.submit("x-1", action="cancel", target_order_id="o-1")
    assert (await desk.ended("x-1")).status is Status.COMPLETED
    assert (await desk.ended("o-1")).status is Status.CANCELLED
    assert "send_started" not in desk.topics("x-1")
    assert desk.messages("o-1")[-1][1].status == "CANCELLED"


async def test_two_positions_close_each_other(desk: Desk) -> None:
    one, other = await desk.open("o-1", volume=0.3), await desk.open("o-2", order_type="sell", volume=0.2)
    await desk.submit("b-1", action="close_by", position_id=one.position_id, position_by_id=other.position_id)
    closed = await desk.ended("b-1")
    assert (closed.status, closed.filled_volume, len(closed.deals)) == (Status.FILLED, D("0.4"), 2)
    assert [position["volume"] for position in desk.window("positions")] == [0.1]


@pytest.mark.parametrize(
    ("order_type", "fields"),
    [
        ("buy_limit", {"price": 0.9}),
        ("sell_limit", {"price": 1.3}),
        ("buy_stop", {"price": 1.3}),
        ("sell_stop", {"price": 0.9}),
        ("buy_stop_limit", {"price": 1.3, "stop_limit_price": 1.25}),
        ("sell_stop_limit", {"price": 0.9, "stop_limit_price": 0.95}),
    ],
)
async def test_every_pending_order_is_placed_and_filled_when_its_time_comes(
    desk: Desk, order_type: str, fields: dict[str, float]
) -> None:
    placed = await desk.open("o-1", order_type=order_type, **fields)
    assert desk.messages("o-1")[-1][1].order_type == order_type
    desk.window("fill", ticket=placed.order_ticket)
    assert (await desk.ended("o-1")).status is Status.FILLED


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "close", "position_id": 4711}, "position 4711 is not open"),
        ({"action": "cancel", "order_ticket": 4711}, "order 4711 is not working"),
        ({"action": "cancel", "target_order_id": "nobody"}, "there is no order nobody"),
        ({"action": "modify", "position_id": 4711, "sl": 1}, "position 4711 is not open"),
        ({"action": "close_by", "position_id": 4711, "position_by_id": 4712}, "position 4711 is not open"),
    ],
)
async def test_a_request_without_its_target_is_refused_with_the_reason(
    desk: Desk, fields: dict[str, object], reason: str
) -> None:
    await desk.submit("r-1", **fields)
    assert (await desk.ended("r-1")).status is Status.REFUSED
    assert reason in desk.messages("r-1")[-1][1].description


async def test_a_market_order_of_which_a_close_is_asked_before_it_is_filled_is_closed_then(desk: Desk) -> None:
    desk.fault("delay=300ms*1")
    await desk.submit("o-1", symbol="EURUSD", order_type="buy", volume=0.1)
    await desk.submit("c-1", action="close", target_order_id="o-1")
    assert (await desk.ended("c-1")).status is Status.FILLED
    assert desk.window("positions") == []


async def test_closes_go_before_opening_orders_when_the_terminal_takes_few(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", MAX_REQUESTS_PER_S="4", MAX_ORDER_AGE_S="0") as desk:
        opened = await desk.open("first")
        for number in range(12):
            await desk.submit(f"o-{number}", symbol="EURUSD", order_type="buy", volume=0.01)
        await desk.submit("c-1", action="close", position_id=opened.position_id)
        await desk.ended("c-1")
        assert sum(desk.topics(f"o-{number}")[-1] == "filled" for number in range(12)) < 12
        for number in range(12):
            await desk.ended(f"o-{number}")
        times = sorted(deal["time_msc"] for deal in desk.deals())
        # The broker's clock: whatever second is looked at, no more than four fell into it.
        assert all(later - earlier >= 900 for earlier, later in zip(times, times[4:], strict=False))


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_netting_close_waits_for_what_rests_of_the_close_before_it(netting: Desk, restarted: bool) -> None:
    opened = await netting.open("o-1", volume=0.3)
    thin = {"exemode": "exchange", "return_filling": "on", "book_levels": "1", "book_volume": "0.01"}
    netting.window("market", symbol="EURUSD", changes=thin)
    await netting.submit("c-1", action="close", position_id=opened.position_id, filling="return")
    await netting.until("c-1", Status.PARTIALLY_FILLED)
    if restarted:
        await netting.restart()
    await netting.submit("c-2", action="close", position_id=opened.position_id, filling="return")
    await netting.open("o-2", symbol="GBPUSD")  # by now the close before it would have been sent
    [rest] = netting.window("orders")
    netting.window("fill", ticket=rest["ticket"])
    assert (await netting.ended("c-1")).filled_volume == D("0.3")
    assert (await netting.ended("c-2")).status is Status.REFUSED
    assert [row["symbol"] for row in netting.window("positions")] == ["GBPUSD"]
