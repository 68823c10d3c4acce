"""Each class of difference as it is made at the terminal's window or by the broker's staff, on a desk that agrees."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from ledger.commands import ResolveOutcome
from ledger.order import Status
from ledger.reconcile import ALERT, CLASSES
from ledger.writer import Cause
from tests.gateway_desk import Desk

Make = Callable[[Desk, str], Awaitable[Any]]


class Case(NamedTuple):
    """`make` is given the desk and an unused order id. It readies what both sides agree on, and returns what then
    makes the difference. `records`: topics of the facts that set it right; empty: it is only alerted of."""

    kind: str
    mode: str
    records: tuple[str, ...]
    make: Make

    @property
    def policy(self) -> str:
        return CLASSES[self.kind][0] if self.records else ALERT

    def __repr__(self) -> str:
        return f"{self.kind}-{self.make.__name__}"


async def agrees(desk: Desk, told: str = "") -> None:
    """Our positions are the broker's: tickets, sides, volumes, stops, and prices to a point."""
    view = desk.reconciler._view
    await view.catch_up()
    held = view.positions.items()
    ours = {key: (view.tickets.get(key, key), one.side, one.volume, one.sl, one.tp) for key, one in held}
    shown = {row["identifier"]: row for row in desk.window("positions")}
    assert ours == {
        key: (row["ticket"], SIDES[row["type"]], *(Decimal(str(row[name])) for name in ("volume", "sl", "tp")))
        for key, row in shown.items()
    }, told
    for key, one in held:
        assert float(one.entry_price) == pytest.approx(shown[key]["price_open"], rel=2e-5), told


CASES: list[Case] = []
DEAL, POSITION = "account.external_deal_observed", "account.position_corrected"
SIDES = ("long", "short")
BY_HAND = {"type": "buy", "symbol": "EURUSD", "volume": 0.2}
LIMIT = {"order_type": "buy_limit", "price": 0.9}


def case(kind: str, *records: str, mode: str = "hedging") -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CASES.append(Case(kind, mode, records, make))
        return make

    return add


@case("missing_at_broker", DEAL)
async def closed_by_hand(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("close", ticket=opened.position_id)


@case("unknown_at_broker", DEAL)
async def opened_by_hand(desk: Desk, name: str) -> Any:
    return lambda: desk.window("trade", **BY_HAND)


@case("unknown_at_broker", DEAL)
async def opened_by_another_program(desk: Desk, name: str) -> Any:
    return lambda: desk.window("trade", **BY_HAND, magic=777)


@case("volume", DEAL)
async def closed_in_part_by_hand(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("close", ticket=opened.position_id, volume=0.04)


@case("volume", DEAL, mode="netting")
async def added_to_by_hand(desk: Desk, name: str) -> Any:
    await desk.open(name)
    return lambda: desk.window("trade", **BY_HAND)


@case("volume", POSITION)
async def volume_amended_by_staff(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("amend", ticket=opened.position_id, volume=0.07)


@case("side", POSITION)
async def side_amended_by_staff(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("amend", ticket=opened.position_id, side="sell")


@case("stops", "order.modified")
async def stops_given_by_hand(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("modify", ticket=opened.position_id, sl=0.9, tp=1.4)


@case("stops", POSITION)
async def stops_of_a_foreign_position_given_by_hand(desk: Desk, name: str) -> Any:
    ticket = desk.window("trade", **BY_HAND)["order"]
    return lambda: desk.window("modify", ticket=ticket, sl=0.8)


@case("stops", "order.modified")
async def stops_of_a_working_order_given_by_hand(desk: Desk, name: str) -> Any:
    placed = await desk.open(name, **LIMIT)
    return lambda: desk.window("modify", ticket=placed.order_ticket, sl=0.8)


@case("price", POSITION)
async def price_amended_by_staff(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("amend", ticket=opened.position_id, price=1.05)


@case("price", "order.modified")
async def price_of_a_working_order_moved_by_hand(desk: Desk, name: str) -> Any:
    placed = await desk.open(name, **LIMIT)
    return lambda: desk.window("modify", ticket=placed.order_ticket, price=0.91)


@case("cost", "order.fill_costs_changed")
async def commission_and_swap_booked_later(desk: Desk, name: str) -> Any:
    await desk.open(name)
    deal = desk.deals()[-1]["ticket"]
    return lambda: desk.window("book", deal=deal, commission=-2.5, swap=-1.25)


@case("cost")
async def costs_of_a_foreign_deal_booked_later(desk: Desk, name: str) -> Any:
    deal = desk.window("trade", **BY_HAND)["deal"]
    return lambda: desk.window("book", deal=deal, swap=-1.25)


@case("order_missing", "order.cancelled")
async def working_order_deleted_by_hand(desk: Desk, name: str) -> Any:
    placed = await desk.open(name, **LIMIT)
    return lambda: desk.window("close", ticket=placed.order_ticket)


@case("order_unknown")
async def placed_by_hand(desk: Desk, name: str) -> Any:
    return lambda: desk.window("trade", **BY_HAND | {"type": "buy-limit", "price": 0.9})


@case("order_unknown", "order.anomaly_detected", "order.placed")
async def ours_that_an_operator_took_for_absent(desk: Desk, name: str) -> Any:
    desk.fault("order_send:lost*1; orders_get:error=-1")  # nor can it be looked for
    await desk.submit(name, symbol="EURUSD", volume=0.1, **LIMIT)
    await desk.until(name, Status.UNKNOWN)
    absent = ResolveOutcome(resolution="absent", reason="not to be seen")
    await desk.ledger.execute(name, absent, Cause(actor="operator")).durable
    return lambda: desk.window("fault", clear=True)


@case("fill_missing", "order.filled")
async def working_order_filled(desk: Desk, name: str) -> Any:
    placed = await desk.open(name, **LIMIT)
    return lambda: desk.window("fill", ticket=placed.order_ticket)


@case("fill_missing", DEAL, DEAL)
async def bought_and_sold_again_by_hand(desk: Desk, name: str) -> Any:
    return lambda: desk.window("close", ticket=desk.window("trade", **BY_HAND)["order"])


@case("fill_missing", DEAL)
async def money_put_in(desk: Desk, name: str) -> Any:
    return lambda: desk.window("transfer", amount=250.0)


@case("netting_reversal", DEAL, POSITION, mode="netting")
async def turned_around_by_hand(desk: Desk, name: str) -> Any:
    for row in desk.window("positions"):
        desk.window("close", ticket=row["ticket"])
    await desk.open(name)
    return lambda: desk.window("trade", **BY_HAND | {"type": "sell", "volume": 0.3})


@case("ticket_changed", DEAL, DEAL, POSITION)
async def reopened_over_night(desk: Desk, name: str) -> Any:
    opened = await desk.open(name)
    return lambda: desk.window("reopen", ticket=opened.position_id)
