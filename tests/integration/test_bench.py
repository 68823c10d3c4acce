"""`order-ledger bench`: numbers of a ledger of its own, and nothing of it left behind. No test looks at the speed."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from gateway.bench import Meter, SqlitePlace, work_folder
from gateway.bench_lives import fill
from ledger.seal import verify
from ledger.store import open_store
from tests.history import History
from tests.servers import need, postgres_server
from tests.service import environment, run_cli

QUICK = ("bench", "ledger", "--seconds", "0.2", "--events", "2000", "--producers", "1,8")
WAIT_S = 30.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def numbers_of(found: object) -> list[float]:
    """Every number of a result, however deep."""
    if isinstance(found, dict):
        return [number for value in found.values() for number in numbers_of(value)]
    if isinstance(found, list):
        return [number for value in found for number in numbers_of(value)]
    return [found] if isinstance(found, int | float) else []


def test_it_tells_what_writing_reading_verifying_and_starting_cost(tmp_path):
    done = run_cli(*QUICK, "--json", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = orjson.loads(done.stdout)
    (sqlite,) = found["stores"]
    assert [one["producers"] for one in sqlite["writing"]] == [1, 8]
    assert found["sync"]["samples"] == 500
    assert sqlite["starting"]["events"] == sqlite["reading"]["events"] // 1000 * 1000 == 2000
    found["machine"].pop("load")  # this alone may be zero
    assert min(numbers_of(found)) > 0
    assert list(tmp_path.iterdir()) == []


def test_people_get_tables(tmp_path):
    done = run_cli(*QUICK, "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for told in ("sync of 4 KiB", "per commit", "one producer:", "sound", "after a loss"):
        assert told in done.stdout


def test_the_ledger_that_is_measured_is_a_sound_one_of_whole_lives(tmp_path):
    place = SqlitePlace(tmp_path)
    asyncio.run(fill(place.fresh(), 500, Meter(shown=False)))
    store = place.again()
    records = list(store.scan())
    store.close()
    assert verify(records).ok
    life = ["requested", "checked", "send_started", "broker_answered", "filled"]
    told = [one.topic for one in records if one.stream.startswith("order/")]
    assert told == [f"order.{event}" for event in life] * 100


@pytest.mark.parametrize("mark", ["ledger.db", "run.json"])
def test_a_folder_with_a_ledger_is_refused_and_left_alone(tmp_path, mark):
    (tmp_path / mark).write_bytes(b"precious")
    done = run_cli(*QUICK, "--data", str(tmp_path))
    assert done.returncode == 1
    assert "holds a ledger: name another folder" in done.stderr
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(mark, b"precious")]


def test_a_folder_that_it_made_is_gone_at_the_end(tmp_path):
    with work_folder(tmp_path / "new") as folder:
        assert folder.parent == tmp_path / "new"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--producers", "0"), "from 1 to 10000"),
        (("--producers", "some"), "1,32,128"),
        (("--events", "1"), "100"),
        (("--store", "postgresql"), "LEDGER_URL=postgresql://"),
        (("--store", "both", "--ledger-url", "sqlite:///x.db"), "LEDGER_URL=postgresql://"),
    ],
)
def test_a_plan_that_measures_nothing_is_refused_in_one_line(arguments, told):
    done = run_cli("bench", "ledger", *arguments)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupted_it_ends_at_once_and_leaves_nothing(tmp_path):
    interrupt(lambda: any(tmp_path.glob("*/bench.db-wal")), "--data", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def interrupt(begun: Callable[[], bool], *arguments: str, **settings: str) -> None:
    """Starts a long benchmark, and presses Ctrl-C as soon as it has begun to write."""
    need(os.name == "posix", "signals")
    command = [sys.executable, "-m", "gateway.cli", "bench", "ledger", "--seconds", "600", *arguments]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env=environment(**settings), start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + WAIT_S
            while not begun():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    # Warnings are shown here: of what the interrupt caught half made, one may come behind the line.
    assert (process.returncode, told.partition(b"\n")[0]) == (1, b"order-ledger: interrupted")


# --- PostgreSQL -------------------------------------------------------------------------------------------------


def things_in(url: str) -> list[str]:
    """Tables, indexes, sequences, types and functions of the database."""
    import psycopg

    listed = [("pg_class", "relname", "relnamespace"), ("pg_type", "typname", "typnamespace")]
    listed += [("pg_proc", "proname", "pronamespace")]
    with psycopg.connect(url) as connection:
        return [
            row[0]
            for table, name, schema in listed
            for row in connection.execute(f"SELECT {name} FROM {table} WHERE {schema} = 'public'::regnamespace")
        ]


def test_on_postgresql_it_measures_the_bare_commit_too_and_leaves_nothing(postgres):
    done = run_cli(*QUICK, "--store", "postgresql", "--json", LEDGER_URL=postgres)
    assert done.returncode == 0, done.stderr
    (found,) = orjson.loads(done.stdout)["stores"]
    assert found["store"] == "postgresql"
    assert min(numbers_of(found)) > 0
    assert things_in(postgres) == []


def test_interrupted_it_leaves_nothing_in_the_database(postgres):
    interrupt(lambda: "stored_events" in things_in(postgres), "--store", "postgresql", LEDGER_URL=postgres)
    assert things_in(postgres) == []


def test_a_database_with_a_ledger_is_refused_and_left_alone(postgres):
    records = History().records
    store = open_store(postgres)
    store.insert(records)
    store.close()
    done = run_cli(*QUICK, "--store", "both", LEDGER_URL=postgres.replace("postgres@", "postgres:geheim@"))
    assert done.returncode == 1
    assert "holds a ledger: name another database" in done.stderr
    assert "geheim" not in done.stdout + done.stderr
    store = open_store(postgres, readonly=True)
    try:
        assert list(store.scan()) == records
    finally:
        store.close()


QUICK_TERMINAL = ("bench", "terminal", "--calls", "50", "--paced", "3")


def test_it_tells_what_a_call_to_the_terminal_costs(tmp_path):
    done = run_cli(*QUICK_TERMINAL, "--json", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = orjson.loads(done.stdout)
    assert [(one["where"], one["call"], one["at_once"]) for one in found["figures"]] == [
        ("in process", "tick", 1),
        ("in process", "order_check", 1),
        ("in process", "order_send", 1),
        ("through the child", "tick", 1),
        ("through the child", "order_check", 1),
        ("through the child", "order_send", 1),
        ("through the child", "order_check", 8),
        ("through the child", "order_send", 8),
        ("through the child, 100/s", "order_send", 1),
    ]
    found["machine"].pop("load")  # this alone may be zero
    assert min(numbers_of(found)) > 0
    assert list(tmp_path.iterdir()) == []


def test_people_get_a_table_of_the_terminals_calls():
    done = run_cli(*QUICK_TERMINAL)
    assert done.returncode == 0, done.stderr
    for told in ("a bare hop", "order_check", "through the child", "requests/s"):
        assert told in done.stdout


def test_it_tells_how_fast_projections_are_made_and_how_late_live_ones_are(tmp_path):
    quick = ("--events", "2000", "--rate", "200", "--seconds", "0.5")
    done = run_cli("bench", "projections", *quick, "--json", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = orjson.loads(done.stdout)
    assert [(one["sink"], one["events"] >= 2000) for one in found["sinks"]] == [("clickhouse", True), ("audit", True)]
    assert min(found["live"]["events"] // 500, found["live"]["p99_ms"], found["live"]["peak_mb"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_it_tells_the_memory_of_a_rebuild_apart_from_its_engines(tmp_path):
    place = SqlitePlace(tmp_path)
    asyncio.run(fill(place.fresh(), 2000, Meter(shown=False)))
    whole, ours = (measured_alone(kind, place.url, tmp_path) for kind in ("rebuild", "rows"))
    assert whole["events"] == ours["events"] >= 2000
    assert 0 < ours["peak_mb"] < whole["peak_mb"]
    done = run_cli("bench", "projections", "--events", "2000", "--rate", "0")
    peak, of_us, of_engine = re.search(
        r"memory of the rebuild: (\d+) MB, of which (\d+) MB are ours .* and (\d+) MB the embedded engine's",
        done.stdout,
    ).groups()
    assert abs(int(of_us) + int(of_engine) - int(peak)) <= 1


def measured_alone(kind: str, url: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "projections.bench_child", kind, url, str(folder)]
    return orjson.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_it_tells_what_orders_feel_of_a_hub_that_is_not_well(tmp_path):
    quick = ("--rate", "20", "--seconds", "0.5", "--rounds", "1")
    done = run_cli("bench", "hub", *quick, "--json", "--data", str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = orjson.loads(done.stdout)["figures"]
    counted = [(one["hub"], one["orders"], one["lost"]) for one in figures]
    assert counted == [(mood, 10, 0) for mood in ("healthy", "killed", "slow", "lying", "healthy again")]
    assert (min(one["wait"]["p99_ms"] for one in figures) > 0, figures[0]["p99_ratio"]) == (True, 1)
    assert list(tmp_path.iterdir()) == []
