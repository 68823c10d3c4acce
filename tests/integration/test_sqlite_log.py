"""The write-ahead log of a SQLite ledger is carried over beside the commits, and never at the price of one."""

import random
import shutil
from pathlib import Path

import pytest

from ledger import sqlite_log
from ledger.seal import batches, verify
from ledger.store import EventStore, open_store
from tests.history import History

SEED = 20260301
EVERY_PAGES = 1_000
BYTES = 1_500  # of an event in the log, at most, in batches of this size
RECORDS = History().orders(6_000, per_commit=120).records


@pytest.fixture(autouse=True)
def short_log(monkeypatch):
    """So that a small ledger carries its log over many times."""
    monkeypatch.setattr(sqlite_log, "EVERY_PAGES", EVERY_PAGES)
    monkeypatch.setattr(sqlite_log, "EVERY_S", 0.0)


def logged(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def write(store: EventStore) -> None:
    for batch in batches(RECORDS):
        store.insert(batch)


def test_the_log_starts_over_instead_of_growing(tmp_path):
    path = tmp_path / "ledger.db"
    store = open_store(f"sqlite:///{path}")
    write(store)
    assert logged(path) < 6 * EVERY_PAGES * sqlite_log.PAGE_BYTES < len(RECORDS) * BYTES
    assert list(store.scan()) == RECORDS
    store.close()
    assert not Path(f"{path}-wal").exists()


def test_what_a_crash_leaves_at_any_moment_is_the_whole_ledger_up_to_a_seal(tmp_path):
    chance = random.Random(SEED)
    path, seqs = tmp_path / "ledger.db", [0]
    store = open_store(f"sqlite:///{path}")
    for number, batch in enumerate(batches(RECORDS)):
        store.insert(batch)
        seqs.append(batch[-1].seq)
        if number % 10 == chance.randrange(10):
            found = copied(path, tmp_path / f"copy-{number}")
            assert found == seqs[-1], f"seed {SEED}"
    store.close()


def copied(path: Path, folder: Path) -> int:
    """The last seq of what is on the disk now: the log first, since the file may take more of it meanwhile."""
    folder.mkdir()
    for name in ("ledger.db-wal", "ledger.db"):
        shutil.copy(path.parent / name, folder / name)
    store = open_store(f"sqlite:///{folder / 'ledger.db'}")
    found = verify(store.scan())
    store.close()
    shutil.rmtree(folder)
    assert found.ok, found.problem
    return found.last_seq
