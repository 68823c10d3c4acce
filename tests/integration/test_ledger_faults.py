"""What goes wrong with disks, files and databases: one clear line or a safe stop, never half a commit."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from ledger.account_events import MessageRejected
from ledger.commands import RefuseOrder
from ledger.errors import ForeignLedger, LedgerDamaged, LedgerError, LedgerLocked, LedgerUnavailable, UnknownSchema
from ledger.events import Recorded, decode, order_stream
from ledger.intake import raw_of
from ledger.seal import batches, verify
from ledger.store import open_store
from ledger.writer import Cause, Executed, Ledger
from projections.agree import compare
from projections.audit_files import AuditFilesSink, read_audit
from projections.follower import Follower, Pace, Progress
from tests.decider import NOW, receive
from tests.history import History, ListSource
from tests.servers import PostgresServer, need, postgres_process
from tests.service import Listener, Service, market_order, run_cli, serving, stop_simulated_broker

CAUSE = Cause(actor="client")
SEED = int(os.environ.get("FAULT_SEED", "20260301"))
PATIENCE_S = 20.0


async def opened(url: str, **changes: Any) -> Ledger:
    fields = {"login": 5001, "server": "Demo", "clock": lambda: NOW, "build": "test"} | changes
    return await asyncio.wait_for(Ledger.open(open_store(url), **fields), PATIENCE_S)


def place_order(ledger: Ledger, order_id: str) -> Executed:
    return ledger.execute(order_id, receive(order_id=order_id), CAUSE)


def stored(url: str) -> list[Recorded]:
    """Everything in the ledger, which must be sound."""
    with contextlib.closing(open_store(url, readonly=True)) as store:
        records = list(store.scan())
    found = verify(records)
    assert found.ok, found.problem
    return records


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text == " ".join(text.split())
    return text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A ledger of some orders, its writer gone."""
    path = tmp_path / "d" / "ledger.db"
    path.parent.mkdir()
    with contextlib.closing(open_store(f"sqlite:///{path}")) as store:
        store.lock().release()
        for batch in batches(History().orders(300).records):
            store.insert(batch)
    return path


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


# --- files that are not what they should be ---------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "verify", "backup"])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "emptied", "header"])
def test_a_damaged_file_ends_every_command_in_one_line_and_is_left_as_it_is(file, tmp_path, damage, command):
    content = {
        "garbage": lambda data: b"no database at all\n" * 500,
        "truncated": lambda data: data[: len(data) // 2],
        "emptied": lambda data: b"",
        "header": lambda data: b"SQLite format 3\x00" + b"\xff" * 84 + data[100:],
    }[damage](file.read_bytes())
    file.write_bytes(content)
    arguments = [str(tmp_path / "b")] if command == "backup" else []
    done = run_cli(command, *arguments, "--data", str(file.parent))
    stop_simulated_broker(file.parent)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(("order-ledger: ledger ", "order-ledger: the ledger "))
    assert str(file) in line
    assert "Traceback" not in done.stderr
    assert file.read_bytes() == content
    assert not (tmp_path / "b").exists()


async def test_pages_that_are_overwritten_stop_the_start(file):
    data = bytearray(file.read_bytes())
    data[8192:] = random.Random(SEED).randbytes(len(data) - 8192)
    file.write_bytes(data)
    with pytest.raises((LedgerUnavailable, LedgerDamaged)) as error:
        await opened(url_of(file))
    assert one_line(error.value)


async def test_the_ledger_of_another_account_is_refused(file):
    with pytest.raises(ForeignLedger, match="belongs to account 5001 on Demo, the terminal is logged in to 7 on Demo"):
        await opened(url_of(file), login=7)


async def test_an_event_of_a_newer_version_stops_the_start_and_names_it(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = await opened(url)
    await place_order(ledger, "ord_1").durable
    await ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as connection, connection:
        connection.execute(
            """UPDATE stored_events SET state = replace(state, '"schema_version":1', '"schema_version":2')
            WHERE originator_id = 'order/ord_1'"""
        )
    with pytest.raises(UnknownSchema, match=r"event 3 \(order.requested\) has schema version 2, known is 1: upgrade"):
        await opened(url)


# --- a disk without room, a disk without writing ------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)], capture_output=True, text=True, check=False
    )
    need(made.returncode == 0, f"the right to mount a small file system ({made.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def fill_up(ledger: Ledger) -> list[Executed]:
    """Places orders until the ledger fails; returns those whose future was fulfilled."""
    done: list[Executed] = []
    for number in range(100_000):
        executed = place_order(ledger, f"ord_{number}")
        await asyncio.wait([executed.durable])
        if executed.durable.exception() is not None:
            return done
        done.append(executed)
    raise AssertionError("the disk is larger than that")


async def test_a_full_disk_stops_the_writer_and_keeps_its_word(small_disk):
    url = f"sqlite:///{small_disk / 'ledger.db'}"
    ledger = await opened(url, patience_s=0.3)
    acknowledged = await fill_up(ledger)
    failure = ledger.failure.result()
    assert isinstance(failure, LedgerUnavailable)
    assert "is full: free space" in one_line(failure)
    await ledger.close()
    assert len(acknowledged) > 100
    check_kept(url, acknowledged)


async def test_a_start_on_a_full_disk_is_one_line_and_leaves_the_lock_free(small_disk):
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.write(b"x" * 4096):
            pass
    for _ in range(2):
        with pytest.raises(LedgerUnavailable) as error:
            await opened(f"sqlite:///{small_disk / 'ledger.db'}", patience_s=0.1)
        one_line(error.value)


async def test_after_room_was_made_the_ledger_goes_on(small_disk):
    url = f"sqlite:///{small_disk / 'ledger.db'}"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    first = await opened(url, patience_s=0.3)
    acknowledged = await fill_up(first)
    await first.close()
    ballast.unlink()
    again = await opened(url)
    acknowledged += [place_order(again, f"later_{n}") for n in range(10)]
    await asyncio.gather(*[one.durable for one in acknowledged])
    await again.close()
    check_kept(url, acknowledged)


async def test_room_that_comes_in_time_is_waited_for(small_disk):
    url = f"sqlite:///{small_disk / 'ledger.db'}"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    ledger = await opened(url)
    ballast_gone = asyncio.get_running_loop().call_later(0.5, ballast.unlink)
    orders = [place_order(ledger, f"ord_{n}") for n in range(1_500)]
    await asyncio.wait_for(asyncio.gather(*[one.durable for one in orders]), PATIENCE_S)
    ballast_gone.cancel()
    await ledger.close()
    check_kept(url, orders)


def take_all(disk: Path) -> Path:
    """A file that leaves no room."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return ballast


async def test_the_service_says_that_the_disk_is_full_sends_nothing_and_goes_on_when_there_is_room(
    small_disk, tmp_path
):
    url = url_of(small_disk / "ledger.db")

    def shown(service: Service) -> tuple[int, str]:
        answer = requests.get(service.info["http_url"] + "/readyz", timeout=20)
        return answer.status_code, answer.text

    with serving(tmp_path / "d", LEDGER_URL=url) as service:
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("before"))
            await listener.final("before")
            ballast = await asyncio.to_thread(take_all, small_disk)
            sent = 0
            while (await asyncio.to_thread(shown, service))[0] == 200:  # what room there is inside the file is used up
                sent += 1
                await listener.send(market_order(f"o-{sent}"))
            assert "ledger" in (await asyncio.to_thread(shown, service))[1]
            late = [f"late-{number}" for number in range(10)]
            for order_id in late:
                await listener.send(market_order(order_id))
            held = len(stored(url))
            await asyncio.sleep(12)  # longer than a commit of unknown fate is repeated
            assert len(stored(url)) == held
            assert not [body for _, body in listener.messages if body.get("order_id") in late]
            assert "waits for room" in service.log()
            ballast.unlink()
            for order_id in (*(f"o-{number}" for number in range(1, sent + 1)), *late):
                await listener.final(order_id, 60)
            assert (await asyncio.to_thread(shown, service))[0] == 200
        dealt = [row for row in orjson.loads(service.cli("sim", "deals", "--json").stdout) if row["symbol"]]
        filled = {body["order_id"] for subject, body in listener.messages if subject.startswith("broker.fill")}
        assert len(dealt) == len(filled)
    requested = [one.stream for one in stored(url) if one.topic == "order.requested"]
    assert len(requested) == len(set(requested)) == 1 + sent + len(late)


async def test_audit_files_wait_for_room_and_say_so(small_disk):
    history, folder = History().orders(300), small_disk / "audit"
    ballast = await asyncio.to_thread(take_all, small_disk)
    os.truncate(ballast, ballast.stat().st_size - 100_000)  # some of it, but not all, finds its place
    waits, arrived = asyncio.Event(), asyncio.Event()

    def watch(progress: Progress) -> None:
        if progress.state == "retrying" and "No space left" in progress.error:
            waits.set()
        if progress.position == len(history.records):
            arrived.set()

    follower = Follower(ListSource(history.records), AuditFilesSink(folder), Pace(retry_most_s=0.1), on_change=watch)
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(waits.wait(), PATIENCE_S)
    assert not arrived.is_set()
    ballast.unlink()
    await asyncio.wait_for(arrived.wait(), PATIENCE_S)
    follower.stop()
    await run
    assert compare("audit", history.records, read_audit(folder)).ok


async def test_a_service_that_waits_for_room_ends_when_it_is_asked_to(small_disk, tmp_path):
    url = url_of(small_disk / "ledger.db")
    with serving(tmp_path / "d", LEDGER_URL=url) as service:
        async with Listener(service.info["nats_url"]) as listener:
            await asyncio.to_thread(take_all, small_disk)
            number = 0
            while "waits for room" not in service.log():
                await listener.send(market_order(f"o-{number}"))
                number += 1
        assert service.stop() < 20
    stored(url)


def check_kept(url: str, acknowledged: list[Executed]) -> None:
    by_seq = {one.seq: one for one in stored(url)}
    for executed in acknowledged:
        promised = executed.durable.result()
        for seq, event in enumerate(executed.events, promised.first_seq):
            assert decode(by_seq[seq]).data == event


@pytest.mark.parametrize("command", ["serve", "restore"])
def test_a_read_only_disk_is_one_line(small_disk, file, tmp_path, command):
    assert run_cli("backup", str(tmp_path / "b"), "--data", str(file.parent)).returncode == 0
    shutil.copy(file, small_disk / "ledger.db")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    arguments = [str(tmp_path / "b")] if command == "restore" else []
    done = run_cli(command, *arguments, "--data", str(tmp_path / "d2"), LEDGER_URL=url_of(small_disk / "ledger.db"))
    stop_simulated_broker(tmp_path / "d2")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"order-ledger: ledger {small_disk / 'ledger.db'}: ")
    assert "of the file and its folder" in line or "to the file and its folder" in line


def test_a_disk_that_becomes_read_only_stops_the_service_and_keeps_its_word(small_disk, tmp_path):
    url = url_of(small_disk / "ledger.db")
    with serving(tmp_path / "d", LEDGER_URL=url) as service:
        before = len(stored(url))
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False)
        os.kill(service.pid, signal.SIGTERM)
        service.process.communicate(timeout=30)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert len(stored(url)) >= before
        service.start()


# --- the clock --------------------------------------------------------------------------------------------------


async def test_a_clock_that_goes_back_changes_no_order_of_events_and_no_start(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    chance = random.Random(SEED)
    for _ in range(3):
        ledger = await opened(url, clock=lambda: NOW + timedelta(seconds=chance.uniform(-1e6, 1e6)))
        for n in range(30):
            order_id = f"ord_{ledger.epoch}_{n}"
            place_order(ledger, order_id)
            await ledger.execute(order_id, RefuseOrder(reasons=("test",)), CAUSE).durable
        await ledger.close()
    records = stored(url)
    times = [decode(one).recorded_at for one in records]
    assert times != sorted(times), f"FAULT_SEED={SEED}"
    assert [one.seq for one in records] == list(range(1, len(records) + 1))


# --- PostgreSQL goes and comes --------------------------------------------------------------------------------------


async def write_until_stopped(ledger: Ledger, run: int, acknowledged: dict[str, int], enough: asyncio.Event) -> None:
    """Sixteen producers, each with the next order when the one before is durable, until the ledger fails."""

    async def producer(number: int) -> None:
        for n in range(1_000_000):
            order_id = f"ord_{run}_{number}_{n}"
            try:
                acknowledged[order_id] = (await place_order(ledger, order_id).durable).first_seq
            except LedgerError:
                return
            enough.set()

    await asyncio.gather(*[producer(number) for number in range(16)])


async def test_postgresql_killed_again_and_again_loses_and_doubles_nothing():
    chance = random.Random(SEED)
    acknowledged: dict[str, int] = {}
    with postgres_process() as server:
        for run in range(8):
            ledger = await opened(server.url)
            enough = asyncio.Event()
            work = asyncio.create_task(write_until_stopped(ledger, run, acknowledged, enough))
            await enough.wait()
            await asyncio.sleep(chance.uniform(0, 0.15))  # the instant of the kill, not a wait for anything
            await asyncio.to_thread(server.kill)
            if chance.random() < 0.5:  # it is back while the writer still tries
                await asyncio.to_thread(server.start)
                failure = await asyncio.wait_for(asyncio.shield(ledger.failure), PATIENCE_S)
            else:
                failure = await asyncio.wait_for(asyncio.shield(ledger.failure), PATIENCE_S)
                await asyncio.to_thread(server.start)
            await asyncio.wait_for(work, PATIENCE_S)
            one_line(failure)
            await ledger.close()
            check_kept_word(server, acknowledged)
    assert len(acknowledged) > 8, f"FAULT_SEED={SEED}"


def check_kept_word(server: PostgresServer, acknowledged: dict[str, int]) -> None:
    records = stored(server.url)
    requested = [one.stream for one in records if one.topic == "order.requested"]
    assert len(requested) == len(set(requested)), f"FAULT_SEED={SEED}"
    by_seq = {one.seq: one.stream for one in records}
    lost = [order_id for order_id, seq in acknowledged.items() if by_seq.get(seq) != order_stream(order_id)]
    assert not lost, f"FAULT_SEED={SEED}"


async def test_connections_cut_again_and_again_cost_a_repetition_and_nothing_else():
    import psycopg

    acknowledged: dict[str, int] = {}
    with postgres_process() as server:
        ledger = await opened(server.url)
        enough = asyncio.Event()
        work = asyncio.create_task(write_until_stopped(ledger, 0, acknowledged, enough))

        def cut() -> None:
            with psycopg.connect(server.url) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name LIKE 'order-ledger ledger%'"  # not that of the lock
                )

        for _ in range(20):
            enough.clear()
            await asyncio.to_thread(cut)
            await asyncio.wait_for(enough.wait(), PATIENCE_S)
        assert not ledger.failure.done()
        await ledger.close()
        await work
        check_kept_word(server, acknowledged)


@pytest.mark.parametrize("asked", ["load", "append"])
async def test_what_is_read_waits_for_a_database_that_is_away_for_a_moment_as_a_commit_does(asked):
    """An order that is loaded, and the stream whose version is looked up before its first event."""
    import psycopg

    def door(server: PostgresServer, opens: str) -> None:
        with psycopg.connect(server.url.removesuffix("postgres") + "template1", autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE postgres WITH ALLOW_CONNECTIONS {opens}")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'order-ledger ledger%'"  # not that of the lock
            )

    with postgres_process() as server:
        ledger = await opened(server.url)
        await place_order(ledger, "ord_1").durable
        await ledger.execute("ord_1", RefuseOrder(reasons=("test",)), CAUSE).durable
        await ledger.close()
        ledger = await opened(server.url)
        await asyncio.to_thread(door, server, "false")
        if asked == "load":
            waiting = asyncio.ensure_future(ledger.load(["ord_1"]))
        else:
            waiting = ledger.append("inbox/2026-03-01", MessageRejected(reasons=("test",), raw=raw_of(b"")), CAUSE)
        done, _ = await asyncio.wait([waiting], timeout=1)
        assert not done
        await asyncio.to_thread(door, server, "true")
        await asyncio.wait_for(waiting, PATIENCE_S)
        if asked == "load":
            assert ledger.order("ord_1") is not None
        assert not ledger.failure.done()
        await ledger.close()


async def test_a_lost_lock_of_postgresql_stops_the_writer_within_its_second():
    import psycopg

    with postgres_process() as server:
        ledger = await opened(server.url)
        with psycopg.connect(server.url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'order-ledger writer%'"
            )
        failure = await asyncio.wait_for(asyncio.shield(ledger.failure), 2.5)
        assert "lost the writer's lock" in one_line(failure)
        await ledger.close()


def test_a_lock_that_is_let_go_while_it_is_looked_at_is_free():
    with postgres_process() as server:
        for _ in range(30):
            store = open_store(server.url)
            lock = store.lock()
            looking = threading.Event()

            def look(lock: Any = lock, looking: threading.Event = looking) -> None:
                with contextlib.suppress(LedgerLocked):
                    while True:
                        lock.check()
                        looking.set()

            with ThreadPoolExecutor(1) as pool:
                looks = pool.submit(look)
                assert looking.wait(PATIENCE_S)
                lock.release()
                looks.result(PATIENCE_S)
            store.close()


async def test_a_server_that_freezes_fails_the_commit_in_a_bounded_time(monkeypatch):
    monkeypatch.setattr("ledger.store_postgres.CALL_S", 0.5)
    monkeypatch.setattr("ledger.store_postgres.CHECK_S", 0.5)
    monkeypatch.setattr("ledger.store_postgres.CONNECT_S", 2)
    with postgres_process() as server:
        ledger = await opened(server.url, patience_s=0.5)
        with server.frozen():
            executed = place_order(ledger, "ord_1")
            failure = await asyncio.wait_for(asyncio.shield(ledger.failure), PATIENCE_S)
            assert isinstance(executed.durable.exception(), LedgerError)
            one_line(failure)
            await asyncio.wait_for(ledger.close(), PATIENCE_S)
        again = await opened(server.url)
        await again.close()
        stored(server.url)
