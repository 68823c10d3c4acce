"""`order-ledger history | orders | export` on a real ledger: what they tell is what the ledger holds, at any moment."""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import orjson
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import load
from gateway.export import Wanted, export
from gateway.history import OrderFold, history_of, recorded_at
from gateway.orders import Query, list_orders
from gateway.times import Span, iso, parse_time
from ledger.events import Recorded, order_stream
from ledger.store import open_store
from ledger.writer import Ledger
from tests.decider import receive
from tests.history import History
from tests.ledgers import BEGINNING, CAUSE, LIVES, clock, write_ledger
from tests.service import environment, run_cli

SEED = int(os.environ.get("LEDGER_SEED", "20260301"))
ORDERS = 5 * len(LIVES)


@pytest.fixture(scope="module", params=[False, True], ids=["steady clock", "clock set back"])
def ledger(request, tmp_path_factory):
    """A ledger of two runs of the writer: the first ended with a checkpoint, the second was not closed in order."""
    print(f"LEDGER_SEED={SEED} repeats this ledger")
    chance, folder = random.Random(SEED), tmp_path_factory.mktemp("ledger")
    now = clock(chance, set_back=request.param)
    asyncio.run(write_ledger(folder, ORDERS, now, chance))
    asyncio.run(write_ledger(folder, ORDERS, now, chance, first=ORDERS))
    asyncio.run(append_and_abandon(folder, now))
    return SimpleNamespace(folder=folder, settings=load({"data": str(folder)}, {}), events=stored(folder))


async def append_and_abandon(folder: Path, now) -> None:
    store = open_store(f"sqlite:///{folder / 'ledger.db'}")
    writer = await Ledger.open(store, login=5001, server="Demo", clock=now, build="test")
    await writer.load(["o-0"])
    await writer.execute("last", receive(order_id="last"), CAUSE).durable
    await writer.execute("o-0", receive(order_id="o-0"), CAUSE).durable
    writer._lock.release()


def stored(folder: Path) -> list[Recorded]:
    store = open_store(f"sqlite:///{folder / 'ledger.db'}", readonly=True)
    try:
        return list(store.scan())
    finally:
        store.close()


def by_stream(events: list[Recorded]) -> dict[str, list[Recorded]]:
    found: dict[str, list[Recorded]] = {}
    for one in events:
        found.setdefault(one.stream, []).append(one)
    return found


def folded(order_id: str, events: list[Recorded]) -> OrderFold:
    fold = OrderFold(order_id)
    for one in events:
        fold.take(one)
    return fold


def ask(ledger, *arguments: str) -> subprocess.CompletedProcess:
    done = run_cli(*arguments, "--data", str(ledger.folder))
    assert "Traceback" not in done.stderr
    return done


def lines(done: subprocess.CompletedProcess) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [orjson.loads(line) for line in done.stdout.splitlines()]


# --- history ----------------------------------------------------------------------------------------------------


def test_history_as_of_each_event_is_the_fold_of_what_was_recorded_until_then(ledger):
    for stream, events in by_stream(ledger.events).items():
        if not stream.startswith("order/"):
            continue
        order_id = stream.removeprefix("order/")
        times = [recorded_at(one) for one in events]
        for moment in times:
            until = max(i for i, time in enumerate(times) if time <= moment) + 1
            history = history_of(ledger.settings, order_id, moment)
            assert history.fold.order == folded(order_id, events[:until]).order
            assert [step.recorded for step in history.steps] == events[:until]


def test_history_as_of_a_moment_before_the_order_says_that_nothing_was_there(ledger):
    before = iso(BEGINNING - timedelta(days=1))
    done = ask(ledger, "history", "o-0", "--as-of", before)
    assert done.returncode == 0
    assert "order o-0: nothing was recorded by then" in done.stdout
    assert orjson.loads(ask(ledger, "history", "o-0", "--as-of", before, "--json").stdout) == []


def test_raw_history_is_what_is_stored_byte_for_byte(ledger):
    told = ask(ledger, "history", "o-0", "--raw").stdout.encode()
    assert told == b"".join(one.state + b"\n" for one in by_stream(ledger.events)["order/o-0"])


def test_history_shows_the_story_and_the_standing_state(ledger):
    told = ask(ledger, "history", "o-1").stdout
    assert "filled, buy 0.3 EURUSD, filled 0.3 at 1.3, 1 attempt, order 900" in told.splitlines()[0]
    for part in ("send_started", "attempt 1: 10009", "deal 11", "deal 12", "partially_filled"):
        assert part in told


def test_history_for_machines_has_every_part_and_the_state_after_each_event(ledger):
    events = orjson.loads(ask(ledger, "history", "o-0", "--json").stdout)
    held = by_stream(ledger.events)["order/o-0"]
    for event, recorded in zip(events, held, strict=True):
        whole = orjson.loads(recorded.state)
        assert (event["seq"], event["version"], event["topic"]) == (recorded.seq, recorded.version, recorded.topic)
        assert parse_time(event["recorded_at"]) == recorded_at(recorded)
        assert (event["actor"], event["correlation_id"], event["build"]) == ("client", "corr-1", "test")
        assert event["data"]["event"] == whole["data"]["event"]
    assert [event["state"]["status"] for event in events][:4] == ["requested", "ready", "sending", "sending"]
    assert events[-1]["state"]["filled_volume"] == "0.3"


# --- orders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_ended", [0, 3, 5_000])
def test_orders_are_those_of_the_ledger_each_folded_from_its_stream(ledger, keep_ended):
    rows, total = list_orders(ledger.settings, Query(), progress=False, keep_ended=keep_ended)
    streams = {s: held for s, held in by_stream(ledger.events).items() if s.startswith("order/")}
    assert total == len(rows) == len(streams) == 2 * ORDERS + 1
    assert [row.seq for row in rows] == sorted(held[0].seq for held in streams.values())
    for row in rows:
        held = streams[order_stream(row.order_id)]
        fold = folded(row.order_id, held)
        assert (row.status, row.attempts) == (fold.order.status, fold.order.attempt)
        assert (row.filled, row.outcome) == (f"{fold.order.filled_volume:f}", fold.outcome)
        assert (row.created, row.last_event_at) == (recorded_at(held[0]), recorded_at(held[-1]))


def test_open_orders_from_the_checkpoint_are_those_of_the_whole_ledger(ledger):
    everything, _ = list_orders(ledger.settings, Query(), progress=False)
    quick, _ = list_orders(ledger.settings, Query(open_only=True), progress=False)
    assert quick == [row for row in everything if row.open]
    assert {row.order_id for row in quick} >= {"last", "o-2", f"o-{ORDERS + 2}"}


def test_orders_are_found_by_state_symbol_and_time_of_creation(ledger):
    rows = lines(ask(ledger, "orders", "--state", "filled,Rejected", "--symbol", "EURUSD", "--json"))
    assert {row["state"] for row in rows} == {"filled", "rejected"}
    assert len(rows) == 2 * ORDERS // len(LIVES) * 4
    assert lines(ask(ledger, "orders", "--symbol", "GBPUSD", "--json")) == []
    one = next(row for row in rows if row["order_id"] == "o-1")
    assert (one["volume"], one["filled_volume"], one["average_price"], one["side"]) == ("0.3", "0.3", "1.3", "buy")
    since = lines(ask(ledger, "orders", "--since", one["created"], "--json"))
    until = lines(ask(ledger, "orders", "--until", one["created"], "--json"))
    assert "o-1" in {row["order_id"] for row in since} - {row["order_id"] for row in until}
    assert len(since) + len(until) == 2 * ORDERS + 1


def test_a_table_of_orders_shows_the_newest_and_says_that_there_are_more(ledger):
    told = ask(ledger, "orders", "--limit", "2").stdout
    assert "last" in told.splitlines()[2]
    assert f"the newest 2 of {2 * ORDERS + 1} orders" in told
    assert ask(ledger, "orders", "--symbol", "GBPUSD").stdout == "no such orders\n"


# --- export -----------------------------------------------------------------------------------------------------


def exported(ledger, folder: Path, **wanted) -> list[dict]:
    path = folder / "out"
    export(ledger.settings, Wanted(output=path, force=True, **wanted), progress=False)
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@given(data=st.data())
@settings(max_examples=30)
@pytest.mark.parametrize("quick", [False, True])
def test_exports_of_spans_that_meet_are_the_whole_ledger_and_no_event_twice(ledger, tmp_path_factory, quick, data):
    folder = tmp_path_factory.mktemp("spans")
    times = sorted(recorded_at(one) for one in ledger.events)
    moments = st.sampled_from(times) | st.datetimes(
        times[0].replace(tzinfo=None), times[-1].replace(tzinfo=None), timezones=st.just(times[0].tzinfo)
    )
    cuts = [None, *sorted(data.draw(st.lists(moments, min_size=1, max_size=4))), None]
    seqs: list[int] = []
    for since, until in pairwise(cuts):
        part = exported(ledger, folder, span=Span(since, until), quick=quick)
        assert [one["seq"] for one in part] == sorted(one["seq"] for one in part)
        assert all(Span(since, until).holds(parse_time(one["recorded_at"])) for one in part)
        seqs += [one["seq"] for one in part]
    assert sorted(seqs) == [one.seq for one in ledger.events]


def test_a_line_holds_the_envelope_and_the_data_as_they_are_stored(ledger):
    rows = lines(ask(ledger, "export"))
    assert len(rows) == len(ledger.events)
    for row, one in zip(rows, ledger.events, strict=True):
        whole = orjson.loads(one.state)
        assert (row["seq"], row["stream"], row["version"], row["event"]) == (
            one.seq,
            one.stream,
            one.version,
            one.topic,
        )
        assert row["order_id"] == (one.stream.removeprefix("order/") if one.stream.startswith("order/") else "")
        assert parse_time(row["recorded_at"]) == recorded_at(one)
        assert {name: row[name] for name in whole} | {"recorded_at": whole["recorded_at"]} == whole


def test_parquet_holds_typed_columns_and_the_stored_bytes(ledger, tmp_path):
    path = tmp_path / "events.parquet"
    done = ask(ledger, "export", "--format", "parquet", "--output", str(path))
    assert done.returncode == 0, done.stderr
    assert f"{path}: {len(ledger.events)} events, the beginning to the end, seq 1 to" in done.stdout
    table = pyarrow.parquet.read_table(path)
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["seq"], kinds["recorded_at"], kinds["state"]) == ("uint64", "timestamp[us, tz=UTC]", "binary")
    rows = table.to_pylist()
    held = [Recorded(r["seq"], r["stream"], r["stream_version"], r["event"], r["state"]) for r in rows]
    assert held == ledger.events
    assert [row["recorded_at"] for row in rows] == [recorded_at(one) for one in ledger.events]
    assert {row["account"] for row in rows} == {"5001"}


def test_the_export_of_an_order_is_its_stream(ledger):
    rows = lines(ask(ledger, "export", "--order", "o-1"))
    assert [row["seq"] for row in rows] == [one.seq for one in by_stream(ledger.events)["order/o-1"]]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_empty_span_says_so_and_leaves_a_file_without_events(ledger, tmp_path, format):
    path = tmp_path / "none"
    done = ask(ledger, "export", "--since", "2099-01-01", "--format", format, "--output", str(path))
    assert done.returncode == 0, done.stderr
    assert "no events were recorded in the span 2099-01-01T00:00:00.000000Z to the end" in done.stdout
    found = pyarrow.parquet.read_table(path).num_rows if format == "parquet" else path.stat().st_size
    assert found == 0


def test_the_summary_for_machines_stands_apart_from_the_events(ledger, tmp_path):
    done = ask(ledger, "export", "--json", "--order", "o-1")
    assert orjson.loads(done.stderr)["events"] == len(done.stdout.splitlines())
    done = ask(ledger, "export", "--json", "--output", str(tmp_path / "out"))
    assert orjson.loads(done.stdout)["last_seq"] == ledger.events[-1].seq


def test_an_existing_file_is_replaced_only_when_told_so(ledger, tmp_path):
    path = tmp_path / "kept"
    path.write_text("precious")
    done = ask(ledger, "export", "--output", str(path))
    assert (done.returncode, path.read_text()) == (1, "precious")
    assert "replace it by --force" in done.stderr
    assert ask(ledger, "export", "--output", str(path), "--force").returncode == 0
    assert len(path.read_bytes().splitlines()) == len(ledger.events)


def test_the_ledger_itself_is_never_written_over(ledger):
    for name in ("ledger.db", "ledger.db-wal"):
        done = ask(ledger, "export", "--force", "--output", str(ledger.folder / name))
        assert done.returncode == 1
        assert "is the ledger itself" in done.stderr
    assert stored(ledger.folder) == ledger.events


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["history", "o-0", "--as-of", "soon"], "'soon' is no time"),
        (["history", "o-0", "--raw", "--json"], "name one of them"),
        (["history", "nobody"], "no order 'nobody'"),
        (["history", "a/b"], "must be 1 to 64 characters"),
        (["orders", "--state", "filed"], "the states are requested, ready,"),
        (["orders", "--state", ","], "the states are requested, ready,"),
        (["orders", "--since", ""], "is no time"),
        (["orders", "--since", "2026-03-02", "--until", "2026-03-01T00:00:00Z"], "lies before --since"),
        (["export", "--order", "nobody"], "no order 'nobody'"),
        (["export", "--format", "parquet"], "name a file by --output"),
        (["export", "--output", "/"], "is a folder"),
        (["export", "--output", "/no/such/folder/file"], "cannot write /no/such/folder/file: No such file"),
        (["export", "--output", "/dev/null/file"], "cannot write /dev/null/file: Not a directory"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line(ledger, arguments, told):
    done = ask(ledger, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("order-ledger: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert done.stdout == ""


def test_without_pyarrow_parquet_names_the_extra(ledger, tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError('not installed')")
    done = run_cli(
        "export", "--format", "parquet", "--output", "x", "--data", str(ledger.folder), PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 1
    assert done.stderr == (
        "order-ledger: Parquet needs the extra: pip install 'order-ledger[parquet]', or --format jsonl\n"
    )


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A ledger of some 80,000 events, and how to export it."""
    folder = tmp_path_factory.mktemp("large")
    store = open_store(f"sqlite:///{folder / 'ledger.db'}")
    records = History().orders(20_000).records
    for start in range(0, len(records), 5_000):
        store.insert(records[start : start + 5_000])
    store.close()
    return SimpleNamespace(folder=folder, settings=load({"data": str(folder)}, {}), events=records)


def export_command(ledger, output: Path, format: str) -> list[str]:
    arguments = ["--data", str(ledger.folder), "--format", format, "--output", str(output)]
    return [sys.executable, "-m", "gateway.cli", "export", *arguments]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_an_interrupted_export_leaves_no_file_under_the_name(large, tmp_path, number, format):
    with subprocess.Popen(
        export_command(large, tmp_path / "out", format), stderr=subprocess.PIPE, env=environment()
    ) as process:
        while not any(part.stat().st_size for part in tmp_path.glob(".out.*.part")):
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert (process.returncode, said) == (1, b"order-ledger: interrupted\n")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_file_that_cannot_grow_any_more_is_one_clear_line_and_no_file(large, tmp_path, format):
    limit = 100_000

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        export_command(large, tmp_path / "out", format),
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=bounded,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"order-ledger: cannot write {tmp_path / 'out'}: File too large")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_event_stops_an_export_and_names_it(tmp_path):
    history = History().orders(4)
    bad = history.records[5]
    history.records[5] = Recorded(bad.seq, bad.stream, bad.version, bad.topic, bad.state[:-9])
    store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}")
    store.insert(history.records)
    store.close()
    done = run_cli("export", "--data", str(tmp_path), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert f"event {bad.seq} cannot be read" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_clock_that_went_back_by_days_is_found_by_a_quick_export(tmp_path):
    history = History()
    history.clock += timedelta(days=9)
    history.orders(2)
    history.clock -= timedelta(days=8)
    history.orders(2)
    store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}")
    store.insert(history.records)
    store.close()
    ledger = SimpleNamespace(settings=load({"data": str(tmp_path)}, {}))
    assert len(exported(ledger, tmp_path)) == len(history.records)
    done = run_cli("export", "--data", str(tmp_path), "--quick")
    assert done.returncode == 1
    assert "leave --quick out" in done.stderr


def test_all_of_them_read_while_a_writer_is_at_work(tmp_path):
    async def work() -> None:
        store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}")
        now = clock(random.Random(1), set_back=False)
        writer = await Ledger.open(store, login=5001, server="Demo", clock=now, build="test")
        await writer.execute("now", receive(order_id="now"), CAUSE).durable
        for command in (["history", "now"], ["orders", "--open"], ["export"]):
            done = await asyncio.to_thread(run_cli, *command, "--data", str(tmp_path))
            assert done.returncode == 0, done.stderr
            assert "now" in done.stdout
        await writer.close()

    asyncio.run(work())
