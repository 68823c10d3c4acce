"""What may be asked on `broker.query.*` and `broker.control.*`: the types of requests and answers. Pure.

JSON. Amounts in answers are JSON numbers with exact digits, times ISO 8601 UTC; what comes from the terminal keeps
MetaTrader's names. A field that is not known is an error of the sender. `account` names the gateway that is meant;
without it the one answers that takes unaddressed orders.
"""

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.broker import Symbol
from ledger.account_events import Difference
from ledger.trade import BrokerOrder, Deal, Position
from ledger.values import MAX_TICKET

SERVICE: Final = "mt5-connector"
QUERY: Final = "broker.query"
CONTROL: Final = "broker.control"
# The proof that a caller can read the gateway's data folder: HMAC-SHA256 over subject and body under its key.
PROOF_HEADER: Final = "Ledger-Proof"
# What an error's code means.
CODES: Final = {
    "400": "the request cannot be read, or lacks something",
    "403": "control is off",
    "404": "there is no such thing",
    "409": "it cannot be done in this state",
    "500": "a defect of the service",
    "501": "this version cannot do it",
    "503": "not connected: the terminal does not answer",
}

T = TypeVar("T", bound="Asked")
V = TypeVar("V")
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Text = Annotated[str, Meta(min_length=1, max_length=256)]
_Symbol = Annotated[str, Meta(min_length=1, max_length=29)]
_OrderId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
_RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,24}$")]
# msgspec knows no bound beyond 63 bits.
_Ticket = Annotated[int, Meta(ge=1, extra_json_schema={"maximum": MAX_TICKET})]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    account: _Name | None = None


class AskAccount(Asked, frozen=True, kw_only=True):
    """The trading account as the terminal shows it now, and what halts it."""


class AskPositions(Asked, frozen=True, kw_only=True):
    """Open positions, all or of one symbol."""

    symbol: _Symbol | None = None


class AskOrders(Asked, frozen=True, kw_only=True):
    """Working orders at the broker, all or of one symbol; `order_id` where it is one of ours."""

    symbol: _Symbol | None = None


class AskSymbol(Asked, frozen=True, kw_only=True):
    """What the broker defines of a symbol."""

    symbol: _Symbol


class AskTick(Asked, frozen=True, kw_only=True):
    """The symbol's last prices."""

    symbol: _Symbol


class AskHistory(Asked, frozen=True, kw_only=True):
    """Either the events of one order, from the ledger, or deals and ended orders of the account since a time, from
    the broker: the newest `limit` of each, fewer where a message cannot hold them."""

    order_id: _OrderId | None = None
    since: datetime | None = None
    symbol: _Symbol | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class Ordered(Asked, frozen=True, kw_only=True):
    """Every control call says who calls and why; both are recorded. `request_id`: the same one again does nothing
    twice."""

    by: _Name
    reason: _Text
    request_id: _RequestId | None = None


class Halt(Ordered, frozen=True, kw_only=True):
    """The operator's halt: nothing opens or adds to a position from now on. `cancel_orders`: whether our working
    orders are cancelled; left out, as the configuration says."""

    cancel_orders: bool | None = None


class Resume(Ordered, frozen=True, kw_only=True):
    """Lifts the operator's halt, and no other."""


class CloseAll(Ordered, frozen=True, kw_only=True):
    """Closes every open position, all or of one symbol, by ordinary orders of their own. `cancel_orders`: cancels
    the working orders too, and opening ones that were not sent yet. It does not halt: halt first, or new ones may open
    behind it."""

    symbol: _Symbol | None = None
    cancel_orders: bool = False


class Reconcile(Ordered, frozen=True, kw_only=True):
    """Compares our view with the broker's, now."""


class Reconnect(Ordered, frozen=True, kw_only=True):
    """Connects to the broker again, now: where AUTO_RECONNECT is off, or the broker refused the login."""


class Resolve(Ordered, frozen=True, kw_only=True):
    """A person's word on an order whose outcome is unknown. `found`: it is at the broker, under `order_ticket`
    (needed unless it changes or cancels something); `absent`: it is not; `abandoned`: nobody will ever know."""

    order_id: _OrderId
    resolution: Literal["found", "absent", "abandoned"]
    order_ticket: _Ticket | None = None

    def __post_init__(self) -> None:
        if self.order_ticket is not None and self.order_ticket > MAX_TICKET:
            raise ValueError(f"order_ticket {self.order_ticket} is more than {MAX_TICKET}")


def _shown(kind: Any) -> Any:
    """The same record in which no field is left out: a 0 says something here (`type` 0 is a buy)."""
    fields = [(field.name, field.type) for field in msgspec.structs.fields(kind)]
    return msgspec.defstruct(kind.__name__, fields, frozen=True, kw_only=True)


if TYPE_CHECKING:

    class PositionView(Position, frozen=True): ...

    class OrderView(BrokerOrder, frozen=True): ...

    class DealView(Deal, frozen=True): ...

    class SymbolView(Symbol, frozen=True): ...

else:
    PositionView, OrderView, DealView, SymbolView = map(_shown, (Position, BrokerOrder, Deal, Symbol))


def show(record: msgspec.Struct, view: type[V]) -> V:
    """The record with all of its fields."""
    return msgspec.convert(record, view, from_attributes=True)


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    account: str
    as_of: str


class HaltView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    source: str
    reason: str
    by: str = ""
    cancel_orders: bool = False
    until: str | None = None


class AccountAnswer(Answer, frozen=True, kw_only=True):
    server: str
    currency: str
    margin_mode: Literal["netting", "exchange", "hedging"]
    balance: Decimal
    equity: Decimal
    margin: Decimal
    margin_free: Decimal
    leverage: int
    name: str = ""
    company: str = ""
    server_utc_offset_s: int | None = None
    halts: tuple[HaltView, ...] = ()


class PositionsAnswer(Answer, frozen=True, kw_only=True):
    """`truncated`: there are more than a message holds."""

    positions: tuple[PositionView, ...]
    truncated: bool = False


class WorkingOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    order: OrderView
    order_id: str = ""


class OrdersAnswer(Answer, frozen=True, kw_only=True):
    orders: tuple[WorkingOrder, ...]
    truncated: bool = False


class SymbolAnswer(Answer, frozen=True, kw_only=True):
    symbol: SymbolView


class TickAnswer(Answer, frozen=True, kw_only=True):
    symbol: str
    bid: Decimal
    ask: Decimal
    time_msc: int  # the server's wall clock
    time: str | None = None  # the same in UTC, where the server's zone is known


class HistoryAnswer(Answer, frozen=True, kw_only=True):
    """`events`: as they are stored. `truncated`: there is more than this."""

    events: tuple[dict[str, Any], ...] = ()
    deals: tuple[DealView, ...] = ()
    orders: tuple[OrderView, ...] = ()
    truncated: bool = False


class GivenOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An order that was given: `reasons` when it was refused at once, `known` when it had been given before."""

    order_id: str
    status: str
    known: bool = False
    reasons: tuple[str, ...] = ()


class Reconciled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a reconciliation compared and found. `differences`: what is new, with the policy that was applied;
    `standing`: what was told before, is only alerted, and is still so."""

    positions: int
    orders: int
    deals: int
    differences: tuple[Difference, ...] = ()
    standing: tuple[Difference, ...] = ()


class ControlAnswer(Answer, frozen=True, kw_only=True):
    """What was done. `event_id`: of the event that records the call; `reconciled`: of a reconciliation."""

    command: str
    event_id: str
    description: str
    orders: tuple[GivenOrder, ...] = ()
    halts: tuple[HaltView, ...] = ()
    reconciled: Reconciled | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an error; its code and first reason stand in the headers of the micro service, too."""

    code: str
    reasons: tuple[str, ...]
    account: str = ""
    event_id: str = ""


QUERIES: Final[dict[str, tuple[type[Asked], type[Answer]]]] = {
    "account": (AskAccount, AccountAnswer),
    "positions": (AskPositions, PositionsAnswer),
    "orders": (AskOrders, OrdersAnswer),
    "symbol": (AskSymbol, SymbolAnswer),
    "tick": (AskTick, TickAnswer),
    "history": (AskHistory, HistoryAnswer),
}
CONTROLS: Final[dict[str, type[Ordered]]] = {
    "halt": Halt,
    "resume": Resume,
    "close_all": CloseAll,
    "reconcile": Reconcile,
    "reconnect": Reconnect,
    "resolve": Resolve,
}

MAX_REQUEST: Final = 64 * 1024
encode: Final = msgspec.json.Encoder(decimal_format="number").encode


def read(payload: bytes, kind: type[T]) -> T:
    """The request. Raises ValueError with one clear reason."""
    if len(payload) > MAX_REQUEST:
        raise ValueError(f"the request has {len(payload)} bytes, {MAX_REQUEST} are allowed")
    try:
        return msgspec.json.decode(payload or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)[:300] or "the request cannot be read") from None


def account_of(payload: bytes) -> str:
    """The account a request names, as far as it can be read; empty for none."""
    try:
        whole = msgspec.json.decode(payload or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    named = whole.get("account") if isinstance(whole, dict) else None
    return named if isinstance(named, str) else ""


def schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON Schema of a type, with what it refers to in `$defs`; amounts are numbers, as `encode` writes them."""
    (found,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    whole: dict[str, Any] = as_numbers(found | {"$defs": definitions})
    return whole


def as_numbers(value: Any) -> Any:
    """A schema in which amounts are JSON numbers instead of strings."""
    if isinstance(value, dict):
        if value.get("format") == "decimal":
            return {name: one for name, one in value.items() if name != "format"} | {"type": "number"}
        return {name: as_numbers(one) for name, one in value.items()}
    return [as_numbers(one) for one in value] if isinstance(value, list) else value
