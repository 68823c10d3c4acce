"""Followers in another process are woken by whoever commits; nothing here waits for a look at the clock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ledger.store import EventStore, open_store
from projections.source import StoreSource
from tests.history import History
from tests.projection_process import ProjectionProcess, stored
from tests.servers import PostgresServer, postgres_process

NEVER_S = 3600.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_process() as server:
        yield server


@pytest.fixture
def history() -> History:
    return History().orders(3)


@pytest.fixture
def writer(postgres: PostgresServer, history: History) -> Iterator[EventStore]:
    import psycopg

    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS stored_events")
    with contextlib.closing(open_store(postgres.url)) as opened:
        opened.insert(history.records)
        yield opened


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[StoreSource, asyncio.Event]]:
    """A source that never looks by itself, and an event for each time it is told of a commit."""
    store = await asyncio.to_thread(open_store, url, readonly=True)
    source, told, loop = StoreSource(store, NEVER_S), asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        source.wake()
        told.set()

    store.listen(lambda: loop.call_soon_threadsafe(wake))
    await told.wait()  # it listens
    told.clear()
    yield source, told
    await asyncio.to_thread(source.close)


async def test_postgresql_wakes_a_follower_at_a_commit(
    postgres: PostgresServer, writer: EventStore, history: History
) -> None:
    async with listening(postgres.url) as (source, _):
        before = len(history.records)
        waiting = asyncio.create_task(source.wait(before, NEVER_S))
        await asyncio.to_thread(writer.insert, history.orders(1).records[before:])
        await asyncio.wait_for(waiting, 10)
        assert await source.head() == len(history.records)


async def test_a_commit_in_another_schema_wakes_nobody(
    postgres: PostgresServer, writer: EventStore, history: History
) -> None:
    import psycopg

    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS other CASCADE")
        connection.execute("CREATE SCHEMA other")
    async with listening(postgres.url) as (_, told):
        other = await asyncio.to_thread(open_store, f"{postgres.url}?options=-csearch_path%3Dother")
        await asyncio.to_thread(other.insert, History("ledger-b").records)
        await asyncio.to_thread(other.close)
        assert not told.is_set()
        before = len(history.records)
        await asyncio.to_thread(writer.insert, history.orders(1).records[before:])
        await asyncio.wait_for(told.wait(), 10)


async def test_a_killed_postgresql_is_listened_to_again(
    postgres: PostgresServer, writer: EventStore, history: History
) -> None:
    async with listening(postgres.url) as (source, told):
        await asyncio.to_thread(postgres.kill)
        await asyncio.to_thread(postgres.start)
        await asyncio.wait_for(told.wait(), 20)  # so that nothing committed meanwhile stays unseen
        before = len(history.records)
        waiting = asyncio.create_task(source.wait(before, NEVER_S))
        await asyncio.to_thread(writer.insert, history.orders(1).records[before:])
        await asyncio.wait_for(waiting, 10)


async def test_the_projections_follow_a_postgresql_that_was_killed(
    tmp_path: Path, postgres: PostgresServer, writer: EventStore, history: History
) -> None:
    process = await ProjectionProcess.start(tmp_path, ledger_url=postgres.url, clickhouse="off")
    await process.until_at(len(history.records))
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    before = len(history.records)
    await asyncio.to_thread(writer.insert, history.orders(1).records[before:])
    await process.until_at(len(history.records))
    assert await process.stop() == 0


async def test_a_sqlite_follower_is_woken_by_the_writers_process(tmp_path: Path, history: History) -> None:
    with contextlib.closing(stored(tmp_path, history.records)) as store:
        source = StoreSource(open_store(f"sqlite:///{tmp_path / 'ledger.db'}", readonly=True), NEVER_S)
        waiting = asyncio.create_task(source.wait(len(history.records), NEVER_S))
        await asyncio.sleep(0)
        before = len(history.records)
        store.insert(history.orders(1).records[before:])
        source.wake()
        await asyncio.wait_for(waiting, 10)
        assert await source.head() == len(history.records)
        source.close()
