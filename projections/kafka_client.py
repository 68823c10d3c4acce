"""How Kafka is reached, and the topics there: connection settings, errors as ours, creation, comparison."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.helpers import create_ssl_context
from aiokafka.partitioner import murmur2

from projections.follower import SinkRefused, SinkUnavailable

if TYPE_CHECKING:
    from ssl import SSLContext

log = structlog.get_logger()

SEALS_TOPIC: Final = "broker_communication_seals"
PARTITIONS: Final = 6
SEVEN_YEARS_MS: Final = 7 * 365 * 24 * 3600 * 1000
RETENTION_MS: Final = 7 * 366 * 24 * 3600 * 1000
# Replicas of a topic where none are configured: as many as there are brokers, up to this.
REPLICAS: Final = 3
MESSAGE_BYTES: Final = 1024 * 1024  # what Kafka takes unless it is told otherwise
REQUEST_MS: Final = 10_000
# The last two are not of the base class of all others; the first of them is what a call meets just after being fenced.
KAFKA_ERRORS: Final = (kafka_errors.KafkaError, kafka_errors.IllegalOperation, kafka_errors.ConsumerStoppedError)
_ARGUMENTS: Final = {
    "security_protocol": "security_protocol",
    "sasl_mechanism": "sasl_mechanism",
    "sasl_username": "sasl_plain_username",
    "sasl_password": "sasl_plain_password",
    "client_id": "client_id",
}
_FILES: Final = {
    "ssl_cafile": "cafile",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "ssl_password": "password",
}


def client_options(options: Mapping[str, str]) -> dict[str, Any]:
    """aiokafka's arguments for the settings that `projections.settings.kafka_options` finds. Raises SinkRefused for
    what is not known or cannot be used; its text holds no value of a setting."""
    unknown = sorted(set(options) - set(_ARGUMENTS) - set(_FILES))
    if unknown:
        raise SinkRefused(
            f"unknown Kafka setting KAFKA_{unknown[0].upper()}",
            f"known are {', '.join(f'KAFKA_{name.upper()}' for name in [*_ARGUMENTS, *_FILES])}",
        )
    arguments: dict[str, Any] = {_ARGUMENTS[name]: value for name, value in options.items() if name in _ARGUMENTS}
    protocol = arguments.get("security_protocol", "PLAINTEXT")
    if protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise SinkRefused("KAFKA_SECURITY_PROTOCOL must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    if protocol in ("SSL", "SASL_SSL"):
        named = {_FILES[name]: value for name, value in options.items() if name in _FILES}
        try:
            context: SSLContext = create_ssl_context(**named)
        except OSError as error:  # an SSLError is one
            raise SinkRefused(
                f"the TLS files of Kafka cannot be used: {error.strerror or type(error).__name__}",
                "check KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD",
            ) from None
        arguments["ssl_context"] = context
    return arguments


@lru_cache(maxsize=16_384)
def partition_of(stream: str) -> int:
    """The partition of `broker_communication_log` that holds a stream: as Java's clients choose it for that key."""
    return int((murmur2(stream.encode()) & 0x7FFFFFFF) % PARTITIONS)


async def ensure_topics(connection: Mapping[str, Any], topic: str, seals_topic: str, replication: int) -> int:
    """Makes the topics that are missing and returns, when they can be written, how many bytes one batch may have there.
    `replication` 0: up to `REPLICAS`.

    Raises SinkRefused when one that exists would lose or reorder records.
    """
    admin = AIOKafkaAdminClient(**connection, request_timeout_ms=REQUEST_MS)
    try:
        await admin.start()
        known, most_bytes = await admin.list_topics(), MESSAGE_BYTES
        wanted = {topic: PARTITIONS, seals_topic: 1}
        for name, partitions in wanted.items():
            if name not in known:
                await _make_topic(admin, name, partitions, replication)
        for name, partitions in wanted.items():
            while not (found := await _partitions(admin, name)):  # noqa: ASYNC110  # no event tells of a leader
                await asyncio.sleep(0.05)
            if found != partitions:
                raise _differs(name, f"has {found} partitions instead of {partitions}")
            # Also what was just made: perhaps by somebody else, and otherwise.
            most_bytes = min(most_bytes, await _compare(admin, name))
        return most_bytes
    finally:
        await admin.close()


async def _make_topic(admin: AIOKafkaAdminClient, name: str, partitions: int, replication: int) -> None:
    if not replication:
        brokers = (await admin.describe_cluster())["brokers"]
        replication = min(REPLICAS, len(brokers))
    topic = NewTopic(
        name,
        num_partitions=partitions,
        replication_factor=replication,
        topic_configs={"retention.ms": str(RETENTION_MS), "retention.bytes": "-1", "cleanup.policy": "delete"},
    )
    answer = await admin.create_topics([topic])
    for _, code, *text in answer.topic_errors:
        if code == kafka_errors.InvalidReplicationFactorError.errno:
            raise SinkRefused(
                f"Kafka cannot keep {replication} replicas of {name}: {' '.join(map(str, text))}",
                "set KAFKA_REPLICATION_FACTOR to the number of brokers or less, or start the missing brokers",
            )
        if code not in (0, kafka_errors.TopicAlreadyExistsError.errno):
            raise kafka_errors.for_code(code)(*text)


async def _partitions(admin: AIOKafkaAdminClient, topic: str) -> int:
    """The number of partitions; 0 while one of them has no leader yet."""
    (found,) = await admin.describe_topics([topic])
    parts = found["partitions"]
    if found["error_code"] != 0 or not all(one["leader"] >= 0 for one in parts):
        return 0
    return len(parts)


async def _compare(admin: AIOKafkaAdminClient, name: str) -> int:
    """Returns the topic's `max.message.bytes`. Raises SinkRefused when it forgets records: compacted, kept for too
    short a time, or bounded in size."""
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    code, *_, entries = answer.resources[0]
    if code:
        why = kafka_errors.for_code(code).__name__
        log.warning("the settings of a Kafka topic cannot be read", topic=name, reason=why)
        return MESSAGE_BYTES
    settings = {entry[0]: entry[1] for entry in entries}
    if settings["cleanup.policy"] != "delete":
        raise _differs(name, f"has cleanup.policy={settings['cleanup.policy']}", "cleanup.policy=delete")
    if 0 <= int(settings["retention.ms"]) < RETENTION_MS - 7 * 24 * 3600 * 1000:
        raise _differs(
            name,
            f"forgets records after {settings['retention.ms']} ms, not seven years",
            f"retention.ms={RETENTION_MS}",
        )
    if int(settings["retention.bytes"]) >= 0:
        raise _differs(name, f"forgets records beyond {settings['retention.bytes']} bytes", "retention.bytes=-1")
    return int(settings["max.message.bytes"])


def _differs(topic: str, how: str, setting: str = "") -> SinkRefused:
    remedy = "name brokers on which this topic does not exist, or copy its records and remove it"
    if setting:
        remedy = f"kafka-configs.sh --alter --topic {topic} --add-config {setting}"
    return SinkRefused(f"the Kafka topic {topic} {how}: the audit log would not be complete there", remedy)


@contextlib.contextmanager
def translated() -> Iterator[None]:
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
    except (*KAFKA_ERRORS, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise SinkUnavailable(f"Kafka: {text[:300]}") from error
