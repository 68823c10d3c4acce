"""Requests as they arrive.

`read_order` turns the bytes of a message into what could be understood and every reason against it. It is total:
hostile bytes give reasons, never an exception. Unknown fields are kept in the raw text and not trusted.
"""

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from ledger.facts import MAX_RAW, OrderRequest, Raw
from ledger.values import MAX_TEXT, Refused, parse_decimal, parse_order_id, parse_symbol, shorten

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
# Ways to name a target: exactly one of them.
_TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "close": ("position_id", "target_order_id"),
    "modify": ("position_id", "order_ticket", "target_order_id"),
    "cancel": ("order_ticket", "target_order_id"),
}
_CHANGES: Final = ("sl", "tp", "price", "stop_limit_price", "expires_at", "time_in_force")
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


class Supported(NamedTuple):
    """What a gateway can do, of all that is defined here."""

    actions: frozenset[str]
    order_types: frozenset[str]


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


def read_order(payload: bytes, account: str = "", supported: Supported | None = None) -> Received:
    """What the bytes of an order message say, and every reason why they cannot be acted on.

    `account`: the login this gateway serves; a body that names another is refused. `supported`: what the gateway
    can do; None for everything.
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
    problems = _objections(request, account, supported)
    reader.reasons.extend(problems)
    return _outcome(reader, raw, order_id, request, "refused" if problems else "")


def _objections(request: OrderRequest, account: str, supported: Supported | None) -> list[str]:
    """What speaks against an understood request, whatever the broker would say."""
    problems = []
    if supported is not None and request.action not in supported.actions:
        return [f"action {request.action!r} is not supported by this version"]
    if supported is not None and request.order_type and request.order_type not in supported.order_types:
        problems.append(f"order_type {request.order_type!r} is not supported by this version")
    for name in ("price", "stop_limit_price", "sl", "tp"):
        price = getattr(request, name)
        if price is not None and price < 0:
            problems.append(f"{name} {price} is negative")
    if request.volume is not None and request.volume <= 0:
        problems.append(f"volume {request.volume} must be more than 0 lots")
    if request.account is not None and account and request.account != account:
        problems.append(f"account {shorten(request.account)!r} is not the account {account} of this gateway")
    if request.target_order_id == request.order_id:
        problems.append("target_order_id is the order itself")
    if request.position_id is not None and request.position_id == request.position_by_id:
        problems.append("position_id and position_by_id are the same position")
    return problems


def _incomplete(given: dict[str, Any]) -> list[str]:
    """Which fields of the action are missing, contradict each other or belong to another action."""
    action = given.get("action", "open")
    allowed = _FIELDS_OF[action] | _ANY
    reasons = [f"{name} does not belong to action {action}" for name in given if name not in allowed]
    required: tuple[str, ...] = ()
    if action == "open":
        required = ("symbol", "order_type", "volume")
        order_type = given.get("order_type", "buy")
        if order_type not in MARKET_TYPES:
            required += ("price",)
            if order_type.endswith("_stop_limit"):
                required += ("stop_limit_price",)
        if "stop_limit_price" in given and "stop_limit_price" not in required:
            reasons.append(f"stop_limit_price does not belong to order_type {order_type}")
        if order_type in MARKET_TYPES and ("expires_at" in given or given.get("time_in_force", "")[:1] == "s"):
            reasons.append(f"an expiration does not belong to order_type {order_type}")
    elif action == "close_by":
        required = ("position_id", "position_by_id")
    else:
        reasons += _target_reasons(action, given)
    reasons += [f"{name} is missing" for name in required if name not in given]
    if given.get("time_in_force", "").startswith("specified") and "expires_at" not in given:
        reasons.append("expires_at is missing")
    if "expires_at" in given and given.get("time_in_force") in ("gtc", "day"):
        reasons.append(f"expires_at does not belong to time_in_force {given['time_in_force']}")
    return reasons


def _target_reasons(action: str, given: dict[str, Any]) -> list[str]:
    named = [name for name in _TARGETS[action] if name in given]
    if len(named) != 1:
        either = " or ".join(_TARGETS[action])
        return [f"{either} is missing" if not named else f"only one of {', '.join(named)} may be given"]
    if action != "modify":
        return []
    reasons = []
    if not any(name in given for name in _CHANGES):
        reasons.append(f"nothing to modify: none of {', '.join(_CHANGES)} is given")
    if named == ["position_id"]:
        reasons += [f"{name} does not belong to a position" for name in _CHANGES[2:] if name in given]
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
        if not self.reasons:
            self.reasons += _incomplete(values)
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


def _expiry(name: str, token: bytes) -> str:
    """ISO 8601 in UTC, so that equal times are equal content."""
    return _time(name, token).astimezone(UTC).isoformat().replace("+00:00", "Z")


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
    | {"expires_at": _expiry, "symbol": _symbol, "target_order_id": _target, "audit": _audit}
)
