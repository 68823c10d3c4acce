"""The Kafka sink against Apache Kafka: transactions, fencing, markers, outages."""

import asyncio
import gc
import logging

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ledger.events import order_stream
from projections.follower import Batch, Follower, Pace, SinkRefused, SinkUnavailable
from projections.kafka import KafkaSink
from projections.kafka_client import RETENTION_MS, client_options
from projections.kafka_log import KafkaLog
from projections.settings import kafka_options
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
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    with pytest.raises(SinkUnavailable, match="another process"):
        await stale.write(batch)
    gc.collect()
    assert complaints == []  # aiokafka leaves the failure in futures besides; no log is told of it again
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


async def test_an_event_the_topic_cannot_take_stops_the_sink_with_the_remedy(server: KafkaServer, topic: str) -> None:
    await make_topic(server, topic, retention_ms="-1", max_message_bytes="4000")
    history = History().orders(50)
    sink = KafkaSink(server.brokers, history.ledger_id, topic=topic)
    await written(sink, history)  # much more than fits into one message, but in several
    before = len(history.records)
    history.commit([(order_stream("big"), full_fill(symbol="X" * 5_000))])
    with pytest.raises(SinkRefused, match="too large") as refused:
        await sink.write(Batch(history.records[before:]))
    assert "max.message.bytes" in refused.value.remedy
    await sink.close()


async def test_brokers_that_do_not_answer_are_a_failure_that_may_heal() -> None:
    with pytest.raises(SinkUnavailable, match="Kafka"):
        await KafkaSink("127.0.0.1:9", "ledger-a").open()


async def make_topic(server: KafkaServer, name: str, partitions: int = 6, **settings: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.brokers)
    await admin.start()
    configs = {key.replace("_", "."): value for key, value in settings.items()}
    await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
    await admin.close()


@pytest.mark.parametrize(
    ("partitions", "settings", "problem", "remedy"),
    [
        (3, {"retention_ms": "-1"}, "has 3 partitions instead of 6", "on which this topic does not exist"),
        (6, {"cleanup_policy": "compact"}, "has cleanup.policy=compact", "--add-config cleanup.policy=delete"),
        (6, {}, "forgets records after 604800000 ms", f"--add-config retention.ms={RETENTION_MS}"),
        (6, {"retention_ms": "-1", "retention_bytes": "9"}, "beyond 9 bytes", "--add-config retention.bytes=-1"),
    ],
)
async def test_a_topic_that_would_not_keep_the_log_whole_is_refused_with_the_remedy(
    server: KafkaServer, topic: str, partitions: int, settings: dict[str, str], problem: str, remedy: str
) -> None:
    await make_topic(server, topic, partitions, **settings)
    with pytest.raises(SinkRefused, match=problem) as refused:
        await KafkaSink(server.brokers, "ledger-a", topic=topic).open()
    assert topic in str(refused.value)
    assert remedy in refused.value.remedy


async def test_a_topic_that_keeps_records_for_ever_is_good_enough(server: KafkaServer, topic: str) -> None:
    await make_topic(server, topic, retention_ms="-1")
    sink = KafkaSink(server.brokers, "ledger-a", topic=topic)
    await written(sink, History())
    await sink.close()


async def test_more_replicas_than_brokers_are_a_clear_error(server: KafkaServer, topic: str) -> None:
    with pytest.raises(SinkRefused, match="cannot keep 3 replicas") as refused:
        await KafkaSink(server.brokers, "ledger-a", topic=topic, replication=3).open()
    assert "KAFKA_REPLICATION_FACTOR" in refused.value.remedy


def secured(server: KafkaServer, password: str) -> dict[str, str]:
    return kafka_options(
        {
            "KAFKA_BROKERS": server.secure_brokers,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "PLAIN",
            "KAFKA_SASL_USERNAME": "auditor",
            "KAFKA_SASL_PASSWORD": password,
            "KAFKA_SSL_CAFILE": str(server.ca_file),
            "KAFKA_HEAP_OPTS": "-Xmx1g",  # of another program
        }
    )


async def test_the_log_is_written_and_read_over_tls_with_a_password(server: KafkaServer, topic: str) -> None:
    history, options = History().orders(5), secured(server, server.password)
    sink = KafkaSink(server.secure_brokers, history.ledger_id, topic=topic, seals_topic=f"{topic}-s", options=options)
    await written(sink, history)
    held = await sink.position()
    await sink.close()
    assert held is not None
    assert held.seq == len(history.records)
    log = KafkaLog(server.secure_brokers, topic=topic, seals_topic=f"{topic}-s", options=options)
    assert await asyncio.to_thread(lambda: list(log.read(history.ledger_id))) == history.records


async def test_a_wrong_password_is_told_without_it(server: KafkaServer, topic: str) -> None:
    options = secured(server, "a wrong wörd")
    with pytest.raises(SinkUnavailable) as failed:
        await KafkaSink(server.secure_brokers, "ledger-a", topic=topic, options=options).open()
    assert "wrong w" not in str(failed.value)


def test_tls_files_that_are_not_there_are_named_by_their_settings() -> None:
    with pytest.raises(SinkRefused, match="TLS files of Kafka cannot be used: No such file") as refused:
        client_options({"security_protocol": "SSL", "ssl_cafile": "/nowhere/ca.pem"})
    assert "KAFKA_SSL_CAFILE" in refused.value.remedy


def test_security_settings_pass_through_and_unknown_ones_are_named() -> None:
    options = client_options(
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"}
    )
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert options["ssl_context"].check_hostname
    with pytest.raises(SinkRefused, match="unknown Kafka setting KAFKA_TLS"):
        client_options({"tls": "yes"})
