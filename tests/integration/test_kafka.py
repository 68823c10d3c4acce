"""The Kafka sink against Apache Kafka: transactions, fencing, markers, outages."""

import asyncio
import logging

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ledger.events import order_stream
from projections.follower import Batch, Follower, Pace, SinkRefused, SinkUnavailable
from projections.kafka import KafkaSink
from projections.kafka_client import client_options
from tests.engine import fresh_database
from tests.history import History, ListSource, full_fill
from tests.kafka_server import KafkaServer, kafka_server
from tests.kafka_topic import read_topic


@pytest.fixture
def server() -> KafkaServer:
    return kafka_server()


@pytest.fixture
def topic() -> str:
    return f"log-{fresh_database()}-kafka"


@pytest.fixture(autouse=True)
def quiet() -> None:
    """The client logs outages, which these tests make, as errors."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


async def written(sink: KafkaSink, history: History, after: int = 0) -> None:
    await sink.open()
    await sink.position()
    await sink.write(Batch(history.records[after:]))


async def test_records_carry_key_value_and_headers_that_restore_the_ledger(server: KafkaServer, topic: str) -> None:
    history = History().orders(30)
    sink = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await written(sink, history)
    await sink.close()
    found = await read_topic(server.brokers, topic)
    assert sorted(found, key=lambda one: one.seq) == history.records


async def test_the_topic_keeps_seven_years_in_six_partitions(server: KafkaServer, topic: str) -> None:
    sink = KafkaSink(server.brokers, "ledger-a", topic=topic)
    await sink.open()
    await sink.close()
    admin = AIOKafkaAdminClient(bootstrap_servers=server.brokers)
    await admin.start()
    (found,) = await admin.describe_topics([topic])
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    await admin.close()
    settings = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    assert len(found["partitions"]) == 6
    assert int(settings["retention.ms"]) >= 7 * 365 * 24 * 3600 * 1000
    assert settings["cleanup.policy"] == "delete"


async def test_an_existing_topic_is_used_as_it_is(server: KafkaServer, topic: str) -> None:
    history = History().orders(3)
    for after in (0, len(history.records)):
        sink = KafkaSink(server.brokers, history.ledger_id, topic=topic)
        if after:
            history.orders(2)
        await written(sink, history, after)
        await sink.close()
    assert len(await read_topic(server.brokers, topic)) == len(history.records)


async def test_an_open_transaction_of_a_dead_predecessor_leaves_nothing(server: KafkaServer, topic: str) -> None:
    history = History().orders(5)
    sink = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await written(sink, history)
    await sink.close()
    dead = AIOKafkaProducer(
        bootstrap_servers=server.brokers, transactional_id=f"order-ledger-{history.ledger_id}", enable_idempotence=True
    )
    await dead.start()
    await dead.begin_transaction()
    future = await dead.send(topic, key=b"writer", value=b"half", headers=[("event_id", b"ledger-a:999")])
    await dead.flush()
    await future
    successor = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await successor.open()
    held = await successor.position()
    assert held is not None
    assert held.seq == history.records[-1].seq
    before = len(history.records)
    history.orders(2)
    await successor.write(Batch(history.records[before:]))
    await successor.close()
    await dead.stop()
    assert sorted(await read_topic(server.brokers, topic), key=lambda one: one.seq) == history.records


async def test_a_stale_process_is_fenced_and_its_batch_is_not_there_twice(server: KafkaServer, topic: str) -> None:
    history = History().orders(2)
    stale = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await written(stale, history)
    current = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await current.open()
    before = len(history.records)
    batch = Batch(history.orders(1).records[before:])
    with pytest.raises(SinkUnavailable, match="another process"):
        await stale.write(batch)
    await current.write(batch)
    await stale.close()
    await current.close()
    assert sorted(await read_topic(server.brokers, topic), key=lambda one: one.seq) == history.records


async def test_two_ledgers_share_a_topic_and_each_finds_its_own_position(server: KafkaServer, topic: str) -> None:
    quiet_one, busy = History("ledger-q").orders(1), History("ledger-b").orders(300)
    first = KafkaSink(server.brokers, "ledger-q", topic=topic)
    await written(first, quiet_one)
    second = KafkaSink(server.brokers, "ledger-b", topic=topic)
    await written(second, busy)
    held = await first.position()
    assert held is not None
    assert held.seq == quiet_one.records[-1].seq
    await first.close()
    await second.close()


async def test_an_outage_is_survived_without_loss_or_repetition(server: KafkaServer, topic: str) -> None:
    history = History().orders(10)
    failed, arrived = asyncio.Event(), asyncio.Event()

    def watch(progress: object) -> None:
        if getattr(progress, "retries", 0):
            failed.set()
        if getattr(progress, "position", 0) == len(history.records):
            arrived.set()

    source = ListSource(list(history.records))
    sink = KafkaSink(server.brokers, history.ledger_id, topic=topic, call_s=3.0)
    follower = Follower(source, sink, Pace(retry_first_s=0.05, retry_most_s=0.2), on_change=watch, seed=3)
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(arrived.wait(), 20)
    arrived.clear()
    await read_topic(server.brokers, topic)  # the markers of what was committed are written, too
    server.kill()
    source.records = history.orders(10).records
    await asyncio.wait_for(failed.wait(), 90)
    await asyncio.to_thread(server.start)
    await asyncio.wait_for(arrived.wait(), 60)
    follower.stop()
    await run
    await sink.close()
    assert sorted(await read_topic(server.brokers, topic), key=lambda one: one.seq) == history.records


async def test_the_largest_event_passes(server: KafkaServer, topic: str) -> None:
    history = History()
    history.commit([(order_stream("big"), full_fill(symbol="\\u0001" * 64_000))])
    sink = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await written(sink, history)
    await sink.close()
    assert sorted(await read_topic(server.brokers, topic), key=lambda one: one.seq) == history.records


async def test_brokers_that_do_not_answer_are_a_failure_that_may_heal() -> None:
    with pytest.raises(SinkUnavailable, match="Kafka"):
        await KafkaSink("127.0.0.1:9", "ledger-a").open()


def test_security_settings_pass_through_and_unknown_ones_are_named() -> None:
    options = client_options(
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"}
    )
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert options["ssl_context"].check_hostname
    with pytest.raises(SinkRefused, match="unknown Kafka setting KAFKA_TLS"):
        client_options({"tls": "yes"})
