"""The facts: every event that can be stored, and the envelope around it.

These structs are the stored schema. What is written once stays readable for ever: a field is never renamed,
retyped or removed, a new one has a default, and an event whose meaning changes gets a new `schema_version`
with an upcaster in `UPCASTERS`. The tag is the event's topic: a stable name, never an import path.
Amounts are Decimal and stored as strings, times are UTC with microseconds.
All are frozen and can hold no cycle, so the collector need not track them (`gc=False`): with thousands of orders in
memory its full passes would be the longest pauses of the service.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from ledger.errors import UnknownSchema
from ledger.trade import ZERO, CheckResult, Deal, TradeRequest, TradeResult

WRITER_STREAM: Final = "writer"
MAX_RAW: Final = 64 * 1024


def order_stream(order_id: str) -> str:
    return f"order/{order_id}"


def account_stream(login: str | int) -> str:
    return f"account/{login}"


def inbox_stream(day: datetime) -> str:
    return f"inbox/{day:%Y-%m-%d}"


class Raw(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """The bytes as they came: text up to 64 KiB; always their size and SHA-256. Bytes that are no UTF-8 are
    kept as hexadecimal and say so."""

    size: int
    sha256: str
    text: str | None = None
    encoding: str = "utf-8"


class OrderRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A request as understood: the fields of the order message, parsed and within bounds."""

    order_id: str
    action: str = "open"
    symbol: str = ""
    order_type: str = ""
    volume: Decimal | None = None
    price: Decimal | None = None
    stop_limit_price: Decimal | None = None
    sl: Decimal | None = None
    tp: Decimal | None = None
    deviation: int | None = None
    filling: str | None = None
    time_in_force: str | None = None
    expires_at: str | None = None
    position_id: int | None = None
    position_by_id: int | None = None
    order_ticket: int | None = None
    target_order_id: str | None = None
    account: str | None = None
    magic: int | None = None
    comment: str | None = None
    timeframe: str | None = None
    valid_until: datetime | None = None
    created_at: datetime | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    signal_id: str | None = None
    strategy_id: str | None = None
    audit: dict[str, str] | None = None

    @property
    def side(self) -> str:
        """`buy`, `sell`, or empty for a request that opens nothing."""
        return self.order_type.partition("_")[0]


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="event"):
    """Base of all events."""

    @classmethod
    def topic(cls) -> str:
        return str(cls.__struct_config__.tag)


# --- order/{order_id} -------------------------------------------------------------------------------------------


class OrderRequested(Fact, frozen=True, kw_only=True, gc=False, tag="order.requested"):
    """A message named an order for the first time. `request` is None when it could not be understood: then
    OrderRefused follows. `content` is the digest of the economic fields (invariant I3). `age_from` is the time
    the order's age counts from: its `created_at`, or the time the message bus took it. `accepted` is False when
    OrderRefused follows in the same commit."""

    request: OrderRequest | None
    content: str
    raw: Raw
    symbol: str = ""
    age_from: datetime | None = None
    accepted: bool = True


class DuplicateReceived(Fact, frozen=True, kw_only=True, gc=False, tag="order.duplicate_received"):
    """The same order came again with the same content. `standing_version` is the event of this
    stream that holds the outcome so far."""

    number: int
    standing_version: int
    standing_topic: str
    status: str


class ConflictReceived(Fact, frozen=True, kw_only=True, gc=False, tag="order.conflict_received"):
    """The same order id came with other content: refused, kept for the record."""

    content: str
    raw: Raw
    reasons: tuple[str, ...] = ()
    symbol: str = ""


class OrderRefused(Fact, frozen=True, kw_only=True, gc=False, tag="order.refused"):
    """Refused by us before the broker: every reason, not the first. `category`: `malformed` or `refused`."""

    reasons: tuple[str, ...]
    category: str
    symbol: str = ""


class OrderStale(Fact, frozen=True, kw_only=True, gc=False, tag="order.stale"):
    """Too old to be sent: `age_s` exceeded `limit_s`, or `valid_until` has passed (then `limit_s` is 0)."""

    age_s: Decimal
    limit_s: Decimal
    symbol: str = ""


class OrderChecked(Fact, frozen=True, kw_only=True, gc=False, tag="order.checked"):
    """What `order_check` said; no effect at the broker. `result` is None when the check could not be made."""

    passed: bool
    result: CheckResult | None = None
    retcode_name: str = ""
    problem: str = ""


class SendStarted(Fact, frozen=True, kw_only=True, gc=False, tag="order.send_started"):
    """The intent, durable before the effect: the request exactly as it will be sent."""

    attempt: int
    request: TradeRequest


class BrokerAnswered(Fact, frozen=True, kw_only=True, gc=False, tag="order.broker_answered"):
    """The result of `order_send`, in full. `verdict`: success, retriable, wait, ambiguous or fatal, as classed
    when it arrived, so that a replay does not depend on today's table. `latency_s`: call to answer."""

    attempt: int
    result: TradeResult
    retcode_name: str
    verdict: str
    description: str = ""
    latency_s: Decimal = ZERO


class SendAbandoned(Fact, frozen=True, kw_only=True, gc=False, tag="order.send_abandoned"):
    """The attempt provably did not reach the broker (`code`/`reason` as the terminal gave them)."""

    attempt: int
    code: int
    reason: str


class OutcomeUnknown(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_unknown"):
    """The attempt may or may not have taken effect. Only evidence or an operator's word ends this."""

    attempt: int
    code: int
    reason: str
    symbol: str = ""


class OutcomeProbed(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_probed"):
    """The broker was asked for traces of the attempt. `complete`: all four queries succeeded while connected.
    Recorded when what it shows changes, not on every repetition."""

    attempt: int
    complete: bool
    found: bool
    reason: str = ""


class OutcomeResolved(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_resolved"):
    """How an unknown outcome ended: `found` or `absent`, by `evidence`, with what proves it."""

    attempt: int
    resolution: str
    by: str
    evidence: str
    order_ticket: int = 0
    symbol: str = ""


class Fill(Fact, frozen=True, kw_only=True, gc=False):
    """A deal of ours. `remaining_volume` counts after this fill; `requested_price` is None when none was asked."""

    symbol: str
    side: str
    order_ticket: int
    deal: int
    position_id: int
    volume: Decimal
    price: Decimal
    filled_volume: Decimal
    remaining_volume: Decimal
    attempts: int = 1
    requested_price: Decimal | None = None
    point: Decimal | None = None
    commission: Decimal = ZERO
    swap: Decimal = ZERO
    fee: Decimal = ZERO
    profit: Decimal = ZERO
    entry: int = 0
    reason: int = 0
    broker_time_msc: int = 0
    broker_utc_offset_s: int = 0
    broker_time: datetime | None = None
    retcode: int = 0
    retcode_name: str = ""
    provisional: bool = False
    raw: Deal | None = None


class OrderPartiallyFilled(Fill, frozen=True, kw_only=True, gc=False, tag="order.partially_filled"):
    """A fill that leaves volume open."""


class OrderFilled(Fill, frozen=True, kw_only=True, gc=False, tag="order.filled"):
    """The fill that completes the order."""


class OrderRejected(Fact, frozen=True, kw_only=True, gc=False, tag="order.rejected"):
    """The broker said no (`order_check` or `order_send`), finally."""

    symbol: str
    retcode: int
    retcode_name: str
    category: str
    description: str
    attempts: int = 0
    retriable: bool = False
    advice: str = ""


class OrderFailed(Fact, frozen=True, kw_only=True, gc=False, tag="order.failed"):
    """The order ended by the system, not by the broker: proven absent after an unknown outcome, or never sent."""

    symbol: str
    category: str
    reason: str
    attempts: int = 0
    retriable: bool = False


class AnomalyDetected(Fact, frozen=True, kw_only=True, gc=False, tag="order.anomaly_detected"):
    """A fact that does not fit its request. The fact itself stands beside it; a person must look."""

    kind: str
    detail: str
    symbol: str = ""


# --- account/{login}, inbox/{date} ------------------------------------------------------------------------------


class AccountConnected(Fact, frozen=True, kw_only=True, gc=False, tag="account.connected"):
    login: int
    server: str
    currency: str
    margin_mode: int
    balance: Decimal
    equity: Decimal
    terminal: str
    broker_utc_offset_s: int = 0


class AccountDisconnected(Fact, frozen=True, kw_only=True, gc=False, tag="account.disconnected"):
    login: int
    server: str
    reason: str


class MessageRejected(Fact, frozen=True, kw_only=True, gc=False, tag="inbox.message_rejected"):
    """A message that names no order we could open a stream for."""

    reasons: tuple[str, ...]
    raw: Raw
    order_id: str = ""
    symbol: str = ""


# --- writer -----------------------------------------------------------------------------------------------------


class LedgerCreated(Fact, frozen=True, kw_only=True, gc=False, tag="writer.ledger_created"):
    """The first event: what this ledger is bound to. Checked at every start."""

    ledger_id: str
    login: int
    server: str


class Checkpointed(Fact, frozen=True, kw_only=True, gc=False, tag="writer.checkpointed"):
    """The orders that are open at this point, so that a start reads only what follows."""

    open_orders: tuple[str, ...]


class BatchSealed(Fact, frozen=True, kw_only=True, gc=False, tag="writer.batch_sealed", omit_defaults=False):
    """The seal of one commit. `root` is the RFC 9162 Merkle root over the events `first` to `last`, `previous`
    the digest of the seal before. `digest` closes the stored bytes and covers all that stands before it."""

    epoch: int
    first: int
    last: int
    checkpoint: int
    root: str
    previous: str
    digest: str


OrderEvent = (
    OrderRequested
    | DuplicateReceived
    | ConflictReceived
    | OrderRefused
    | OrderStale
    | OrderChecked
    | SendStarted
    | BrokerAnswered
    | SendAbandoned
    | OutcomeUnknown
    | OutcomeProbed
    | OutcomeResolved
    | OrderPartiallyFilled
    | OrderFilled
    | OrderRejected
    | OrderFailed
    | AnomalyDetected
)
Event = (
    OrderEvent | AccountConnected | AccountDisconnected | MessageRejected | LedgerCreated | Checkpointed | BatchSealed
)


class Source(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """Where the cause of an event came from: a NATS message, or a caller of the control service."""

    subject: str = ""
    stream: str = ""
    stream_seq: int = 0
    caller: str = ""
    traceparent: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One stored event. `data` stands last: the seal's digest relies on being the end of the stored bytes."""

    seq: int
    event_id: str
    schema_version: int
    recorded_at: datetime
    account: str = ""
    actor: str = ""
    source: Source | None = None
    correlation_id: str = ""
    causation_id: str = ""
    config_version: str = ""
    build: str = ""
    data: Event


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event as it is stored: `seq` is dense over the ledger, `version` over its stream, `state` the bytes."""

    seq: int
    stream: str
    version: int
    topic: str
    state: bytes


class Fresh(Recorded, frozen=True, gc=False):
    """An event this process has just stored: its envelope is at hand and need not be decoded."""

    envelope: Envelope


# Only what is not 1 stands here.
SCHEMA_VERSIONS: Final[dict[str, int]] = {}
# (topic, version it was stored with) -> the data one version later, as builtins.
UPCASTERS: Final[dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]]] = {}


class _Header(msgspec.Struct):
    seq: int
    schema_version: int


_encoder = msgspec.json.Encoder(decimal_format="string")
_decoder = msgspec.json.Decoder(Envelope)
_header_decoder = msgspec.json.Decoder(_Header)
encode = _encoder.encode


def schema_version(topic: str) -> int:
    """The version that events of this topic are written with today."""
    return SCHEMA_VERSIONS.get(topic, 1)


def seq_of(state: bytes) -> int:
    """The sequence number inside stored bytes. Raises msgspec.DecodeError when they are no envelope."""
    return _header_decoder.decode(state).seq


def decode(recorded: Recorded) -> Envelope:
    """The envelope with its event, upcast to today's schema.

    Raises UnknownSchema for an event of a newer version or an unknown topic, msgspec.DecodeError for bytes
    that are no event.
    """
    if type(recorded) is Fresh:
        return recorded.envelope
    current = schema_version(recorded.topic)
    if recorded.topic not in TOPICS:
        raise UnknownSchema(f"event {recorded.seq} is a {recorded.topic!r}, which this version does not know: upgrade")
    if current == 1:
        try:
            envelope = _decoder.decode(recorded.state)
        except msgspec.ValidationError:
            # Data of a newer version need not fit: its header says what it is.
            if _header_decoder.decode(recorded.state).schema_version == 1:
                raise
        else:
            if envelope.schema_version == 1:
                return envelope
    stored = _header_decoder.decode(recorded.state).schema_version
    if not 0 < stored <= current:
        raise UnknownSchema(
            f"event {recorded.seq} ({recorded.topic}) has schema version {stored}, known is {current}: upgrade"
        )
    whole = msgspec.json.decode(recorded.state)
    for version in range(stored, current):
        whole["data"] = UPCASTERS[recorded.topic, version](whole["data"])
    return msgspec.convert(whole, Envelope, strict=False)


TOPICS: Final[frozenset[str]] = frozenset(member.topic() for member in Event.__args__)
