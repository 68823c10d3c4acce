"""Builds all tables again from the ledger, beside the ones in use, compares both, and exchanges them.

The new set has the suffix `_rebuild`; its own `order_events` tells how far it is, so a rebuild that was interrupted
goes on there. Folding many events is left to another process (`folding.py`), whose rows come in parts; meanwhile the
rows of `order_events` are made here, and the part before is inserted. Rows that changed since the position of
the comparison are left out of it on both sides, so the tables in use may go on growing meanwhile. For the exchange
alone the writer of those tables is held: the new set is taken to where they stand, then each pair of tables changes
names in one step, and the old ones are dropped.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ledger.events import Recorded, header_of
from ledger.store import EventStore
from projections.clickhouse import ClickHouseSink, Target, connect, recover
from projections.digest import REPLACED, count, held
from projections.durable import Mark
from projections.feed import Folds, folds_of
from projections.folding import Part, Sizes, fold_beside, fold_here
from projections.follower import Position
from projections.migrate import Place
from projections.rows import order_event_row
from projections.tables import ORDER_EVENTS, POSITION_HISTORY, TABLES, Row, Table, block

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

SUFFIX: Final = "_rebuild"
SIZES: Final = Sizes()
MANY: Final = 20_000  # events from which on a process that folds them is worth its start
NEAR: Final = 20_000  # events that are left to the exchange at most
_ROUNDS: Final = 20
_EVENTS_PACKED: Final = 512


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A table against its rebuilt twin, up to a position of the ledger, without the rows that changed since."""

    table: str
    rows: int
    was: int
    same: bool


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """`events` were read in all, `resumed_at` is the position an earlier rebuild had reached. `exchanged` False: the
    tables in use were left as they are."""

    seq: int
    events: int
    resumed_at: int
    exchanged: bool
    tables: tuple[Compared, ...]

    @property
    def same(self) -> bool:
        return all(one.same for one in self.tables)


class Stopped(Exception):
    """The rebuild was told to stop: what is built stays, and the next one goes on there."""


class Inserts:
    """Blocks on their way into the tables: a thread inserts them while the next ones are made."""

    def __init__(self, sink: ClickHouseSink) -> None:
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rebuild")
        self._under_way: tuple[Future[None], int] | None = None
        self._told: Callable[[int], None] = lambda _: None

    def add(self, blocks: dict[str, list[bytes]], seq: int, told: Callable[[int], None]) -> None:
        """The blocks of the events up to `seq`. `told` is told of each position the tables have reached, and may
        raise; so may what an earlier insert failed with."""
        self.settle()
        self._told, self._under_way = told, (self._thread.submit(self._sink.insert_blocks, blocks), seq)

    def settle(self) -> None:
        """Returns when all that was added is in the tables. Raises as `add` does."""
        if self._under_way is not None:
            (insert, seq), self._under_way = self._under_way, None
            insert.result()
            self._told(seq)

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def _event_blocks(events: Iterator[Recorded], until: int) -> Iterator[bytes]:
    """The next events, up to this one, as blocks of `order_events`."""
    rows: list[Row] = []
    for one in events:
        rows.append(order_event_row(one, header_of(one)))
        ended = one.seq >= until
        if ended or len(rows) >= _EVENTS_PACKED:
            yield block(ORDER_EVENTS, rows)
            rows = []
        if ended:
            return


def take_stretch(
    store: EventStore,
    url: str,
    position: int,
    target: int,
    folds: Folds,
    inserts: Inserts,
    told: Callable[[int], None],
) -> float:
    """Inserts what the events from there up to the seal at `target` give; when it returns that is in the tables. The
    most memory that a process which folded them had, MB."""
    events, beside_mb = store.scan(position), 0.0

    def give(part: Part) -> None:
        blocks = {**part.blocks, ORDER_EVENTS.name: list(_event_blocks(events, part.seq))}
        inserts.add(blocks, part.seq, told)

    if url and target - position >= MANY:
        beside_mb = fold_beside(url, position, target, folds, give, SIZES)
    else:
        fold_here(store, position, target, folds, give, SIZES)
    inserts.settle()
    return beside_mb


class Rebuild:
    """`hold` runs something while the sink that writes the tables in use does not. `advance` is told how far it is and
    of how many events; when it returns False the rebuild stops. With the `url` of the ledger many events are folded
    by a process of its own; `beside_mb` is the most memory that such a process had."""

    def __init__(
        self,
        store: EventStore,
        target: Target,
        ledger_id: str,
        *,
        database: str,
        cluster: str = "",
        url: str = "",
        hold: Callable[[Callable[[], None]], None],
        advance: Callable[[int, int], bool] = lambda done, of: True,
    ) -> None:
        self._store, self._ledger_id, self._hold, self._advance = store, ledger_id, hold, advance
        self._url = url
        self._place = Place(database=database, cluster=cluster, server=not target.embedded)
        self._open: Callable[[], Client] = lambda: connect(target)
        self._mark = Mark(Path(target.path), database) if self._place.is_marked else None
        # One connection reads while the other inserts.
        self._reader, self._writer = (
            ClickHouseSink(target, ledger_id, database=database, cluster=cluster, migrate_at_start=False, suffix=SUFFIX)
            for _ in range(2)
        )
        self._inserts = Inserts(self._writer)
        self._read = folds_of(self._reader.opened, self._reader.table(POSITION_HISTORY), ledger_id)
        self.beside_mb = 0.0

    def _folds(self, account: str, ids: Sequence[int], seq: int) -> Iterable[str]:
        self._inserts.settle()  # they may be among the rows that wait
        return self._read(account, ids, seq)

    def run(self, *, exchange: bool = True) -> Rebuilt:
        """Raises Stopped, LedgerUnavailable, SinkUnavailable, SinkRefused."""
        client = self._open()
        client.command("SET max_query_size = 67108864")  # the keys that changed meanwhile are named one by one
        recover(client, self._place, self._mark)
        self._reader.attach(self._open())
        self._writer.attach(self._open())
        collects = gc.isenabled()
        gc.disable()  # millions of objects, none in a cycle: looking for cycles takes a third of the time
        try:
            begun = self._prepare(client)
            position = self._fill(begun)
            compared = self._compare(client, self._common(position))
            if exchange:
                self._hold(lambda: self._exchange(client))
            self._drop(client)
            return Rebuilt(
                seq=position,
                events=position - begun,
                resumed_at=begun,
                exchanged=exchange,
                tables=tuple(compared),
            )
        finally:
            self._inserts.close()
            if collects:
                gc.enable()
            for one in (self._reader, self._writer):
                one.attach(None)
            client.close()

    def _prepare(self, client: "Client") -> int:
        """Makes the new set, or takes up the one that is there; its position."""
        if any(self._shape(client, table, SUFFIX) not in ("", self._shape(client, table, "")) for table in TABLES):
            self._drop(client)  # the schema has changed since
        for table in TABLES:
            sql = "CREATE TABLE IF NOT EXISTS {database}.%s {on_cluster} AS {database}.%s"
            client.command(self._place.fill(sql % (table.name + SUFFIX, table.name)))
        found = self._reader.held()
        if found is None:
            return 0
        return found.seq if self._is_ours(found) else self._afresh(client)

    def _is_ours(self, found: Position) -> bool:
        head = self._store.head()
        seal = self._store.at(found.seq) if found.seq else None
        if head is None or found.highest > head.seq:
            return False
        return found.seq == 0 or (seal is not None and seal.state.endswith(f'"digest":"{found.digest}"}}}}'.encode()))

    def _afresh(self, client: "Client") -> int:
        self._drop(client)
        return self._prepare(client)

    def _shape(self, client: "Client", table: Table, suffix: str) -> str:
        sql = (
            "SELECT arrayStringConcat(groupArray(name || ' ' || type), ',') FROM (SELECT name, type "
            "FROM system.columns WHERE database = {db:String} AND table = {t:String} ORDER BY position)"
        )
        found = client.query(sql, parameters={"db": self._place.database, "t": table.name + suffix})
        return str(found.result_rows[0][0])

    def _fill(self, begun: int) -> int:
        """Until it is near the head of the ledger; the position reached."""
        position = begun
        for _ in range(_ROUNDS):
            head = self._store.head()
            target = head.seq if head else 0
            if position and target - position <= NEAR:
                return position
            position = self._take(position, target)
        return position

    def _take(self, position: int, target: int) -> int:
        """The events from there up to the seal at `target`; the position reached."""

        def told(seq: int) -> None:
            nonlocal position
            position = seq
            if not self._advance(seq, target):
                raise Stopped

        beside_mb = take_stretch(self._store, self._url, position, target, self._folds, self._inserts, told)
        self.beside_mb = max(self.beside_mb, beside_mb)
        return position

    def _common(self, position: int) -> int:
        """Up to where both sets can be compared: the tables in use may be behind the ledger. Read between two of
        their batches, and of all tables, so that what is missing in one of them is a difference."""
        found: list[Position | None] = []
        self._hold(lambda: found.append(self._reader.held("")))
        in_use = found[0]
        return min(position, in_use.highest) if in_use is not None else position

    def _compare(self, client: "Client", seq: int) -> list[Compared]:
        """Each table in use against the new one, up to `seq`; rows that changed since in either are left out."""
        found = []
        database, ledger_id = self._place.database, self._ledger_id
        for table in TABLES:
            was, changed = held(client, table, database, ledger_id, seq)
            if not was.rows and not changed:  # nothing to compare with: tables that are filled for the first time
                rows = count(client, table, database, ledger_id, seq, SUFFIX)
                found.append(Compared(table=table.name, rows=rows, was=0, same=not rows))
                continue
            now, changed_too = held(client, table, database, ledger_id, seq, SUFFIX)
            without = {tuple(key) for key in (*changed, *changed_too)} if table in REPLACED else ()
            if without:
                keys = sorted(without)
                was, _ = held(client, table, database, ledger_id, seq, without=keys)
                now, _ = held(client, table, database, ledger_id, seq, SUFFIX, without=keys)
            found.append(Compared(table=table.name, rows=now.rows, was=was.rows, same=was == now))
        return found

    def _exchange(self, client: "Client") -> None:
        """While nobody writes the tables in use."""
        held_now, new = self._reader.held(""), self._reader.held()
        position = new.seq if new else 0
        head = self._store.head()
        # By the highest of all that is in use: behind a gap, its position says less than its writer has done.
        if held_now is not None and held_now.highest > position and head is not None:
            self._take(position, head.seq)
        if self._mark is not None:
            self._mark.set(held_now.seq if held_now else position)  # what the mark says is to be true of the new ones
        for table in TABLES:
            sql = "EXCHANGE TABLES {database}.%s AND {database}.%s {on_cluster}"
            client.command(self._place.fill(sql % (table.name, table.name + SUFFIX)))

    def _drop(self, client: "Client") -> None:
        for table in TABLES:
            client.command(
                self._place.fill("DROP TABLE IF EXISTS {database}.%s {on_cluster} SYNC" % (table.name + SUFFIX))
            )


def rebuild_alone(
    store: EventStore,
    target: Target,
    ledger_id: str,
    *,
    database: str,
    cluster: str = "",
    url: str = "",
    exchange: bool = True,
    advance: Callable[[int, int], bool] = lambda done, of: True,
) -> Rebuilt:
    """A rebuild while no process of this data folder writes the tables. Raises as `Rebuild.run` does."""

    def at_once(work: Callable[[], None]) -> None:
        work()

    found = Rebuild(
        store, target, ledger_id, database=database, cluster=cluster, url=url, hold=at_once, advance=advance
    )
    return found.run(exchange=exchange)
