"""Reads a whole Kafka topic, as an auditor would: only what is committed."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from ledger.events import Recorded
from projections.records import recorded_from_headers


async def read_topic(brokers: str, topic: str, isolation: str = "read_committed") -> list[Recorded]:
    """The events in all partitions, partition after partition in their order. Checks key and headers on the way."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=brokers,
        group_id=None,
        enable_auto_commit=False,
        isolation_level=isolation,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        found: dict[TopicPartition, list[Recorded]] = {tp: [] for tp in consumer.assignment()}
        ends = await consumer.end_offsets(list(found))
        async with asyncio.timeout(20):
            while [tp for tp in found if await consumer.position(tp) < ends[tp]]:
                for tp, messages in (await consumer.getmany(timeout_ms=200)).items():
                    for message in messages:
                        headers = {name: value.decode() for name, value in message.headers}
                        assert message.key.decode() == headers["stream"]
                        found[tp].append(recorded_from_headers(headers, message.value))
    finally:
        await consumer.stop()
    for records in found.values():
        assert [one.seq for one in records] == sorted(one.seq for one in records)
    return [one for tp in sorted(found) for one in found[tp]]
