"""A sink's process is killed at every step of a batch, and started again: its records are the ledger's, each once."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.events import LedgerCreated, event_of
from ledger.seal import batches
from ledger.store import create_file, open_file
from projections.audit_files import read_audit
from projections.clickhouse import Target, connect
from projections.digest import agree_tables
from projections.kafka_log import KafkaLog
from tests.engine import fresh_database
from tests.history import History
from tests.kafka_server import kafka_server
from tests.signing import heads_in, signed_history

ROOT = Path(__file__).resolve().parents[2]
STEPS = 22  # more than a batch has


@pytest.fixture
def history() -> History:
    return signed_history(rounds=30, orders=5)


@pytest.fixture
def ledger(tmp_path: Path, history: History) -> Path:
    store = create_file(tmp_path / "ledger.db")
    store.fill(history.records)
    store.close()
    return tmp_path / "ledger.db"


def run(kind: str, ledger: Path, place: str, step: int = 0) -> str:
    """Where it was killed; nothing when it came to the end of the ledger."""
    command = [sys.executable, "-m", "tests.killed_sink", kind, str(ledger), place, str(step)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if done.stdout else 0), done.stderr.decode()
    return done.stdout.decode().strip()


def test_audit_files_hold_the_ledger_once_after_a_kill_at_every_step(
    tmp_path: Path, ledger: Path, history: History
) -> None:
    folder, seen = tmp_path / "audit", set()
    for step in range(1, STEPS):
        seen.add(run("audit", ledger, str(folder), step))
        held = list(read_audit(folder))
        assert held == history.records[: len(held)]
    assert seen == {f"{when} {what}" for when in ("before", "behind") for what in ("open", "write", "sync")}
    assert not run("audit", ledger, str(folder))
    assert list(read_audit(folder)) == history.records
    assert (folder / "seals.jsonl").read_bytes().splitlines(keepends=True) == heads_in(history.records)


def test_clickhouse_holds_the_ledger_once_after_a_kill_at_every_step(
    tmp_path: Path, ledger: Path, history: History
) -> None:
    folder, seen = tmp_path / "clickhouse", []
    for step in range(1, 11):
        seen.append(run("clickhouse", ledger, str(folder), step))
    tables = ("executions", "orders", "position_history", "positions", "order_events")
    assert seen == [f"{when} {table}" for table in tables for when in ("before", "behind")]
    assert not run("clickhouse", ledger, str(folder))
    assert_tables(ledger, folder, history)


@pytest.mark.parametrize("with_mark", [True, False])
def test_clickhouse_put_back_from_an_older_copy_catches_up(tmp_path: Path, history: History, with_mark: bool) -> None:
    """`with_mark`: also the file beside the folder that tells what of it is on the disk."""
    data, older = tmp_path / "data", tmp_path / "older"
    data.mkdir()
    store = create_file(tmp_path / "ledger.db")
    commits = list(batches(history.records))
    half = len(commits) // 2
    store.fill([one for commit in commits[:half] for one in commit])
    assert not run("clickhouse", tmp_path / "ledger.db", str(data / "clickhouse"))
    shutil.copytree(data if with_mark else data / "clickhouse", older, symlinks=True)
    for commit in commits[half:]:
        store.insert(commit)
    store.close()
    assert not run("clickhouse", tmp_path / "ledger.db", str(data / "clickhouse"))
    shutil.rmtree(data if with_mark else data / "clickhouse")
    older.rename(data if with_mark else data / "clickhouse")
    assert not run("clickhouse", tmp_path / "ledger.db", str(data / "clickhouse"))
    assert_tables(tmp_path / "ledger.db", data / "clickhouse", history)


def assert_tables(ledger: Path, folder: Path, history: History) -> None:
    checked = "from tests.contracts.test_killed_sinks import differing; differing()"
    done = subprocess.run(  # one process opens one folder, and this one has another
        [sys.executable, "-c", checked, str(ledger), str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{len(history.records)} []\n"), done.stderr


def differing() -> None:
    """Prints how many events a ledger has, and the tables in a folder that are not what it gives."""
    store = open_file(Path(sys.argv[1]))
    with connect(Target(path=sys.argv[2])) as client:
        created = event_of(next(iter(store.scan())))
        assert isinstance(created, LedgerCreated)
        found = agree_tables(store.scan(), store.streams, client, "suho_analytics", created.ledger_id)
        print(found[0].seq, [one.table for one in found if not one.ok])


def test_kafka_holds_the_ledger_once_after_a_kill_at_every_step(ledger: Path, history: History) -> None:
    name = fresh_database()
    topic, seals_topic = f"killed-{name}", f"killed-seals-{name}"
    place = f"{kafka_server().brokers},{topic},{seals_topic}"
    seen = {run("kafka", ledger, place, step) for step in range(1, STEPS)}
    kinds = ("begin_transaction", "flush", "answer to send", "commit_transaction", "answer to commit")
    assert seen == {"before send_batch", *(f"{when} {what}" for when in ("before", "behind") for what in kinds)}
    assert not run("kafka", ledger, place)
    log = KafkaLog(kafka_server().brokers, topic=topic, seals_topic=seals_topic)
    assert list(log.read(history.ledger_id)) == history.records
    assert [one.state + b"\n" for one in log.heads(history.ledger_id)] == heads_in(history.records)
