"""The audit record of an event: the form it has in Kafka, and line by line in the local audit files.

Key and value are enough to restore the ledger bit for bit: the key is the stream, the value the stored bytes
verbatim, the headers hold what stands beside them in the store. Records of one stream share a key, hence a partition,
hence their order.
"""

from datetime import datetime
from typing import Final

import msgspec

from ledger.events import BatchSealed, Recorded, decode
from projections.follower import SEALED, Position, SinkRefused

TOPIC: Final = "broker_communication_log"


class _Header(msgspec.Struct):
    event_id: str
    schema_version: int
    recorded_at: str


class AuditRecord(msgspec.Struct, frozen=True):
    """One record. Header values are text, as Kafka carries them; `recorded_at` as it stands in the event."""

    topic: str
    key: str
    headers: dict[str, str]
    value: str


_header = msgspec.json.Decoder(_Header)


def audit_record(recorded: Recorded) -> AuditRecord:
    """The record of a stored event. Raises SinkRefused for bytes that are no event."""
    try:
        header = _header.decode(recorded.state)
        value = recorded.state.decode()
    except (msgspec.MsgspecError, ValueError) as error:
        raise _unreadable(recorded, error) from None
    return AuditRecord(
        TOPIC,
        recorded.stream,
        {
            "seq": str(recorded.seq),
            "stream": recorded.stream,
            "stream_version": str(recorded.version),
            "topic": recorded.topic,
            "event_id": header.event_id,
            "schema_version": str(header.schema_version),
            "recorded_at": header.recorded_at,
        },
        value,
    )


def _unreadable(recorded: Recorded, error: Exception) -> SinkRefused:
    return SinkRefused(
        f"event {recorded.seq} cannot be read: {error}", "run `order-ledger verify`: the ledger is damaged"
    )


def kafka_record(recorded: Recorded) -> tuple[bytes, bytes, list[tuple[str, bytes]], int]:
    """The same as `audit_record` in Kafka's parts: key, value, headers, and the timestamp in ms."""
    try:
        header = _header.decode(recorded.state)
        at = datetime.fromisoformat(header.recorded_at)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _unreadable(recorded, error) from None
    stream = recorded.stream.encode()
    headers = [
        ("seq", b"%d" % recorded.seq),
        ("stream", stream),
        ("stream_version", b"%d" % recorded.version),
        ("topic", recorded.topic.encode()),
        ("event_id", header.event_id.encode()),
        ("schema_version", b"%d" % header.schema_version),
        ("recorded_at", header.recorded_at.encode()),
    ]
    return stream, recorded.state, headers, int(at.timestamp() * 1000)


def recorded_from(record: AuditRecord) -> Recorded:
    """The stored event a record was made from. Raises ValueError or KeyError when it is no such record."""
    return recorded_from_headers(record.headers, record.value.encode())


def recorded_from_headers(headers: dict[str, str], value: bytes) -> Recorded:
    """As `recorded_from`, for a record that is still in Kafka's parts."""
    return Recorded(int(headers["seq"]), headers["stream"], int(headers["stream_version"]), headers["topic"], value)


def position_of(seal: Recorded, highest: int = 0) -> Position:
    """The position that a stored seal stands for. Raises SinkRefused when it is none."""
    try:
        held = decode(seal).data
    except (msgspec.MsgspecError, ValueError) as error:
        raise SinkRefused(f"the seal {seal.seq} in the projection cannot be read: {error}") from None
    if not isinstance(held, BatchSealed) or seal.topic != SEALED:
        raise SinkRefused(f"the projection holds something else than a seal as event {seal.seq}")
    return Position(seal.seq, held.digest, max(highest, seal.seq))
