"""PURE: our view of the account and the broker's → classed differences, each with what would record the truth.

The broker's word is the truth about what is; the ledger is the truth about what was asked and told. So a correction
changes only our view, by facts built from what the broker shows: deals first, then orders, and a position is set to
the broker's only where no deal explains it. Nothing here, nor what follows from it, ever trades.

What is under way (`unsettled` orders) is no difference: its answer, or the prober, tells of it.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

import msgspec
from msgspec.structs import replace

from ledger.account_events import Difference, PositionCorrected
from ledger.commands import OrderCommand, RecordDeals, RecordModified, RecordOrderState
from ledger.decide import decide
from ledger.order import WORKING, Order, Status
from ledger.order_events import Fill, FillCorrected, FillCostsChanged, OrderModified
from ledger.positions import LONG, SHORT, Position
from ledger.trade import ORDER_TYPES, BrokerOrder, Deal
from ledger.trade import Position as Shown
from ledger.values import plain

ALERT: Final = "alert"
ADOPT: Final = "adopt"
CORRECT: Final = "correct"

# Class → the policies there are for it; the first is the default. `adopt` takes up what we did not know of, `correct`
# sets right what we knew otherwise.
CLASSES: Final[dict[str, tuple[str, str]]] = {
    "missing_at_broker": (CORRECT, ALERT),
    "unknown_at_broker": (ADOPT, ALERT),
    "volume": (CORRECT, ALERT),
    "side": (CORRECT, ALERT),
    "stops": (CORRECT, ALERT),
    "price": (CORRECT, ALERT),
    "cost": (CORRECT, ALERT),
    "order_missing": (CORRECT, ALERT),
    "order_unknown": (ADOPT, ALERT),
    "fill_missing": (ADOPT, ALERT),
    "netting_reversal": (CORRECT, ALERT),
    "ticket_changed": (CORRECT, ALERT),
}
# What a deal decides: it is set without one only where none is to be recorded.
_BY_DEALS: Final = frozenset({"missing_at_broker", "unknown_at_broker", "volume", "side", "price", "netting_reversal"})
NO_POLICIES: Final[Mapping[str, str]] = {}
_UNSETTLED: Final = frozenset({Status.SENDING, Status.UNKNOWN})
_RELATIVE: Final = Decimal("0.00001")  # of a price, where the symbol's point is not known

Values = tuple[Decimal, Decimal, Decimal, Decimal, Decimal, Decimal]


class Ours(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says. `positions` and `tickets` by identifier; `deals`: the values of those recorded lately, ours
    and others'; `orders`: by id, all that are working and all that own something the broker shows."""

    positions: Mapping[int, Position]
    tickets: Mapping[int, int] = {}
    deals: Mapping[int, Values] = {}
    orders: Mapping[str, Order] = {}


class Brokers(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker shows. `deal_owners`: ticket of a deal → our order, where it is one of ours; `owners`: the same
    of working orders and of positions, which are numbered by their orders. `ended`: orders of ours that work no more.
    `points`: by symbol."""

    positions: tuple[Shown, ...] = ()
    orders: tuple[BrokerOrder, ...] = ()
    ended: tuple[BrokerOrder, ...] = ()
    deals: tuple[Deal, ...] = ()
    deal_owners: Mapping[int, str] = {}
    owners: Mapping[int, str] = {}
    points: Mapping[str, Decimal] = {}
    netting: bool = False
    broker_utc_offset_s: int = 0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A difference, and what records the truth: deals that are none of ours (`external`), a `command` to our order, or
    the position set as the broker shows it, as far as policy allows it. Nothing of it: the evidence does not say what
    happened, or policy holds it back."""

    difference: Difference
    external: tuple[Deal, ...] = ()
    command: OrderCommand | None = None
    position: PositionCorrected | None = None

    @property
    def repairs(self) -> bool:
        return bool(self.external) or self.command is not None or self.position is not None


def policy_of(policies: Mapping[str, str], kind: str) -> str:
    """What is done about a difference of this class."""
    return policies.get(kind, CLASSES[kind][0])


def values_of(deal: Deal) -> Values:
    """What of a deal may still change after it."""
    return deal.volume, deal.price, deal.commission, deal.swap, deal.fee, deal.profit


def differences(ours: Ours, brokers: Brokers, policies: Mapping[str, str] = NO_POLICIES) -> tuple[Finding, ...]:
    """Every difference, in an order that depends on nothing but them, with the policy of its class."""
    news = [deal for deal in brokers.deals if ours.deals.get(deal.ticket) != values_of(deal)]
    external: dict[int, list[Deal]] = {}
    own: list[Deal] = []
    for deal in sorted(news, key=lambda one: (one.time_msc, one.ticket)):
        if brokers.deal_owners.get(deal.ticket):
            own.append(deal)
        elif deal.ticket not in ours.deals:
            external.setdefault(deal.position_id or deal.order, []).append(deal)
    found = _own_deals(own, ours, brokers)
    # A fill of ours that is not in the ledger, or not rightly, is the one difference: its position, and its order
    # that works no more, are judged once it is recorded.
    fills = [one.difference for one in found if one.difference.kind != "cost"]
    waiting = {one.position_id for one in fills}
    waiting |= {deal.position_id for deal in own if _is_unsettled(ours.orders.get(brokers.deal_owners[deal.ticket]))}
    found += _changed_costs(news, ours, brokers)
    found += _positions(ours, brokers, external, waiting, policies)
    for position_id in sorted(external):
        found += [_stray(deal) for deal in external[position_id]]
    found += _orders(ours, brokers, {one.order_id for one in fills})
    return tuple(replace(one, difference=_with_policy(one.difference, policies)) for one in found)


def _with_policy(difference: Difference, policies: Mapping[str, str]) -> Difference:
    return replace(difference, policy=policy_of(policies, difference.kind))


def _is_unsettled(order: Order | None) -> bool:
    return order is not None and order.status in _UNSETTLED


# --- deals ------------------------------------------------------------------------------------------------------


def _own_deals(deals: Iterable[Deal], ours: Ours, brokers: Brokers) -> list[Finding]:
    found = []
    for deal in deals:
        order = ours.orders.get(brokers.deal_owners[deal.ticket])
        if order is None or _is_unsettled(order):
            continue
        command = RecordDeals(
            deals=(deal,), point=brokers.points.get(deal.symbol), broker_utc_offset_s=brokers.broker_utc_offset_s
        )
        told = decide(order, command)
        known = next((one for one in order.deals if one.ticket == deal.ticket), None)
        if known is None and deal.ticket in ours.deals:
            continue  # recorded as nobody's before the order was found: it is counted
        kind, before, now = "", "", ""
        if known is None and any(isinstance(one, Fill | FillCorrected) for one in told):
            kind, now = "fill_missing", _dealt(deal)
        elif any(isinstance(one, FillCostsChanged) for one in told) and known is not None:
            kind, before = "cost", _costs(known.commission, known.swap, known.fee, known.profit)
            now = _costs(deal.commission, deal.swap, deal.fee, deal.profit)
        elif any(isinstance(one, FillCorrected) for one in told) and known is not None:
            kind = "price" if known.volume == deal.volume else "volume"
            before, now = f"{plain(known.volume)} at {plain(known.price)}", _dealt(deal)
        if kind:
            difference = _difference(
                kind, before, now, order_id=order.order_id, order_ticket=deal.order, position_id=deal.position_id,
                deal=deal.ticket, symbol=deal.symbol,
            )  # fmt: skip
            found.append(Finding(difference=difference, command=command))
    return found


def _changed_costs(news: Iterable[Deal], ours: Ours, brokers: Brokers) -> list[Finding]:
    """Of deals that are none of ours: told, but nothing of ours to set right."""
    found = []
    for deal in news:
        known = ours.deals.get(deal.ticket)
        if known is None or brokers.deal_owners.get(deal.ticket):
            continue
        _, _, commission, swap, fee, profit = known
        difference = _difference(
            "cost", _costs(commission, swap, fee, profit),
            _costs(deal.commission, deal.swap, deal.fee, deal.profit),
            position_id=deal.position_id, deal=deal.ticket, symbol=deal.symbol,
        )  # fmt: skip
        found.append(Finding(difference=difference))
    return found


def _stray(deal: Deal) -> Finding:
    """A deal of somebody else that left no trace in what is open: bought and sold again, or money moved."""
    difference = _difference(
        "fill_missing", "", _dealt(deal), position_id=deal.position_id, order_ticket=deal.order, deal=deal.ticket,
        symbol=deal.symbol,
    )  # fmt: skip
    return Finding(difference=difference, external=(deal,))


# --- positions --------------------------------------------------------------------------------------------------


def _positions(
    ours: Ours,
    brokers: Brokers,
    external: dict[int, list[Deal]],
    waiting: set[int],
    policies: Mapping[str, str],
) -> list[Finding]:
    """Takes out of `external` the deals that explain a difference of a position. Those `waiting` are judged later."""
    shown = {one.identifier or one.ticket: one for one in brokers.positions}
    found: list[Finding] = []
    for position_id in sorted(shown.keys() | ours.positions.keys()):
        mine, theirs = ours.positions.get(position_id), shown.get(position_id)
        owner = brokers.owners.get(position_id, "")
        if position_id in waiting or (mine is None and _is_unsettled(ours.orders.get(owner))):
            continue
        kinds = _position_kinds(mine, theirs, ours, brokers)
        if not kinds:
            continue
        told = tuple(external.pop(position_id, ()))
        allowed = [kind for kind, _, _ in kinds if policy_of(policies, kind) != ALERT]
        # What deals leave different is judged once they are recorded; if they may not be, what they decide waits.
        if told:
            held_back = kinds[0][0] not in allowed
            allowed = [kind for kind in allowed if held_back and kind not in _BY_DEALS]
        order_id = (mine.entry_order_id if mine else "") or owner
        set_right = _as_shown(position_id, order_id, allowed, mine, theirs, ours) if allowed else None
        for place, (kind, before, now) in enumerate(kinds):
            difference = _difference(
                kind, before, now, order_id=order_id, position_id=position_id, deal=told[-1].ticket if told else 0,
                symbol=theirs.symbol if theirs else mine.symbol if mine else "",
            )  # fmt: skip
            command: OrderCommand | None = None
            if kind == "stops" and kind in allowed and theirs is not None and order_id in ours.orders:
                command = RecordModified(position=theirs)
            found.append(
                Finding(
                    difference=difference,
                    external=told if place == 0 else (),
                    command=command,
                    position=set_right if kind in allowed else None,
                )
            )
    return found


def _position_kinds(
    mine: Position | None, theirs: Shown | None, ours: Ours, brokers: Brokers
) -> list[tuple[str, str, str]]:
    """Class, our value, the broker's."""
    if theirs is None:
        return [("missing_at_broker", _held(mine), "")] if mine is not None else []
    side = SHORT if theirs.type else LONG
    now = f"{side} {plain(theirs.volume)} at {plain(theirs.price_open)}"
    if mine is None:
        return [("unknown_at_broker", "", now + (f", magic {theirs.magic}" if theirs.magic else ", by hand"))]
    found = []
    if mine.side != side:
        found.append(("netting_reversal" if brokers.netting else "side", _held(mine), now))
    else:
        if mine.volume != theirs.volume:
            found.append(("volume", f"{plain(mine.volume)}", f"{plain(theirs.volume)}"))
        tolerance = brokers.points.get(theirs.symbol) or abs(theirs.price_open) * _RELATIVE
        if abs(mine.entry_price - theirs.price_open) > tolerance:
            found.append(("price", f"{plain(mine.entry_price)}", f"{plain(theirs.price_open)}"))
    if (mine.sl, mine.tp) != (theirs.sl, theirs.tp):
        found.append(("stops", _stops(mine.sl, mine.tp), _stops(theirs.sl, theirs.tp)))
    ticket = ours.tickets.get(mine.position_id, mine.position_id)
    if theirs.ticket != ticket:
        found.append(("ticket_changed", str(ticket), str(theirs.ticket)))
    return found


def _as_shown(
    position_id: int, order_id: str, allowed: list[str], mine: Position | None, theirs: Shown | None, ours: Ours
) -> PositionCorrected:
    """The position as the broker shows it in what `allowed` names, and in the rest as we hold it."""
    shown = theirs
    if shown is None:
        shown = Shown(ticket=position_id, identifier=position_id, symbol=mine.symbol if mine else "")
    elif mine is not None:
        if not {"side", "netting_reversal"} & {*allowed}:
            shown = replace(
                shown,
                type=int(mine.side == SHORT),
                volume=shown.volume if "volume" in allowed else mine.volume,
                price_open=shown.price_open if "price" in allowed else mine.entry_price,
            )
        if "stops" not in allowed:
            shown = replace(shown, sl=mine.sl, tp=mine.tp)
        if "ticket_changed" not in allowed:
            shown = replace(shown, ticket=ours.tickets.get(position_id, position_id))
    return PositionCorrected(position=shown, kind=allowed[0], order_id=order_id)


# --- working orders ---------------------------------------------------------------------------------------------


def _orders(ours: Ours, brokers: Brokers, waiting: set[str]) -> list[Finding]:
    shown = {one.ticket: one for one in brokers.orders}
    ended = {one.ticket: one for one in brokers.ended}
    found = []
    for order in sorted(ours.orders.values(), key=lambda one: one.order_id):
        ticket = order.order_ticket
        if order.status not in WORKING or not ticket or order.order_id in waiting:
            continue
        row = shown.get(ticket)
        if row is None:
            past = ended.get(ticket)
            now = f"ended in state {past.state}" if past is not None else "not shown"
            difference = _order_difference(
                "order_missing", order.status.value, now, order.order_id, ticket, order.symbol
            )
            command = RecordOrderState(order=past) if past is not None else None
            found.append(Finding(difference=difference, command=command))
            continue
        modified = next(
            (one for one in decide(order, RecordOrderState(order=row)) if isinstance(one, OrderModified)), None
        )
        if modified is not None:
            terms = order.terms
            moved = (terms.price, terms.stop_limit_price) != (modified.price, modified.stop_limit_price)
            kind = "price" if moved or (terms.sl, terms.tp) == (modified.sl, modified.tp) else "stops"
            before = f"{plain(terms.price)}, {_stops(terms.sl, terms.tp)}"
            now = f"{plain(modified.price)}, {_stops(modified.sl, modified.tp)}"
            difference = _order_difference(kind, before, now, order.order_id, ticket, order.symbol)
            found.append(Finding(difference=difference, command=RecordOrderState(order=row)))
    known = {order.order_ticket for order in ours.orders.values() if order.status in WORKING}
    for ticket in sorted(shown.keys() - known):
        row = shown[ticket]
        owner = brokers.owners.get(ticket, "")
        order = ours.orders.get(owner, Order(order_id=""))
        if _is_unsettled(order):
            continue
        told = order.order_id and decide(order, RecordOrderState(order=row))
        now = f"{ORDER_TYPES[row.type % len(ORDER_TYPES)]} {plain(row.volume_current)} at {plain(row.price_open)}"
        difference = _order_difference(
            "order_unknown", order.status.value if owner else "", now, owner, ticket, row.symbol
        )
        found.append(Finding(difference=difference, command=RecordOrderState(order=row) if told else None))
    return found


# --- words ------------------------------------------------------------------------------------------------------


def _difference(kind: str, before: str, now: str, **where: object) -> Difference:
    return Difference(kind=kind, ours=before, brokers=now, policy=CLASSES[kind][0], **where)  # type: ignore[arg-type]


def _order_difference(kind: str, before: str, now: str, order_id: str, ticket: int, symbol: str) -> Difference:
    return _difference(kind, before, now, order_id=order_id, order_ticket=ticket, symbol=symbol)


def _held(position: Position | None) -> str:
    return f"{position.side} {plain(position.volume)} at {plain(position.entry_price)}" if position else ""


def _dealt(deal: Deal) -> str:
    if not deal.symbol:
        return f"{plain(deal.profit)} booked"
    return f"{'sell' if deal.type else 'buy'} {plain(deal.volume)} at {plain(deal.price)}"


def _stops(sl: Decimal, tp: Decimal) -> str:
    return f"sl {plain(sl)}, tp {plain(tp)}" if sl or tp else "no stops"


def _costs(commission: Decimal, swap: Decimal, fee: Decimal, profit: Decimal) -> str:
    return f"commission {plain(commission)}, swap {plain(swap)}, fee {plain(fee)}, profit {plain(profit)}"
