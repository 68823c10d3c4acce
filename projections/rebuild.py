"""Builds all tables again from the ledger, beside the ones in use, compares both, and exchanges them.

The new set has the suffix `_rebuild`; its own `order_events` tells how far it is, so a rebuild that was interrupted
goes on there. Events are folded in small batches, so that few objects are alive at a time, and inserted in large ones,
which cost the database least; folding goes on while the insert before runs. Rows that changed since the position of
the comparison are left out of it on both sides, so the tables in use may go on growing meanwhile. For the exchange
alone the writer of those tables is held: the new set is taken to where they stand, then each pair of tables changes
names in one step, and the old ones are dropped.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ledger.events import Recorded
from ledger.store import EventStore
from projections.clickhouse import ClickHouseSink, Target, connect, recover
from projections.digest import REPLACED, batches_of, count, held
from projections.durable import Mark
from projections.feed import Feed, folds_of
from projections.follower import Position
from projections.migrate import Place
from projections.tables import POSITION_HISTORY, TABLES, Row, Table, block

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

SUFFIX: Final = "_rebuild"
FOLDED: Final = 1_024  # events folded at a time, at least
INSERTED: Final = 16_384  # events inserted at a time, at least
NEAR: Final = 20_000  # events that are left to the exchange at most
_ROUNDS: Final = 20


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
    """Rows on their way into the tables. As blocks they wait for enough others, then a thread inserts them."""

    def __init__(self, sink: ClickHouseSink) -> None:
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rebuild")
        self._blocks: dict[str, list[bytes]] = {}
        self._first = self._last = 0
        self._told: Callable[[int], None] = lambda _: None
        self._under_way: tuple[Future[None], int] | None = None

    def add(self, rows: Mapping[str, Sequence[Row]], seq: int, told: Callable[[int], None]) -> None:
        """The rows of the events up to `seq`. `told` is told of each position the tables have reached, and may raise;
        so may what an earlier insert failed with."""
        for table in TABLES:
            if table.name in rows:
                self._blocks.setdefault(table.name, []).append(block(table, rows[table.name]))
        self._last, self._told = seq, told
        if self._last - self._first >= INSERTED:
            self._begin()

    def settle(self) -> None:
        """Returns when all that was added is in the tables. Raises as `add` does."""
        if self._blocks:
            self._begin()
        self._wait()

    def close(self) -> None:
        """Waits for the insert that runs; what waits is dropped."""
        self._thread.shutdown(wait=True)

    def _begin(self) -> None:
        self._wait()
        self._under_way = self._thread.submit(self._sink.insert_blocks, self._blocks), self._last
        self._blocks, self._first = {}, self._last

    def _wait(self) -> None:
        if self._under_way is not None:
            (insert, seq), self._under_way = self._under_way, None
            insert.result()
            self._told(seq)


class Rebuild:
    """`hold` runs something while the sink that writes the tables in use does not. `advance` is told how far it is and
    of how many events; when it returns False the rebuild stops."""

    def __init__(
        self,
        store: EventStore,
        target: Target,
        ledger_id: str,
        *,
        database: str,
        cluster: str = "",
        hold: Callable[[Callable[[], None]], None],
        advance: Callable[[int, int], bool] = lambda done, of: True,
    ) -> None:
        self._store, self._ledger_id, self._hold, self._advance = store, ledger_id, hold, advance
        self._place = Place(database=database, cluster=cluster, server=not target.embedded)
        self._open: Callable[[], Client] = lambda: connect(target)
        self._mark = Mark(Path(target.path), database) if self._place.is_marked else None
        # One connection reads while the other inserts.
        self._reader, self._writer = (
            ClickHouseSink(target, ledger_id, database=database, cluster=cluster, migrate_at_start=False, suffix=SUFFIX)
            for _ in range(2)
        )
        self._inserts = Inserts(self._writer)
        read = folds_of(self._reader.opened, self._reader.table(POSITION_HISTORY), ledger_id)

        def folds(account: str, ids: Sequence[int], seq: int) -> Iterable[str]:
            self._inserts.settle()  # they may be among the rows that wait
            return read(account, ids, seq)

        self._feed = Feed(store.streams, folds)

    def run(self, *, exchange: bool = True) -> Rebuilt:
        """Raises Stopped, LedgerUnavailable, SinkUnavailable, SinkRefused."""
        client = self._open()
        client.command("SET max_query_size = 67108864")  # the keys that changed meanwhile are named one by one
        recover(client, self._place, self._mark)
        self._reader.attach(self._open())
        self._writer.attach(self._open())
        self._feed.forget()
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
            if position and target - position < NEAR:
                return position
            position = self._take(position, target)
        return position

    def _take(self, position: int, target: int) -> int:
        """The events from there up to the seal at `target`; the position reached."""

        def told(seq: int) -> None:
            if not self._advance(seq, target):
                raise Stopped

        for batch in batches_of(self._events(position, target), FOLDED):
            self._inserts.add(self._feed.rows(batch), batch.position.seq, told)
            position = batch.position.seq
        self._inserts.settle()
        return position

    def _events(self, position: int, target: int) -> Iterator[Recorded]:
        for one in self._store.scan(position):
            if one.seq > target:
                return
            yield one

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
            self._feed.forget()
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
    exchange: bool = True,
    advance: Callable[[int, int], bool] = lambda done, of: True,
) -> Rebuilt:
    """A rebuild while no process of this data folder writes the tables. Raises as `Rebuild.run` does."""

    def at_once(work: Callable[[], None]) -> None:
        work()

    found = Rebuild(store, target, ledger_id, database=database, cluster=cluster, hold=at_once, advance=advance)
    return found.run(exchange=exchange)
