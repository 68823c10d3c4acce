"""A transaction that Kafka left open for ever is ended by the sink itself, with the outcome it must have.

A node that is killed between a commit and its markers can come back and write none of them: `projections/kafka.py`
tells how. Here the same state is made on purpose: records of a transaction are sent to partitions that the coordinator
is not told of, so that the end of the transaction writes no marker there.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ledger.events import Recorded
from projections.follower import Batch, SinkUnavailable
from projections.kafka import KafkaSink
from projections.kafka_client import PARTITIONS, partition_of
from projections.kafka_log import consumer, find_ends
from projections.records import kafka_record
from tests.engine import fresh_database
from tests.history import History
from tests.kafka_server import KafkaServer, kafka_server
from tests.kafka_topic import read_topic
from tests.signing import signed_history

VERIFICATION = "transaction.partition.verification.enable"


async def configure(server: KafkaServer, value: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.brokers)
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, "1", configs={VERIFICATION: value})])
    await admin.close()


@pytest.fixture
async def server() -> AsyncIterator[KafkaServer]:
    """A node that does not look whether a partition takes part in a transaction, as none did before 3.6."""
    found = kafka_server()
    await configure(found, "false")
    yield found
    await configure(found, "true")


class Topics:
    def __init__(self, server: KafkaServer) -> None:
        name = fresh_database()
        self.brokers, self.log, self.seals = server.brokers, f"open-{name}", f"open-seals-{name}"
        self.left: set[int] = set()

    def sink(self, ledger_id: str) -> KafkaSink:
        return KafkaSink(self.brokers, ledger_id, topic=self.log, seals_topic=self.seals)

    async def write(self, ledger_id: str, records: Sequence[Recorded]) -> None:
        sink = self.sink(ledger_id)
        await sink.open()
        await sink.position()
        await sink.write(Batch(records))
        await sink.close()

    async def leave_open(
        self, ledger_id: str, records: Sequence[Recorded], partitions: set[int], *, commit: bool
    ) -> None:
        """Sends the records in a transaction that ends everywhere but in these partitions."""
        producer = AIOKafkaProducer(bootstrap_servers=self.brokers, transactional_id=f"order-ledger-{ledger_id}")
        await producer.start()
        await producer.begin_transaction()
        producer._txn_manager._txn_partitions.update(TopicPartition(self.log, number) for number in partitions)
        for one in records:
            key, value, headers, at = kafka_record(one)
            where = partition_of(one.stream)
            await producer.send(self.log, key=key, value=value, headers=headers, timestamp_ms=at, partition=where)
        await producer.flush()
        producer._txn_manager._txn_partitions.difference_update(TopicPartition(self.log, n) for n in partitions)
        await (producer.commit_transaction() if commit else producer.abort_transaction())
        await producer.stop()
        self.left |= partitions
        await self.others_ended()

    async def others_ended(self) -> None:
        """Returns when the markers are written in all partitions but those that were left open."""
        connection = {"bootstrap_servers": self.brokers}
        every = [TopicPartition(self.log, number) for number in range(PARTITIONS)]
        async with consumer(connection) as committed, consumer(connection, committed=False) as written:
            async with asyncio.timeout(10):
                while {tp.partition for tp in (await find_ends(committed, written, every, 0)).open} != self.left:
                    pass

    async def held(self) -> list[Recorded]:
        return sorted(await read_topic(self.brokers, self.log), key=lambda one: one.seq)


@pytest.fixture
def history() -> History:
    return signed_history(rounds=2, orders=5)


def taking_part(records: Sequence[Recorded]) -> list[int]:
    """The partitions of the records, that of the seals last."""
    seals = partition_of("writer")
    return [*sorted({partition_of(one.stream) for one in records} - {seals}), seals]


async def goes_on(topics: Topics, history: History, expected: int) -> None:
    """The sink starts, says where it is, takes the rest, and everything is there once."""
    sink = topics.sink(history.ledger_id)
    await sink.open()
    held = await sink.position()
    assert held is not None
    assert held.seq == expected
    history.orders(1)
    await sink.write(Batch(history.records[expected:]))
    await sink.close()
    assert await topics.held() == history.records


@pytest.mark.parametrize("commit", [True, False], ids=["decided to commit", "decided to abort"])
async def test_one_that_no_reader_has_seen_is_aborted_and_written_again(
    server: KafkaServer, history: History, commit: bool
) -> None:
    topics = Topics(server)
    before = len(history.records)
    await topics.write(history.ledger_id, history.records)
    rest = history.orders(4).records[before:]
    everywhere = taking_part(rest)
    await topics.leave_open(history.ledger_id, rest, set(everywhere), commit=commit)
    await goes_on(topics, history, before)


@pytest.mark.parametrize("with_seals", [True, False], ids=["the seal is committed", "the seal is open"])
async def test_one_that_is_committed_in_part_is_committed(
    server: KafkaServer, history: History, with_seals: bool
) -> None:
    topics = Topics(server)
    before = len(history.records)
    await topics.write(history.ledger_id, history.records)
    rest = history.orders(6).records[before:]
    parts = taking_part(rest)
    left = set(parts[:1]) if with_seals else set(parts[1:])
    await topics.leave_open(history.ledger_id, rest, left, commit=True)
    await goes_on(topics, history, len(history.records))


async def test_one_that_is_aborted_in_part_is_aborted(server: KafkaServer, history: History) -> None:
    topics = Topics(server)
    before = len(history.records)
    await topics.write(history.ledger_id, history.records)
    rest = history.orders(6).records[before:]
    await topics.leave_open(history.ledger_id, rest, set(taking_part(rest)[:2]), commit=False)
    await goes_on(topics, history, before)


async def test_the_first_batch_of_a_ledger_can_be_left_open_too(server: KafkaServer, history: History) -> None:
    topics = Topics(server)
    sink = topics.sink(history.ledger_id)
    await sink.open()
    await sink.close()
    await topics.leave_open(history.ledger_id, history.records, set(taking_part(history.records)), commit=True)
    sink = topics.sink(history.ledger_id)
    await sink.open()
    assert await sink.position() is None
    await sink.write(Batch(history.records))
    await sink.close()
    assert await topics.held() == history.records


async def test_one_of_another_ledger_is_left_to_its_own_sink(server: KafkaServer, history: History) -> None:
    topics, other = Topics(server), History("ledger-b").orders(3)
    await topics.write(history.ledger_id, history.records)
    await topics.leave_open("ledger-b", other.records, set(taking_part(other.records)), commit=True)
    before = len(history.records)
    await topics.leave_open(history.ledger_id, history.orders(2).records[before:], set(), commit=True)
    sink = topics.sink(history.ledger_id)
    await sink.open()
    with pytest.raises(SinkUnavailable, match="a transaction of another ledger stays open"):
        await sink.position()  # what of its own stands behind that cannot be told
    await topics.write("ledger-b", other.records)
    held = await sink.position()
    await sink.close()
    assert held is not None
    assert held.seq == history.records[-1].seq
