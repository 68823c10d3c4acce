"""Signed heads reach the sinks' witnesses exactly once, whatever fails in between."""

import os
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from ledger.heads import read_heads
from ledger.seal import batches
from projections.audit_files import AuditFilesSink, files, read_audit
from projections.follower import Batch
from projections.kafka import KafkaSink
from projections.kafka_log import settled_ends
from tests.contracts.test_sinks import Faulty, follow
from tests.engine import fresh_database
from tests.history import History
from tests.kafka_server import kafka_server
from tests.signing import heads_in, sign, signed_history


@pytest.fixture
def history() -> History:
    return signed_history(rounds=6, orders=5)


# --- audit files ------------------------------------------------------------------------------------------------


def lines(folder: Path) -> list[bytes]:
    return (folder / "seals.jsonl").read_bytes().splitlines(keepends=True)


async def test_heads_stand_in_a_file_of_their_own_as_stored(tmp_path: Path, history: History):
    await follow(history.records, AuditFilesSink(tmp_path))
    assert lines(tmp_path) == heads_in(history.records)
    assert len(read_heads(lines(tmp_path), "seals.jsonl")) == 6
    assert list(read_audit(tmp_path)) == history.records
    assert (tmp_path / "seals.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
async def test_a_broken_write_leaves_every_head_once(tmp_path: Path, history: History, after: bool):
    await follow(history.records, Faulty(AuditFilesSink(tmp_path), fail_at=2, after=after))
    assert lines(tmp_path) == heads_in(history.records)


@pytest.mark.parametrize("cut", [1, 200, 5_000, 20_000, 10**9])
async def test_a_crash_between_the_heads_and_their_batch_leaves_every_head_once(
    tmp_path: Path, history: History, cut: int
):
    await follow(history.records, AuditFilesSink(tmp_path))
    last = files(tmp_path)[-1]
    os.truncate(last, max(0, last.stat().st_size - cut))
    sign(history.orders(2))
    await follow(history.records, AuditFilesSink(tmp_path))
    assert lines(tmp_path) == heads_in(history.records)
    assert list(read_audit(tmp_path)) == history.records


@pytest.mark.parametrize("cut", [1, 100, 700])
async def test_a_torn_head_is_written_again(tmp_path: Path, history: History, cut: int):
    commits = list(batches(history.records))
    first = [one for commit in commits[:-1] for one in commit]
    await follow(first, AuditFilesSink(tmp_path))
    with (tmp_path / "seals.jsonl").open("ab") as file:
        file.write(heads_in(commits[-1])[0][:-cut])
    await follow(history.records, AuditFilesSink(tmp_path))
    assert lines(tmp_path) == heads_in(history.records)


async def test_a_witness_is_kept_when_the_audit_files_are_made_again_from_another_ledger(
    tmp_path: Path, history: History
):
    await follow(history.records, AuditFilesSink(tmp_path))
    for path in files(tmp_path):
        path.unlink()
    other = signed_history(2, login=6002)
    await follow(other.records, AuditFilesSink(tmp_path))
    assert lines(tmp_path) == heads_in(history.records) + heads_in(other.records)


# --- Kafka ------------------------------------------------------------------------------------------------------


class Topics:
    """Two fresh topics on the server."""

    def __init__(self) -> None:
        self.brokers, name = kafka_server().brokers, fresh_database()
        self.log, self.seals = f"log-{name}-heads", f"seals-{name}"

    def sink(self, ledger_id: str = "ledger-a") -> KafkaSink:
        return KafkaSink(self.brokers, ledger_id, topic=self.log, seals_topic=self.seals)

    async def heads(self) -> list[tuple[str, bytes]]:
        """Key and value of every committed record of the topic of seals."""
        where, found = TopicPartition(self.seals, 0), []
        async with self._consumer("read_committed") as consumer, self._consumer("read_uncommitted") as written:
            consumer.assign([where])
            # A commit is answered before its markers are written: what is still open is waited for.
            end = (await settled_ends(consumer, written, [where]))[where]
            while await consumer.position(where) < end:
                for message in (await consumer.getmany(where, timeout_ms=20)).get(where, ()):
                    found.append((message.key.decode(), message.value + b"\n"))
        return found

    def _consumer(self, isolation: str) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self.brokers,
            group_id=None,
            enable_auto_commit=False,
            isolation_level=isolation,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )


async def test_kafka_keeps_heads_in_a_topic_of_one_partition(history: History):
    topics = Topics()
    await follow(history.records, topics.sink())
    assert await topics.heads() == [("ledger-a", one) for one in heads_in(history.records)]
    admin = AIOKafkaAdminClient(bootstrap_servers=topics.brokers)
    await admin.start()
    (found,) = await admin.describe_topics([topics.seals])
    await admin.close()
    assert len(found["partitions"]) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
async def test_kafka_holds_every_head_once_after_a_broken_write(history: History, after: bool):
    topics = Topics()
    await follow(history.records, Faulty(topics.sink(), fail_at=2, after=after))
    assert [value for _, value in await topics.heads()] == heads_in(history.records)


async def test_a_transaction_that_was_given_up_shows_no_head(history: History):
    topics = Topics()
    commits = list(batches(history.records))
    await follow(commits[0], topics.sink())
    stale, current = topics.sink(), topics.sink()
    await stale.open()
    await current.open()
    rest = Batch([one for commit in commits[1:] for one in commit])
    with pytest.raises(ConnectionError):
        await stale.write(rest)
    await current.write(rest)
    await stale.close()
    await current.close()
    assert [value for _, value in await topics.heads()] == heads_in(history.records)
