"""Answers to `broker.query.*`: asked of the query terminal, fresh, or said to be impossible now."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec.json

from gateway import interface as api
from gateway.broker import Activity, Broker, Target, TerminalError
from gateway.times import iso
from ledger.account_events import TradingHalted
from ledger.errors import LedgerError
from ledger.events import order_stream
from ledger.store import EventStore
from ledger.writer import Ledger

MARGIN_MODES: Final = ("netting", "exchange", "hedging")
# Beyond any server's wall clock: asked from there on, the terminal shows what is open and no history.
_AHEAD: Final = timedelta(hours=15)
_DAY: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T")


class Declined(Exception):
    """A request that is not answered as it wishes: a code of `interface.CODES`, and every reason."""

    def __init__(self, code: str, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.code, self.reasons = code, reasons


class Queries:
    """`max_bytes`: what a message to the requester can hold."""

    def __init__(
        self, ledger: Ledger, store: EventStore, query: Broker, clock: Callable[[], datetime], max_bytes: int
    ) -> None:
        self._ledger, self._store, self._query, self._clock = ledger, store, query, clock
        self._most = max_bytes - 16 * 1024  # room for the rest of the message

    async def answer(self, name: str, payload: bytes) -> api.Answer:
        """Raises Declined."""
        try:
            asked = api.read(payload, api.QUERIES[name][0])
        except ValueError as error:
            raise Declined("400", str(error)) from None
        try:
            return await self._answer(asked)
        except TerminalError as error:
            raise Declined("503", f"not connected: {error}") from None
        except LedgerError as error:
            raise Declined("503", str(error)) from None

    async def _answer(self, asked: api.Asked) -> api.Answer:
        match asked:
            case api.AskAccount():
                return await self._account()
            case api.AskPositions():
                found = _of((await self.open_now()).positions, asked.symbol)
                positions, cut = self._fitting([api.show(one, api.PositionView) for one in found])
                return api.PositionsAnswer(**self._base(), positions=positions, truncated=cut)
            case api.AskOrders():
                return await self._orders(asked)
            case api.AskSymbol():
                return await self._symbol(asked.symbol)
            case api.AskTick():
                return await self._tick(asked.symbol)
            case api.AskHistory(order_id=str() as order_id):
                return await self._events(order_id, asked.limit)
            case api.AskHistory():
                return await self._history(asked)
            case _:
                raise Declined("501", f"{type(asked).__name__} has no answer")

    def _base(self) -> dict[str, Any]:
        return {"account": str(self._ledger.login), "as_of": iso(self._clock())}

    async def open_now(self) -> Activity:
        """Open positions and working orders. Raises TerminalError."""
        return await self._query.activity(_msc(self._clock() + _AHEAD))

    async def _connected(self) -> None:
        """Raises TerminalError unless the terminal is connected to its broker: it shows old values when it is not."""
        await self._query.target(Target())

    async def _account(self) -> api.AccountAnswer:
        await self._connected()
        account = await self._query.account()
        return api.AccountAnswer(
            **self._base(),
            server=account.server,
            currency=account.currency,
            margin_mode=MARGIN_MODES[account.margin_mode],
            balance=account.balance,
            equity=account.equity,
            margin=account.margin,
            margin_free=account.margin_free,
            leverage=account.leverage,
            name=account.name,
            company=account.company,
            server_utc_offset_s=account.server_utc_offset_s,
            halts=halts_of(self._ledger),
        )

    async def _orders(self, asked: api.AskOrders) -> api.OrdersAnswer:
        found = (await self.open_now()).orders
        ours = {order.order_ticket: order.order_id for order in self._ledger.open_orders.values()}
        shown = [
            api.WorkingOrder(order=api.show(one, api.OrderView), order_id=ours.get(one.ticket, ""))
            for one in _of(found, asked.symbol)
        ]
        orders, cut = self._fitting(shown)
        return api.OrdersAnswer(**self._base(), orders=orders, truncated=cut)

    async def _symbol(self, name: str) -> api.SymbolAnswer:
        await self._connected()
        symbol = await self._query.symbol(name)
        if symbol is None:
            raise Declined("404", f"symbol {name!r} is not known to the broker")
        return api.SymbolAnswer(**self._base(), symbol=api.show(symbol, api.SymbolView))

    async def _tick(self, name: str) -> api.TickAnswer:
        await self._connected()
        tick = await self._query.tick(name)
        if tick is None:
            raise Declined("404", f"symbol {name!r} is not known to the broker, or has no price")
        offset_s = (await self._query.account()).server_utc_offset_s
        time = None
        if offset_s is not None and tick.time_msc:
            time = iso(_EPOCH + timedelta(milliseconds=tick.time_msc, seconds=-offset_s))
        return api.TickAnswer(
            **self._base(), symbol=name, bid=tick.bid, ask=tick.ask, time_msc=tick.time_msc, time=time
        )

    async def _events(self, order_id: str, limit: int) -> api.HistoryAnswer:
        records = await asyncio.to_thread(self._store.stream, order_stream(order_id))
        if not records:
            raise Declined("404", f"no order {order_id!r} is in the ledger")
        events = [msgspec.json.decode(one.state) for one in records]
        held, cut = self._fitting(events[-limit:])
        return api.HistoryAnswer(**self._base(), events=held, truncated=cut or len(events) > limit)

    async def _history(self, asked: api.AskHistory) -> api.HistoryAnswer:
        since = asked.since or self._clock() - _DAY
        if since.tzinfo is None:
            raise Declined("400", "since has no time zone")
        offset_s = (await self._query.account()).server_utc_offset_s or 0
        activity = await self._query.activity(max(_msc(since) + offset_s * 1000, 0))
        found_deals = [api.show(one, api.DealView) for one in _of(activity.deals, asked.symbol)]
        found_orders = [api.show(one, api.OrderView) for one in _of(activity.history, asked.symbol)]
        deals, cut = self._fitting(found_deals[-asked.limit :], share=2)
        orders, also_cut = self._fitting(found_orders[-asked.limit :], share=2)
        left_out = len(deals) < len(found_deals) or len(orders) < len(found_orders)
        return api.HistoryAnswer(**self._base(), deals=deals, orders=orders, truncated=cut or also_cut or left_out)

    def _fitting(self, found: Sequence[T], share: int = 1) -> tuple[tuple[T, ...], bool]:
        """The newest of them that a message holds, and whether some were left out."""
        left = self._most // share
        for held, one in enumerate(reversed(found)):
            left -= len(api.encode(one)) + 1
            if left < 0:
                return tuple(found[len(found) - held :]), True
        return tuple(found), False


def halts_of(ledger: Ledger) -> tuple[api.HaltView, ...]:
    return tuple(_halt_view(halt) for halt in ledger.account.halts)


def _halt_view(halt: TradingHalted) -> api.HaltView:
    return api.HaltView(
        source=halt.source,
        reason=halt.reason,
        by=halt.by,
        cancel_orders=halt.cancel_orders,
        until=iso(halt.until) if halt.until is not None else None,
    )


def _msc(when: datetime) -> int:
    return round((when - _EPOCH) / timedelta(milliseconds=1))


def _of(found: Sequence[T], symbol: str | None) -> list[T]:
    return [one for one in found if symbol is None or getattr(one, "symbol", "") == symbol]
