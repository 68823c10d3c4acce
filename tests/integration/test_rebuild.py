"""The tables are built again beside the ones in use, compared with them and exchanged, while projection goes on."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.chaos.world import children
from ledger.account_events import AccountReconciled, Difference, SnapshotTaken
from ledger.book import Book
from ledger.errors import LedgerError, LedgerUnavailable
from ledger.events import account_stream, decode
from ledger.order_events import FillCostsChanged, OrderPartiallyFilled
from ledger.store import create_file
from ledger.trade import ZERO
from projections import request
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.digest import agree_tables, batches_of
from projections.folding import Sizes, Stretch, _send
from projections.rebuild import SUFFIX, Rebuild, Rebuilt, Stopped
from projections.request import Request, Status
from projections.tables import TABLES, Table
from tests.engine import engine_path, fresh_database
from tests.history import History, past_of
from tests.projection_process import ProjectionProcess, stored

TARGET = Target(path=engine_path())
DIFFERENCE = Difference(kind="missing", ours="none", brokers="0.1", policy="alert", position_id=9)
OF_ACCOUNT = (
    AccountReconciled(trigger="start", positions=3, orders=0, deals=9, differences=(DIFFERENCE,)),
    SnapshotTaken(currency="USD", balance=Decimal("1e12"), equity=Decimal("0.5")),
)
# What somebody may have changed by hand, by table.
CHANGES = {
    "order_events": "data = concat(data, ' ')",
    "orders": "average_fill_price = average_fill_price + 0.00000001",
    "executions": "commission = commission + 0.00000001",
    "positions": "realized_pnl = realized_pnl + 0.00000001",
    "position_history": "quantity = quantity + 0.00000001",
    "reconciliations": "trigger = 'demand'",
    "account_snapshots": "balance = balance - 0.00000001",
}


class Place:
    """A ledger, its tables in use, and rebuilds of them."""

    def __init__(self, folder: Path) -> None:
        self.history, self.database = History(), fresh_database()
        for event in OF_ACCOUNT:
            self.history.commit([(account_stream(5001), event)])
        self.store, self.url = create_file(folder / "ledger.db"), f"sqlite:///{folder / 'ledger.db'}"
        self.written, self.is_held = 0, False
        self.store.insert(self.history.records)
        self.sink = ClickHouseSink(TARGET, self.history.ledger_id, database=self.database, past=self.store.streams)

    async def trade(self, orders: int) -> None:
        """More events, in the ledger and in the tables in use."""
        self.commit(orders)
        await self.project()

    def commit(self, orders: int) -> None:
        before = len(self.history.records)
        for _ in range(orders):
            self.history.order()
        self.store.insert(self.history.records[before:])

    async def project(self) -> None:
        await self.sink.call(self._take)

    def _take(self) -> None:
        for batch in batches_of(self.history.records[self.written :], 64):
            self.sink._write(batch)
        self.written = len(self.history.records)

    def rebuild(self, advance: Any = lambda done, of: True, *, exchange: bool = True) -> Rebuilt:
        def hold(work: Any) -> None:
            self.is_held = True
            work()
            self.is_held = False

        self.last = Rebuild(
            self.store,
            TARGET,
            self.history.ledger_id,
            database=self.database,
            url=self.url,
            hold=hold,
            advance=advance,
        )
        return self.last.run(exchange=exchange)

    def query(self, sql: str) -> Any:
        with connect(TARGET) as client:
            return client.query(sql.replace("{db}", self.database)).result_rows

    def differing(self) -> list[str]:
        records = self.history.records
        with connect(TARGET) as client:
            found = agree_tables(records, past_of(records), client, self.database, self.history.ledger_id)
        return [one.table for one in found if not one.ok]

    def left_over(self) -> list[str]:
        found = self.query(f"SELECT name FROM system.tables WHERE database = '{{db}}' AND name LIKE '%{SUFFIX}'")
        return [name for (name,) in found]


@pytest.fixture
async def place(tmp_path: Path) -> Any:
    found = Place(tmp_path)
    await found.sink.open()
    yield found
    await found.sink.close()
    found.store.close()


@pytest.fixture
def small(monkeypatch: Any) -> None:
    """A rebuild in many small steps."""
    monkeypatch.setattr("projections.rebuild.SIZES", Sizes(folded=50, packed=50, part=50))
    monkeypatch.setattr("projections.rebuild.NEAR", 0)


@pytest.fixture
def beside(small: None, monkeypatch: Any) -> None:
    """All of it is folded by a process of its own, also the few events of a test."""
    monkeypatch.setattr("projections.rebuild.MANY", 0)


async def test_a_rebuild_of_sound_tables_finds_them_identical(place: Place) -> None:
    await place.trade(40)
    found = await asyncio.to_thread(place.rebuild)
    assert (found.same, found.exchanged, found.resumed_at) == (True, True, 0)
    assert {one.table for one in found.tables} == {table.name for table in TABLES}
    assert (place.differing(), place.left_over()) == ([], [])


async def test_damaged_tables_are_told_and_replaced(place: Place) -> None:
    await place.trade(40)
    place.query(
        "ALTER TABLE {db}.executions UPDATE fill_price = 9 WHERE stream_version = 2 SETTINGS mutations_sync = 2"
    )
    assert place.differing() == ["executions"]
    found = await asyncio.to_thread(place.rebuild)
    assert [one.table for one in found.tables if not one.same] == ["executions"]
    assert place.differing() == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
async def test_one_row_changed_or_gone_in_any_table_is_found_and_a_rebuild_mends_it(place: Place, table: Table) -> None:
    await place.trade(10)
    name, version = f"{{db}}.{table.name}", table.version
    ((first, last),) = place.query(f"SELECT min({version}), max({version}) FROM {name} FINAL")
    change = CHANGES[table.name]
    place.query(f"ALTER TABLE {name} UPDATE {change} WHERE {version} = {first} SETTINGS mutations_sync = 2")
    assert place.differing() == [table.name]
    found = await asyncio.to_thread(place.rebuild)
    assert [one.table for one in found.tables if not one.same] == [table.name]
    assert place.differing() == []
    place.query(f"ALTER TABLE {name} DELETE WHERE {version} = {last} SETTINGS mutations_sync = 2")
    assert place.differing() == [table.name]


async def test_a_check_leaves_the_tables_in_use_as_they_are(place: Place) -> None:
    await place.trade(10)
    place.query("ALTER TABLE {db}.orders DELETE WHERE 1 SETTINGS mutations_sync = 2")
    found = await asyncio.to_thread(lambda: place.rebuild(exchange=False))
    assert (found.same, found.exchanged) == (False, False)
    assert (place.differing(), place.left_over()) == (["orders"], [])


async def test_an_interrupted_rebuild_goes_on_where_it_stopped(place: Place, small: None) -> None:
    await place.trade(100)
    seen: list[int] = []

    def stop_soon(done: int, of: int) -> bool:
        seen.append(done)
        return len(seen) < 3

    with pytest.raises(Stopped):
        await asyncio.to_thread(place.rebuild, stop_soon)
    assert len(place.left_over()) == len(TABLES)
    await place.trade(30)
    found = await asyncio.to_thread(place.rebuild)
    assert found.resumed_at >= seen[-1] > 0
    assert found.events == len(place.history.records) - found.resumed_at
    assert (found.same, place.differing(), place.left_over()) == (True, [], [])


def after(inserts: int) -> Any:
    """Lets a rebuild make so many inserts, and then stops it."""
    left = iter(range(inserts))
    return lambda done, of: next(left, None) is not None


async def test_interrupted_between_two_tables_it_writes_those_events_again(place: Place, small: None) -> None:
    await place.trade(60)
    with pytest.raises(Stopped):
        await asyncio.to_thread(place.rebuild, after(2))
    # As a kill leaves it: the other tables of the last insert are there, its events are not.
    ((last,),) = place.query(f"SELECT max(seq) FROM {{db}}.order_events{SUFFIX}")
    place.query(f"ALTER TABLE {{db}}.order_events{SUFFIX} DELETE WHERE seq > {last - 40} SETTINGS mutations_sync = 2")
    found = await asyncio.to_thread(place.rebuild)
    assert 0 < found.resumed_at <= last - 40
    assert (found.same, place.differing()) == (True, [])


async def test_what_was_begun_for_another_ledger_is_begun_again(place: Place, small: None) -> None:
    await place.trade(60)
    with pytest.raises(Stopped):
        await asyncio.to_thread(place.rebuild, after(2))
    other = 'data = replaceRegexpOne(data, \'"digest":"[0-9a-f]+"\', \'"digest":"0"\')'
    place.query(f"ALTER TABLE {{db}}.order_events{SUFFIX} UPDATE {other} WHERE 1 SETTINGS mutations_sync = 2")
    found = await asyncio.to_thread(place.rebuild)
    assert (found.resumed_at, found.same, place.differing()) == (0, True, [])


async def test_what_a_fold_must_read_is_in_the_tables_although_it_waited_for_an_insert(
    place: Place, monkeypatch: Any
) -> None:
    """A book that forgets at once reads the position from the tables, in which the last orders are not yet."""
    monkeypatch.setattr("projections.rebuild.SIZES", Sizes(folded=1))
    monkeypatch.setattr("projections.feed.Book", lambda: Book(-1, -1))
    place.commit(1)
    before = len(place.history.records)
    fill = place.history.records[-3]  # the first of two
    known = decode(fill).data
    assert isinstance(known, OrderPartiallyFilled)
    for number in range(1, 6):
        costs = FillCostsChanged(
            deal=known.deal, fill_version=2, commission=-Decimal(number), swap=ZERO, fee=ZERO, profit=ZERO
        )
        for touching in ((fill.stream, costs), *((account_stream(5001), event) for event in OF_ACCOUNT)):
            place.history.commit([touching])
    place.store.insert(place.history.records[before:])
    await place.project()
    found = await asyncio.to_thread(place.rebuild)
    assert (found.same, place.differing()) == (True, [])
    assert place.query("SELECT count() FROM {db}.position_history FINAL") == [(7,)]


# --- folded by another process ----------------------------------------------------------------------------------


async def test_another_process_gives_the_same_rows(place: Place, beside: None) -> None:
    await place.trade(40)
    place.query("ALTER TABLE {db}.executions UPDATE fill_price = 9 WHERE seq < 9 SETTINGS mutations_sync = 2")
    found = await asyncio.to_thread(place.rebuild)
    assert [one.table for one in found.tables if not one.same] == ["executions"]
    assert (place.differing(), place.left_over()) == ([], [])
    assert place.last.beside_mb > 0


async def test_another_process_asks_for_the_positions_that_it_has_not_seen(place: Place, beside: None) -> None:
    await place.trade(20)
    begun = len(place.history.records)

    def changed_meanwhile(done: int, of: int) -> bool:
        if done == of == begun:  # the next events have a process of their own
            fill = place.history.records[-2]
            known: Any = decode(fill).data
            costs = FillCostsChanged(
                deal=known.deal, fill_version=3, commission=Decimal(-9), swap=ZERO, fee=ZERO, profit=ZERO
            )
            place.history.commit([(fill.stream, costs)])
            place.store.insert(place.history.records[begun:])
        return True

    found = await asyncio.to_thread(place.rebuild, changed_meanwhile)
    assert (found.seq, found.same, place.differing()) == (begun + 2, True, [])
    assert place.query("SELECT max(seq) FROM {db}.position_history") == [(begun + 1,)]


async def test_when_the_other_process_is_killed_the_next_rebuild_goes_on(place: Place, beside: None) -> None:
    await place.trade(300)

    def kill(done: int, of: int) -> bool:
        for child in children(os.getpid()):
            if b"projections.folding" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
        return True

    with pytest.raises(LedgerUnavailable, match="run the rebuild again"):
        await asyncio.to_thread(place.rebuild, kill)
    found = await asyncio.to_thread(place.rebuild)
    assert (found.resumed_at > 0, found.same, place.differing()) == (True, True, [])


async def test_what_the_other_process_cannot_read_is_told_by_this_one(place: Place, beside: None) -> None:
    await place.trade(40)
    with sqlite3.connect(place.url.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE stored_events SET topic = 'order.from_the_future' WHERE rowid = 9")
    with pytest.raises(LedgerError, match="upgrade"):
        await asyncio.to_thread(place.rebuild)


def test_a_process_that_folds_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    store = stored(tmp_path, History().orders(50).records)
    command = [sys.executable, "-m", "projections.folding"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.close()
        stretch = Stretch(f"sqlite:///{tmp_path / 'ledger.db'}", 0, 150, Sizes(1, 1, 1))
        _send(child.stdin, stretch)
        child.stdin.close()
        assert child.wait(30) == 1
    store.close()


async def test_tables_in_use_that_are_behind_the_ledger_do_not_differ_from_it(place: Place) -> None:
    await place.trade(40)
    place.commit(10)
    found = await asyncio.to_thread(place.rebuild)
    assert (found.same, found.seq) == (True, len(place.history.records))
    assert (place.differing(), place.left_over()) == ([], [])


async def test_a_lost_row_in_the_middle_is_a_difference(place: Place) -> None:
    await place.trade(40)
    place.query("ALTER TABLE {db}.order_events DELETE WHERE seq = 12 SETTINGS mutations_sync = 2")
    found = await asyncio.to_thread(place.rebuild)
    assert [one.table for one in found.tables if not one.same] == ["order_events"]
    assert place.differing() == []


@pytest.mark.parametrize("gap", [False, True], ids=["sound", "with a gap"])
async def test_what_comes_while_it_runs_is_in_the_new_tables(place: Place, monkeypatch: Any, gap: bool) -> None:
    monkeypatch.setattr("projections.rebuild.SIZES", Sizes(folded=50, packed=50, part=50))
    await place.trade(60)
    if gap:
        place.query("ALTER TABLE {db}.order_events DELETE WHERE seq = 12 SETTINGS mutations_sync = 2")
    loop = asyncio.get_running_loop()
    rounds = []

    def trade_on(done: int, of: int) -> bool:
        rounds.append(done)
        if not place.is_held:
            asyncio.run_coroutine_threadsafe(place.trade(3), loop).result()
        return True

    found = await asyncio.to_thread(place.rebuild, trade_on)
    assert len(rounds) > 3
    assert found.seq < len(place.history.records)
    await place.trade(3)
    assert (found.same, place.differing(), place.left_over()) == (not gap, [], [])


def answer(folder: Path) -> Status:
    """What came of the request that waits in the folder."""
    deadline = time.monotonic() + 30
    while (told := request.status(folder)) is None or told.state == "running":
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told


async def test_the_running_projections_rebuild_when_asked(tmp_path: Path) -> None:
    history = History().orders(50)
    store = stored(tmp_path, history.records)
    running = await ProjectionProcess.start(tmp_path)
    await running.until("ready")
    request.ask(tmp_path, Request("a"))
    for _ in range(10):
        begun = len(history.records)
        history.order()
        store.insert(history.records[begun:])
        running.send(b".")
        await asyncio.sleep(0.02)
    told = await asyncio.to_thread(answer, tmp_path)
    assert told.result is not None
    assert (told.id, told.state, told.result.same, told.result.exchanged) == ("a", "done", True, True)
    assert request.asked(tmp_path) is None
    running.last = {}
    running.send(b".")
    await running.until_at(len(history.records))
    assert await running.stop() == 0
    store.close()
