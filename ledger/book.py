"""PURE: the ledger's events → what became of orders, their fills and the positions, event by event.

`Book` is the fold behind everything that is told of orders and positions outside the writer: the tables of the
projections, and positions as of an instant. It keeps what was touched last, within bounds. What it has forgotten (or
not seen, after a restart) is asked for before a batch by `missing_orders` and `missing_positions` and given back by
`learn_order` and `learn_position`; the same events then lead to the same states wherever the fold began.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from ledger.account_events import ExternalDealObserved, PositionCorrected, SnapshotTaken
from ledger.events import Envelope, Recorded
from ledger.order_events import (
    FillCorrected,
    FillCostsChanged,
    OrderFilled,
    OrderModified,
    OrderPartiallyFilled,
    RequestCompleted,
    SendStarted,
)
from ledger.positions import (
    ENTRY_IN,
    LONG,
    SHORT,
    Dealt,
    Position,
    amount,
    corrected,
    costs_changed,
    dealt,
    marked,
    with_stops,
)
from ledger.trace import Effect, FillTrace, OrderTrace, follow
from ledger.trade import TYPE_BUY, TYPE_SELL, ZERO

ORDERS_KEPT: Final = 10_000
POSITIONS_KEPT: Final = 20_000
_ORDER: Final = "order/"
_OF_FILLS: Final = frozenset({OrderPartiallyFilled, OrderFilled, FillCorrected, FillCostsChanged})
# Events that may touch a position; most do not, and the type alone tells.
_TOUCHING: Final = _OF_FILLS | {
    SendStarted, OrderModified, RequestCompleted, ExternalDealObserved, PositionCorrected, SnapshotTaken,
}  # fmt: skip
K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """What was used last: at least `limit` entries, at most twice as many and what one batch adds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self._young[key] = found
        return found

    def put(self, key: K, value: V) -> None:
        self._young[key] = value

    def trim(self) -> None:
        if len(self._young) > self._limit:
            self._old, self._young = self._young, {}

    def values(self) -> list[V]:
        return list(({**self._old, **self._young}).values())


class PositionVersion(NamedTuple):
    """A position after an event changed it."""

    recorded: Recorded
    envelope: Envelope
    position: Position


class Changes:
    """What a batch of events touched. An order or a fill stands here once, as the batch leaves it."""

    def __init__(self) -> None:
        self.orders: dict[str, OrderTrace] = {}
        self.fills: dict[tuple[str, int], FillTrace] = {}
        self.positions: list[PositionVersion] = []


class Book:
    """See the module. `seq` is that of the last event taken."""

    def __init__(self, orders_kept: int = ORDERS_KEPT, positions_kept: int = POSITIONS_KEPT) -> None:
        self.seq = 0
        self._orders: Recent[str, OrderTrace] = Recent(orders_kept)
        self._positions: Recent[int, Position] = Recent(positions_kept)

    @property
    def positions(self) -> list[Position]:
        """Those that are kept."""
        return self._positions.values()

    def trim(self) -> None:
        """Forgets what was not used lately; to be called between batches only."""
        self._orders.trim()
        self._positions.trim()

    def missing_orders(self, records: Iterable[Recorded]) -> dict[str, int]:
        """Orders whose earlier events must be learnt before these: order id → the version the records begin with."""
        wanted: dict[str, int] = {}
        begun: set[str] = set()
        for one in records:
            if one.stream.startswith(_ORDER):
                order_id = one.stream[6:]
                if order_id not in begun and self._orders.get(order_id) is None:
                    begun.add(order_id)
                    if one.version > 1:
                        wanted[order_id] = one.version
        return wanted

    def learn_order(self, order_id: str, events: Iterable[tuple[Recorded, Envelope]]) -> None:
        """An order as its events, the first ones of its stream, left it."""
        trace = OrderTrace(order_id)
        for recorded, envelope in events:
            follow(trace, recorded, envelope)
        self._orders.put(order_id, trace)

    def missing_positions(self, batch: Iterable[tuple[Recorded, Envelope]]) -> set[int]:
        """Identifiers of positions these events may touch that the book does not hold. Orders must be known."""
        wanted: set[int] = set()
        for recorded, envelope in batch:
            event: Any = envelope.data
            kind = type(event)
            if kind not in _TOUCHING:
                continue
            if kind is SendStarted:
                wanted.add(event.request.position)
            elif kind in _OF_FILLS:
                if kind is not FillCostsChanged and (
                    event.position_id != event.order_ticket or event.entry != ENTRY_IN
                ):
                    wanted.add(event.position_id)
                trace = self._orders.get(recorded.stream[6:])
                if trace is not None:
                    if kind is not FillCostsChanged:
                        wanted.add(trace.target)
                    wanted.update([fill.position_id for fill in trace.fills.values()])
            elif kind is OrderModified or kind is RequestCompleted:
                wanted.add(event.position_id)
            elif kind is ExternalDealObserved:
                wanted.add(event.deal.position_id or event.deal.order)
            elif kind is PositionCorrected:
                wanted.add(event.position.identifier)
            else:
                wanted.update(one.identifier or one.ticket for one in event.positions)
        return {one for one in wanted if one and self._positions.get(one) is None}

    def learn_position(self, position: Position) -> None:
        self._positions.put(position.position_id, position)

    def take(self, batch: Sequence[tuple[Recorded, Envelope]]) -> Changes:
        """Folds the events of a batch, whose orders and positions are known."""
        changes = Changes()
        orders, touched, fills = self._orders, changes.orders, changes.fills
        for recorded, envelope in batch:
            stream = recorded.stream
            if stream.startswith(_ORDER):
                order_id = stream[6:]
                trace = touched.get(order_id)
                if trace is None:
                    trace = orders.get(order_id)
                    if trace is None:
                        trace = OrderTrace(order_id)
                        orders.put(order_id, trace)
                    touched[order_id] = trace
                effect = follow(trace, recorded, envelope)
                if effect is not None:
                    if effect.fill is not None:
                        fills[order_id, effect.fill.version] = effect.fill
                    self._apply(effect, recorded, envelope, changes)
            else:
                self._of_account(recorded, envelope, changes)
        if batch:
            self.seq = batch[-1][0].seq
        return changes

    def _apply(self, effect: Effect, recorded: Recorded, envelope: Envelope, changes: Changes) -> None:
        """What a fill, its correction, or new stops do to positions."""
        old, new = effect.old, effect.new
        if effect.stops is not None:
            sl, tp = effect.stops
            position = self._positions.get(effect.position_id)
            if position is not None and position.is_open and (position.sl, position.tp) != (sl, tp):
                self._put(with_stops(position, sl, tp), recorded, envelope, changes)
            return
        if old is not None and (new is None or new.position_id != old.position_id):
            before = self._positions.get(old.position_id) if old.position_id else None
            if before is not None:
                self._put(corrected(before, old, None), recorded, envelope, changes)
            old = None
        if new is None or not new.position_id:
            return
        before = None if effect.begins else self._positions.get(new.position_id)
        if old is None:
            after = dealt(before, new)
        elif before is None:
            return  # its first deal is unknown: nothing that could be corrected
        else:
            after = costs_changed(before, old, new) if effect.costs_only else corrected(before, old, new)
        self._put(after, recorded, envelope, changes)

    def _of_account(self, recorded: Recorded, envelope: Envelope, changes: Changes) -> None:
        event = envelope.data
        if isinstance(event, ExternalDealObserved):
            deal = external(event, envelope.recorded_at)
            if deal is not None and deal.position_id:
                self._put(dealt(self._positions.get(deal.position_id), deal), recorded, envelope, changes)
        elif isinstance(event, PositionCorrected):
            known = self._positions.get(event.position.identifier)
            after = as_shown(known, event, envelope.recorded_at)
            if after != known:
                self._put(after, recorded, envelope, changes)
        elif isinstance(event, SnapshotTaken):
            for shown in event.positions:
                position = self._positions.get(shown.identifier or shown.ticket)
                if position is not None and position.is_open:
                    after = marked(with_stops(position, shown.sl, shown.tp), shown.price_current, shown.profit)
                    if after != position:
                        self._put(after, recorded, envelope, changes)

    def _put(self, position: Position, recorded: Recorded, envelope: Envelope, changes: Changes) -> None:
        self._positions.put(position.position_id, position)
        changes.positions.append(PositionVersion(recorded, envelope, position))


def external(event: ExternalDealObserved, recorded_at: datetime) -> Dealt | None:
    """A deal that is none of ours; None for one that moves money only (deposits, corrections, dividends)."""
    deal = event.deal
    if deal.type not in (TYPE_BUY, TYPE_SELL) or not deal.symbol:
        return None
    return Dealt(
        ticket=deal.ticket,
        position_id=deal.position_id or deal.order,
        symbol=deal.symbol,
        buy=deal.type == TYPE_BUY,
        volume=deal.volume,
        price=deal.price,
        at=event.broker_time or recorded_at,
        entry=deal.entry,
        reason=deal.reason,
        profit=deal.profit,
        commission=deal.commission,
        swap=deal.swap,
        fee=deal.fee,
    )


def as_shown(known: Position | None, event: PositionCorrected, recorded_at: datetime) -> Position:
    """The position as the broker shows it, with the money of the deals that are known of it."""
    shown = event.position
    if not shown.volume:
        if known is None:
            known = Position(
                position_id=shown.identifier, symbol=shown.symbol, side=LONG, volume=ZERO, entry_price=ZERO,
                opened_at=recorded_at,
            )  # fmt: skip
        return replace(
            known, volume=ZERO, closed_at=recorded_at, exit_reason="external", current_price=None,
            floating_profit=None, base=None, tail=(),
        )  # fmt: skip
    side = SHORT if shown.type == TYPE_SELL else LONG
    if known is None or not known.is_open or known.side != side:
        known = Position(
            position_id=shown.identifier,
            symbol=shown.symbol,
            side=side,
            volume=ZERO,
            entry_price=ZERO,
            opened_at=recorded_at,
            initial_sl=amount(shown.sl),
            entry_order_id=event.order_id,
        )
    return replace(
        known, volume=amount(shown.volume), entry_price=amount(shown.price_open), sl=amount(shown.sl),
        tp=amount(shown.tp), current_price=amount(shown.price_current), floating_profit=amount(shown.profit),
        closed_at=None, void=False, base=None, tail=(),
    )  # fmt: skip


def positions_at_broker(batch: Iterable[tuple[Recorded, Envelope]], until: datetime) -> dict[int, Position]:
    """What had happened at the broker until then, as everything recorded since tells it: the fold of all deals up to
    that time, in the order of the broker's times, with every correction. Stops and marks are not told by deals."""
    known: dict[int, Dealt] = {}
    traces: dict[str, OrderTrace] = {}
    for recorded, envelope in batch:
        event = envelope.data
        if recorded.stream.startswith(_ORDER):
            order_id = recorded.stream[6:]
            trace = traces.get(order_id)
            if trace is None:
                trace = traces[order_id] = OrderTrace(order_id)
            effect = follow(trace, recorded, envelope)
            if effect is not None and effect.new is not None and effect.fill is not None:
                known[effect.new.ticket] = effect.new
            if not trace.is_open and not trace.fills:
                del traces[order_id]
        elif isinstance(event, ExternalDealObserved):
            deal = external(event, envelope.recorded_at)
            if deal is not None:
                known[deal.ticket] = deal
    found: dict[int, Position] = {}
    for deal in sorted(known.values(), key=lambda one: (one.at, one.ticket)):
        if deal.at <= until and deal.position_id:
            final = replace(deal, provisional=False)
            found[deal.position_id] = dealt(found.get(deal.position_id), final)
    return found


def open_volume(positions: Iterable[Position]) -> Decimal:
    """Lots of all open positions together."""
    return sum((one.volume for one in positions), ZERO)
