"""What every sink must do, run on all of them: the ledger's events reach it once, whatever fails in between."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from clickhouse_connect.driver.exceptions import OperationalError

from ledger.backup import restore_log
from ledger.errors import LedgerError, SinkAhead
from ledger.events import Recorded
from ledger.seal import batches
from ledger.store import open_store
from projections.agree import compare, held_by_clickhouse
from projections.audit_files import AuditFilesSink, files, read_audit
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.digest import TableAgreement, agree_tables
from projections.follower import Batch, Follower, Pace, Position, Progress, Sink, SinkRefused
from projections.kafka import KafkaSink
from projections.kafka_client import SEALS_TOPIC, ensure_topics
from projections.tables import TABLES
from tests.engine import engine_path, fresh_database
from tests.history import History, ListSource, past_of
from tests.kafka_server import kafka_server
from tests.kafka_topic import read_topic
from tests.writable_endpoint import WritableEndpoint

QUICK = Pace(max_events=16, retry_first_s=0.001, retry_most_s=0.01)


class Storage(Protocol):
    """Where a sink keeps things; it outlives the sinks of one test."""

    def sink(self) -> Sink: ...
    async def held(self) -> list[Recorded]: ...


class ClickHouseStorage:
    """`history` is the ledger as it grows: what its earlier events are read from."""

    def __init__(self, target: Target, history: History) -> None:
        self.target, self.ledger_id, self.database = target, history.ledger_id, fresh_database()
        self.past = past_of(history.records)

    def sink(self, client: Callable[[], Any] | None = None) -> ClickHouseSink:
        past = self.past
        return ClickHouseSink(self.target, self.ledger_id, database=self.database, past=past, client=client)

    async def held(self) -> list[Recorded]:
        with self.client() as client:
            return list(held_by_clickhouse(client, self.database, self.ledger_id))

    def differing(self, records: list[Recorded]) -> list[TableAgreement]:
        """The tables that are not what these events give."""
        with self.client() as client:
            found = agree_tables(records, self.past, client, self.database, self.ledger_id)
        return [one for one in found if not one.ok]

    def run(self, sql: str) -> Any:
        with self.client() as client:
            return client.command(sql.replace("{database}", self.database))

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        found = connect(Target(path=engine_path()))
        try:
            yield found
        finally:
            found.close()


class AuditStorage:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sink(self) -> AuditFilesSink:
        return AuditFilesSink(self.folder, file_bytes=20_000)

    async def held(self) -> list[Recorded]:
        return list(read_audit(self.folder))


class KafkaStorage:
    def __init__(self, ledger_id: str) -> None:
        self.ledger_id, self.topic = ledger_id, f"log-{fresh_database()}"
        self.brokers = kafka_server().brokers

    def sink(self) -> KafkaSink:
        return KafkaSink(self.brokers, self.ledger_id, topic=self.topic)

    async def held(self) -> list[Recorded]:
        return sorted(await read_topic(self.brokers, self.topic), key=lambda one: one.seq)


@pytest.fixture
def history() -> History:
    return History().orders(20)


@contextlib.asynccontextmanager
async def clickhouse_storage(kind: str, history: History) -> AsyncIterator[ClickHouseStorage]:
    """The real engine, in this process or behind HTTP."""
    if kind == "chdb":
        yield ClickHouseStorage(Target(path=engine_path()), history)
        return
    endpoint = WritableEndpoint(engine_path())
    await endpoint.start()
    host, _, port = endpoint.url.removeprefix("http://").rpartition(":")
    yield ClickHouseStorage(Target(host=host, port=int(port)), history)
    await endpoint.close()


@pytest.fixture(params=["chdb", "http", "audit", "kafka"])
async def storage(request: pytest.FixtureRequest, history: History, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "audit":
        yield AuditStorage(tmp_path / "audit")
    elif request.param == "kafka":
        yield KafkaStorage(history.ledger_id)
    else:
        async with clickhouse_storage(request.param, history) as found:
            yield found


@pytest.fixture(params=["chdb", "http"])
async def clickhouse(request: pytest.FixtureRequest, history: History) -> AsyncIterator[ClickHouseStorage]:
    async with clickhouse_storage(request.param, history) as found:
        yield found


class Faulty:
    """A sink whose connection breaks once around one write: before it, or after it took effect."""

    def __init__(self, inner: Sink, *, fail_at: int, after: bool) -> None:
        self._inner, self._left, self._after = inner, fail_at, after

    @property
    def name(self) -> str:
        return self._inner.name

    async def open(self) -> None:
        await self._inner.open()

    async def position(self) -> Any:
        return await self._inner.position()

    async def write(self, batch: Batch) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise ConnectionError("broke before the write")
        await self._inner.write(batch)
        if self._left == 0:
            raise TimeoutError("the reply was lost")

    async def close(self) -> None:
        await self._inner.close()


async def follow(records: list[Recorded], sink: Sink) -> Follower:
    """Takes a sink to the end of the records and leaves it, as a service does that is started and stopped."""
    arrived = asyncio.Event()

    def watch(progress: Progress) -> None:
        if progress.position == len(records) or progress.state == "failed":
            arrived.set()

    follower = Follower(ListSource(records), sink, QUICK, on_change=watch, seed=1)
    try:
        await follower.start(5)
        run = asyncio.create_task(follower.run())
        await asyncio.wait_for(arrived.wait(), 20)
        follower.stop()
        await run
    finally:
        await sink.close()
    return follower


async def position_of(storage: Storage) -> Any:
    sink = storage.sink()
    try:
        await sink.open()
        return await sink.position()
    finally:
        await sink.close()


async def assert_agrees(storage: Storage, records: list[Recorded]) -> None:
    found = compare("sink", records, await storage.held())
    assert (found.ok, found.difference, found.compared) == (True, "", len(records))
    if isinstance(storage, ClickHouseStorage):
        assert storage.differing(records) == []


async def test_an_empty_sink_has_no_position(storage: Storage) -> None:
    assert await position_of(storage) is None


async def test_a_sink_holds_the_ledger_byte_for_byte(storage: Storage, history: History) -> None:
    await follow(history.records, storage.sink())
    await assert_agrees(storage, history.records)


async def test_the_position_is_the_last_seal_and_survives_a_restart(storage: Storage, history: History) -> None:
    await follow(history.records, storage.sink())
    held = await position_of(storage)
    assert isinstance(held, Position)
    assert (held.seq, held.digest) == (history.records[-1].seq, history.records[-1].state[-67:-3].decode())


async def test_a_restarted_sink_continues_where_it_stopped(storage: Storage, history: History) -> None:
    await follow(history.records, storage.sink())
    before = len(history.records)
    history.orders(5)
    follower = await follow(history.records, storage.sink())
    assert follower.progress.events == len(history.records) - before
    await assert_agrees(storage, history.records)


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after the write"])
async def test_a_connection_that_breaks_loses_and_doubles_nothing(
    storage: Storage, history: History, after: bool
) -> None:
    follower = await follow(history.records, Faulty(storage.sink(), fail_at=2, after=after))
    assert follower.progress.retries == 1
    await assert_agrees(storage, history.records)


async def test_a_crash_between_any_two_batches_is_made_good(storage: Storage, history: History) -> None:
    for commit in list(batches(history.records))[:3]:
        sink = storage.sink()
        await sink.open()
        await sink.position()
        await sink.write(Batch(commit))
        await sink.close()
    await follow(history.records, storage.sink())
    await assert_agrees(storage, history.records)


async def test_a_sink_ahead_of_the_ledger_halts_the_start(storage: Storage, history: History) -> None:
    await follow(history.records, storage.sink())
    restored = history.records[: next(batches(history.records))[-1].seq]
    with pytest.raises(SinkAhead, match="the ledger ends at"):
        await follow(restored, storage.sink())
    await assert_agrees(storage, history.records)


async def test_a_sink_with_another_seal_halts_the_start(storage: Storage, history: History) -> None:
    await follow(history.records, storage.sink())
    other = History(login=6002).orders(40)
    with pytest.raises(SinkAhead, match="no history"):
        await follow(other.records, storage.sink())
    await assert_agrees(storage, history.records)


# --- ClickHouse only --------------------------------------------------------------------------------------------


class Breaking:
    """A client that fails once, at the insert into one table; `after` the insert has happened or before."""

    def __init__(self, client: Any, table: str, after: bool) -> None:
        self._client, self._table, self._after = client, table, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def raw_insert(self, table: str, *arguments: Any, **options: Any) -> Any:
        broken = table.rpartition(".")[2] == self._table
        if broken:
            self._table = ""
        if not broken or self._after:
            self._client.raw_insert(table, *arguments, **options)
        if broken:
            raise OperationalError("connection reset")


@pytest.mark.parametrize("table", ["executions", "orders", "position_history", "positions", "order_events"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_insert_leaves_rows_once(
    clickhouse: ClickHouseStorage, history: History, table: str, after: bool
) -> None:
    once = iter([True])

    def client() -> Any:
        real = connect(clickhouse.target)
        return Breaking(real, table, after) if next(once, False) else real

    await follow(history.records, clickhouse.sink(client))
    await assert_agrees(clickhouse, history.records)
    assert clickhouse.run("SELECT count(), uniqExact(execution_id) FROM {database}.executions FINAL") == ["40", "40"]


async def test_a_batch_inserted_twice_is_there_once(clickhouse: ClickHouseStorage, history: History) -> None:
    sink = clickhouse.sink()
    await sink.open()
    for _ in range(2):
        await sink.write(Batch(history.records))
    await sink.close()
    await assert_agrees(clickhouse, history.records)
    assert clickhouse.run("SELECT sum(quantity) FROM {database}.executions_by_order") == 6


async def test_a_gap_in_order_events_is_filled_again(clickhouse: ClickHouseStorage, history: History) -> None:
    await follow(history.records, clickhouse.sink())
    clickhouse.run("ALTER TABLE {database}.order_events DELETE WHERE seq = 12 SETTINGS mutations_sync = 2")
    held = await position_of(clickhouse)
    assert held.seq < 12
    assert held.highest == history.records[-1].seq
    await follow(history.records, clickhouse.sink())
    await assert_agrees(clickhouse, history.records)


async def test_a_lost_tail_is_filled_again(clickhouse: ClickHouseStorage, history: History) -> None:
    await follow(history.records, clickhouse.sink())
    clickhouse.run("ALTER TABLE {database}.order_events DELETE WHERE seq > 20 SETTINGS mutations_sync = 2")
    await follow(history.records, clickhouse.sink())
    await assert_agrees(clickhouse, history.records)


async def test_what_was_lost_is_filled_again_although_the_same_blocks_were_inserted_once(
    clickhouse: ClickHouseStorage, history: History
) -> None:
    """A replicated table remembers the blocks it took, and drops one that it knows: here as a replica would."""
    sink = clickhouse.sink()
    await sink.open()
    for table in TABLES:
        clickhouse.run(
            f"ALTER TABLE {{database}}.{table.name} MODIFY SETTING non_replicated_deduplication_window = 100"
        )
    await sink.write(Batch(history.records))
    for table in TABLES:
        clickhouse.run(f"ALTER TABLE {{database}}.{table.name} DELETE WHERE 1 SETTINGS mutations_sync = 2")
    await sink.close()
    assert await position_of(clickhouse) is None
    await follow(history.records, clickhouse.sink())
    await assert_agrees(clickhouse, history.records)


# A server's profile may say otherwise: an insert brings along what the sink relies on.
IN_FORCE = {
    "async_insert": "false",
    "insert_deduplicate": "false",
    "deduplicate_insert": "disable",
    "max_threads": "1",
    "max_insert_threads": "1",
}
IN_FORCE_EMBEDDED = {
    "log_queries": "false",
    "log_profile_events": "false",
    "query_profiler_real_time_period_ns": "0",
    "query_profiler_cpu_time_period_ns": "0",
    "materialize_skip_indexes_on_insert": "false",
}


async def settings_in_force(
    clickhouse: ClickHouseStorage, history: History, sink: ClickHouseSink, names: Iterable[str]
) -> dict[str, dict[str, str]]:
    """By table: the settings of its insert, written down with it by the engine itself."""
    tables = ("executions", "orders", "positions", "position_history", "order_events")
    await sink.open()
    told = ", ".join(f"toString(getSetting('{name}')) AS {name}" for name in names)
    for table in tables:
        clickhouse.run(
            f"CREATE MATERIALIZED VIEW {{database}}.settings_of_{table} ENGINE = Memory "
            f"AS SELECT DISTINCT {told} FROM {{database}}.{table}"
        )
    await sink.write(Batch(history.records))
    await sink.close()
    with clickhouse.client() as client:
        found = {one: client.query(f"SELECT DISTINCT * FROM {clickhouse.database}.settings_of_{one}") for one in tables}
    return {table: dict(*rows.named_results()) for table, rows in found.items()}


async def test_every_insert_is_under_the_settings_the_sink_relies_on(
    clickhouse: ClickHouseStorage, history: History
) -> None:
    expected = IN_FORCE | (IN_FORCE_EMBEDDED if clickhouse.target.embedded else {})
    found = await settings_in_force(clickhouse, history, clickhouse.sink(), expected)
    assert len(found) == 5
    assert {table: settings for table, settings in found.items() if settings != expected} == {}


async def test_a_server_that_does_not_know_a_newer_setting_is_not_given_it(
    clickhouse: ClickHouseStorage, history: History
) -> None:
    def older() -> Any:
        client = connect(clickhouse.target)
        del client.server_settings["deduplicate_insert"]
        return client

    found = await settings_in_force(clickhouse, history, clickhouse.sink(older), IN_FORCE)
    assert {tuple(one.items()) for one in found.values()} == {
        tuple((IN_FORCE | {"deduplicate_insert": "enable"}).items())
    }


async def test_two_ledgers_share_the_tables_of_a_server(history: History) -> None:
    other = History("ledger-b", login=5002).orders(7)
    async with clickhouse_storage("http", history) as first:
        second = ClickHouseStorage(first.target, other)
        second.database = first.database
        await follow(history.records, first.sink())
        await follow(other.records, second.sink())
        await assert_agrees(first, history.records)
        await assert_agrees(second, other.records)


async def test_an_embedded_folder_of_another_ledger_is_refused(history: History) -> None:
    mine = ClickHouseStorage(Target(path=engine_path()), history)
    await follow(history.records, mine.sink())
    foreign = ClickHouseStorage(mine.target, History("ledger-b"))
    foreign.database = mine.database
    with pytest.raises(Exception, match="belongs to ledger ledger-a, not to ledger-b"):
        await follow(History("ledger-b").records, foreign.sink())


# --- audit files only -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 50, 700, 3000])
async def test_a_torn_end_of_an_audit_file_is_cut_off_and_written_again(
    tmp_path: Path, history: History, cut: int
) -> None:
    storage = AuditStorage(tmp_path)
    await follow(history.records, storage.sink())
    last = files(tmp_path)[-1]
    os.truncate(last, max(0, last.stat().st_size - cut))
    await follow(history.records, storage.sink())
    await assert_agrees(storage, history.records)


async def test_complete_lines_without_their_seal_are_written_again(tmp_path: Path, history: History) -> None:
    storage = AuditStorage(tmp_path)
    await follow(history.records, storage.sink())
    last = files(tmp_path)[-1]
    lines = last.read_bytes().splitlines(keepends=True)
    last.write_bytes(b"".join(lines[:-1]))
    await follow(history.records, storage.sink())
    await assert_agrees(storage, history.records)


async def test_audit_files_change_with_size_and_are_the_same_after_a_rebuild(tmp_path: Path, history: History) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    await follow(history.records[: next(batches(history.records))[-1].seq], AuditFilesSink(first, file_bytes=20_000))
    await follow(history.records, AuditFilesSink(first, file_bytes=20_000))
    await follow(history.records, AuditFilesSink(second, file_bytes=20_000))
    names = sorted(path.name for path in first.iterdir())
    assert len(names) > 2
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


async def test_audit_files_change_with_the_day(tmp_path: Path, history: History) -> None:
    history.clock += timedelta(days=1)
    history.orders(1)
    await follow(history.records, AuditFilesSink(tmp_path))
    assert [path.stem[-10:] for path in files(tmp_path)] == ["2026-03-01", "2026-03-02"]


async def test_audit_files_can_be_read_by_their_owner_only(tmp_path: Path, history: History) -> None:
    folder = tmp_path / "audit"
    await follow(history.records, AuditFilesSink(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_damaged_line_in_the_middle_is_not_read_over(tmp_path: Path) -> None:
    (tmp_path / "0000000000000001-2026-03-01.jsonl").write_bytes(b"not a record\n" * 2)
    with pytest.raises(Exception, match="line 1 is no audit record"):
        list(read_audit(tmp_path))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))


@pytest.mark.parametrize(("which", "damage"), [(0, cut_short), (1, cut_short), (1, Path.unlink), (-1, without_a_line)])
async def test_audit_files_with_a_hole_are_told_and_nothing_is_added_behind_it(
    tmp_path: Path, history: History, which: int, damage: Callable[[Path], None]
) -> None:
    storage = AuditStorage(tmp_path / "audit")
    await follow(history.records, storage.sink())
    damage(files(storage.folder)[which])
    before = {path: path.read_bytes() for path in files(storage.folder)}
    history.orders(5)
    follower = Follower(ListSource(history.records), storage.sink(), QUICK)
    with pytest.raises(SinkRefused, match="the audit files have a hole"):
        await follower.start()
    assert "put back the file" in follower.progress.remedy
    assert follower.progress.state == "failed"
    assert {path: path.read_bytes() for path in files(storage.folder)} == before
    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'l.db'}")) as store, pytest.raises(LedgerError):
        restore_log(lambda: read_audit(storage.folder), store, "the audit log")
    with pytest.raises(SinkRefused) if damage is cut_short else contextlib.nullcontext():
        assert not compare("audit", history.records, read_audit(storage.folder)).ok


# --- Kafka only -------------------------------------------------------------------------------------------------


class MadeAnew(KafkaSink):
    """Somebody deletes the topic before the third write, and makes it again at once."""

    def __init__(self, storage: KafkaStorage) -> None:
        super().__init__(storage.brokers, storage.ledger_id, topic=storage.topic)
        self.writes, self._storage = 0, storage

    async def write(self, batch: Batch) -> None:
        self.writes += 1
        if self.writes == 3:
            await make_anew(self._storage)
        await super().write(batch)


async def make_anew(storage: KafkaStorage) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=storage.brokers)
    await admin.start()
    try:
        await admin.delete_topics([storage.topic])
        async with asyncio.timeout(20):
            while storage.topic in await admin.list_topics():  # noqa: ASYNC110  # it is gone a while after the answer
                await asyncio.sleep(0.05)
    finally:
        await admin.close()
    await ensure_topics({"bootstrap_servers": storage.brokers}, storage.topic, SEALS_TOPIC, 0)


async def test_a_topic_made_anew_while_it_is_written_is_filled_from_the_beginning(history: History) -> None:
    storage = KafkaStorage(history.ledger_id)
    await follow(history.records, MadeAnew(storage))
    await assert_agrees(storage, history.records)


async def test_a_topic_made_anew_between_two_runs_is_filled_from_the_beginning(history: History) -> None:
    storage = KafkaStorage(history.ledger_id)
    await follow(history.records, storage.sink())
    await make_anew(storage)
    history.orders(5)
    await follow(history.records, storage.sink())
    await assert_agrees(storage, history.records)
