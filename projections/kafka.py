"""The Kafka sink: every event as a record of `broker_communication_log`, keyed by its stream, values verbatim.

One batch is one transaction, so the log ends at a seal or shows nothing of the batch. The position is read from the
log itself: the highest committed seq of this ledger over all partitions. What a failed commit did is never guessed:
the producer is made anew, which ends the old transaction one way or the other, and then the log is read. Several
ledgers may share the topic; records are told apart by the ledger id in `event_id`. Signed heads go to a topic of
their own besides, in the same transaction, so that a witness need not read all the rest.

Making the producer anew does not always end the transaction. A node (4.4 was looked at) that is killed between a
commit and its markers and comes back before the controller has noticed its absence first leads with the old epoch,
loads its unfinished transactions, loses the lead again, and takes partitions without a leader for deleted ones: it
notes the transaction as complete and writes no marker. Then nobody who reads what is committed gets past it. Here
such a transaction is ended as it must have been decided: see `_end_open`.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.producer.message_accumulator import BatchBuilder

from ledger.events import HeadSigned, Recorded
from projections.follower import SEALED, Batch, Position, SinkUnavailable
from projections.kafka_client import (
    KAFKA_ERRORS,
    PARTITIONS,
    SEALS_TOPIC,
    client_options,
    ensure_topics,
    partition_of,
    translated,
)
from projections.kafka_log import Ends, consumer, find_ends, last_event, of_ledger, settled_ends
from projections.records import TOPIC, kafka_record, position_of

log = structlog.get_logger()

_STOP_S: Final = 1.0
# What an earlier producer left open is closed by the broker within milliseconds after a new one was made, if at all.
_LEFT_OPEN_S: Final = 1.0
_BATCH_BYTES: Final = 512 * 1024
_SIGNED: Final = HeadSigned.topic()


class KafkaSink:
    """See the module. `brokers` is a comma list; `replication` is used when a topic is created (0: up to three),
    `call_s` is the longest that opening or writing one batch may take."""

    name = "kafka"

    def __init__(
        self,
        brokers: str,
        ledger_id: str,
        *,
        options: dict[str, str] | None = None,
        replication: int = 0,
        topic: str = TOPIC,
        seals_topic: str = SEALS_TOPIC,
        call_s: float = 15.0,
    ) -> None:
        self._ledger_id, self._topic, self._replication, self._call_s = ledger_id, topic, replication, call_s
        self._seals_topic = seals_topic
        self._connection: dict[str, Any] = {"bootstrap_servers": brokers, **client_options(options or {})}
        self._producer: AIOKafkaProducer | None = None
        self._ends: dict[TopicPartition, int] = {}  # what every new record of the log lies behind
        self._log = [TopicPartition(topic, number) for number in range(PARTITIONS)]

    async def open(self) -> None:
        await self.close()
        with translated():
            async with asyncio.timeout(self._call_s):
                most = await ensure_topics(self._connection, self._topic, self._seals_topic, self._replication)
                # The stable id fences a predecessor and ends whatever transaction it left open.
                producer = AIOKafkaProducer(
                    **self._connection,
                    transactional_id=f"order-ledger-{self._ledger_id}",
                    enable_idempotence=True,
                    acks="all",
                    max_batch_size=min(_BATCH_BYTES, most),
                    request_timeout_ms=10_000,
                )
                try:
                    await producer.start()
                except BaseException:
                    await _abandoned(producer)
                    raise
                self._producer = producer

    async def position(self) -> Position | None:
        with translated():
            async with (
                consumer(self._connection) as committed,
                consumer(self._connection, committed=False) as written,
                asyncio.timeout(4 * self._call_s),
            ):
                committed.assign(self._log)
                committed.pause(*self._log)
                both = [*self._log, TopicPartition(self._seals_topic, 0)]
                ends = await find_ends(committed, written, both, _LEFT_OPEN_S)
                last = await last_event(committed, self._ledger_id, self._log, ends.stable)
                if ends.open:
                    await self._end_open(written, ends, last)
                    stable = await settled_ends(committed, written, both)
                    last = await last_event(committed, self._ledger_id, self._log, stable)
                self._ends = {tp: ends.last[tp] for tp in self._log}
        return position_of(last) if last is not None else None

    async def write(self, batch: Batch) -> None:
        producer = self._producer
        if producer is None:
            raise SinkUnavailable("Kafka is not connected")
        waves = self._filled(producer, batch.records)
        sent: list[asyncio.Future[Any]] = []
        try:
            with translated():
                # Not the producer's context manager: at a failure it would wait for an abort that may never come.
                async with asyncio.timeout(self._call_s):
                    await producer.begin_transaction()
                    for where, builder in waves:
                        sent.append(await producer.send_batch(builder, where.topic, partition=where.partition))
                    await producer.flush()
                    self._look_at_places(waves, [future.result().offset for future in sent])
                    await producer.commit_transaction()
        except BaseException:
            for future in sent:
                future.add_done_callback(_looked_at)
            # After an indefinite error a producer can stay stuck: it is not used again. Its successor ends the
            # transaction, by the same transactional id.
            self._producer = None
            await _abandoned(producer)
            raise

    def _look_at_places(self, waves: list[tuple[TopicPartition, BatchBuilder]], offsets: list[int]) -> None:
        """Offsets never go back, unless somebody deleted the topic and it was made again: what it held is missing then.
        Raises SinkUnavailable: the transaction is not committed, and what the topic holds is looked at again."""
        for (where, _), offset in zip(waves, offsets, strict=True):
            if where in self._ends:
                if offset < self._ends[where]:
                    raise SinkUnavailable(f"the Kafka topic {where.topic} was made anew: it is filled again")
                self._ends[where] = offset + 1

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _ended(producer)

    def _filled(
        self, producer: AIOKafkaProducer, records: Sequence[Recorded]
    ) -> list[tuple[TopicPartition, BatchBuilder]]:
        """The records in batches of a partition, filled here: the producer's own way takes three times as long. The
        first of every partition come first, since those are sent together."""
        filled: dict[TopicPartition, list[BatchBuilder]] = {}
        heads = TopicPartition(self._seals_topic, 0)
        for recorded in records:
            record = kafka_record(recorded)
            where = self._log[partition_of(recorded.stream)]
            _append(producer, filled.setdefault(where, []), record)
            if recorded.topic == _SIGNED:
                _append(producer, filled.setdefault(heads, []), (self._ledger_id.encode(), *record[1:]))
        waves = zip_longest(*([(where, one) for one in builders] for where, builders in filled.items()))
        return [one for one in chain.from_iterable(waves) if one is not None]

    async def _end_open(self, written: AIOKafkaConsumer, ends: Ends, last: Recorded | None) -> None:
        """Ends the transaction of this ledger that was left open in some partitions, with the outcome it has in the
        others. `last` is the highest event that is committed.

        A batch ends at a seal, so the highest committed event is a seal below all that is open unless a part of the
        same batch is committed: then the rest is committed too. Otherwise it is aborted, which is what any other
        marker says, or free to choose: the batch is then written again. Raises SinkUnavailable when the transaction is
        another ledger's: then no telling what is committed behind its beginning.
        """
        first = min([await self._first_open(written, tp, ends.stable[tp], ends.last[tp]) for tp in ends.open])
        in_part = last is not None and (last.topic != SEALED or last.seq > first)
        producer = self._producer
        if producer is None:
            raise SinkUnavailable("Kafka is not connected")
        log.warning(
            "Kafka left a transaction of this ledger open, it is ended now",
            partitions=[f"{tp.topic}-{tp.partition}" for tp in ends.open],
            first_event=first,
            outcome="commit" if in_part else "abort",
        )
        try:
            async with asyncio.timeout(self._call_s):
                await producer.begin_transaction()
                # A marker is written to every partition that takes part, also where nothing new was sent.
                for tp in ends.open:
                    producer._txn_manager.maybe_add_partition_to_txn(tp)
                await (producer.commit_transaction() if in_part else producer.abort_transaction())
        except BaseException:
            self._producer = None
            await _abandoned(producer)
            raise

    async def _first_open(self, written: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int) -> int:
        """The seq of the event at `start`, where a transaction is open: the oldest that is."""
        written.assign([tp])
        written.seek(tp, start)
        messages: Sequence[Any] = ()
        while not messages and await written.position(tp) < end:
            messages = (await written.getmany(tp, timeout_ms=20, max_records=1)).get(tp, ())
        found = of_ledger(self._ledger_id, messages[0]) if messages else None
        if found is not None:
            return found.seq
        raise SinkUnavailable(
            f"Kafka: a transaction of another ledger stays open in {tp.topic}-{tp.partition} from offset {start}: its "
            "service ends it when it starts; if that is gone, kafka-transactions.sh find-hanging and abort do"
        )


def _append(
    producer: AIOKafkaProducer,
    builders: list[BatchBuilder],
    record: tuple[bytes, bytes, list[tuple[str, bytes]], int],
) -> None:
    key, value, headers, timestamp_ms = record
    if builders and builders[-1].append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is not None:
        return
    builders.append(producer.create_batch())
    builders[-1].append(timestamp=timestamp_ms, key=key, value=value, headers=headers)


def _looked_at(future: "asyncio.Future[Any]") -> None:
    """Takes note of an outcome that the failure of the whole transaction already covers."""
    if not future.cancelled():
        future.exception()


async def _ended(producer: AIOKafkaProducer) -> None:
    """Stops a producer that has nothing left to send."""
    try:
        await asyncio.wait_for(producer.stop(), _STOP_S)
    except (TimeoutError, *KAFKA_ERRORS):
        await _abandoned(producer)


async def _abandoned(producer: AIOKafkaProducer) -> None:
    """Stops a producer whatever state it is in. Its own `stop` first waits for all that is unsent, which without a
    broker is for ever, and once cancelled leaves its tasks running: so what is unsent is failed first."""
    sender, unsent = producer._sender, producer._message_accumulator
    waiting: Iterable[Any] = (*chain.from_iterable(unsent._batches.values()), *unsent._pending_batches)
    for batch in waiting:
        batch._drain_waiter.add_done_callback(_looked_at)
    unsent.fail_all(kafka_errors.KafkaError("given up"))
    with contextlib.suppress(Exception):
        await asyncio.wait_for(sender.close(), _STOP_S)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(producer.stop(), _STOP_S)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(producer.client.close(), _STOP_S)
    ending = producer._txn_manager.wait_for_transaction_end()
    if ending is not None:
        ending.add_done_callback(_looked_at)
