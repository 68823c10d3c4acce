"""Every event that can be stored, the envelope around it, and how both are read.

What is written once stays readable for ever (see `facts.py`). An event whose meaning changes gets a new
`schema_version` and an upcaster in `UPCASTERS`, which lifts stored data one version.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from ledger.account_events import AccountEvent, MessageRejected, TradingHalted
from ledger.errors import LedgerDamaged, UnknownSchema
from ledger.facts import Fact
from ledger.order_events import OrderEvent

WRITER_STREAM: Final = "writer"


def order_stream(order_id: str) -> str:
    return f"order/{order_id}"


def account_stream(login: str | int) -> str:
    return f"account/{login}"


def inbox_stream(day: datetime) -> str:
    return f"inbox/{day:%Y-%m-%d}"


class LedgerCreated(Fact, frozen=True, kw_only=True, gc=False, tag="writer.ledger_created"):
    """The first event: what this ledger is bound to. Checked at every start."""

    ledger_id: str
    login: int
    server: str


class Checkpointed(Fact, frozen=True, kw_only=True, gc=False, tag="writer.checkpointed"):
    """The orders that are open and the halts in force at this point, so that a start reads only what follows."""

    open_orders: tuple[str, ...]
    halts: tuple[TradingHalted, ...] = ()


class WriterTookOver(Fact, frozen=True, kw_only=True, gc=False, tag="writer.took_over"):
    """An operator let this writer go on although another one held the lock: from here on that one is fenced."""

    epoch: int
    host: str = ""
    pid: int = 0
    displaced: str = ""


class HeadSigned(Fact, frozen=True, kw_only=True, gc=False, tag="writer.head_signed"):
    """A signed statement that the ledger up to seal `head_seq` has the digest `head_digest`. Copies of it kept
    elsewhere show a cut or rewritten ledger. `public_key` and `signature`: Ed25519, hexadecimal."""

    head_seq: int
    head_digest: str
    signed_at: datetime
    key_id: str
    public_key: str
    signature: str


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


Event = (
    OrderEvent
    | AccountEvent
    | MessageRejected
    | LedgerCreated
    | Checkpointed
    | WriterTookOver
    | HeadSigned
    | BatchSealed
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


def _stale_v2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 said only by `limit_s` = 0 that `valid_until` had passed; it knew no retries, so no `life` either."""
    return data | {"cause": "age" if Decimal(data["limit_s"]) else "valid_until"}


# The version that is written today, where it is not 1.
SCHEMA_VERSIONS: Final[dict[str, int]] = {"order.stale": 2}
# (topic, version it was stored with) -> the data one version later, as builtins.
UPCASTERS: Final[dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]]] = {("order.stale", 1): _stale_v2}


class Header(msgspec.Struct, frozen=True, gc=False):
    """An envelope without its event: a third of the work for who needs no more."""

    event_id: str
    schema_version: int
    recorded_at: datetime
    account: str = ""
    actor: str = ""
    correlation_id: str = ""
    causation_id: str = ""


class _Version(msgspec.Struct):
    seq: int
    schema_version: int


_encoder = msgspec.json.Encoder(decimal_format="string")

_decoder = msgspec.json.Decoder(Envelope)

_header_decoder = msgspec.json.Decoder(Header)

_version_decoder = msgspec.json.Decoder(_Version)

encode = _encoder.encode


def schema_version(topic: str) -> int:
    """The version that events of this topic are written with today."""
    return SCHEMA_VERSIONS.get(topic, 1)


def seq_of(state: bytes) -> int:
    """The sequence number inside stored bytes. Raises msgspec.DecodeError when they are no envelope."""
    return _version_decoder.decode(state).seq


def decode(recorded: Recorded) -> Envelope:
    """The envelope with its event, upcast to today's schema.

    Raises UnknownSchema for an event of a newer version or an unknown topic, msgspec.DecodeError for bytes
    that are no event.
    """
    if type(recorded) is Fresh:
        return recorded.envelope
    if recorded.topic not in TOPICS:
        raise UnknownSchema(f"event {recorded.seq} is a {recorded.topic!r}, which this version does not know: upgrade")
    current = SCHEMA_VERSIONS.get(recorded.topic, 1)
    try:
        envelope = _decoder.decode(recorded.state)
    except msgspec.ValidationError:
        # Data of another version need not fit: its header says what it is.
        if _version_decoder.decode(recorded.state).schema_version == current:
            raise
    else:
        if envelope.schema_version == current:
            return envelope
    stored = _version_decoder.decode(recorded.state).schema_version
    if not 0 < stored <= current:
        raise UnknownSchema(
            f"event {recorded.seq} ({recorded.topic}) has schema version {stored}, known is {current}: upgrade"
        )
    whole = msgspec.json.decode(recorded.state)
    for version in range(stored, current):
        whole["data"] = UPCASTERS[recorded.topic, version](whole["data"])
    return msgspec.convert(whole, Envelope, strict=False)


def header_of(recorded: Recorded) -> Header:
    """Raises msgspec.DecodeError for bytes that are no event."""
    return _header_decoder.decode(recorded.state)


def event_of(recorded: Recorded) -> Event:
    """The event. Raises LedgerDamaged when its bytes are none, UnknownSchema when they are of a newer version."""
    try:
        return decode(recorded).data
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LedgerDamaged(f"event {recorded.seq} cannot be read ({error}): run verify", recorded.seq) from None


TOPICS: Final[frozenset[str]] = frozenset(member.topic() for member in Event.__args__)
