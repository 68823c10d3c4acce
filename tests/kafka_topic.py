"""Reads a whole Kafka topic, as an auditor would: only what is committed."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from ledger.events import Recorded
from projections.kafka_client import PARTITIONS
from projections.kafka_log import settled_ends
from projections.records import recorded_from_headers


def _consumer(brokers: str, isolation: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=brokers,
        group_id=None,
        enable_auto_commit=False,
        isolation_level=isolation,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=20,
    )


async def read_topic(brokers: str, topic: str) -> list[Recorded]:
    """The events in all partitions, partition after partition in their order. Checks key and headers on the way.
    A commit is answered before its markers are written: what is still open is waited for."""
    found: dict[TopicPartition, list[Recorded]] = {TopicPartition(topic, n): [] for n in range(PARTITIONS)}
    async with _consumer(brokers, "read_committed") as consumer, _consumer(brokers, "read_uncommitted") as written:
        consumer.assign(list(found))
        ends = await settled_ends(consumer, written, list(found))
        async with asyncio.timeout(20):
            while [tp for tp in found if await consumer.position(tp) < ends[tp]]:
                for tp, messages in (await consumer.getmany(timeout_ms=20)).items():
                    for message in messages:
                        headers = {name: value.decode() for name, value in message.headers}
                        assert message.key.decode() == headers["stream"]
                        found[tp].append(recorded_from_headers(headers, message.value))
    for records in found.values():
        assert [one.seq for one in records] == sorted(one.seq for one in records)
    return [one for tp in sorted(found) for one in found[tp]]
