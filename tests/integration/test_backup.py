"""Backup and restore: every byte, from either database into either, and never half of it."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from ledger.backup import EVENTS, MANIFEST, back_up, read_manifest, restore, restore_log
from ledger.errors import BackupUnusable, LedgerDamaged, LedgerError, LedgerLocked, LedgerUnavailable
from ledger.seal import batches, verify
from ledger.store import EventStore, open_store
from tests.history import History
from tests.servers import postgres_server
from tests.service import Listener, Service, market_order, run_cli, serving, stop_simulated_broker

HISTORY = History().orders(40).records
CHANGED = "UPDATE stored_events SET state = replace(state, '2026-', '2025-') WHERE rowid = 7"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres_url():
    with postgres_server() as url:
        yield url


@pytest.fixture
def opened(tmp_path, postgres_url):
    """Opens a fresh, empty ledger of a kind."""
    with contextlib.ExitStack() as stack:

        def fresh(kind: str, name: str) -> EventStore:
            url = f"sqlite:///{tmp_path / name}.db" if kind == "sqlite" else _schema(postgres_url, name)
            return stack.enter_context(contextlib.closing(open_store(url)))

        yield fresh


def _schema(url: str, name: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{url}?options=-csearch_path%3D{name}"


def filled(store: EventStore) -> EventStore:
    for batch in batches(HISTORY):
        store.insert(batch)
    return store


def backed_up(store: EventStore, folder: Path):
    return back_up(store, folder, at=NOW, version="1")


@pytest.fixture
def source(opened) -> EventStore:
    return filled(opened("sqlite", "source"))


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
@pytest.mark.parametrize("origin", ["sqlite", "postgresql"])
def test_a_backup_of_either_database_restores_byte_for_byte_into_either(opened, tmp_path, origin, target):
    made = backed_up(filled(opened(origin, "source")), tmp_path / "b")
    store = opened(target, "target")
    found = restore(tmp_path / "b", store)
    assert made == read_manifest(tmp_path / "b")
    assert (found.last_seq, found.head) == (made.last_seq, made.digest)
    assert list(store.scan()) == HISTORY
    assert (made.last_seq, made.digest) == (len(HISTORY), verify(HISTORY).head)
    assert (made.ledger_id, made.login, made.server) == ("ledger-a", 5001, "Demo")


def test_a_restored_ledger_goes_on_where_the_backup_ended(opened, source, tmp_path):
    backed_up(source, tmp_path / "b")
    store = opened("postgresql", "target")
    restore(tmp_path / "b", store)
    more = History().orders(50).records
    store.insert(more[len(HISTORY) :])
    assert list(store.scan()) == more
    assert verify(store.scan()).ok


def test_what_came_after_the_backup_is_restored_from_a_log_kept_elsewhere(opened, source, tmp_path):
    backed_up(source, tmp_path / "b")
    more = History().orders(50).records
    store = opened("sqlite", "target")
    found = restore(tmp_path / "b", store, later=lambda: iter(more[:-1]))  # its last commit is torn
    whole = [one for batch in batches(more[:-1]) for one in batch]
    assert list(store.scan()) == whole
    assert found.last_seq == whole[-1].seq > len(HISTORY)


def test_a_log_that_grows_while_it_is_restored_is_taken_as_it_was_verified(opened, source, tmp_path):
    backed_up(source, tmp_path / "b")
    more = History().orders(50).records
    for name, put_back in (
        ("first", lambda store, log: restore(tmp_path / "b", store, later=log)),
        ("second", lambda store, log: restore_log(log, store, "the log")),
    ):
        readings = iter((more[:-9], more))
        store = opened("sqlite", name)
        found = put_back(store, lambda readings=readings: iter(next(readings)))
        whole = [one for batch in batches(more[:-9]) for one in batch]
        assert list(store.scan()) == whole
        assert found.last_seq == len(whole)


def test_a_log_of_another_past_is_refused_and_nothing_is_written(opened, source, tmp_path):
    backed_up(source, tmp_path / "b")
    store = opened("sqlite", "target")
    for other in (History("ledger-b").orders(50).records, History().orders(50).records[len(HISTORY) + 5 :]):
        with pytest.raises(LedgerDamaged, match=r"what the log adds to the backup .* is not sound"):
            restore(tmp_path / "b", store, later=lambda other=other: iter(other))
    assert list(store.scan()) == []


def test_a_backup_is_one_file_that_needs_no_other_and_can_be_read_only(source, tmp_path):
    backed_up(source, tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [EVENTS, MANIFEST]
    assert (tmp_path / "b" / EVENTS).stat().st_mode & 0o777 == 0o400
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
    with contextlib.closing(sqlite3.connect(f"file:{tmp_path / 'b' / EVENTS}?immutable=1", uri=True)) as plain:
        assert plain.execute("SELECT count(*) FROM stored_events").fetchone() == (len(HISTORY),)


def test_what_is_committed_meanwhile_stays_out_of_the_backup(opened, tmp_path):
    store = opened("sqlite", "source")
    parts = list(batches(HISTORY))
    for batch in parts[:10]:
        store.insert(batch)
    rest = iter(parts[10:])

    def meanwhile(_, __, records):
        for one in records:
            for batch in rest:
                store.insert(batch)
                break
            yield one

    made = back_up(store, tmp_path / "b", at=NOW, version="1", watch=meanwhile)
    assert made.last_seq == parts[9][-1].seq
    assert store.head().seq > made.last_seq


@pytest.mark.parametrize("there", ["file", "folder"])
def test_nothing_that_exists_is_overwritten(source, tmp_path, there):
    place = tmp_path / "b"
    if there == "file":
        place.write_text("precious")
    else:
        backed_up(source, place)
    before = place.stat()
    with pytest.raises(BackupUnusable, match="exists already and is left as it is: name a new folder"):
        backed_up(source, place)
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_empty_folder_may_be_used(source, tmp_path):
    (tmp_path / "b").mkdir()
    backed_up(source, tmp_path / "b")
    assert read_manifest(tmp_path / "b").last_seq == len(HISTORY)


def test_an_empty_ledger_gives_no_backup(opened, tmp_path):
    with pytest.raises(BackupUnusable, match="is empty"):
        backed_up(opened("sqlite", "source"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_damaged_ledger_gives_no_backup(source, tmp_path):
    change(tmp_path / "source.db", CHANGED)
    with pytest.raises(LedgerDamaged, match=r"is not sound: .*: run verify") as damage:
        backed_up(source, tmp_path / "b")
    assert damage.value.first_bad_seq <= 7
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("source")]


def change(path: Path, statement: str) -> None:
    path.chmod(0o600)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        CHANGED,
        f"DELETE FROM stored_events WHERE rowid > {len(HISTORY) - 5}",
        "DELETE FROM stored_events WHERE rowid = 9",
        "DELETE FROM stored_events",
    ],
)
def test_a_changed_backup_is_refused_and_nothing_is_written(opened, source, tmp_path, statement):
    backed_up(source, tmp_path / "b")
    change(tmp_path / "b" / EVENTS, statement)
    target = opened("sqlite", "target")
    with pytest.raises(LedgerDamaged, match=r"the backup .* (is not sound|ends at event)"):
        restore(tmp_path / "b", target)
    assert list(target.scan()) == []


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_restore_that_fails_takes_the_ledger_away_that_it_made_and_no_other(opened, source, tmp_path, there):
    backed_up(source, tmp_path / "b")
    change(tmp_path / "b" / EVENTS, CHANGED)
    path = tmp_path / "d" / "ledger.db"
    if there:
        path.parent.mkdir()
        open_store(f"sqlite:///{path}").close()
    for _ in range(2):
        done = run_cli("restore", str(tmp_path / "b"), "--data", str(path.parent))
        assert done.returncode == 1
        assert "is not sound" in done.stderr
        assert path.exists() is there
    assert [one.name for one in path.parent.glob("ledger.db-*")] == []


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format":2,', b"\xff"])
def test_a_folder_that_is_no_backup_is_refused_in_one_line(opened, tmp_path, content):
    (tmp_path / "b").mkdir()
    target = opened("sqlite", "target")
    with pytest.raises(BackupUnusable, match="no backup at"):
        restore(tmp_path / "b", target)
    (tmp_path / "b" / MANIFEST).write_bytes(content)
    with pytest.raises(BackupUnusable, match="no backup at") as error:
        restore(tmp_path / "b", target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_that_holds_anything_is_left_as_it_is(opened, source, tmp_path, kind):
    backed_up(source, tmp_path / "b")
    target = opened(kind, "target")
    other = History("ledger-b").records
    target.insert(other)
    with pytest.raises(LedgerUnavailable, match="is not empty"):
        restore(tmp_path / "b", target)
    assert list(target.scan()) == other


def test_a_ledger_with_a_writer_is_not_restored_over(opened, source, tmp_path):
    backed_up(source, tmp_path / "b")
    target = opened("postgresql", "target")
    lock = target.lock()
    with pytest.raises(LedgerLocked):
        restore(tmp_path / "b", target)
    lock.release()
    restore(tmp_path / "b", target)


KILLED = """
import os, signal, sys
from pathlib import Path
from ledger.backup import back_up, restore
from ledger.store import open_store
from datetime import UTC, datetime

def watch(title, total, records):
    for number, one in enumerate(records):
        if title == sys.argv[4] and number == total - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield one

what, url, folder = sys.argv[1:4]
if what == "back_up":
    back_up(open_store(url, readonly=True), Path(folder), at=datetime.now(UTC), version="1", watch=watch)
else:
    restore(Path(folder), open_store(url), watch)
"""


def killed(*arguments: object) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("title", ["copying", "verifying the backup"])
def test_a_backup_that_is_killed_leaves_no_backup_behind(source, tmp_path, title):
    killed("back_up", f"sqlite:///{tmp_path / 'source.db'}", tmp_path / "b", title)
    assert not (tmp_path / "b").exists()
    backed_up(source, tmp_path / "b")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_restore_that_is_killed_leaves_the_ledger_empty(opened, source, tmp_path, postgres_url, kind):
    backed_up(source, tmp_path / "b")
    url = f"sqlite:///{tmp_path / 'target.db'}" if kind == "sqlite" else _schema(postgres_url, "killed")
    killed("restore", url, tmp_path / "b", "restoring")
    with contextlib.closing(open_store(url)) as target:
        assert list(target.scan()) == []
        restore_when_free(tmp_path / "b", target)
        assert list(target.scan()) == HISTORY


def restore_when_free(folder: Path, target: EventStore) -> None:
    """PostgreSQL notices only after a moment that a process is gone."""
    for _ in range(500):
        try:
            restore(folder, target)
            return
        except LedgerLocked:
            os.sched_yield()
    raise AssertionError("the lock of a killed process stays")


def test_a_backup_that_cannot_be_written_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match=r"cannot write the backup .*: Not a directory"):
        backed_up(source, tmp_path / "file" / "b")


# --- the service ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """A data folder that was backed up under way, served on and stopped; its ledger is then that of the backup."""
    home = tmp_path_factory.mktemp("rolled")
    with serving(home / "d") as service:  # leaves no process behind, also of the broker
        asyncio.run(trade(service, "before"))
        made = service.cli("backup", str(home / "b"), "--json")
        assert made.returncode == 0, made.stderr
        asyncio.run(trade(service, "after"))
        service.stop()
    full = events_of(home / "d")
    (home / "lost").mkdir()
    for path in (home / "d").glob("ledger.db*"):
        path.rename(home / "lost" / path.name)
    done = run_cli("restore", str(home / "b"), "--data", str(home / "d"))
    assert done.returncode == 0, done.stderr
    assert f"restored {orjson.loads(made.stdout)['last_seq']} events" in done.stdout
    return home, full


async def trade(service: Service, order_id: str) -> None:
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order(order_id))
        await listener.final(order_id)


def events_of(folder: Path) -> list:
    with contextlib.closing(open_store(f"sqlite:///{folder / 'ledger.db'}", readonly=True)) as store:
        return list(store.scan())


def refused_start(folder: Path, **settings: str) -> subprocess.CompletedProcess:
    try:
        done = run_cli("serve", "--data", str(folder), **settings)
    finally:
        stop_simulated_broker(folder)
    assert done.returncode == 1
    return done


@pytest.mark.parametrize(
    ("sink", "gone"),
    [("nats", []), ("clickhouse", ["nats", "audit"]), ("audit", ["nats", "clickhouse"])],
    ids=lambda one: one,
)
def test_a_service_on_a_restored_older_ledger_stops_and_names_what_holds_more(rolled_back, tmp_path, sink, gone):
    home, full = rolled_back
    shutil.copytree(home / "d", tmp_path / "d", symlinks=True)
    for name in gone:
        shutil.rmtree(tmp_path / "d" / name)
    before = events_of(tmp_path / "d")
    assert before == full[: len(before)]
    done = refused_start(tmp_path / "d")
    line = done.stderr.splitlines()[-1]
    held = full[-1].seq if sink != "nats" else r"\d+"
    assert re.match(
        rf"order-ledger: (projections: )?{sink} holds event {held}, but the ledger ends at {len(before)}[:.] ", line
    )
    assert "restore it with --audit" in line
    assert "READY" not in done.stdout
    assert events_of(tmp_path / "d") == before  # not even a connection was recorded


def test_with_the_audit_log_nothing_is_lost_and_the_service_goes_on(rolled_back, tmp_path):
    home, full = rolled_back
    shutil.copytree(home / "d", tmp_path / "d", symlinks=True)
    for path in (tmp_path / "d").glob("ledger.db*"):
        path.unlink()
    folder = str(tmp_path / "d")
    done = run_cli("restore", str(home / "b"), "--data", folder, "--audit", f"{folder}/audit")
    assert done.returncode == 0, done.stderr
    restored = events_of(tmp_path / "d")
    # What came behind the last write to the audit files was never told to it.
    assert restored == full[: len(restored)]
    assert len(restored) == len(full)
    with serving(tmp_path / "d") as service:
        asyncio.run(trade(service, "once_more"))
        assert orjson.loads(service.cli("verify", "--json").stdout)["ok"]


def test_in_a_new_folder_everything_is_rebuilt_from_the_restored_ledger(rolled_back, tmp_path):
    home, _ = rolled_back
    assert run_cli("restore", str(home / "b"), "--data", str(tmp_path / "new")).returncode == 0
    with serving(tmp_path / "new") as service:
        asyncio.run(trade(service, "once_more"))
        found = service.cli("sql", "SELECT count(DISTINCT order_id) FROM executions", "--json")
        assert found.returncode == 0
        assert orjson.loads(service.cli("history", "before", "--json").stdout)[-1]["topic"] == "order.filled"
        assert service.cli("history", "after").returncode == 1


def test_a_restore_over_a_ledger_and_a_backup_of_nothing_are_one_line_each(rolled_back, tmp_path):
    home, _ = rolled_back
    for arguments, told in {
        ("restore", str(home / "b"), "--data", str(home / "d")): "is not empty",
        ("restore", str(tmp_path), "--data", str(tmp_path / "new")): "no backup at",
        (
            "restore",
            str(home / "b"),
            "--data",
            str(tmp_path / "new"),
            "--audit",
            str(tmp_path / "x"),
        ): "there is no folder",
        ("backup", str(tmp_path / "b2"), "--data", str(tmp_path / "new")): "no ledger at",
        ("backup", str(home / "b"), "--data", str(home / "d")): "exists already",
    }.items():
        done = run_cli(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert told in done.stderr
    assert not (tmp_path / "new").exists()


def test_another_gateway_takes_the_ledger_over_from_one_that_runs(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared' / 'ledger.db'}"
    with serving(tmp_path / "a", LEDGER_URL=url) as old:
        refused = refused_start(tmp_path / "b", LEDGER_URL=url)
        assert "stop it first, or take the ledger over by `serve --take-over`" in refused.stderr
        new = Service(tmp_path / "c", "--take-over", LEDGER_URL=url)
        try:
            new.start()
            _, _ = old.process.communicate(timeout=10)
            assert old.process.returncode == 1
            assert "another writer committed" in old.log().splitlines()[-1]
            asyncio.run(trade(new, "mine_now"))
        finally:
            new.end()
    with contextlib.closing(open_store(url, readonly=True)) as store:
        records = list(store.scan())
    assert verify(records).ok
    assert "writer.took_over" in {one.topic for one in records}


# --- from the audit files of a run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A data folder that was served for a while, and stopped."""

    async def trade(url: str) -> None:
        async with Listener(url) as listener:
            for number in range(3):
                await listener.send(market_order(f"audited-{number}"))
                await listener.final(f"audited-{number}")
            await listener.send(market_order("audited-0"))  # again
            await listener.send(b"no order")

    with serving(tmp_path_factory.mktemp("served") / "d", CLICKHOUSE_URL="off") as service:
        asyncio.run(trade(service.info["nats_url"]))
        service.stop()
        yield service.folder


def test_the_audit_files_of_a_run_restore_its_ledger_byte_for_byte(served, tmp_path):
    original = events_of(served)
    done = run_cli("restore", "--from-audit-files", str(served / "audit"), "--data", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    assert events_of(tmp_path / "r") == original
    first, second = done.stdout.splitlines()
    assert first == f"restored {len(original)} events into {tmp_path / 'r' / 'ledger.db'}, verified"
    assert second == f"head {verify(original).head}"


def test_restoring_from_audit_files_tells_programs_which_ledger_it_is_now(served, tmp_path):
    original = events_of(served)
    arguments = ("--from-audit-files", str(served / "audit"), "--data", str(tmp_path / "r"), "--json")
    done = run_cli("restore", *arguments)
    told = verify(original)
    assert orjson.loads(done.stdout) == {
        "ledger_id": told.ledger_id,
        "last_seq": len(original),
        "digest": told.head,
    }
    assert orjson.loads(run_cli("verify", "--json", "--data", str(tmp_path / "r")).stdout)["ok"]
    again = run_cli("restore", *arguments)
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
