"""An event in a few words, for people. Pure.

Events that people meet every day have words of their own; any other is told by its fields, so that an event of a
later version is shown as well as its names allow.
"""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.times import iso
from ledger.events import Event
from ledger.facts import OrderRequest, Raw
from ledger.intake import ORDER_TYPES
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    Fill,
    OrderChecked,
    OrderFailed,
    OrderPlaced,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    SendAbandoned,
    SendStarted,
)
from ledger.trade import (
    ACTION_CLOSE_BY,
    ACTION_DEAL,
    ACTION_MODIFY,
    ACTION_PENDING,
    ACTION_REMOVE,
    ACTION_SLTP,
    TradeRequest,
)
from ledger.values import shorten

MAX_FIELD: Final = 200
_ACTIONS: Final = {
    ACTION_DEAL: "",
    ACTION_PENDING: "",
    ACTION_SLTP: "set sl and tp",
    ACTION_MODIFY: "modify",
    ACTION_REMOVE: "remove",
    ACTION_CLOSE_BY: "close by",
}
_TICKETS: Final = ("position_id", "position_by_id", "order_ticket")
_TERMS: Final = (
    "price",
    "stop_limit_price",
    "sl",
    "tp",
    "deviation",
    "filling",
    "time_in_force",
    "expires_at",
    *_TICKETS,
    "target_order_id",
)


def describe(event: Event) -> str:
    """What an event says, on one printable line."""
    told = _words(event)
    return told if told.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in told)


def targets_of(event: Event) -> Iterator[str]:
    """What the event says this request acts on: order ids of ours, tickets of the broker."""
    request = getattr(event, "request", None)
    for holder in (request if isinstance(request, OrderRequest) else None, event):
        if order_id := getattr(holder, "target_order_id", None):
            yield f"order {order_id}"
    if isinstance(request, OrderRequest):
        yield from _named(request, _TICKETS)


def targeted_by(event: Event) -> str:
    """The order id of the request that caused this event from outside the order; empty for most."""
    # Who resolved an outcome (`probe` or `operator`) is no order.
    return "" if isinstance(event, OutcomeResolved) else str(getattr(event, "by", "") or "")


def _words(event: Event) -> str:
    match event:
        case OrderRequested(request=None):
            return f"a message of {event.raw.size} bytes that could not be read as an order"
        case OrderRequested(request=OrderRequest() as request):
            ignored = f"; no field of an order: {', '.join(event.ignored)}" if event.ignored else ""
            return _request(request) + ignored
        case OrderRefused():
            return f"{event.category}: {'; '.join(event.reasons)}"
        case OrderStale():
            return f"{event.age_s} s old, limit {event.limit_s} s"
        case OrderChecked(passed=True):
            return f"order_check passed, margin {event.result.margin if event.result else '?'}"
        case OrderChecked():
            retcode = f"{event.result.retcode} {event.retcode_name}" if event.result else ""
            return f"order_check did not pass: {event.problem or retcode}"
        case SendStarted(request=request):
            marks = "".join(f", {one}" for one in _named(request, ("magic", "comment"), zero=False))
            return f"attempt {event.attempt}: {_trade(request)}{marks}"
        case BrokerAnswered():
            return _answer(event)
        case SendAbandoned():
            return f"attempt {event.attempt} did not reach the broker: {event.reason} ({event.code})"
        case OutcomeUnknown():
            code = f" ({event.code})" if event.code else ""
            return f"attempt {event.attempt}: {event.reason}{code}"
        case OrderPlaced():
            kind = (event.order_type or event.side).replace("_", " ")
            price = f" at {_text(event.price)}" if event.price else ""
            terms = "".join(f" {one}" for one in _named(event, ("stop_limit_price", "sl", "tp"), zero=False))
            return f"{kind} {_text(event.volume)} {event.symbol}{price}{terms}, order {event.order_ticket}"
        case OutcomeProbed():
            seen = "traces found" if event.found else "nothing found"
            return f"attempt {event.attempt}: {seen}{'' if event.complete else ', incomplete'} {event.reason}".rstrip()
        case OutcomeResolved():
            ticket = f", order {event.order_ticket}" if event.order_ticket else ""
            return f"attempt {event.attempt}: {event.resolution} by {event.by}: {event.evidence}{ticket}"
        case Fill():
            return _fill(event)
        case OrderRejected():
            return f"{event.retcode} {event.retcode_name} ({event.category}): {event.description}"
        case OrderFailed():
            return f"{event.category}: {event.reason}"
        case DuplicateReceived():
            return f"repetition {event.number}; the order is {event.status}"
        case ConflictReceived():
            return "the same order_id with other content: refused"
        case AnomalyDetected():
            return f"{event.kind}: {event.detail}"
        case _:
            return _fields(event)


def _request(request: OrderRequest) -> str:
    action = "" if request.action == "open" else request.action
    parts = [action, request.order_type, _text(request.volume), request.symbol]
    parts += _named(request, _TERMS)
    return " ".join(part for part in parts if part)


def _trade(request: TradeRequest) -> str:
    action = _ACTIONS.get(request.action, f"action {request.action}")
    parts = [action]
    if not action:
        kind = request.type
        named = ORDER_TYPES[kind] if 0 <= kind < len(ORDER_TYPES) else f"type {kind}"
        parts = [named.replace("_", " ")]
    parts += [_text(request.volume) if request.volume else "", request.symbol]
    if request.price:
        parts.append(f"at {_text(request.price)}")
    parts += _named(request, ("stoplimit", "sl", "tp", "deviation", "order", "position", "position_by"), zero=False)
    return " ".join(part for part in parts if part)


def _answer(event: BrokerAnswered) -> str:
    result = event.result
    told = f"attempt {event.attempt}: {result.retcode} {event.retcode_name} ({event.verdict})"
    if result.comment and event.verdict != "success":
        told += f" {result.comment}"
    if result.order:
        told += f", order {result.order}"
    if result.deal:
        told += f", deal {result.deal}"
    if result.price:
        told += f", {_text(result.volume)} at {_text(result.price)}"
    return f"{told}, {event.latency_s * 1000:.1f} ms"


def _fill(event: Fill) -> str:
    costs = "".join(f", {part}" for part in _named(event, ("commission", "swap", "fee"), zero=False))
    left = f", {event.remaining_volume} left" if event.remaining_volume else ""
    return (
        f"{event.side} {event.volume} {event.symbol} at {event.price}, order {event.order_ticket}, deal {event.deal}, "
        f"position {event.position_id}{costs}{left}{', provisional' if event.provisional else ''}"
    )


# --- by its fields ----------------------------------------------------------------------------------------------


def _fields(value: msgspec.Struct, depth: int = 0) -> str:
    """Every field that was set, under its own name."""
    told = []
    for field in msgspec.structs.fields(value):
        one = getattr(value, field.name)
        if one is None or one in ("", (), {}) or (not field.required and one == field.default):
            continue
        told.append(f"{field.name.replace('_', ' ')} {_text(one, depth)}")
    return ", ".join(told)


def _text(value: Any, depth: int = 0) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Raw):
        return f"{value.size} bytes"
    if isinstance(value, msgspec.Struct):
        return f"({_fields(value, depth + 1)})"
    if isinstance(value, dict):
        return shorten("; ".join(f"{name}={one}" for name, one in value.items()), MAX_FIELD)
    if isinstance(value, tuple | list):
        if depth or (value and isinstance(value[0], msgspec.Struct) and len(value) > 1):
            return f"({len(value)})"
        return shorten("; ".join(_text(one, depth + 1) for one in value), MAX_FIELD)
    return shorten(str(value), MAX_FIELD)


def _named(value: msgspec.Struct, names: tuple[str, ...], *, zero: bool = True) -> list[str]:
    """`name value` of those that are set; MetaTrader's records say by 0 that a value is not (`zero=False`)."""
    told = []
    for name in names:
        one = getattr(value, name)
        if one is not None and one != "" and (zero or one):
            told.append(f"{name.removesuffix('_id').replace('_', ' ')} {_text(one)}")
    return told
