"""From an order to the request of its next attempt: looks at the symbol and at the target, takes the target, builds.

Nothing here has an effect at the broker or in the ledger; what becomes of the order is the caller's to record.
"""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.broker import Broker, Symbol, TargetView
from gateway.closes import Closes
from gateway.connection import Connection
from gateway.elapsed import elapsed_s
from gateway.requests import NETTING_MODES, Facts, Refusal, build_request
from gateway.symbols import Symbols
from gateway.targets import Aim, InFlight, Pending, Withdraw, aim_of, exclusive_keys
from ledger.order import Order
from ledger.trade import TYPE_SELL, ZERO, Deal, Position, TargetImage, TradeRequest
from ledger.writer import Ledger

TARGET_WAIT_S: Final = 0.25
BUSY_WAIT_S: Final = 1.0  # whoever has the target names the order when it gives it back
_STATES: Final = {2: "cancelled", 4: "filled", 5: "rejected", 6: "expired"}

# Every reason against a request that is about to be sent. Raises TerminalError.
Admit = Callable[[str, TradeRequest, Symbol, TargetImage | None], Awaitable[tuple[str, ...]]]


class Built(NamedTuple):
    """A request ready to be sent, the point of its symbol, and what it acts on as seen at `at` (of elapsed_s)."""

    request: TradeRequest
    point: Decimal
    before: TargetImage | None
    at: float


class NotYet(NamedTuple):
    """Its target cannot be acted on now."""

    look_again_s: float


class Preparer:
    def __init__(
        self,
        ledger: Ledger,
        query: Broker,
        connection: Connection,
        flight: InFlight,
        default_deviation: int,
    ) -> None:
        self._ledger, self._query, self._connection, self._flight = ledger, query, connection, flight
        self.deviation_points = default_deviation
        self.admit: Admit | None = None
        self._symbols = Symbols(query)
        self.closes = Closes(ledger)

    @property
    def netting(self) -> bool:
        """Whether a symbol has one position, which every deal moves."""
        return self._connection.account.margin_mode in NETTING_MODES

    async def opening(self, order: Order) -> Built | Refusal:
        """Raises TerminalError."""
        return await self._built(order, order.symbol, None, None)

    async def on_target(self, order: Order) -> Built | Refusal | Withdraw | NotYet:
        """Takes the target for this order alone, then looks at it. Raises TerminalError."""
        request = order.request
        if request is None:
            return Refusal(("the request could not be read",))
        if request.target_order_id is not None:
            await self._ledger.load([request.target_order_id])
        aim = aim_of(request, self._ledger.order)
        if isinstance(aim, Pending):
            return NotYet(TARGET_WAIT_S)
        if not isinstance(aim, Aim):
            return aim
        if not self._flight.begin(order.order_id, exclusive_keys(aim.target)):
            return NotYet(BUSY_WAIT_S)
        view = await self._query.target(aim.target)
        shown = view.image.order or view.image.position
        if shown is None:
            return _gone(aim, view)
        if self.netting and order.action == "close":
            alone = exclusive_keys(aim.target, shown.symbol, netting=True)
            if not self._flight.begin(order.order_id, alone):
                return NotYet(BUSY_WAIT_S)
            view = await self._query.target(aim.target)  # as it is now that nothing of ours can move it
            position = view.image.position
            if request.target_order_id is not None and position is not None:
                return await self._rest_of(request.target_order_id, order, position, view.deals, view.image)
        return await self._built(order, shown.symbol, view.image, aim.cap)

    async def _rest_of(
        self, named_id: str, order: Order, position: Position, deals: Sequence[Deal], image: TargetImage
    ) -> Built | Refusal:
        """A close of what an order has opened, in a position that is also that of others."""
        await self._ledger.load([named_id])
        named = self._ledger.order(named_id)
        left = await self.closes.left(named, order, deals) if named is not None else ZERO
        sells = named is not None and named.sent is not None and named.sent.type % 2 == TYPE_SELL
        if not left or sells is not (position.type == TYPE_SELL):
            return Refusal((f"order {named_id} is closed already: what is open in {position.symbol} is not its own",))
        return await self._built(order, position.symbol, image, left)

    async def _built(self, order: Order, name: str, image: TargetImage | None, cap: Decimal | None) -> Built | Refusal:
        symbol = await self._symbols.get(name)
        if symbol is None:
            return Refusal((f"symbol {name!r} is not known to the broker",))
        # A new attempt has a fresh price.
        bid, ask = await self._symbols.prices(symbol, fresh=order.attempt > 0)
        facts = Facts(symbol, bid, ask, self.deviation_points, self._connection.account.server_utc_offset_s, image, cap)
        request = build_request(order, order.attempt + 1, facts)
        if isinstance(request, Refusal):
            return request
        seen_at = elapsed_s()
        if self.admit is not None and (reasons := await self.admit(order.order_id, request, symbol, image)):
            return Refusal(reasons)
        return Built(request, symbol.point, image, seen_at)


def _gone(aim: Aim, view: TargetView) -> Refusal:
    target = aim.target
    if target.order_ticket:
        how = _STATES.get(view.history.state, "not working") if view.history is not None else "not working"
        return Refusal((f"order {target.order_ticket} is {how}",))
    closed = "closed already" if view.deals else "not open"
    return Refusal((f"position {target.position_id} is {closed}",))
