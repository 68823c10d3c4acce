"""Requests as they arrive.

`read_order` turns the bytes of a message into what could be understood and every reason against it. It is total:
hostile bytes give reasons, never an exception. Unknown fields are kept in the raw text and not trusted.
"""

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from ledger.facts import MAX_RAW, OrderRequest, Raw
from ledger.values import MAX_TEXT, MAX_TICKET, Refused, parse_decimal, parse_order_id, parse_symbol, quoted, shorten

ACTIONS: Final = ("open", "close", "modify", "cancel", "close_by")
MARKET_TYPES: Final = ("buy", "sell")
ORDER_TYPES: Final = (
    *MARKET_TYPES,
    "buy_limit",
    "sell_limit",
    "buy_stop",
    "sell_stop",
    "buy_stop_limit",
    "sell_stop_limit",
)
FILLINGS: Final = ("fok", "ioc", "return", "boc")
TIMES_IN_FORCE: Final = ("gtc", "day", "specified", "specified_day")
MAX_IGNORED: Final = 16
MAX_IGNORED_NAME: Final = 64

# Beside order_id, what each action may name. What belongs to another action is an error of the sender, not noise:
# an `open` with a `position_id` was probably meant to close.
_COMMON: Final = frozenset({"order_id", "action", "symbol", "magic", "comment"})
_EXECUTION: Final = frozenset({"volume", "price", "deviation", "filling"})
_EXPIRY: Final = frozenset({"time_in_force", "expires_at"})
_FIELDS_OF: Final[dict[str, frozenset[str]]] = {
    "open": _COMMON | _EXECUTION | _EXPIRY | {"order_type", "stop_limit_price", "sl", "tp"},
    "close": _COMMON | _EXECUTION | {"position_id", "target_order_id"},
    "modify": _COMMON
    | _EXPIRY
    | {"position_id", "order_ticket", "target_order_id", "price", "stop_limit_price", "sl", "tp"},
    "cancel": _COMMON | {"order_ticket", "target_order_id"},
    "close_by": _COMMON | {"position_id", "position_by_id"},
}
# What says nothing of the trade: allowed with every action.
_ANY: Final = frozenset(
    {
        "account",
        "timeframe",
        "valid_until",
        "created_at",
        "correlation_id",
        "causation_id",
        "signal_id",
        "strategy_id",
        "audit",
    }
)
_ALLOWED: Final = {action: fields | _ANY for action, fields in _FIELDS_OF.items()}
# Ways to name a target: exactly one of them.
_TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "close": ("position_id", "target_order_id"),
    "modify": ("position_id", "order_ticket", "target_order_id"),
    "cancel": ("order_ticket", "target_order_id"),
}
_CHANGES: Final = ("sl", "tp", "price", "stop_limit_price", "expires_at", "time_in_force")
_DECIMALS: Final = ("volume", "price", "stop_limit_price", "sl", "tp")
# To MetaTrader a ticket of 0 is none: a close of "position 0" would open one.
_INTEGERS: Final = {
    "deviation": (0, 1_000_000),
    "position_id": (1, MAX_TICKET),
    "position_by_id": (1, MAX_TICKET),
    "order_ticket": (1, MAX_TICKET),
    "magic": (0, 2**63 - 1),
}
_TEXTS: Final = (
    "account",
    "comment",
    "timeframe",
    "correlation_id",
    "causation_id",
    "signal_id",
    "strategy_id",
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
_text_decoder = msgspec.json.Decoder(str)
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
    ignored: tuple[str, ...] = ()  # fields that no order has; the first of them, and of each name the beginning


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
    fields = {
        name: value
        for name in _ECONOMIC
        if (value := getattr(request, name)) is not None and (value or type(value) is not str)
    }
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
    malformed = bool(reader.reasons)
    reader.reasons += _objections(request, account)
    if malformed:
        return _outcome(reader, raw, order_id, None, "malformed")
    return _outcome(reader, raw, order_id, request, "refused" if reader.reasons else "")


def _objections(request: OrderRequest, account: str) -> list[str]:
    """What speaks against a request as far as it is understood, whatever the broker would say."""
    problems = []
    for name in ("price", "stop_limit_price", "sl", "tp"):
        price = getattr(request, name)
        if price is not None and price < 0:
            problems.append(f"{name} {price} is negative")
    if request.action == "modify" or request.order_type not in ("", *MARKET_TYPES):
        for name in ("price", "stop_limit_price"):
            if getattr(request, name) == 0:
                problems.append(f"{name} 0 is no price for a pending order")
    if request.volume is not None and request.volume <= 0:
        problems.append(f"volume {request.volume} must be more than 0 lots")
    if request.account is not None and account and request.account != account:
        problems.append(f"account {quoted(request.account)} is not the account {account} of this gateway")
    if request.target_order_id == request.order_id:
        problems.append("target_order_id is the order itself")
    if request.position_id is not None and request.position_id == request.position_by_id:
        problems.append("position_id and position_by_id are the same position")
    return problems


def _incomplete(named: list[str], values: dict[str, Any]) -> list[str]:
    """Which fields of the action are missing, contradict each other or belong to another action. `named`: all that
    are given, `values`: those of them that could be read."""
    action = values.get("action", "open")
    allowed = _ALLOWED[action]
    reasons = [f"{name} does not belong to action {action}" for name in named if name not in allowed]
    if action == "open":
        reasons += _open_reasons(named, values)
    elif action == "close_by":
        reasons += _missing(named, "position_id", "position_by_id")
    else:
        reasons += _target_reasons(action, named)
    time_in_force = values.get("time_in_force", "")
    if time_in_force.startswith("specified"):
        reasons += _missing(named, "expires_at")
    if "expires_at" in named and time_in_force in ("gtc", "day"):
        reasons.append(f"expires_at does not belong to time_in_force {time_in_force}")
    return reasons


def _missing(named: list[str], *required: str) -> list[str]:
    return [f"{name} is missing" for name in required if name not in named]


def _open_reasons(named: list[str], values: dict[str, Any]) -> list[str]:
    reasons = _missing(named, "symbol", "order_type", "volume")
    order_type = values.get("order_type")
    if order_type is None:  # what else belongs to it cannot be told
        return reasons
    if order_type not in MARKET_TYPES:
        reasons += _missing(named, "price")
    elif "expires_at" in named or values.get("time_in_force", "").startswith("specified"):
        reasons.append(f"an expiration does not belong to order_type {order_type}")
    if order_type.endswith("_stop_limit"):
        reasons += _missing(named, "stop_limit_price")
    elif "stop_limit_price" in named:
        reasons.append(f"stop_limit_price does not belong to order_type {order_type}")
    return reasons


def _target_reasons(action: str, named: list[str]) -> list[str]:
    reasons = []
    targets = [name for name in _TARGETS[action] if name in named]
    if not targets:
        reasons.append(f"{' or '.join(_TARGETS[action])} is missing")
    elif len(targets) > 1:
        reasons.append(f"only one of {', '.join(targets)} may be given")
    if action == "modify":
        if not any(name in named for name in _CHANGES):
            reasons.append(f"nothing to modify: none of {', '.join(_CHANGES)} is given")
        if targets == ["position_id"]:
            reasons += [f"{name} does not belong to a position" for name in _CHANGES[2:] if name in named]
    return reasons


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
        ignored=tuple(reader.ignored),
    )


class _Reader:
    """Reads one field after the other and collects what is wrong with each."""

    def __init__(self, wire: dict[str, msgspec.Raw]) -> None:
        self.wire = wire
        self.reasons: list[str] = []
        self.ignored: list[str] = []

    def request(self, order_id: str) -> OrderRequest:
        """What could be read, with a reason for every field that could not, is missing or should not be there."""
        values: dict[str, Any] = {"order_id": order_id}
        named = []
        for name, raw in self.wire.items():
            read = _FIELDS.get(name)
            if read is None and name != "order_id" and len(self.ignored) < MAX_IGNORED:
                self.ignored.append(shorten(name, MAX_IGNORED_NAME))
            if read is None or (token := bytes(raw)) == b"null":
                continue
            named.append(name)
            try:
                values[name] = read(name, token)
            except Refused as refused:
                self.reasons.append(str(refused))
        if "action" in values or "action" not in named:
            self.reasons += _incomplete(named, values)
        return OrderRequest(**values)

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
        text = _text_decoder.decode(token)
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
    lowest, highest = _INTEGERS[name]
    if not (number.isascii() and number.isdigit() and len(number) <= 20 and lowest <= int(number) <= highest):
        raise Refused(f"{name} must be a whole number from {lowest} to {highest}, not {quoted(number)}")
    return int(number)


def _symbol(name: str, token: bytes) -> str:
    return parse_symbol(_text(name, token, limit=None))


def _choice(name: str, token: bytes) -> str:
    text = _text(name, token)
    if text not in _CHOICES[name]:
        raise Refused(f"{name} {quoted(text)} is none of {', '.join(_CHOICES[name])}")
    return text


def _time(name: str, token: bytes) -> datetime:
    try:
        when = msgspec.json.decode(token, type=datetime)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(f"{name} must be a time like 2026-01-31T12:00:00Z") from None
    if when.tzinfo is None:
        raise Refused(f"{name} has no time zone")
    try:
        return when.astimezone(UTC)
    except OverflowError:
        raise Refused(f"{name} is outside the years 1 to 9999") from None


def _expiry(name: str, token: bytes) -> str:
    """ISO 8601 in UTC, so that equal times are equal content."""
    return _time(name, token).isoformat().replace("+00:00", "Z")


def _target(name: str, token: bytes) -> str:
    text = _text(name, token, limit=None)
    try:
        return parse_order_id(text)
    except Refused as refused:
        raise Refused(str(refused).replace("order_id", name, 1)) from None


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
    | {"expires_at": _expiry, "symbol": _symbol, "target_order_id": _target, "audit": _audit}
)
