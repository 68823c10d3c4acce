"""News out: the NATS sink, one more follower of the ledger.

Every message goes to JetStream, into one stream with the subjects listed, chained by the expected last sequence and
message id, so that none can be stored whose predecessor is missing and two outboxes cannot interleave. NATS is never
refilled with history: the position is in a KV bucket of this
ledger and in the header of every message; when neither is there, it starts at the head of the ledger and says so.
"""

import asyncio
import contextlib
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import KeyValueConfig, RePublish, RetentionPolicy, StorageType, StreamConfig
from nats.js.kv import KeyValue

from gateway.messages import CHANGING, Outgoing, as_known, encode, outgoing, repeated
from ledger.errors import LedgerError
from ledger.events import BatchSealed, Envelope, Recorded, decode, event_of
from ledger.order_events import DuplicateReceived
from ledger.store import EventSource, EventStore

log = structlog.get_logger()

SUBJECTS: Final = ("broker.fill.>", "broker.error.>", "broker.order.>", "broker.alert.>")
POSITION: Final = "Ledger-Position"
SEQ: Final = "Ledger-Seq"
ACK_S: Final = 5.0
CLOSE_S: Final = 0.5
CURSOR_EVERY_S: Final = 1.0
WINDOW: Final = 500
STRANGERS: Final = 200
TRACED: Final = 20_000  # orders whose traceparent is kept
KEEP_NEWS_S: Final = 7 * 86_400
_OVERLAPS: Final = 10065  # JetStream's code: subjects overlap with an existing stream
_CHANGING_TOPICS: Final = frozenset(kind.topic() for kind in CHANGING)
_CURSOR: Final = "outbox"
_POSITION: Final = re.compile(r"([0-9]{1,19}) ([0-9a-f]{64})")


class Position(msgspec.Struct, frozen=True):
    """The last seal all of whose messages are out."""

    seq: int
    digest: str


class Sealed(Protocol):
    """Consecutive events that end at a seal, as the follower hands them over."""

    @property
    def records(self) -> Sequence[Recorded]: ...
    @property
    def envelopes(self) -> list[Envelope]: ...


class OutboxUnavailable(ConnectionError):
    """NATS does not take messages now; the batch is offered again."""


class OutboxRefused(LedgerError):
    """NATS is set up in a way the news cannot go out; the text says what to change."""


class Layout(msgspec.Struct, frozen=True):
    """Where the news of an account lie. NATS lets a subject belong to one stream only, and the chain of expected
    sequences needs a stream of its own, so several accounts cannot all keep `broker.fill.>` there.

    Own: the stream has the subjects themselves. Shared: it has the account's own, `broker.account.{login}.…`, and the
    server repeats each message, once it is stored, to plain subscribers of `broker.{kind}.{symbol}`. Who must miss
    nothing reads the stream in both.
    """

    subjects: tuple[str, ...]
    prefix: str = "broker."
    republish: RePublish | None = None

    @classmethod
    def of(cls, login: int, *, shared: bool) -> "Layout":
        if not shared:
            return cls(SUBJECTS)
        prefix = f"broker.account.{login}."
        repeat = RePublish(src=f"{prefix}*.*", dest="broker.{{wildcard(1)}}.{{wildcard(2)}}")
        return cls((f"{prefix}>",), prefix, repeat)

    def place(self, subject: str) -> str:
        """The subject in the stream for a message's own subject."""
        return self.prefix + subject.removeprefix("broker.")


class _Ack(msgspec.Struct):
    """`duplicate`: nothing was stored, the stream took a message of this id before, as `seq`."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


class _Publisher:
    """Publishes to JetStream without waiting for each acknowledgement: one inbox, a number for each message.

    The client's own `publish_async` does the same at three times the cost in time.
    """

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._prefix = ""
        self._number = 0
        self._waiting: dict[str, asyncio.Future[_Ack]] = {}

    async def open(self) -> None:
        if not self._prefix:
            prefix = self._connection.new_inbox()
            await self._connection.subscribe(f"{prefix}.*", cb=self._acknowledged)
            self._prefix = prefix
        self._waiting.clear()

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> "asyncio.Future[_Ack]":
        """The future of the acknowledgement. It fails with OutboxUnavailable."""
        self._number += 1
        reply = f"{self._prefix}.{self._number}"
        future: asyncio.Future[_Ack] = asyncio.get_running_loop().create_future()
        self._waiting[reply] = future
        await self._connection.publish(subject, payload, reply=reply, headers=headers)
        return future

    async def _acknowledged(self, message: Msg) -> None:
        future = self._waiting.pop(message.subject, None)
        if future is None or future.done():
            return
        try:
            ack = _ack_decoder.decode(message.data)
        except msgspec.DecodeError:
            ack = _Ack(error={"description": "no stream takes these subjects"})
        if ack.error is not None:
            future.set_exception(OutboxUnavailable(f"NATS: {ack.error.get('description')}"))
        else:
            future.set_result(ack)


_ack_decoder: Final = msgspec.json.Decoder(_Ack)


class Outbox:
    """The sink that publishes. Offered a batch again, it skips what the stream already holds.

    It does not wait for the acknowledgement of one batch before it publishes the next: the chain of expected
    sequences makes a message impossible whose predecessor is missing. `on_failure` is called when one was not taken.
    Only the first behind a position waits alone: the stream may have had it before, and then the chain does not grow.
    """

    name = "nats"

    def __init__(
        self,
        connection: Client,
        store: EventStore,
        source: EventSource,
        ledger_id: str,
        login: int,
        *,
        new_ledger: bool,
        on_failure: Callable[[], None],
        shared: bool = False,
    ) -> None:
        self._connection, self._store, self._source = connection, store, source
        self._ledger_id = ledger_id
        self._stream, self._bucket = f"BROKER-{login}", f"order-ledger-{ledger_id}"
        self._layout = Layout.of(login, shared=shared)
        self._js = connection.jetstream()
        self._publisher = _Publisher(connection)
        self._new_ledger = new_ledger
        self._kv: KeyValue | None = None
        self._on_failure = on_failure
        self._sequence = 0  # of the last message in the stream, those on their way included
        self._traced: dict[str, str] = {}  # by stream: the traceparent of the order's request
        self._acknowledged = 0  # sequence of the newest message that NATS acknowledged to this process
        self._last_id = ""  # of the last message published since the position was found; empty: none was stored yet
        self._published = 0  # seq of the newest event that the stream was found to hold
        self._waiting: deque[tuple[asyncio.Future[_Ack] | Position, float]] = deque()
        self._position = Position(0, "")
        self._settled = self._saved = Position(0, "")
        self._cursor_at = 0.0
        self._saving: asyncio.Task[None] | None = None
        self._standing: OrderedDict[str, tuple[int, Outgoing | None]] = OrderedDict()

    async def open(self) -> None:
        try:
            await self._open()
        except (nats.errors.Error, TimeoutError) as error:
            raise OutboxUnavailable(f"NATS: {str(error) or type(error).__name__}") from error

    async def position(self) -> Position | None:
        """Where to continue; in an empty NATS the head of the ledger."""
        try:
            found = await self._find_position()
        except (nats.errors.Error, TimeoutError) as error:
            raise OutboxUnavailable(f"NATS: {str(error) or type(error).__name__}") from error
        if found is None:
            head = await self._source.head()
            seal = await self._source.at(head) if head else None
            data = decode(seal).data if seal else None
            if not isinstance(data, BatchSealed):
                return None
            found = Position(head, data.digest)
            if not self._new_ledger:
                log.warning("NATS holds no position of this ledger: earlier news is not published again", head=head)
            # Kept at once: what is committed from here on must go out, also if this process ends before its first news.
            self._settled = found
            await self._save_cursor()
        self._position = self._settled = found
        return found if found.seq else None

    async def write(self, batch: Sealed) -> None:
        try:
            await self._write(batch)
        except (nats.errors.Error, TimeoutError) as error:
            raise OutboxUnavailable(f"NATS: {str(error) or type(error).__name__}") from error

    def check(self) -> None:
        """Takes note of what was acknowledged. Raises OutboxUnavailable when a message was not taken: the follower
        asks for the position again and goes on behind the last that was."""
        waiting = self._waiting
        while waiting:
            entry, since = waiting[0]
            if isinstance(entry, Position):
                self._settled = entry
            elif entry.done():
                if (error := entry.exception()) is not None:
                    raise error
                if entry.result().duplicate:
                    raise OutboxUnavailable("NATS had this message already: what followed it counted on one more")
                self._acknowledged = entry.result().seq
            elif time.monotonic() - since > ACK_S:
                raise OutboxUnavailable(f"NATS did not acknowledge a message within {ACK_S:g} s")
            else:
                break
            waiting.popleft()
        # In a quiet time no batch comes that would save it, and the stream forgets its messages after a while.
        if self._settled != self._saved and self._is_cursor_due() and (self._saving is None or self._saving.done()):
            self._saving = asyncio.create_task(self._save_quietly(), name="outbox cursor")

    async def close(self) -> None:
        # What is not acknowledged by then is found by the header of the last message at the next start.
        with contextlib.suppress(nats.errors.Error, OSError):
            async with asyncio.timeout(CLOSE_S):
                if self._saving is not None:
                    await self._saving
                await self._settle(0)
                await self._save_cursor()

    async def _open(self) -> None:
        await self._publisher.open()
        try:
            self._check_stream((await self._js.stream_info(self._stream)).config)
        except nats.js.errors.NotFoundError:
            await self._add_stream()
        try:
            self._kv = await self._js.key_value(self._bucket)
        except nats.js.errors.NotFoundError:
            self._kv = await self._js.create_key_value(KeyValueConfig(bucket=self._bucket, history=1))

    async def _add_stream(self) -> None:
        layout = self._layout
        config = StreamConfig(
            name=self._stream,
            subjects=list(layout.subjects),
            storage=StorageType.FILE,
            max_age=KEEP_NEWS_S,
            republish=layout.republish,
        )
        try:
            await self._js.add_stream(config)
        except nats.js.errors.APIError as error:
            if error.err_code == _OVERLAPS:
                raise OutboxRefused(
                    f"the subjects of {self._stream} belong to another stream of this NATS, probably of another "
                    "account's gateway: set NATS_NEWS=shared on all gateways, after the stream of that one is deleted"
                ) from None
            raise

    def _check_stream(self, found: StreamConfig) -> None:
        """Raises OutboxRefused when the stream is none the news are safe in."""
        wanted = sorted(self._layout.subjects)
        problems = []
        if sorted(found.subjects or []) != wanted:
            problems.append(f"it has the subjects {sorted(found.subjects or [])}, {wanted} are needed")
        if found.republish != self._layout.republish:
            problems.append("it republishes otherwise than NATS_NEWS says")
        if found.storage == StorageType.MEMORY:
            problems.append("it is kept in memory")
        if found.retention not in (None, RetentionPolicy.LIMITS):
            problems.append("its retention is not limits")
        if found.sealed:
            problems.append("it is sealed")
        if problems:
            raise OutboxRefused(
                f"the stream {self._stream} differs from what is needed: {'; '.join(problems)}. Change it, or delete "
                "it: news that nobody has read yet are lost with it, the ledger loses nothing"
            )

    async def _find_position(self) -> Position | None:
        info = await self._js.stream_info(self._stream)
        self._sequence = info.state.last_seq
        self._last_id = ""
        self._published = 0
        self._waiting.clear()
        cursor: Position | None = None
        assert self._kv is not None
        with contextlib.suppress(nats.js.errors.KeyNotFoundError):
            entry = await self._kv.get(_CURSOR)
            if entry.value:
                cursor = msgspec.json.decode(entry.value, type=Position)
        self._saved = cursor or Position(0, "")
        newest = await self._newest_of_ours(info.state.first_seq) if info.state.messages else None
        if newest is None:
            # This process may know better than the cursor, unless the stream lost what it had acknowledged.
            kept = info.state.last_seq >= self._acknowledged
            return self._settled if kept and self._settled.seq > (cursor.seq if cursor else 0) else cursor
        self._published, behind = newest
        return cursor if cursor is not None and cursor.seq >= behind.seq else behind

    async def _newest_of_ours(self, first_sequence: int) -> tuple[int, Position] | None:
        """Seq and position from the newest message of this ledger. Strangers, and what only looks like one of ours
        (any client may publish there), are passed over, up to a bound."""
        head = await self._source.head()
        for sequence in range(self._sequence, max(first_sequence, self._sequence - STRANGERS) - 1, -1):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                headers = (await self._js.get_msg(self._stream, seq=sequence)).headers or {}
                found = _POSITION.fullmatch(headers.get(POSITION, ""))
                seq = headers.get(SEQ, "")
                if found is None or headers.get("Nats-Msg-Id") != f"{self._ledger_id}:{seq}" or not seq.isdigit():
                    continue
                if int(found[1]) < int(seq) <= head:
                    return int(seq), Position(int(found[1]), found[2])
        return None

    async def _write(self, batch: Sealed) -> None:
        self.check()
        position = f"{self._position.seq} {self._position.digest}"
        for recorded, envelope in zip(batch.records, batch.envelopes, strict=True):
            if recorded.seq <= self._published:
                continue
            made = await self._message(recorded, envelope)
            if made is None:
                continue
            headers = {"Nats-Msg-Id": envelope.event_id, SEQ: str(recorded.seq), POSITION: position}
            traceparent = self._traceparent(recorded, envelope)
            if traceparent:
                headers["traceparent"] = traceparent
            await self._publish(self._layout.place(made.subject), encode(made.message), headers)
            if len(self._waiting) >= WINDOW:
                await self._settle(WINDOW // 2)
        data = batch.envelopes[-1].data
        assert isinstance(data, BatchSealed)
        self._position = Position(batch.records[-1].seq, data.digest)
        self._waiting.append((self._position, 0.0))
        self.check()
        if self._is_cursor_due():
            await self._save_cursor()

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Chains a message to the last one."""
        headers["Nats-Expected-Last-Sequence"] = str(self._sequence)
        if self._last_id:
            # The sequence alone would let this one pass in the place of a stranger after its predecessor failed.
            headers["Nats-Expected-Last-Msg-Id"] = self._last_id
        future = await self._publisher.publish(subject, payload, headers)
        if self._last_id:
            future.add_done_callback(self._told)
            self._waiting.append((future, time.monotonic()))
        else:
            ack = await asyncio.wait_for(future, ACK_S)
            if ack.duplicate:
                await self._check_duplicate(ack.seq, payload)
                return
            self._acknowledged = ack.seq
        self._sequence += 1
        self._last_id = headers["Nats-Msg-Id"]

    async def _check_duplicate(self, sequence: int, payload: bytes) -> None:
        """NATS knows the id: the message went out before the position that was found, and may be gone from the stream
        since. Raises OutboxUnavailable when a stranger took the id: it is free again after the stream's window."""
        with contextlib.suppress(nats.js.errors.NotFoundError):
            if (await self._js.get_msg(self._stream, seq=sequence)).data != payload:
                raise OutboxUnavailable(f"message {sequence} of {self._stream} is not ours, but has the id of our next")

    def _told(self, future: "asyncio.Future[_Ack]") -> None:
        """An acknowledgement came. A failure is not kept until the next batch: the follower is woken to see it."""
        if not future.cancelled() and (future.exception() is not None or future.result().duplicate):
            self._on_failure()
            return
        with contextlib.suppress(OutboxUnavailable):
            self.check()

    @property
    def settled(self) -> Position:
        """The last seal up to which NATS has acknowledged everything."""
        return self._settled

    async def _settle(self, left: int) -> None:
        """Waits until at most `left` entries wait for their acknowledgement."""
        async with asyncio.timeout(ACK_S):
            while len(self._waiting) > left:
                entry, _ = self._waiting[0]
                if isinstance(entry, asyncio.Future):
                    await asyncio.wait((entry,))
                self.check()

    def _is_cursor_due(self) -> bool:
        return time.monotonic() - self._cursor_at > CURSOR_EVERY_S

    async def _save_cursor(self) -> None:
        settled = self._settled
        if self._kv is not None and settled.seq:
            await self._kv.put(_CURSOR, msgspec.json.encode(settled))
            self._saved, self._cursor_at = settled, time.monotonic()

    async def _save_quietly(self) -> None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):  # it is due again at the next look
            await self._save_cursor()

    def _traceparent(self, recorded: Recorded, envelope: Envelope) -> str:
        """Of the message that caused the event; for what follows from an order's request, of that message. It is not
        stored with each event, so after a restart the news of orders that were open name none."""
        given = envelope.source.traceparent if envelope.source is not None else ""
        if not given:
            return self._traced.get(recorded.stream, "")
        if recorded.version == 1:
            self._traced[recorded.stream] = given
            if len(self._traced) > TRACED:
                del self._traced[next(iter(self._traced))]
        return given

    async def _message(self, recorded: Recorded, envelope: Envelope) -> Outgoing | None:
        event = envelope.data
        if not isinstance(event, DuplicateReceived):
            if isinstance(event, CHANGING):
                self._standing.pop(recorded.stream, None)
            return outgoing(recorded, envelope)
        version, standing = self._standing.get(recorded.stream, (0, None))
        if version != event.standing_version:
            standing = await asyncio.to_thread(self._outcome, recorded, event.standing_version)
            self._standing[recorded.stream] = event.standing_version, standing
            if len(self._standing) > 1_000:
                self._standing.popitem(last=False)
        return repeated(recorded, envelope, standing)

    def _outcome(self, recorded: Recorded, version: int) -> Outgoing | None:
        """The outcome of this version as it was known before the event; blocks."""
        found = self._store.stream(recorded.stream, version - 1)
        standing = outgoing(found[0], decode(found[0])) if found else None
        if standing is None:
            return None
        later = [one for one in found[1:] if one.version < recorded.version and one.topic in _CHANGING_TOPICS]
        return as_known(standing, tuple(map(event_of, later)))
