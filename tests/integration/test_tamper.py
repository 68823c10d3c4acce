"""What someone with access to the file can do to a ledger, and that `order-ledger verify` finds it (invariant I7)."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ledger.store import open_store
from ledger.writer import Cause, Ledger
from tests.decider import answer, check, deal, receive, start

CAUSE = Cause(actor="client")


async def write_orders(path: Path) -> None:
    """Six orders from request to fill, one commit after the other."""
    ledger = await Ledger.open(
        open_store(f"sqlite:///{path}"), login=5001, server="Demo", clock=lambda: datetime.now(UTC), build="test"
    )
    for n in range(6):
        order_id = f"ord_{n}"
        await ledger.execute(order_id, receive(order_id=order_id), CAUSE).durable
        ledger.execute(order_id, check(), CAUSE)
        await ledger.execute(order_id, start(1), CAUSE).durable
        await ledger.execute(order_id, answer("success", deal(n + 1)), CAUSE).durable
    await ledger.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "ledger.db"
    asyncio.run(write_orders(path))
    return path


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A data folder of our own, with a copy of the ledger."""
    shutil.copy(original, tmp_path / "ledger.db")
    return tmp_path


def verify(data: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return run(data, "verify", *flags)


def run(data: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LEDGER", "ORDER_LEDGER"))}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *command, "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def tampered(data: Path, *statements: str) -> None:
    connection = sqlite3.connect(data / "ledger.db")
    with connection:
        for statement in statements:
            connection.execute(statement)
    assert connection.total_changes > 0
    connection.close()


def seal_before(data: Path, seq: int) -> int:
    connection = sqlite3.connect(data / "ledger.db")
    found = connection.execute(
        "SELECT max(rowid) FROM stored_events WHERE topic = 'writer.batch_sealed' AND rowid < ?", (seq,)
    ).fetchone()[0]
    connection.close()
    return found


def count(data: Path) -> int:
    connection = sqlite3.connect(data / "ledger.db")
    found = connection.execute("SELECT count(*) FROM stored_events").fetchone()[0]
    connection.close()
    return found


def test_a_sound_ledger_is_confirmed(data):
    spoken = verify(data)
    assert (spoken.returncode, spoken.stderr) == (0, "")
    assert spoken.stdout.startswith(f"sound: {count(data)} events under ")
    told = verify(data, "--json")
    assert told.returncode == 0
    found = json.loads(told.stdout)
    assert (found["ok"], found["events"], found["first_bad_seq"]) == (True, count(data), None)


# An order takes eight events: 3 request, 4 seal · 5 check, 6 intent, 7 seal · 8 answer, 9 fill, 10 seal.
COPY_OF_3 = "topic, replace(replace(CAST(state AS TEXT), '\"seq\":3,', '\"seq\":{seq},'), ':3\"', ':{seq}\"')"
TAMPERING: dict[str, tuple[tuple[str, ...], int]] = {
    "one_byte": (
        ("UPDATE stored_events SET state = replace(state, '\"attempt\":1', '\"attempt\":2') WHERE rowid = 6",),
        6,
    ),
    "a_removed_event": (("DELETE FROM stored_events WHERE rowid = 6",), 6),
    "a_removed_order": (("DELETE FROM stored_events WHERE originator_id = 'order/ord_2'",), 19),
    "two_swapped_events": (
        (
            "UPDATE stored_events SET rowid = -6 WHERE rowid = 6",
            "UPDATE stored_events SET rowid = 6 WHERE rowid = 14",
            "UPDATE stored_events SET rowid = 14 WHERE rowid = -6",
        ),
        6,
    ),
    "an_event_under_another_order": (
        ("UPDATE stored_events SET originator_id = 'order/x', originator_version = 1 WHERE rowid = 11",),
        11,
    ),
    "a_changed_seal": (
        ("UPDATE stored_events SET state = replace(state, '\"epoch\":1', '\"epoch\":2') WHERE rowid = 10",),
        10,
    ),
    "an_event_inserted_before_all": (
        (
            "INSERT INTO stored_events (rowid, originator_id, originator_version, topic, state) "
            f"SELECT -1, 'order/y', 1, {COPY_OF_3.format(seq=0)} FROM stored_events WHERE rowid = 3",
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_found_and_the_first_bad_event_named(data, name):
    statements, touched = TAMPERING[name]
    first_bad = seal_before(data, touched) + 1 if touched > 1 else 1
    tampered(data, *statements)
    told = verify(data, "--json")
    assert told.returncode == 2, told.stdout + told.stderr
    found = json.loads(told.stdout)
    assert (found["ok"], found["first_bad_seq"], found["last_seq"]) == (False, first_bad, first_bad - 1)
    assert found["problem"]


@pytest.mark.parametrize("seq", [53, 1_000_000, 0, 3])
def test_an_event_appended_without_a_seal_is_found(data, seq):
    assert count(data) == 52
    copy = COPY_OF_3.format(seq=seq)
    tampered(data, f"INSERT INTO stored_events SELECT 'order/z', 1, {copy} FROM stored_events WHERE rowid = 3")
    told = verify(data, "--json")
    assert told.returncode == 2, told.stdout + told.stderr
    assert json.loads(told.stdout)["first_bad_seq"] == 53


READERS = ("history ord_1", "history ord_1 --json", "history ord_1 --raw", "export --order ord_1")


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ('SET state = replace(state, \'"volume":"0.3"\', \'"volume":"0.9"\')', "events 11 to 11 are not what the seal"),
        ("SET originator_version = 9", "event 1 of order/ord_1 is missing"),
    ],
    ids=["changed", "moved"],
)
def test_who_reads_an_order_is_told_that_its_seals_do_not_hold(data, command, statement, told):
    sound = run(data, *command.split())
    assert (sound.returncode, "NOT SOUND" in sound.stderr) == (0, False)
    tampered(data, f"UPDATE stored_events {statement} WHERE rowid = 11")
    hinted = run(data, *command.split())
    assert hinted.returncode == 2
    assert f"order-ledger: NOT SOUND: {told}" in hinted.stderr
    assert "run `order-ledger verify`" in hinted.stderr
    assert hinted.stdout or "cannot be read" in hinted.stderr


def test_a_person_is_told_in_a_sentence(data):
    tampered(data, "DELETE FROM stored_events WHERE rowid = 6")
    spoken = verify(data)
    assert spoken.returncode == 2
    assert spoken.stdout.startswith(f"NOT SOUND from event {seal_before(data, 6) + 1} on: event 6 is missing")
    assert "Traceback" not in spoken.stdout + spoken.stderr


@pytest.mark.parametrize("content", [None, b"", b"this is no database\n" * 400], ids=["missing", "empty", "garbage"])
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_a_file_that_is_no_ledger_is_one_clear_line(tmp_path, content, flags):
    if content is not None:
        (tmp_path / "ledger.db").write_bytes(content)
    spoken = verify(tmp_path, *flags)
    assert spoken.returncode not in (0, 2)
    assert spoken.stdout == ""
    assert len(spoken.stderr.splitlines()) == 1
    assert "ledger.db" in spoken.stderr
    assert "Traceback" not in spoken.stderr
