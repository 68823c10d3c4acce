"""The account, its orders, deals and positions, changed by applying effects and in no other way.

The same effects are what the journal keeps, so a replayed state is the live one by construction. Sums that every
request needs (margin, floating profit) are kept per symbol and side as exact integers: 10,000 open positions cost a
request nothing. Times are server wall clock in milliseconds, as the terminal reports them.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from gateway.simulated import constants as c
from gateway.simulated.market import units
from gateway.simulated.rows import (
    FIRST_DEAL,
    FIRST_ORDER,
    ClockSet,
    Created,
    DealRow,
    Dealt,
    Effect,
    FaultsSet,
    LinkCut,
    OrderDone,
    OrderRow,
    OrderSet,
    PositionGone,
    PositionRow,
    PositionSet,
    PriceMoved,
    Queued,
    RolledOver,
    Rules,
    RulesSet,
    SymbolSet,
    World,
)
from gateway.simulated.symbols import DAY_MS
from gateway.simulated.watch import Watch, order_triggers, position_triggers

CENTS: Final = 100


class Side:
    """Open volume of one direction of one symbol, and its volume × open price, in units of 1e-8 and 1e-16."""

    __slots__ = ("count", "value", "volume")

    def __init__(self) -> None:
        self.volume = 0
        self.value = 0
        self.count = 0


class State:
    def __init__(self) -> None:
        self.created = False
        self.world = World()
        self.rules = Rules()
        self.balance_cents = 0
        self.swap_cents = 0  # of open positions: not yet in the balance
        self.positions: dict[int, PositionRow] = {}  # by identifier
        self.identifiers: dict[int, int] = {}  # of open positions, by ticket
        self.working: dict[int, OrderRow] = {}
        self.queued: dict[int, Queued] = {}
        self.orders: dict[int, OrderRow] = {}  # history, by ticket, in the order of their end
        self.deals: dict[int, DealRow] = {}
        self.sides: dict[str, tuple[Side, Side]] = {}  # by symbol: long, short
        self.watch = Watch()
        self.expiries: list[tuple[int, int]] = []  # (server seconds, ticket), sorted
        self.moves: list[PriceMoved] = []
        self.symbol_changes: dict[str, SymbolSet] = {}
        self.seen_ms = 0  # UTC, of the newest change of a price or symbol: what was due before has happened
        self.faults = FaultsSet("", "", 0)
        self.shift_ms = 0
        self.cut = LinkCut(0, 0)
        self.rolled_day = 0
        self.next_order = FIRST_ORDER
        self.next_deal = FIRST_DEAL
        self.last_ms = 0  # of the newest deal or order: server time never runs backwards
        self._order_times: list[int] = []
        self._order_rows: list[OrderRow] = []
        self._deal_times: list[int] = []
        self._deal_rows: list[DealRow] = []
        self._deals_of: dict[int, list[int]] = {}  # deal tickets by position identifier
        self._orders_of: dict[int, list[int]] = {}

    # ---- changing

    def apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            self.apply_one(effect)

    def apply_one(self, effect: Effect) -> None:
        match effect:
            case PositionSet(position):
                self._set_position(position)
            case PositionGone(identifier):
                self._drop_position(self.positions.pop(identifier))
            case OrderDone(order):
                self._end_order(order)
            case Dealt(deal):
                self._add_deal(deal)
            case OrderSet(order):
                self._set_order(order)
            case Queued(ticket):
                self.queued[ticket] = effect
            case RolledOver():
                self._roll_over(effect)
            case PriceMoved():
                self.moves.append(effect)
                self.seen_ms = max(self.seen_ms, effect.from_ms)
            case SymbolSet(symbol, changes, from_ms):
                known = self.symbol_changes.get(symbol)
                self.symbol_changes[symbol] = SymbolSet(symbol, (known.changes if known else {}) | changes, from_ms)
                self.seen_ms = max(self.seen_ms, from_ms)
            case RulesSet(rules):
                self.rules = rules
            case FaultsSet():
                self.faults = effect
            case ClockSet(shift_ms):
                self.shift_ms = shift_ms
            case LinkCut(from_ms):
                self.cut = effect
                # What happens in the rest of this millisecond is not seen any more: it gets the next one.
                self.last_ms = max(self.last_ms, from_ms + self.world.utc_offset_s * 1000 + 1 if from_ms else 0)
            case Created(world):
                self.created = True
                self.world = world

    def _set_position(self, position: PositionRow) -> None:
        before = self.positions.get(position.identifier)
        if before is not None:
            self._drop_position(before)
        self.positions[position.identifier] = position
        self.identifiers[position.ticket] = position.identifier
        self._count(position, 1)
        self.watch.add(position.symbol, position_triggers(position))
        self.last_ms = max(self.last_ms, position.time_update_msc)

    def _drop_position(self, position: PositionRow) -> None:
        self.identifiers.pop(position.ticket, None)
        self._count(position, -1)
        self.watch.remove(position.symbol, position_triggers(position))

    def _count(self, position: PositionRow, sign: int) -> None:
        sides = self.sides.get(position.symbol)
        if sides is None:
            sides = self.sides[position.symbol] = (Side(), Side())
        side = sides[position.type]
        volume = units(position.volume)
        side.volume += sign * volume
        side.value += sign * volume * units(position.price_open)
        side.count += sign
        self.swap_cents += sign * round(position.swap * CENTS)

    def _set_order(self, order: OrderRow) -> None:
        self._drop_order(order.ticket)
        self.working[order.ticket] = order
        if order.state != c.ORDER_STATE_REQUEST_ADD:
            self.watch.add(order.symbol, order_triggers(order))
        if order.time_expiration:
            insort(self.expiries, (order.time_expiration, order.ticket))
        self.next_order = max(self.next_order, order.ticket + 1)
        self.last_ms = max(self.last_ms, order.time_setup_msc)

    def _drop_order(self, ticket: int) -> None:
        before = self.working.pop(ticket, None)
        self.queued.pop(ticket, None)
        if before is None:
            return
        if before.state != c.ORDER_STATE_REQUEST_ADD:
            self.watch.remove(before.symbol, order_triggers(before))
        if before.time_expiration:
            del self.expiries[bisect_left(self.expiries, (before.time_expiration, ticket))]

    def _end_order(self, order: OrderRow) -> None:
        self._drop_order(order.ticket)
        self.orders[order.ticket] = order
        self._order_times.append(order.time_done)
        self._order_rows.append(order)
        self._orders_of.setdefault(order.position_id, []).append(order.ticket)
        self.next_order = max(self.next_order, order.ticket + 1)
        self.last_ms = max(self.last_ms, order.time_done_msc)

    def _add_deal(self, deal: DealRow) -> None:
        before = self.deals.get(deal.ticket)
        self.deals[deal.ticket] = deal
        self.balance_cents += _cents(deal)
        if before is not None:
            self._deal_rows[self._deal_rows.index(before)] = deal
            self.balance_cents -= _cents(before)
            return
        self._deal_times.append(deal.time)
        self._deal_rows.append(deal)
        self._deals_of.setdefault(deal.position_id, []).append(deal.ticket)
        self.next_deal = max(self.next_deal, deal.ticket + 1)
        self.last_ms = max(self.last_ms, deal.time_msc)

    def _roll_over(self, rolled: RolledOver) -> None:
        self.rolled_day = max(self.rolled_day, rolled.day)
        before_ms = (rolled.day + 1) * DAY_MS
        for identifier, row in self.positions.items():
            if row.symbol == rolled.symbol and row.time_msc < before_ms:
                rate = rolled.long if row.type == c.POSITION_TYPE_BUY else rolled.short
                cents = round(rate * row.volume * (row.price_open if rolled.by_open else 1.0) * CENTS)
                self.positions[identifier] = replace(row, swap=round(row.swap + cents / CENTS, 2))
                self.swap_cents += cents

    def as_effects(self) -> Iterator[Effect]:
        """The shortest effects that make this state: what a compacted journal holds."""
        yield Created(self.world)
        yield RulesSet(self.rules)
        yield self.faults
        yield ClockSet(self.shift_ms)
        yield self.cut
        yield RolledOver(self.rolled_day)
        yield from self.symbol_changes.values()
        yield from self.moves
        for order in self._order_rows:
            yield OrderDone(order)
        for deal in self._deal_rows:
            yield Dealt(deal)
        for order in self.working.values():
            yield OrderSet(order)
        yield from self.queued.values()
        for position in self.positions.values():
            yield PositionSet(position)

    @property
    def effects_needed(self) -> int:
        """How many `as_effects` would give, about."""
        return len(self.moves) + len(self._order_rows) + len(self._deal_rows) + len(self.working) + len(self.positions)

    # ---- asking

    def position_by_ticket(self, ticket: int) -> PositionRow | None:
        identifier = self.identifiers.get(ticket)
        return None if identifier is None else self.positions[identifier]

    def position_of_symbol(self, symbol: str) -> PositionRow | None:
        """On a netting account there is at most one."""
        sides = self.sides.get(symbol)
        if sides is None or not (sides[0].count or sides[1].count):
            return None
        return next(row for row in self.positions.values() if row.symbol == symbol)

    def is_hedging(self) -> bool:
        return self.world.margin_mode == c.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING

    def orders_between(self, first_s: int, last_s: int) -> Sequence[OrderRow]:
        """History orders that ended in [first_s, last_s], server seconds."""
        return self._order_rows[bisect_left(self._order_times, first_s) : bisect_right(self._order_times, last_s)]

    def deals_between(self, first_s: int, last_s: int) -> Sequence[DealRow]:
        return self._deal_rows[bisect_left(self._deal_times, first_s) : bisect_right(self._deal_times, last_s)]

    def deals_since(self, first_msc: int) -> Iterator[DealRow]:
        """From the newest back to `first_msc`."""
        for deal in reversed(self._deal_rows):
            if deal.time_msc < first_msc:
                return
            yield deal

    def orders_of_position(self, identifier: int) -> list[OrderRow]:
        return [self.orders[ticket] for ticket in self._orders_of.get(identifier, ())]

    def deals_of_position(self, identifier: int) -> list[DealRow]:
        return [self.deals[ticket] for ticket in self._deals_of.get(identifier, ())]


def _cents(deal: DealRow) -> int:
    """What the deal does to the balance."""
    return round((deal.profit + deal.commission + deal.swap + deal.fee) * CENTS)
