"""Reads what Kafka holds of a ledger, as an auditor would: only what is committed.

The end of a partition is not the end of what can be read: behind the last record stands the marker of its
transaction, and behind the beginning of an open transaction nothing can be read yet.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from ledger.errors import LedgerUnavailable
from ledger.events import WRITER_STREAM, LedgerCreated, Recorded
from projections.follower import SinkRefused, SinkUnavailable
from projections.kafka_client import PARTITIONS, REQUEST_MS, SEALS_TOPIC, client_options, partition_of, translated
from projections.records import TOPIC, recorded_from_headers

SETTLE_S: Final = 5.0
CALL_S: Final = 15.0
_FIRST_LOOK: Final = 256
_PAGE: Final = 4_000
_RECENT: Final = 1_000
_CREATED: Final = LedgerCreated.topic().encode()

Offsets = Mapping[TopicPartition, int]


class OutOfPlace(SinkRefused):
    """A record that is not what it should be, or not where: event `seq` cannot be trusted from there on."""

    def __init__(self, text: str, seq: int) -> None:
        super().__init__(text)
        self.seq = seq


class Ends(NamedTuple):
    """Where the partitions ended at one moment (`last`), and how far they can be read (`stable`): less where a
    transaction was open then and still is."""

    stable: Offsets
    last: Offsets

    @property
    def open(self) -> list[TopicPartition]:
        return [tp for tp, end in self.last.items() if self.stable[tp] < end]


@contextlib.asynccontextmanager
async def consumer(connection: Mapping[str, Any], *, committed: bool = True) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group. Not `committed`: also of what no transaction has committed."""
    made = AIOKafkaConsumer(
        **connection,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed" if committed else "read_uncommitted",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=20,
        request_timeout_ms=REQUEST_MS,
    )
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def find_ends(
    committed: AIOKafkaConsumer, written: AIOKafkaConsumer, partitions: Sequence[TopicPartition], wait_s: float
) -> Ends:
    """The ends of the partitions as they are now, once no transaction is open before them, at the latest after
    `wait_s`. Transactions that begin meanwhile are behind them and do not count."""
    deadline = asyncio.get_running_loop().time() + wait_s
    last = await written.end_offsets(partitions)
    while True:
        found = Ends(await committed.end_offsets(partitions), last)
        if not found.open or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.02)


async def settled_ends(
    committed: AIOKafkaConsumer, written: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> Offsets:
    """As `find_ends`. Raises SinkUnavailable when a transaction stays open: nobody can read on there, and a position
    that is guessed would write records twice."""
    found = await find_ends(committed, written, partitions, SETTLE_S)
    if found.open:
        where = ", ".join(f"{tp.topic}-{tp.partition} from offset {found.stable[tp]}" for tp in found.open)
        raise SinkUnavailable(
            f"Kafka: a transaction stays open in {where}: the service of its ledger ends it when it starts; "
            "if that is gone, kafka-transactions.sh find-hanging and abort do"
        )
    return found.stable


def of_ledger(ledger_id: str, message: "ConsumerRecord[Any, Any]") -> Recorded | None:
    """The event, if it is one of this ledger: topics may hold those of several. Raises OutOfPlace for one that says
    so and is no such record."""
    headers = dict(message.headers)
    if headers.get("event_id", b"").rpartition(b":")[0] != ledger_id.encode():
        return None
    try:
        return recorded_from_headers({name: value.decode() for name, value in headers.items()}, message.value or b"")
    except (ValueError, KeyError) as error:
        raise OutOfPlace(f"{_where(message)} is no record of an event: {error!r}", 0) from None


async def read_range(
    reader: AIOKafkaConsumer, ledger_id: str, tp: TopicPartition, start: int, end: int
) -> AsyncIterator[Recorded]:
    """The events of the ledger in one of the partitions that `reader` is assigned, by offset."""
    reader.seek(tp, start)
    reader.resume(tp)
    try:
        while await reader.position(tp) < end:
            async with asyncio.timeout(CALL_S):
                pages = await reader.getmany(tp, timeout_ms=20)
            for message in pages.get(tp, ()):
                if message.offset < end and (found := of_ledger(ledger_id, message)) is not None:
                    yield found
    finally:
        reader.pause(tp)


async def last_event(
    committed: AIOKafkaConsumer, ledger_id: str, partitions: Sequence[TopicPartition], ends: Offsets
) -> Recorded | None:
    """The event of the ledger with the highest seq. `committed` must be assigned these partitions, and paused."""
    begins = await committed.beginning_offsets(partitions)
    found = [await _last_in(committed, ledger_id, tp, begins[tp], ends[tp]) for tp in partitions]
    return max((one for one in found if one is not None), key=lambda one: one.seq, default=None)


async def _last_in(
    committed: AIOKafkaConsumer, ledger_id: str, tp: TopicPartition, begin: int, end: int
) -> Recorded | None:
    """Looks back from the end of one partition. The last offsets are markers of transactions, not records, and
    records of other ledgers may stand behind ours: so the look goes back further until one of ours is found."""
    step = _FIRST_LOOK
    while begin < end:
        start = max(begin, end - step)
        last: Recorded | None = None
        async for one in read_range(committed, ledger_id, tp, start, end):
            last = one
        if last is not None or start == begin:
            return last
        step *= 8
    return None


class KafkaLog:
    """What Kafka holds, for programs that are not event loops: each call has one of its own.

    All calls raise LedgerUnavailable when Kafka cannot be read, OutOfPlace for records that are not what they should
    be. Where the log ended at the first call is where it ends for every other: it grows meanwhile.
    """

    def __init__(
        self,
        brokers: str,
        *,
        options: Mapping[str, str] | None = None,
        topic: str = TOPIC,
        seals_topic: str = SEALS_TOPIC,
    ) -> None:
        self.brokers, self.topic, self.seals_topic = brokers, topic, seals_topic
        self._connection = {"bootstrap_servers": brokers, **client_options(options or {})}
        self._log = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        self._seals = TopicPartition(seals_topic, 0)
        self._ends: Offsets | None = None

    def ledgers(self) -> list[str]:
        """The ids of the ledgers whose beginning it holds."""
        where = self._log[partition_of(WRITER_STREAM)]
        with _Loop() as loop:
            return sorted(loop.run(self._created(where)))

    def last_seq(self, ledger_id: str) -> int:
        """The highest seq of the ledger in the log as it is now, 0 for none. It is where all other calls end."""
        with _Loop() as loop:
            self._ends = None
            return int(loop.run(self._last_seq(ledger_id)))

    def read(self, ledger_id: str) -> Iterator[Recorded]:
        """Every event of the ledger, in the order of `seq`. Raises OutOfPlace where a partition holds them in another
        order, one of them again, or one under another key than its stream."""
        yield from self._paged(ledger_id, self._log)

    def heads(self, ledger_id: str) -> Iterator[Recorded]:
        """The signed heads of the ledger, in order, from the topic of seals."""
        yield from self._paged(ledger_id, [self._seals])

    def _paged(self, ledger_id: str, partitions: list[TopicPartition]) -> Iterator[Recorded]:
        with _Loop() as loop:
            pages = self._pages(ledger_id, partitions)
            try:
                while (page := loop.run(anext(pages, None))) is not None:
                    yield from page
            finally:
                loop.run(pages.aclose())

    async def _ends_now(self, reader: AIOKafkaConsumer) -> Offsets:
        if self._ends is None:
            partitions = [*self._log, self._seals]
            known = await reader.topics()
            for name in {tp.topic for tp in partitions} - set(known):
                raise LedgerUnavailable(f"Kafka at {self.brokers} has no topic {name}: is it another cluster?")
            async with consumer(self._connection, committed=False) as written, asyncio.timeout(CALL_S):
                self._ends = await settled_ends(reader, written, partitions)
        return self._ends

    @contextlib.asynccontextmanager
    async def _reader(self, partitions: list[TopicPartition]) -> AsyncIterator[tuple[AIOKafkaConsumer, Offsets]]:
        async with consumer(self._connection) as reader:
            ends = await self._ends_now(reader)
            reader.assign(partitions)
            reader.pause(*partitions)
            yield reader, ends

    async def _last_seq(self, ledger_id: str) -> int:
        async with self._reader(self._log) as (reader, ends):
            last = await last_event(reader, ledger_id, self._log, ends)
            return last.seq if last else 0

    async def _created(self, where: TopicPartition) -> set[str]:
        found = set()
        async with self._reader([where]) as (reader, ends):
            reader.resume(where)
            await reader.seek_to_beginning(where)
            while await reader.position(where) < ends[where]:
                for message in (await reader.getmany(where, timeout_ms=200)).get(where, ()):
                    headers = dict(message.headers)
                    if headers.get("topic") == _CREATED and headers.get("seq") == b"1":
                        found.add(headers["event_id"].decode().rpartition(":")[0])
        return found

    async def _pages(self, ledger_id: str, partitions: list[TopicPartition]) -> AsyncGenerator[list[Recorded], None]:
        """Runs of events in the order of seq, merged from the partitions. Holds one fetch of each at most."""
        async with self._reader(partitions) as (reader, ends):
            reader.resume(*partitions)
            await reader.seek_to_beginning(*partitions)
            waiting: dict[TopicPartition, deque[Recorded]] = {tp: deque() for tp in partitions}
            last = dict.fromkeys(partitions, 0)
            unread = {tp for tp in partitions if await reader.position(tp) < ends[tp]}
            while unread or any(waiting.values()):
                empty = [tp for tp in unread if not waiting[tp]]
                if empty:
                    async with asyncio.timeout(CALL_S):
                        fetched = await reader.getmany(*empty, timeout_ms=200, max_records=_PAGE)
                    for tp, messages in fetched.items():
                        for message in messages:
                            one = of_ledger(ledger_id, message) if message.offset < ends[tp] else None
                            if one is not None:
                                _check_place(message, one, last[tp], tp != self._seals)
                                last[tp] = one.seq
                                waiting[tp].append(one)
                    unread -= {tp for tp in empty if await reader.position(tp) >= ends[tp]}
                # What stands before the last that is known of every partition cannot come any more.
                bound = min((last[tp] for tp in unread), default=max(last.values()))
                page: list[Recorded] = []
                for events in waiting.values():
                    while events and events[0].seq <= bound:
                        page.append(events.popleft())
                page.sort(key=lambda one: one.seq)
                yield page


def _check_place(message: "ConsumerRecord[Any, Any]", one: Recorded, last: int, keyed: bool) -> None:
    """Raises OutOfPlace when the record breaks the order of its stream."""
    if one.seq <= last:
        raise OutOfPlace(f"{_where(message)} holds event {one.seq} behind event {last}", one.seq)
    if keyed and (message.key != one.stream.encode() or message.partition != partition_of(one.stream)):
        raise OutOfPlace(
            f"{_where(message)} holds event {one.seq} of {one.stream} under another key or in another partition",
            one.seq,
        )


def _where(message: "ConsumerRecord[Any, Any]") -> str:
    return f"{message.topic}-{message.partition} offset {message.offset}"


class _Loop:
    """An event loop for a call. What Kafka or the network does comes out as one kind of error."""

    def __enter__(self) -> "_Loop":
        self._runner = asyncio.Runner()
        self._runner.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._runner.__exit__(*failure)

    def run(self, work: Any) -> Any:
        async def whole() -> Any:
            try:
                with translated():
                    return await work
            except SinkUnavailable as error:
                raise LedgerUnavailable(str(error)) from None

        return self._runner.run(whole())


async def is_in_kafka(brokers: str, options: Mapping[str, str], stream: str, event_id: str) -> bool:
    """Whether one of the newest records of the log is this event. Raises SinkUnavailable, SinkRefused."""
    partition = TopicPartition(TOPIC, partition_of(stream))
    connection = {"bootstrap_servers": brokers, **client_options(options)}
    with translated():
        async with consumer(connection) as reader:
            if TOPIC not in await reader.topics():
                return False
            end = (await reader.end_offsets([partition]))[partition]
            reader.assign([partition])
            reader.seek(partition, max(end - _RECENT, 0))
            while await reader.position(partition) < end:
                for record in (await reader.getmany(partition, timeout_ms=200)).get(partition, ()):
                    if record.key == stream.encode() and ("event_id", event_id.encode()) in record.headers:
                        return True
    return False
