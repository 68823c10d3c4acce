"""Orders that the gateway gives itself: closes and cancels, as ordinary requests under order ids of their own.

They go the way of every order: recorded, refused or sent, answered on NATS, followed to their end. The same errand
has the same order id, so that giving it twice does nothing twice.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from gateway.submit import Submitter
from ledger.commands import ReceiveOrder
from ledger.intake import Received, read_order
from ledger.order import WORKING, Order, Status
from ledger.writer import Cause, Ledger

_encode = msgspec.json.Encoder(order="deterministic").encode


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """An order given: what became of it at once. `known`: it had been given before."""

    order_id: str
    status: str
    known: bool = False
    reasons: tuple[str, ...] = ()


class Errands:
    def __init__(self, ledger: Ledger, submitter: Submitter, clock: Callable[[], datetime]) -> None:
        self._ledger, self._submitter, self._clock = ledger, submitter, clock

    async def give(
        self, messages: Iterable[Mapping[str, Any]], cause: Cause, *, life_s: float | None = None
    ) -> list[Errand]:
        """Records the orders and hands them on; returns when all of them are durable. `life_s`: how long they may be
        tried, where that is shorter than for others."""
        account = str(self._ledger.login)
        common: dict[str, Any] = {"account": account}
        if life_s is not None:
            common["valid_until"] = self._clock() + timedelta(seconds=life_s)
        received = [read_order(_encode({**one, **common}), account) for one in messages]
        await self._ledger.load([one.order_id for one in received if one.order_id is not None])
        durable: list[asyncio.Future[Any]] = []
        given = [self._give(one, cause, durable) for one in received]
        for future in durable:
            await future
        return given

    def _give(self, received: Received, cause: Cause, durable: "list[asyncio.Future[Any]]") -> Errand:
        order_id = received.order_id
        assert order_id is not None, received.reasons
        known = self._ledger.order(order_id)
        if known is not None and known.status is not Status.NEW:
            return Errand(order_id=order_id, status=known.status.value, known=True)
        executed = self._ledger.execute(order_id, ReceiveOrder(received=received, age_from=self._clock()), cause)
        durable.append(executed.durable)
        if executed.order.is_open:
            self._submitter.take(order_id, cause)
        return Errand(order_id=order_id, status=executed.order.status.value, reasons=received.reasons)

    def working(self) -> list[Order]:
        """Our orders that the broker holds."""
        return [order for order in self._ledger.open_orders.values() if order.status in WORKING]


def close_position(order_id: str, position_id: int, symbol: str) -> dict[str, Any]:
    return {"order_id": order_id, "action": "close", "position_id": position_id, "symbol": symbol}


def cancel_order(order_id: str, order_ticket: int, symbol: str) -> dict[str, Any]:
    return {"order_id": order_id, "action": "cancel", "order_ticket": order_ticket, "symbol": symbol}


def withdraw_order(order_id: str, target_order_id: str, symbol: str) -> dict[str, Any]:
    """A cancel of an order of ours wherever it is: where it was not sent yet, it will not be."""
    return {"order_id": order_id, "action": "cancel", "target_order_id": target_order_id, "symbol": symbol}
