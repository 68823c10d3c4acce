"""The Kafka sink: every event as a record of `broker_communication_log`, keyed by its stream, values verbatim.

One batch is one transaction, so the log ends at a seal or shows nothing of the batch. The position is read from the
log itself: the highest committed seq of this ledger over all partitions. What a failed commit did is never guessed:
the producer is made anew, which ends the old transaction one way or the other, and then the log is read. Several
ledgers may share the topic; records are told apart by the ledger id in `event_id`. Signed heads go to a topic of
their own besides, in the same transaction, so that a witness need not read all the rest.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.helpers import create_ssl_context
from aiokafka.structs import ConsumerRecord

from ledger.events import HeadSigned, Recorded
from projections.follower import Batch, Position, SinkRefused, SinkUnavailable
from projections.records import TOPIC, audit_record, position_of, recorded_from_headers

if TYPE_CHECKING:
    from ssl import SSLContext

SEALS_TOPIC: Final = "broker_communication_seals"
PARTITIONS: Final = 6
RETENTION_MS: Final = 7 * 366 * 24 * 3600 * 1000
_SETTLE_S: Final = 5.0
_STOP_S: Final = 1.0
_FIRST_LOOK: Final = 256
_SIGNED: Final = HeadSigned.topic()


class KafkaSink:
    """See the module. `brokers` is a comma list; `replication` is used when a topic is created, `call_s` is
    the longest that opening or writing one batch may take."""

    name = "kafka"

    def __init__(
        self,
        brokers: str,
        ledger_id: str,
        *,
        options: dict[str, str] | None = None,
        replication: int = 1,
        topic: str = TOPIC,
        seals_topic: str = SEALS_TOPIC,
        call_s: float = 15.0,
    ) -> None:
        self._ledger_id, self._topic, self._replication, self._call_s = ledger_id, topic, replication, call_s
        self._seals_topic = seals_topic
        self._connection: dict[str, Any] = {"bootstrap_servers": brokers, **client_options(options or {})}
        self._producer: AIOKafkaProducer | None = None
        self._partitions: list[int] = []

    async def open(self) -> None:
        await self.close()
        with _translated():
            async with asyncio.timeout(self._call_s):
                await self._ensure_topics()
                # The stable id fences a predecessor and ends whatever transaction it left open.
                producer = AIOKafkaProducer(
                    **self._connection,
                    transactional_id=f"order-ledger-{self._ledger_id}",
                    enable_idempotence=True,
                    acks="all",
                    max_batch_size=256 * 1024,
                    request_timeout_ms=10_000,
                )
                try:
                    await producer.start()
                except BaseException:
                    await _abandoned(producer)
                    raise
                self._producer = producer

    async def position(self) -> Position | None:
        with _translated():
            last = await self._last_of_ledger()
        if last is None:
            return None
        return position_of(last)

    async def write(self, batch: Batch) -> None:
        producer = self._producer
        if producer is None:
            raise SinkUnavailable("Kafka is not connected")
        sent: list[asyncio.Future[Any]] = []
        try:
            with _translated():
                # Not the producer's context manager: at a failure it would wait for an abort that may never come.
                async with asyncio.timeout(self._call_s):
                    await producer.begin_transaction()
                    for recorded in batch.records:
                        sent.append(await self._send(producer, recorded, self._topic, recorded.stream))
                        if recorded.topic == _SIGNED:
                            sent.append(await self._send(producer, recorded, self._seals_topic, self._ledger_id))
                    await producer.flush()
                    for future in sent:
                        future.result()
                    await producer.commit_transaction()
        except BaseException:
            for future in sent:
                future.add_done_callback(_looked_at)
            # After an indefinite error a producer can stay stuck: it is not used again. Its successor ends the
            # transaction, by the same transactional id.
            self._producer = None
            await _abandoned(producer)
            raise

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _ended(producer)

    async def _send(
        self, producer: AIOKafkaProducer, recorded: Recorded, topic: str, key: str
    ) -> "asyncio.Future[Any]":
        record = audit_record(recorded)
        recorded_at = datetime.fromisoformat(record.headers["recorded_at"])
        future: asyncio.Future[Any] = await producer.send(
            topic,
            key=key.encode(),
            value=recorded.state,
            headers=[(name, value.encode()) for name, value in record.headers.items()],
            timestamp_ms=int(recorded_at.timestamp() * 1000),
        )
        return future

    async def _ensure_topics(self) -> None:
        admin = AIOKafkaAdminClient(**self._connection, request_timeout_ms=10_000)
        try:
            await admin.start()
            known = await admin.list_topics()
            for topic, partitions in ((self._topic, PARTITIONS), (self._seals_topic, 1)):
                if topic not in known:
                    await self._make_topic(admin, topic, partitions)
            for topic in (self._seals_topic, self._topic):
                while not (found := await _partitions(admin, topic)):  # noqa: ASYNC110  # no event tells of a leader
                    await asyncio.sleep(0.05)
            self._partitions = found
        finally:
            await admin.close()

    async def _make_topic(self, admin: AIOKafkaAdminClient, name: str, partitions: int) -> None:
        topic = NewTopic(
            name,
            num_partitions=partitions,
            replication_factor=self._replication,
            topic_configs={"retention.ms": str(RETENTION_MS), "cleanup.policy": "delete"},
        )
        answer = await admin.create_topics([topic])
        for _, code, *text in answer.topic_errors:
            if code not in (0, kafka_errors.TopicAlreadyExistsError.errno):
                raise kafka_errors.for_code(code)(*text)

    @contextlib.asynccontextmanager
    async def _consumer(self, isolation: str) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=None,
            enable_auto_commit=False,
            isolation_level=isolation,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
            request_timeout_ms=10_000,
        )
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def _last_of_ledger(self) -> Recorded | None:
        """The committed event of this ledger with the highest seq."""
        async with self._consumer("read_committed") as committed, self._consumer("read_uncommitted") as written:
            async with asyncio.timeout(self._call_s):
                partitions = [TopicPartition(self._topic, number) for number in self._partitions]
                committed.assign(partitions)
                committed.pause(*partitions)
                ends = await settled_ends(committed, written, partitions)
                begins = await committed.beginning_offsets(partitions)
            found = [await self._last_in(committed, tp, begins[tp], ends[tp]) for tp in partitions]
        return max((one for one in found if one is not None), key=lambda one: one.seq, default=None)

    async def _last_in(self, consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int) -> Recorded | None:
        """Looks back from the end of one partition. The last offsets are transaction markers, not records, and
        records of other ledgers may stand behind ours: so the look goes back further until one of ours is found."""
        step = _FIRST_LOOK
        while begin < end:
            start = max(begin, end - step)
            consumer.seek(tp, start)
            consumer.resume(tp)
            last: Recorded | None = None
            async with asyncio.timeout(4 * self._call_s):
                while await consumer.position(tp) < end:
                    for message in (await consumer.getmany(tp, timeout_ms=20)).get(tp, ()):
                        last = self._ours(message) or last
            consumer.pause(tp)
            if last is not None or start == begin:
                return last
            step *= 8
        return None

    def _ours(self, message: "ConsumerRecord[Any, Any]") -> Recorded | None:
        headers = {name: value.decode() for name, value in message.headers}
        if headers.get("event_id", "").rpartition(":")[0] != self._ledger_id:
            return None
        return recorded_from_headers(headers, message.value or b"")


def client_options(options: dict[str, str]) -> dict[str, Any]:
    """aiokafka's arguments for the security settings of `ProjectionSettings.kafka_options`. Raises SinkRefused."""
    known = {
        "security_protocol": "security_protocol",
        "sasl_mechanism": "sasl_mechanism",
        "sasl_username": "sasl_plain_username",
        "sasl_password": "sasl_plain_password",
        "client_id": "client_id",
    }
    files = {"ssl_cafile": "cafile", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile", "ssl_password": "password"}
    unknown = sorted(set(options) - set(known) - set(files))
    if unknown:
        raise SinkRefused(f"unknown Kafka option {unknown[0]}", f"known are {', '.join([*known, *files])}")
    arguments: dict[str, Any] = {known[name]: value for name, value in options.items() if name in known}
    if arguments.get("security_protocol", "PLAINTEXT") in ("SSL", "SASL_SSL"):
        named = {files[name]: value for name, value in options.items() if name in files}
        context: SSLContext = create_ssl_context(**named)
        arguments["ssl_context"] = context
    return arguments


async def _partitions(admin: AIOKafkaAdminClient, topic: str) -> list[int]:
    """The partitions of the topic; none while one of them has no leader yet."""
    (found,) = await admin.describe_topics([topic])
    parts = found["partitions"]
    if found["error_code"] != 0 or not all(one["leader"] >= 0 for one in parts):
        return []
    return sorted(one["partition"] for one in parts)


def _looked_at(future: "asyncio.Future[Any]") -> None:
    """Takes note of an outcome that the failure of the whole transaction already covers."""
    if not future.cancelled():
        future.exception()


async def settled_ends(
    committed: AIOKafkaConsumer, written: AIOKafkaConsumer, partitions: list[TopicPartition]
) -> dict[TopicPartition, int]:
    """The ends of the partitions when no transaction is open in them: an open one, of another ledger's producer,
    hides committed records that stand behind its beginning. Raises SinkUnavailable when one stays open.

    A broker that dies between a commit and its markers was seen to leave one open for ever (4.4, a single node): then
    no reader gets past it, and guessing a position could write records twice.
    """
    deadline = asyncio.get_running_loop().time() + _SETTLE_S
    while True:
        last = await written.end_offsets(partitions)
        stable: dict[TopicPartition, int] = await committed.end_offsets(partitions)
        open_in = [tp for tp in partitions if stable[tp] < last[tp]]
        if not open_in:
            return stable
        if asyncio.get_running_loop().time() > deadline:
            where = f"partition {open_in[0].partition} of {open_in[0].topic} from offset {stable[open_in[0]]}"
            raise SinkUnavailable(f"Kafka: a transaction stays open in {where}: find it by kafka-transactions.sh")
        await asyncio.sleep(0.02)


async def _ended(producer: AIOKafkaProducer) -> None:
    """Stops a producer that has nothing left to send."""
    try:
        await asyncio.wait_for(producer.stop(), _STOP_S)
    except (TimeoutError, kafka_errors.KafkaError):
        await _abandoned(producer)


async def _abandoned(producer: AIOKafkaProducer) -> None:
    """Stops a producer whatever state it is in. Its own `stop` first waits for all that is unsent, which without a
    broker is for ever, and once cancelled leaves its tasks running: so what is unsent is failed first."""
    sender, unsent = producer._sender, producer._message_accumulator
    for batch in (*chain.from_iterable(unsent._batches.values()), *unsent._pending_batches):
        batch._drain_waiter.add_done_callback(_looked_at)
    unsent.fail_all(kafka_errors.KafkaError("given up"))
    with contextlib.suppress(Exception):
        await asyncio.wait_for(sender.close(), _STOP_S)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(producer.stop(), _STOP_S)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(producer.client.close(), _STOP_S)


@contextlib.contextmanager
def _translated() -> Any:
    """aiokafka's errors as ours."""
    try:
        yield
    except (kafka_errors.ProducerFenced, kafka_errors.InvalidProducerEpoch) as error:
        # Also what a transaction that took too long ends with; fencing keeps both processes from writing twice.
        raise SinkUnavailable("Kafka: another process may be writing this ledger's records") from error
    except kafka_errors.MessageSizeTooLargeError as error:
        raise SinkRefused(
            f"Kafka refuses a record as too large: {error}", "raise max.message.bytes of the topic to 1 MiB or more"
        ) from error
    except SinkUnavailable:
        raise
    except (kafka_errors.KafkaError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise SinkUnavailable(f"Kafka: {text[:300]}") from error
