"""An operator closes everything: what is open, what works at the broker, and what was not sent yet."""

from typing import Any

import orjson

from gateway.control import Control
from gateway.errands import Errands
from gateway.halts import Halts
from gateway.interface import ControlAnswer
from ledger.order import Status
from tests.gateway_desk import Desk, desk_in

LONG = "o" * 64


async def close_all(desk: Desk, **fields: Any) -> ControlAnswer:
    errands = Errands(desk.ledger, desk.submitter, desk.clock)
    control = Control(
        desk.ledger,
        Halts(desk.ledger, errands, desk.settings),
        desk.clock,
        errands=errands,
        open_now=lambda: desk.query.activity(1),
    )
    word = {"by": "ann", "reason": "evening", "request_id": "r" * 24} | fields
    return await control.call("close_all", orjson.dumps(word), "test")


async def parked(desk: Desk, order_id: str, symbol: str = "GBPUSD") -> None:
    """An opening order that waits for its market."""
    desk.window("market", symbol=symbol, changes={"sessions": "never"})
    await desk.submit(order_id, symbol=symbol, order_type="buy", volume=0.1)
    await desk.until(order_id, Status.PARKED)


async def test_with_the_working_orders_those_are_cancelled_that_were_not_sent_yet(tmp_path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        await desk.open("o-1")
        await desk.open("o-2", order_type="buy_limit", price=0.9)
        await parked(desk, LONG)
        told = await close_all(desk, cancel_orders=True)
        assert told.description == "1 closes and 2 cancels given"
        assert all(not one.reasons for one in told.orders)
        for order_id, status in (("o-2", Status.CANCELLED), (LONG, Status.CANCELLED)):
            assert (await desk.ended(order_id)).status is status
        for one in told.orders:
            assert (await desk.ended(one.order_id)).status in (Status.FILLED, Status.COMPLETED)
        again = await close_all(desk, cancel_orders=True)
        assert again.description == "0 closes and 0 cancels given"
        assert desk.window("positions") == []


async def test_those_of_another_symbol_wait_on(tmp_path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        await parked(desk, "o-1")
        told = await close_all(desk, symbol="EURUSD", cancel_orders=True)
        assert (told.description, told.orders) == ("0 closes and 0 cancels given", ())
        assert desk.stored("o-1").status is Status.PARKED


async def test_an_operator_who_cancels_none_is_told_how_many_may_still_open(tmp_path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        await parked(desk, "o-1")
        told = await close_all(desk)
        wanted = "0 closes and 0 cancels given; 1 orders are not sent yet and may still open: halt, or cancel_orders"
        assert told.description == wanted
        assert desk.stored("o-1").status is Status.PARKED
