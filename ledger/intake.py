"""Requests as they arrive.

`read_order` turns the bytes of a message into what could be understood and every reason against it. It is total:
hostile bytes give reasons, never an exception. Unknown fields are kept in the raw text and not trusted.
"""

import hashlib
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from ledger.facts import MAX_RAW, OrderRequest, Raw
from ledger.values import MAX_TEXT, Refused, parse_decimal, parse_order_id, parse_symbol, shorten

ACTIONS: Final = ("open", "close", "modify", "cancel", "close_by")
ORDER_TYPES: Final = (
    "buy",
    "sell",
    "buy_limit",
    "sell_limit",
    "buy_stop",
    "sell_stop",
    "buy_stop_limit",
    "sell_stop_limit",
)
FILLINGS: Final = ("fok", "ioc", "return", "boc")
TIMES_IN_FORCE: Final = ("gtc", "day", "specified", "specified_day")

# What a later release will send; naming it today gives the sender a clear answer.
_SUPPORTED_ACTIONS: Final = ("open",)
_SUPPORTED_TYPES: Final = ("buy", "sell")

_DECIMALS: Final = ("volume", "price", "stop_limit_price", "sl", "tp")
_INTEGERS: Final = {
    "deviation": 1_000_000,
    "position_id": 2**63 - 1,
    "position_by_id": 2**63 - 1,
    "order_ticket": 2**63 - 1,
    "magic": 2**63 - 1,
}
_TEXTS: Final = (
    "account",
    "comment",
    "timeframe",
    "correlation_id",
    "causation_id",
    "signal_id",
    "strategy_id",
    "expires_at",
)
_TIMES: Final = ("valid_until", "created_at")
_CHOICES: Final = {"action": ACTIONS, "order_type": ORDER_TYPES, "filling": FILLINGS, "time_in_force": TIMES_IN_FORCE}
_AUDIT: Final = (
    "client_id",
    "investment_decision_id",
    "execution_decision_id",
    "trading_capacity",
    "instrument_isin",
    "venue_mic",
)
# What makes two messages the same order (invariant I3); ids of tracing, times and comments do not.
_ECONOMIC: Final = (
    "action",
    "symbol",
    "order_type",
    "volume",
    "price",
    "stop_limit_price",
    "sl",
    "tp",
    "deviation",
    "filling",
    "time_in_force",
    "expires_at",
    "position_id",
    "position_by_id",
    "order_ticket",
    "target_order_id",
    "account",
    "magic",
)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_canonical = msgspec.json.Encoder(decimal_format="string", order="sorted").encode


class Received(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message, read. `order_id` is None when no order can be named by it; `request` is None when `reasons`
    speak against it. `category`: `malformed` (not understood) or `refused` (understood, not allowed)."""

    order_id: str | None
    request: OrderRequest | None
    reasons: tuple[str, ...]
    category: str
    symbol: str
    content: str
    raw: Raw
    correlation_id: str = ""
    causation_id: str = ""


def raw_of(payload: bytes) -> Raw:
    """The bytes for the record: text up to 64 KiB, always size and SHA-256."""
    digest = hashlib.sha256(payload).hexdigest()
    if len(payload) > MAX_RAW:
        return Raw(size=len(payload), sha256=digest)
    try:
        return Raw(size=len(payload), sha256=digest, text=payload.decode())
    except UnicodeDecodeError:
        if 2 * len(payload) > MAX_RAW:
            return Raw(size=len(payload), sha256=digest)
        return Raw(size=len(payload), sha256=digest, text=payload.hex(), encoding="hex")


def content_of(request: OrderRequest) -> str:
    """Digest of the economic fields: equal for equal orders, however they were written."""
    fields = {name: value for name in _ECONOMIC if (value := getattr(request, name)) not in (None, "")}
    return hashlib.sha256(_canonical(fields)).hexdigest()


def read_order(payload: bytes, account: str = "") -> Received:
    """What the bytes of an order message say, and every reason why they cannot be acted on.

    `account`: the login this gateway serves; a body that names another is refused.
    """
    raw = raw_of(payload)
    try:
        wire = _fields_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _hopeless(raw, f"the message is not a JSON object: {shorten(str(error), 120)}")
    reader = _Reader(wire)
    order_id = reader.order_id()
    if len(payload) > MAX_RAW:
        reader.reasons.append(f"the message has {len(payload)} bytes, {MAX_RAW} are allowed")
        return _outcome(reader, raw, order_id, None, "malformed")
    request = reader.request(order_id or "")
    if reader.reasons or order_id is None:
        return _outcome(reader, raw, order_id, None, "malformed")
    problems = _objections(request, account)
    reader.reasons.extend(problems)
    return _outcome(reader, raw, order_id, request, "refused" if problems else "")


def _objections(request: OrderRequest, account: str) -> list[str]:
    problems = []
    if request.action not in _SUPPORTED_ACTIONS:
        return [f"action {request.action!r} is not supported by this version"]
    if request.order_type not in _SUPPORTED_TYPES:
        problems.append(f"order_type {request.order_type!r} is not supported by this version")
    for name, price in (("price", request.price), ("sl", request.sl), ("tp", request.tp)):
        if price is not None and price < 0:
            problems.append(f"{name} {price} is negative")
    if request.volume is not None and request.volume <= 0:
        problems.append(f"volume {request.volume} must be more than 0 lots")
    if request.account is not None and account and request.account != account:
        problems.append(f"account {shorten(request.account)!r} is not the account {account} of this gateway")
    return problems


def _hopeless(raw: Raw, reason: str) -> Received:
    return Received(
        order_id=None, request=None, reasons=(reason,), category="malformed", symbol="", content=raw.sha256, raw=raw
    )


def _outcome(
    reader: "_Reader", raw: Raw, order_id: str | None, request: OrderRequest | None, category: str
) -> Received:
    return Received(
        order_id=order_id,
        request=request,
        reasons=tuple(reader.reasons),
        category=category,
        symbol=request.symbol if request else reader.symbol_hint(),
        content=content_of(request) if request else raw.sha256,
        raw=raw,
        correlation_id=(request.correlation_id or "") if request else "",
        causation_id=(request.causation_id or "") if request else "",
    )


class _Reader:
    """Reads one field after the other and collects what is wrong with each."""

    def __init__(self, wire: dict[str, msgspec.Raw]) -> None:
        self.wire = wire
        self.reasons: list[str] = []

    def request(self, order_id: str) -> OrderRequest:
        values: dict[str, Any] = {"order_id": order_id}
        for name in self.wire:
            read = _FIELDS.get(name)
            if read is not None:
                self._attempt(values, name, read)
        action = values.get("action", "open")
        if action == "open" and not self.reasons:
            for required in ("symbol", "order_type", "volume"):
                if values.get(required) is None:
                    self.reasons.append(f"{required} is missing")
        return OrderRequest(**values)

    def _attempt(self, values: dict[str, Any], name: str, read: Any) -> None:
        token = bytes(self.wire[name])
        if token == b"null":
            return
        try:
            values[name] = read(name, token)
        except Refused as refused:
            self.reasons.append(str(refused))

    def order_id(self) -> str | None:
        if "order_id" not in self.wire:
            self.reasons.append("order_id is missing")
            return None
        try:
            return parse_order_id(_text("order_id", bytes(self.wire["order_id"]), limit=None))
        except Refused as refused:
            self.reasons.append(str(refused))
            return None

    def symbol_hint(self) -> str:
        """The symbol for the subject of an error, however bad the rest is; empty when there is none."""
        try:
            return shorten(_text("symbol", bytes(self.wire.get("symbol", b'""')), limit=None), 32)
        except Refused:
            return ""


def _text(name: str, token: bytes, limit: int | None = MAX_TEXT) -> str:
    if token[:1] != b'"':
        raise Refused(f"{name} must be a string, not {shorten(token.decode(errors='replace'), 40)}")
    try:
        text = msgspec.json.decode(token, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(f"{name} is not valid text") from None
    if limit is not None and len(text) > limit:
        raise Refused(f"{name} is longer than {limit} characters")
    return text


def _decimal(name: str, token: bytes) -> Decimal:
    number = _text(name, token) if token[:1] == b'"' else token.decode(errors="replace")
    try:
        return parse_decimal(number)
    except Refused as refused:
        raise Refused(f"{name}: {refused}") from None


def _integer(name: str, token: bytes) -> int:
    number = _text(name, token) if token[:1] == b'"' else token.decode(errors="replace")
    if not (number.isascii() and number.isdigit() and len(number) <= 19 and int(number) <= _INTEGERS[name]):
        raise Refused(f"{name} must be a whole number from 0 to {_INTEGERS[name]}, not {shorten(number)!r}")
    return int(number)


def _symbol(name: str, token: bytes) -> str:
    return parse_symbol(_text(name, token, limit=None))


def _choice(name: str, token: bytes) -> str:
    text = _text(name, token)
    if text not in _CHOICES[name]:
        raise Refused(f"{name} {shorten(text)!r} is none of {', '.join(_CHOICES[name])}")
    return text


def _time(name: str, token: bytes) -> datetime:
    try:
        when = msgspec.json.decode(token, type=datetime)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(f"{name} must be a time like 2026-01-31T12:00:00Z") from None
    if when.tzinfo is None:
        raise Refused(f"{name} has no time zone")
    return when


def _target(name: str, token: bytes) -> str:
    return parse_order_id(_text(name, token, limit=None))


def _audit(name: str, token: bytes) -> dict[str, str]:
    try:
        given = msgspec.json.decode(token, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("audit must be an object of strings") from None
    return {key: shorten(value, MAX_TEXT) for key, value in given.items() if key in _AUDIT}


_FIELDS: Final[dict[str, Any]] = (
    dict.fromkeys(_DECIMALS, _decimal)
    | dict.fromkeys(_INTEGERS, _integer)
    | dict.fromkeys(_TEXTS, _text)
    | dict.fromkeys(_TIMES, _time)
    | dict.fromkeys(_CHOICES, _choice)
    | {"symbol": _symbol, "target_order_id": _target, "audit": _audit}
)
