"""What Kafka holds is read back as an auditor would: compared with the ledger, and made into a ledger again."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from ledger.backup import restore_log
from ledger.errors import BackupUnusable, LedgerDamaged, LedgerUnavailable
from ledger.events import Recorded, order_stream
from ledger.store import EventStore, open_store
from projections.agree_kafka import agree_kafka
from projections.audit_files import AuditFilesSink, read_audit
from projections.follower import Batch
from projections.kafka import KafkaSink
from projections.kafka_client import partition_of
from projections.kafka_log import KafkaLog
from projections.records import kafka_record
from tests.contracts.test_sinks import follow
from tests.engine import fresh_database
from tests.history import History, full_fill
from tests.kafka_server import kafka_server
from tests.signing import heads_in, sign, signed_history


class Topics:
    def __init__(self) -> None:
        name = fresh_database()
        self.brokers, self.log, self.seals = kafka_server().brokers, f"read-{name}", f"read-seals-{name}"

    async def mirror(self, history: History) -> None:
        await follow(
            history.records, KafkaSink(self.brokers, history.ledger_id, topic=self.log, seals_topic=self.seals)
        )

    def reader(self) -> KafkaLog:
        return KafkaLog(self.brokers, topic=self.log, seals_topic=self.seals)

    async def forge(self, record: Recorded, *, key: str | None = None, topic: str | None = None) -> None:
        """Adds a record past the sink."""
        stream, value, headers, at = kafka_record(record)
        async with AIOKafkaProducer(bootstrap_servers=self.brokers) as producer:
            await producer.send_and_wait(
                topic or self.log,
                key=key.encode() if key else stream,
                value=value,
                headers=headers,
                timestamp_ms=at,
                partition=0 if topic else partition_of(record.stream),
            )


@pytest.fixture
def history() -> History:
    return signed_history(rounds=5, orders=20)


@pytest.fixture
async def topics(history: History) -> Topics:
    made = Topics()
    await made.mirror(history)
    return made


@pytest.fixture
def store(tmp_path: Path, history: History) -> Iterator[EventStore]:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'ledger.db'}")) as opened:
        opened.fill(history.records)
        yield opened


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[EventStore]:
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'empty.db'}")) as opened:
        yield opened


async def agreement(store: EventStore, topics: Topics, history: History) -> list[tuple[bool, int | None, str]]:
    found = await asyncio.to_thread(agree_kafka, store, topics.reader(), history.ledger_id, catch_up_s=0)
    return [(one.ok, one.seq, one.difference) for one in found]


async def test_events_and_heads_are_read_in_the_order_of_the_ledger(topics: Topics, history: History) -> None:
    log = topics.reader()
    assert await asyncio.to_thread(lambda: list(log.read(history.ledger_id))) == history.records
    heads = await asyncio.to_thread(lambda: list(log.heads(history.ledger_id)))
    assert [one.state + b"\n" for one in heads] == heads_in(history.records)


async def test_ledgers_that_share_the_topics_are_told_apart(topics: Topics, history: History) -> None:
    other = signed_history(rounds=2, ledger_id="ledger-b")
    await topics.mirror(other)
    log = topics.reader()
    assert await asyncio.to_thread(log.ledgers) == ["ledger-a", "ledger-b"]
    for one in (history, other):
        assert await asyncio.to_thread(lambda one=one: list(log.read(one.ledger_id))) == one.records
        assert await asyncio.to_thread(log.last_seq, one.ledger_id) == len(one.records)
    assert await asyncio.to_thread(log.last_seq, "ledger-c") == 0


async def test_the_log_agrees_with_its_ledger(topics: Topics, store: EventStore, history: History) -> None:
    assert await agreement(store, topics, history) == [(True, None, ""), (True, None, "")]


async def test_a_mirror_that_is_behind_is_told_apart_from_one_that_differs(
    topics: Topics, store: EventStore, history: History
) -> None:
    before = len(history.records)
    store.insert(sign(history).records[before:])
    found = await asyncio.to_thread(agree_kafka, store, topics.reader(), history.ledger_id, catch_up_s=0)
    assert [(one.ok, one.behind, one.difference) for one in found] == [(False, 2, ""), (False, 1, "")]


async def test_a_log_that_is_ahead_of_the_ledger_differs(topics: Topics, store: EventStore, history: History) -> None:
    end = len(history.records)
    sign(history.orders(1))
    await topics.mirror(history)
    differences = await agreement(store, topics, history)
    assert [(ok, seq) for ok, seq, _ in differences] == [(False, end + 1), (False, len(history.records) - 1)]


async def test_a_changed_event_is_found(topics: Topics, store: EventStore, tmp_path: Path, history: History) -> None:
    changed = list(history.records)
    old = changed[40]
    changed[40] = Recorded(old.seq, old.stream, old.version, old.topic, old.state.replace(b"EURUSD", b"EURUSX"))
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'other.db'}")) as other:
        other.fill(changed)
        (log, _) = await agreement(other, topics, history)
    assert log == (False, 41, "event 41 has other bytes than the ledger")


async def test_an_event_that_stands_there_twice_is_found(topics: Topics, store: EventStore, history: History) -> None:
    await topics.forge(history.records[40])
    ((ok, seq, text), _) = await agreement(store, topics, history)
    assert (ok, seq) == (False, 41)
    assert "holds event 41 behind event" in text


async def test_a_head_that_stands_there_twice_is_found(topics: Topics, store: EventStore, history: History) -> None:
    head = next(one for one in history.records if one.topic == "writer.head_signed")
    await topics.forge(head, topic=topics.seals)
    (log, (ok, seq, _)) = await agreement(store, topics, history)
    assert (log[0], ok, seq) == (True, False, head.seq)


async def test_an_event_under_another_key_is_found(topics: Topics, store: EventStore, history: History) -> None:
    before = len(history.records)
    store.insert(history.orders(1).records[before:])
    for one in history.records[before:]:
        await topics.forge(one, key="order/another" if one.seq == before + 1 else None)
    ((ok, seq, text), _) = await agreement(store, topics, history)
    assert (ok, seq) == (False, before + 1)
    assert "under another key" in text


async def test_an_empty_ledger_is_made_from_kafka_byte_for_byte(
    topics: Topics, empty: EventStore, history: History
) -> None:
    log = topics.reader()
    found = await asyncio.to_thread(restore_log, lambda: log.read(history.ledger_id), empty, "the log")
    assert list(empty.scan()) == history.records
    assert (found.ledger_id, found.last_seq) == (history.ledger_id, len(history.records))


async def test_what_comes_while_it_is_read_is_left_for_the_next_time(
    topics: Topics, empty: EventStore, history: History
) -> None:
    log, before = topics.reader(), list(history.records)
    assert await asyncio.to_thread(log.last_seq, history.ledger_id) == len(before)
    await topics.mirror(history.orders(10))
    await asyncio.to_thread(restore_log, lambda: log.read(history.ledger_id), empty, "the log")
    assert list(empty.scan()) == before


async def test_a_log_that_is_not_sound_is_not_restored(topics: Topics, empty: EventStore) -> None:
    other = History("ledger-b").orders(3)
    for one in other.records[:4] + other.records[5:]:
        await topics.forge(one)
    log = topics.reader()
    with pytest.raises(LedgerDamaged, match="the log is not sound: event 5 is missing"):
        await asyncio.to_thread(restore_log, lambda: log.read("ledger-b"), empty, "the log")
    assert list(empty.scan()) == []


async def test_a_ledger_that_holds_anything_is_not_restored_over(
    topics: Topics, store: EventStore, history: History
) -> None:
    log = topics.reader()
    with pytest.raises(LedgerUnavailable, match="is not empty"):
        await asyncio.to_thread(restore_log, lambda: log.read(history.ledger_id), store, "the log")


async def test_a_ledger_that_kafka_does_not_know_is_not_restored(topics: Topics, empty: EventStore) -> None:
    log = topics.reader()
    with pytest.raises(BackupUnusable, match="the log holds no whole commit"):
        await asyncio.to_thread(restore_log, lambda: log.read("ledger-c"), empty, "the log")


def test_brokers_that_do_not_answer_or_have_no_log_are_one_line() -> None:
    with pytest.raises(LedgerUnavailable, match="Kafka"):
        KafkaLog("127.0.0.1:9").last_seq("ledger-a")
    with pytest.raises(LedgerUnavailable, match="has no topic nothing-here"):
        KafkaLog(kafka_server().brokers, topic="nothing-here").ledgers()


async def test_an_empty_ledger_is_made_from_audit_files_byte_for_byte(
    tmp_path: Path, empty: EventStore, history: History
) -> None:
    await follow(history.records, AuditFilesSink(tmp_path / "audit", file_bytes=20_000))
    restore_log(lambda: read_audit(tmp_path / "audit"), empty, "the audit log")
    assert list(empty.scan()) == history.records


async def test_a_torn_end_of_the_audit_files_is_left_out(tmp_path: Path, empty: EventStore, history: History) -> None:
    sink = AuditFilesSink(tmp_path / "audit")
    await sink.open()
    await sink.write(Batch(history.records))
    whole = list(history.records)
    history.commit([(order_stream("late"), full_fill())])
    await sink.write(Batch(history.records[len(whole) :]))
    await sink.close()
    (path,) = (tmp_path / "audit").glob("0*.jsonl")
    path.write_bytes(path.read_bytes()[:-10])
    restore_log(lambda: read_audit(tmp_path / "audit"), empty, "the audit log")
    assert list(empty.scan()) == whole
