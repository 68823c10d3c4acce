"""PURE: the fold of deals → positions, on hedging, netting and exchange accounts alike.

A position is keyed by its identifier, which stays when a netting position turns around (its ticket does not). A deal
on the position's side adds, and the entry price becomes the average by volume; one against it takes volume away and
leaves the entry price; what goes beyond is a reversal: the same identifier, the other side, the deal's price. Which
kind of account it is follows from the identifiers that the broker gave its deals, so the fold need not know.

Amounts are kept at 8 decimals, averages rounded half to even. What is told of deals comes late, out of their order, or
is corrected: a deal known from a result alone may belong to another position than was thought, or is seen only after
the one that closed it. So the last `MAX_TAIL` deals stand in `tail`, in the order of the broker's tickets, and such
news fold them again from `base`. A deal that changes after that is corrected by its difference.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

import msgspec
from msgspec.structs import replace

from ledger.trade import ZERO

LONG: Final = "long"
SHORT: Final = "short"
MAX_TAIL: Final = 32
# ENUM_DEAL_ENTRY
ENTRY_IN: Final = 0
ENTRY_OUT: Final = 1
ENTRY_INOUT: Final = 2
ENTRY_OUT_BY: Final = 3
_LEAVES: Final = (ENTRY_OUT, ENTRY_OUT_BY)
_EXITS: Final = {4: "stop_loss", 5: "take_profit", 6: "stop_out"}  # ENUM_DEAL_REASON
_BY_HAND: Final = (0, 1, 2)  # desktop, mobile and web terminal
_STEP: Final = Decimal("0.00000001")
_BOUND: Final = Decimal(10) ** 24
_EXACT: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)
# Volumes and prices recur, within an order and from one to the next; to look one up takes a third of working it out.
_AMOUNTS: Final[dict[Decimal, Decimal]] = {}
_AMOUNTS_KEPT: Final = 16_384


class Dealt(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A deal as the fold sees it. `order_id` is empty for a deal that is none of ours; `sl` and `tp` are those of its
    order, 0 = none given. `at` is the broker's time in UTC, or when it was recorded where the broker gave none."""

    ticket: int
    position_id: int
    symbol: str
    buy: bool
    volume: Decimal
    price: Decimal
    at: datetime
    entry: int = ENTRY_IN
    reason: int = 0
    profit: Decimal = ZERO
    commission: Decimal = ZERO
    swap: Decimal = ZERO
    fee: Decimal = ZERO
    order_id: str = ""
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    provisional: bool = False


class Position(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A position after some deals. `side` is that of the open volume, of a closed one that of the volume last open.
    `realized_profit` is the sum of the deals' profit, before costs. `exit_price` is the average over `exit_volume`,
    what was closed since the side was taken. `current_price` and `floating_profit` are the broker's last word on an
    open position. `initial_sl` is the stop loss it was opened with. `void`: no deal is left in it."""

    position_id: int
    symbol: str
    side: str
    volume: Decimal
    entry_price: Decimal
    opened_at: datetime
    closed_at: datetime | None = None
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    initial_sl: Decimal = ZERO
    realized_profit: Decimal = ZERO
    commission: Decimal = ZERO
    swap: Decimal = ZERO
    fee: Decimal = ZERO
    exit_volume: Decimal = ZERO
    exit_price: Decimal = ZERO
    exit_reason: str = ""
    entry_order_id: str = ""
    exit_order_id: str = ""
    current_price: Decimal | None = None
    floating_profit: Decimal | None = None
    deals: int = 0
    void: bool = False
    base: "Position | None" = None
    tail: tuple[Dealt, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.volume > ZERO


def amount(value: Decimal) -> Decimal:
    """The value at 8 decimals. What is no amount (NaN, or beyond anything an account can hold) is bounded."""
    if not value:
        return ZERO
    try:
        known = _AMOUNTS.get(value)
    except TypeError:  # a signalling NaN cannot be looked up
        return ZERO
    if known is not None:
        return known
    if not (value.is_finite() and -_BOUND <= value <= _BOUND):
        return ZERO if value.is_nan() else _BOUND.copy_sign(value)
    if len(_AMOUNTS) >= _AMOUNTS_KEPT:
        _AMOUNTS.clear()
    found = _AMOUNTS[value] = value.quantize(_STEP, context=_EXACT)
    return found


def average(price: Decimal, volume: Decimal, more_price: Decimal, more_volume: Decimal) -> Decimal:
    """Of two prices, weighted by volume, at 8 decimals. Some volume must not be 0."""
    value = _EXACT.add(_EXACT.multiply(price, volume), _EXACT.multiply(more_price, more_volume))
    total = _EXACT.add(volume, more_volume)
    # In whole steps of both, so that the one rounding is of the exact quotient.
    divisor = int(total.scaleb(8, _EXACT))
    steps, rest = divmod(int(value.scaleb(16, _EXACT)), divisor)
    up = 2 * rest > divisor or (2 * rest == divisor and steps % 2 == 1)
    return Decimal(steps + up).scaleb(-8, _EXACT)


def dealt(position: Position | None, deal: Dealt) -> Position:
    """The position after the deal; None is one that no deal has touched."""
    tail = position.tail if position is not None else ()
    if position is not None and tail and 0 < deal.ticket < tail[-1].ticket:
        before = sum(1 for one in tail if one.ticket < deal.ticket)
        return _folded(position, (*tail[:before], deal, *tail[before:]))
    return _kept(_applied(position, deal), position.base if position is not None and tail else position, (*tail, deal))


def corrected(position: Position, old: Dealt, new: Dealt | None) -> Position:
    """The position after it turned out that `old`, counted in it, was `new`; None: that it belongs to another one."""
    if any(one.ticket == old.ticket for one in position.tail):
        kept = [one for one in position.tail if one.ticket != old.ticket]
        if new is not None:
            kept.insert([one.ticket for one in position.tail].index(old.ticket), new)
        return _folded(position, kept)
    if position.base is not None:
        return _folded(replace(position, base=corrected(position.base, old, new)), position.tail)
    differing = position
    if new is None or (old.volume, old.price, old.buy) != (new.volume, new.price, new.buy):
        differing = _by_difference(position, old, new)
    return _moved(differing, old, new)


def costs_changed(position: Position, old: Dealt, new: Dealt) -> Position:
    """The position after the costs or the profit of a deal in it changed."""
    if any(one.ticket == old.ticket for one in position.tail):
        return _folded(position, [new if one.ticket == old.ticket else one for one in position.tail])
    moved = _moved(position, old, new)
    return moved if moved.base is None else replace(moved, base=_moved(moved.base, old, new))


def with_stops(position: Position, sl: Decimal, tp: Decimal) -> Position:
    return replace(position, sl=amount(sl), tp=amount(tp))


def marked(position: Position, price: Decimal, profit: Decimal) -> Position:
    """With what the broker shows of an open position now."""
    return replace(position, current_price=amount(price), floating_profit=amount(profit))


def fold(deals: Iterable[Dealt]) -> dict[int, Position]:
    """The positions after the deals, by identifier, in the order of their first deal."""
    found: dict[int, Position] = {}
    for deal in deals:
        found[deal.position_id] = dealt(found.get(deal.position_id), deal)
    return found


def exit_reason(deal: Dealt) -> str:
    """take_profit, stop_loss, stop_out, close_by; `signal`: an order of ours, `manual`: by hand, else `external`."""
    if deal.entry == ENTRY_OUT_BY:
        return "close_by"
    known = _EXITS.get(deal.reason)
    if known is not None:
        return known
    if deal.order_id:
        return "signal"
    return "manual" if deal.reason in _BY_HAND else "external"


def _applied(position: Position | None, deal: Dealt) -> Position:
    side = LONG if deal.buy else SHORT
    volume, price = amount(deal.volume), amount(deal.price)
    if position is None or position.void:
        leaves = deal.entry in _LEAVES  # of a position whose beginning nobody saw: what is left of it is not known
        fresh = Position(
            position_id=deal.position_id,
            symbol=deal.symbol,
            side=(SHORT if deal.buy else LONG) if leaves else side,
            volume=ZERO,
            entry_price=ZERO,
            opened_at=deal.at,
        )
        position = fresh if leaves else _entered(fresh, deal, side, volume, price)
        return _left(position, deal, volume, price) if leaves else _paid(position, deal)
    if position.side == side and position.is_open:
        more = replace(
            position,
            volume=position.volume + volume,
            entry_price=average(position.entry_price, position.volume, price, volume),
            sl=amount(deal.sl) or position.sl,
            tp=amount(deal.tp) or position.tp,
        )
        return _paid(more, deal)
    if not position.is_open:
        if deal.entry in _LEAVES:
            return _left(position, deal, ZERO, price)
        return _paid(_entered(position, deal, side, volume, price), deal)
    closing = min(volume, position.volume)
    left = _left(position, deal, closing, price)
    if closing == volume or deal.entry in _LEAVES:
        return left
    return _entered(left, deal, side, volume - closing, price)


def _entered(position: Position, deal: Dealt, side: str, volume: Decimal, price: Decimal) -> Position:
    """Opened, or opened again: a reversal, or a position the broker closed and opened over night."""
    sl = amount(deal.sl)
    return replace(
        position,
        side=side,
        volume=volume,
        entry_price=price,
        opened_at=deal.at,
        closed_at=None,
        sl=sl,
        tp=amount(deal.tp),
        initial_sl=sl,
        exit_volume=ZERO,
        exit_price=ZERO,
        exit_reason="",
        entry_order_id=deal.order_id,
        exit_order_id="",
        current_price=None,
        floating_profit=None,
    )


def _left(position: Position, deal: Dealt, volume: Decimal, price: Decimal) -> Position:
    rest = max(position.volume - volume, ZERO)
    counted = position.exit_volume + volume
    closed = replace(
        position,
        volume=rest,
        exit_volume=counted,
        exit_price=average(position.exit_price, position.exit_volume, price, volume) if counted else price,
        exit_reason=exit_reason(deal),
        exit_order_id=deal.order_id,
        closed_at=None if rest else deal.at,
        current_price=position.current_price if rest else None,
        floating_profit=position.floating_profit if rest else None,
    )
    return _paid(closed, deal)


def _paid(position: Position, deal: Dealt) -> Position:
    return replace(
        position,
        realized_profit=position.realized_profit + amount(deal.profit),
        commission=position.commission + amount(deal.commission),
        swap=position.swap + amount(deal.swap),
        fee=position.fee + amount(deal.fee),
        deals=position.deals + 1,
        base=None,
        tail=(),
    )


def _folded(position: Position, tail: Sequence[Dealt]) -> Position:
    """From `base` through these deals; stops and marks, which deals do not tell, stay."""
    after = position.base
    for deal in tail:
        after = _applied(after, deal)
    if after is None:
        return replace(position, volume=ZERO, void=True, base=None, tail=(), deals=0, **_NOTHING)
    after = replace(after, sl=position.sl, tp=position.tp)
    if after.is_open:
        after = replace(after, current_price=position.current_price, floating_profit=position.floating_profit)
    return _kept(after, position.base, tuple(tail))


def _kept(after: Position, base: Position | None, tail: tuple[Dealt, ...]) -> Position:
    """With the deals it may have to be folded from again."""
    while len(tail) > MAX_TAIL:
        base, tail = _applied(base, tail[0]), tail[1:]
    return replace(after, base=base, tail=tail)


_NOTHING: Final = {"realized_profit": ZERO, "commission": ZERO, "swap": ZERO, "fee": ZERO}


def _moved(position: Position, old: Dealt, new: Dealt | None) -> Position:
    """With the money of `new` instead of that of `old`."""

    def moved(total: Decimal, before: Decimal, after: Decimal | None) -> Decimal:
        return total - amount(before) + (ZERO if after is None else amount(after))

    return replace(
        position,
        realized_profit=moved(position.realized_profit, old.profit, None if new is None else new.profit),
        commission=moved(position.commission, old.commission, None if new is None else new.commission),
        swap=moved(position.swap, old.swap, None if new is None else new.swap),
        fee=moved(position.fee, old.fee, None if new is None else new.fee),
        deals=position.deals - (new is None),
        void=position.deals - (new is None) <= 0,
    )


def _by_difference(position: Position, old: Dealt, new: Dealt | None) -> Position:
    """Takes `old` out as if it had been the last deal, and puts `new` in; without their money."""
    signed = position.volume if position.side == LONG else -position.volume
    undone = -amount(old.volume) if old.buy else amount(old.volume)
    redone = ZERO if new is None else amount(new.volume) if new.buy else -amount(new.volume)
    net = signed + undone + redone
    price = position.entry_price
    if (signed < ZERO) == (net < ZERO) and net and position.volume and old.buy == (position.side == LONG):
        value = _EXACT.multiply(position.entry_price, signed) + _EXACT.multiply(amount(old.price), undone)
        value += _EXACT.multiply(amount(new.price), redone) if new is not None else ZERO
        price = amount(_EXACT.divide(value, net))
    side = position.side if not net else LONG if net > ZERO else SHORT
    closed_at = None if net else position.closed_at or old.at
    return replace(position, side=side, volume=abs(net), entry_price=price, closed_at=closed_at)
