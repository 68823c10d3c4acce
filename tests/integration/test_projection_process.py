import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import clickhouse_connect
import pytest

from ledger.errors import LedgerLocked
from ledger.events import Recorded
from ledger.store import EventStore, open_store
from projections.agree import Agreement, agree_audit, agree_clickhouse, open_readonly
from tests.history import History
from tests.projection_process import ROOT, ProjectionProcess, stored
from tests.servers import postgres_server


@pytest.fixture
def history() -> History:
    return History().orders(30)


@pytest.fixture
def store(tmp_path: Path, history: History) -> Iterator[EventStore]:
    opened = stored(tmp_path, history.records)
    yield opened
    opened.close()


@pytest.fixture
async def running(tmp_path: Path, store: EventStore) -> AsyncIterator[ProjectionProcess]:
    process = await ProjectionProcess.start(tmp_path)
    yield process
    if process.process.returncode is None:
        await process.stop()


def restored_backup(folder: Path, records: list[Recorded]) -> EventStore:
    """A ledger that ends earlier than the one that stood there."""
    for file in folder.glob("ledger.db*"):
        file.unlink()
    return stored(folder, records)


def clickhouse_agreement(store: EventStore, url: str, ledger_id: str) -> tuple[Agreement, ...]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    client = clickhouse_connect.get_client(host=host, port=int(port))
    try:
        return agree_clickhouse(store, client, "suho_analytics", ledger_id)
    finally:
        client.close()


async def query(url: str, sql: str) -> str:
    async with aiohttp.ClientSession() as http, http.post(url, data=sql.encode()) as response:
        return await response.text()


async def test_every_sink_reaches_the_end_of_the_ledger_and_agrees_with_it(
    tmp_path: Path, running: ProjectionProcess, store: EventStore, history: History
) -> None:
    ready = await running.until("ready")
    assert [sink["sink"] for sink in ready["sinks"]] == ["clickhouse", "audit"]
    await running.until_at(len(history.records))
    found = await asyncio.to_thread(clickhouse_agreement, store, ready["clickhouse_http"], history.ledger_id)
    assert all(one.ok for one in found)
    held = {one.projection.removeprefix("clickhouse."): one.held for one in found}
    assert (held["order_events"], held["executions"], held["orders"]) == (len(history.records), 60, 30)
    assert agree_audit(store, tmp_path / "audit").ok


async def test_a_wake_up_brings_new_events_through_at_once(
    running: ProjectionProcess, store: EventStore, history: History
) -> None:
    ready = await running.until("ready")
    await running.until_at(len(history.records))
    before = len(history.records)
    store.insert(history.orders(1).records[before:])
    running.send(b"w")
    began = time.monotonic()
    await running.until_at(len(history.records))
    assert time.monotonic() - began < 2
    assert await query(ready["clickhouse_http"], "SELECT max(seq) FROM order_events") == f"{len(history.records)}\n"


async def test_events_come_through_without_a_wake_up_too(
    running: ProjectionProcess, store: EventStore, history: History
) -> None:
    await running.until("ready")
    await running.until_at(len(history.records))
    before = len(history.records)
    store.insert(history.orders(1).records[before:])
    await running.until_at(len(history.records))


async def test_the_end_of_stdin_stops_it_with_everything_written(
    tmp_path: Path, running: ProjectionProcess, store: EventStore, history: History
) -> None:
    await running.until("ready")
    before = len(history.records)
    store.insert(history.orders(200).records[before:])
    began = time.monotonic()
    assert await running.stop() == 0
    assert time.monotonic() - began < 3.5
    assert agree_audit(store, tmp_path / "audit").ok


async def test_signals_of_the_terminal_do_not_end_it(running: ProjectionProcess, history: History) -> None:
    ready = await running.until("ready")
    for number in (signal.SIGINT, signal.SIGTERM):
        running.process.send_signal(number)
    assert await query(ready["clickhouse_http"], "SELECT 1") == "1\n"
    assert await running.stop() == 0


async def test_a_killed_process_is_continued_by_its_successor(
    tmp_path: Path, store: EventStore, history: History
) -> None:
    for _ in range(3):
        process = await ProjectionProcess.start(tmp_path)
        await process.until("ready")
        before = len(history.records)
        store.insert(history.orders(100).records[before:])
        process.send(b"w")
        await process.until("lag")
        process.process.kill()
        await process.process.wait()
    process = await ProjectionProcess.start(tmp_path)
    ready = await process.until("ready")
    await process.until_at(len(history.records))
    found = await asyncio.to_thread(clickhouse_agreement, store, ready["clickhouse_http"], history.ledger_id)
    assert {(one.ok, one.difference) for one in found} == {(True, "")}
    assert await process.stop() == 0
    assert agree_audit(store, tmp_path / "audit").ok


async def test_the_folder_can_be_read_when_no_service_runs(
    tmp_path: Path, running: ProjectionProcess, history: History
) -> None:
    await running.until_at(len(history.records))
    await running.stop()
    # In a process of its own: one process can open one folder only.
    code = (
        "import sys, pathlib; from projections.agree import open_readonly\n"
        "with open_readonly(pathlib.Path(sys.argv[1])) as client:\n"
        "    print(client.command('SELECT count() FROM suho_analytics.executions'))\n"
        "    try: client.command('DROP TABLE suho_analytics.executions')\n"
        "    except Exception as error: print('READONLY' in str(error))\n"
    )
    reader = await asyncio.create_subprocess_exec(sys.executable, "-c", code, tmp_path, cwd=ROOT, stdout=PIPE)
    output, _ = await reader.communicate()
    assert output.decode().split() == ["60", "True"]


async def test_a_successor_waits_for_a_predecessor_that_is_stopping(
    tmp_path: Path, running: ProjectionProcess, history: History
) -> None:
    await running.until("ready")
    successor = await ProjectionProcess.start(tmp_path)
    await asyncio.sleep(0.3)
    assert await running.stop() == 0
    await successor.until("ready")
    assert await successor.stop() == 0


async def test_a_ledger_restored_from_an_old_backup_halts_the_start(
    tmp_path: Path, running: ProjectionProcess, store: EventStore, history: History
) -> None:
    await running.until("ready")
    await running.until_at(len(history.records))
    await running.stop()
    store.close()
    restored = restored_backup(tmp_path, history.records[:20])
    process = await ProjectionProcess.start(tmp_path)
    failed = await process.until("failed")
    assert "but the ledger ends at" in failed["error"]
    assert "into a new data folder, where all is rebuilt" in failed["remedy"]
    assert await process.process.wait() == 3
    restored.close()


async def test_deleted_projections_are_rebuilt(
    tmp_path: Path, running: ProjectionProcess, store: EventStore, history: History
) -> None:
    await running.until_at(len(history.records))
    await running.stop()
    shutil.rmtree(tmp_path / "clickhouse")
    shutil.rmtree(tmp_path / "audit")
    process = await ProjectionProcess.start(tmp_path)
    await process.until_at(len(history.records))
    assert await process.stop() == 0
    assert agree_audit(store, tmp_path / "audit").ok


async def test_one_sink_that_cannot_write_does_not_hold_up_the_other(
    tmp_path: Path, store: EventStore, history: History
) -> None:
    (tmp_path / "audit").mkdir()
    blocked = tmp_path / "audit" / "0000000000000001-2026-03-01.jsonl"
    blocked.mkdir()
    process = await ProjectionProcess.start(tmp_path)
    while True:
        found = {sink["sink"]: sink for sink in (await process.until("lag"))["sinks"]}
        if found["clickhouse"]["lag"] == 0 and found["clickhouse"]["position"] == len(history.records):
            break
    assert found["audit"]["state"] == "retrying"
    assert found["audit"]["error"]
    blocked.rmdir()
    await process.until_at(len(history.records))
    assert await process.stop() == 0


async def test_an_unreachable_server_delays_nothing_but_its_own_sink(
    tmp_path: Path, store: EventStore, history: History
) -> None:
    process = await ProjectionProcess.start(tmp_path, clickhouse="http://127.0.0.1:9", patience_s=0.2)
    ready = await process.until("ready", 10)
    assert ready["clickhouse_http"] == ""
    assert {sink["sink"]: sink["state"] for sink in ready["sinks"]}["clickhouse"] == "retrying"
    while {sink["sink"]: sink for sink in (await process.until("lag"))["sinks"]}["audit"]["position"] == 0:
        pass
    assert await process.stop() == 0


async def test_a_ledger_created_a_moment_later_is_waited_for(tmp_path: Path, history: History) -> None:
    process = await ProjectionProcess.start(tmp_path)
    await asyncio.sleep(0.3)
    store = stored(tmp_path, history.records)
    process.send(b"w")
    await process.until_at(len(history.records))
    assert await process.stop() == 0
    store.close()


async def test_a_ledger_in_postgresql_is_followed_without_wake_ups(tmp_path: Path, history: History) -> None:
    with postgres_server() as url:
        store = await asyncio.to_thread(open_store, url)
        await asyncio.to_thread(store.insert, history.records)
        process = await ProjectionProcess.start(tmp_path, ledger_url=url)
        await process.until("ready")
        await process.until_at(len(history.records))
        before = len(history.records)
        await asyncio.to_thread(store.insert, history.orders(2).records[before:])
        await process.until_at(len(history.records))
        assert await process.stop() == 0
        assert agree_audit(store, tmp_path / "audit").ok
        store.close()


async def test_wrong_settings_are_said_and_their_secrets_are_not(tmp_path: Path) -> None:
    process = await ProjectionProcess.start(tmp_path, http_port="a port", clickhouse_password="s3cret")
    failed = await process.until("failed")
    assert failed["error"].startswith("settings: ")
    assert "s3cret" not in str(failed)
    assert await process.process.wait() == 1


async def test_the_folder_of_a_running_service_is_not_opened_by_another_process(
    tmp_path: Path, running: ProjectionProcess
) -> None:
    await running.until("ready")
    with pytest.raises(LedgerLocked, match="endpoint"), open_readonly(tmp_path):
        pass


async def test_it_runs_with_less_priority_than_the_gateway(running: ProjectionProcess) -> None:
    await running.until("ready")
    assert os.getpriority(os.PRIO_PROCESS, running.process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
