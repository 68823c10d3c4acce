"""The ClickHouse sink: what the book makes of the events first, `order_events` last, whose last seq without a gap is
the position.

One code for a server over HTTP and for the engine embedded in this process (chDB), both through clickhouse-connect.
Repeated rows replace themselves in the table engine; no deduplication window is relied upon, since a window forgets
and a refill after a loss must not be taken for a repetition. Inserts are synchronous: when one returns, it is there.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from ledger.events import Recorded
from projections.durable import Mark
from projections.feed import Feed, Past, folds_of, no_past
from projections.follower import SEALED, Batch, Position, SinkRefused, SinkUnavailable
from projections.migrate import Place, check, check_database, migrate
from projections.records import position_of
from projections.tables import POSITION_HISTORY, TABLES, Row, Table, block

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")
# Since ClickHouse 26.2 this one decides and `insert_deduplicate` is not asked; servers before do not know it.
_DEDUPLICATE: Final = "deduplicate_insert"
_SETTINGS: Final[dict[str, int | str]] = {
    "async_insert": 0,
    "insert_deduplicate": 0,
    _DEDUPLICATE: "disable",
    "max_threads": 1,
    "max_insert_threads": 1,
}
# Of the embedded engine: no log of queries (it has none to read), and what only large tables need waits for a merge.
_EMBEDDED: Final[dict[str, int | str]] = {
    "log_queries": 0,
    "log_profile_events": 0,
    "query_profiler_real_time_period_ns": 0,
    "query_profiler_cpu_time_period_ns": 0,
    "materialize_skip_indexes_on_insert": 0,
}
# Error codes that the same rows will meet again: parse, type, size and range errors of data; then a missing or
# different schema, which a person must bring in order.
_DATA_CODES: Final = frozenset({6, 27, 53, 69, 70, 72, 131, 321, 349, 407})
_SCHEMA_CODES: Final = frozenset({16, 36, 44, 47, 60, 62, 81, 122})

_FOREIGN: Final = "SELECT any(ledger_id) FROM {table} WHERE ledger_id != {ledger:String}"
# A compressed bitmap counts distinct numbers exactly, and dense ones in little memory.
_EXTENT: Final = "SELECT max(seq), groupBitmap(seq) FROM {table} WHERE ledger_id = {ledger:String}"
_LAST: Final = "SELECT max({version}) FROM {table} WHERE ledger_id = {ledger:String}"
_FIRST_GAP: Final = (
    "SELECT min(place) FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM "
    "(SELECT DISTINCT seq FROM {table} WHERE ledger_id = {ledger:String})) WHERE seq != place"
)
_LAST_SEAL: Final = (
    "SELECT seq, stream, stream_version, event, data FROM {table} "
    "WHERE ledger_id = {ledger:String} AND event = {seal:String} AND seq <= {seq:UInt64} ORDER BY seq DESC LIMIT 1"
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where ClickHouse is: a folder (the embedded engine) or a server. `https` by `secure`."""

    path: str = ""
    host: str = ""
    port: int = 8123
    user: str = "default"
    password: str = ""
    secure: bool = False

    @property
    def embedded(self) -> bool:
        return bool(self.path)

    def __repr__(self) -> str:
        return f"Target({self.path or f'{self.host}:{self.port}'})"


def connect(target: Target) -> "Client":
    """A client, blocking. Raises SinkUnavailable when the server or the folder cannot be opened now."""
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        if target.embedded:
            Path(target.path).mkdir(parents=True, exist_ok=True)
            return clickhouse_connect.get_client(interface="chdb", path=target.path)
        return clickhouse_connect.get_client(
            host=target.host,
            port=target.port,
            username=target.user,
            password=target.password,
            interface="https" if target.secure else "http",
            connect_timeout=5,
            send_receive_timeout=60,
            query_retries=0,
            autogenerate_session_id=False,
            compress=target.host not in ("127.0.0.1", "localhost", "::1"),
        )
    except ClickHouseError as error:
        if target.embedded and "already initialized" in str(error):
            raise SinkRefused(
                f"cannot open ClickHouse in {target.path}: this process has another folder open",
                "use one data folder per process",
            ) from error
        raise translated(error) from error


class ClickHouseSink:
    """See the module. `past` reads the ledger; without it a batch that needs earlier events has to wait. Embedded
    tables are this ledger's alone, so foreign rows are an error; on a server several ledgers share the tables.
    `migrate_at_start` False only checks the schema. `suffix` names another set of the same tables."""

    name = "clickhouse"

    def __init__(
        self,
        target: Target,
        ledger_id: str,
        *,
        database: str = "suho_analytics",
        cluster: str = "",
        past: Past = no_past,
        migrate_at_start: bool = True,
        suffix: str = "",
        client: "Callable[[], Client] | None" = None,
    ) -> None:
        self._place = Place(database=check_database(database), cluster=cluster, server=not target.embedded)
        self._ledger_id = ledger_id
        self._exclusive = target.embedded
        self._migrate = migrate_at_start
        self._suffix = suffix
        self._settings = {**_SETTINGS, **_EMBEDDED} if target.embedded else _SETTINGS
        self._mark = Mark(Path(target.path), database) if self._place.is_marked else None
        self._connect = client or (lambda: connect(target))
        self._client: Client | None = None
        self._feed = Feed(past, folds_of(self.opened, self.table(POSITION_HISTORY), ledger_id))
        # One thread: the calls of one client never overlap, also when a cancelled one is still running.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clickhouse")

    async def open(self) -> None:
        await self.call(self._open)

    async def position(self) -> Position | None:
        return await self.call(self._position)

    async def write(self, batch: Batch) -> None:
        await self.call(lambda: self._write(batch))

    async def close(self) -> None:
        await self.call(self._disconnect)
        self._thread.shutdown(wait=False)

    async def call(self, work: Callable[[], T]) -> T:
        """Does `work` in the thread of this sink, so between two batches. Errors of the database are ours then."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except ClickHouseError as error:
            raise translated(error) from error

    def _open(self) -> None:
        self._disconnect()
        self._feed.forget()
        client = self._client = self._connect()
        if self._migrate:
            migrate(client, self._place)
        else:
            check(client, self._place.database)
        recover(client, self._place, self._mark)

    def attach(self, client: "Client | None") -> None:
        """Works over this client, as it is; for who calls `insert_blocks` and `held` in a thread of his own."""
        self._disconnect()
        self._feed.forget()
        self._client = client

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _position(self) -> Position | None:
        mine = {"ledger": self._ledger_id}
        if self._exclusive:
            foreign = self._rows(_FOREIGN, mine)
            if foreign and foreign[0][0]:
                raise SinkRefused(
                    f"{self.name} belongs to ledger {foreign[0][0]}, not to {self._ledger_id}",
                    "correct the data folder or move the ClickHouse folder away: it is rebuilt from the ledger",
                )
        return self.held()

    def held(self, suffix: str | None = None) -> Position | None:
        """Where the tables stand: those of this sink, or the set with another suffix."""
        mine = {"ledger": self._ledger_id}
        ((highest, distinct),) = self._rows(_EXTENT, mine, suffix=suffix)
        latest = max(int(self._rows(_LAST, mine, one, suffix=suffix)[0][0]) for one in TABLES)
        if not latest:
            return None
        complete = highest if distinct == highest else int(self._rows(_FIRST_GAP, mine, suffix=suffix)[0][0]) - 1
        named = {**mine, "seal": SEALED, "seq": complete}
        seal = self._rows(_LAST_SEAL, named, suffix=suffix, formats={"data": "bytes"})
        if not seal:
            return Position(0, "", latest)
        return position_of(Recorded(*seal[0]), latest)

    def _write(self, batch: Batch) -> None:
        try:
            self.insert(self._feed.rows(batch))
        except BaseException:
            self._feed.forget()
            raise
        if self._mark is not None and self._mark.is_due():
            self._mark.set(batch.position.seq)

    def insert(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Table by table, `order_events` last."""
        self.insert_blocks({table.name: [block(table, rows[table.name])] for table in TABLES if table.name in rows})

    def insert_blocks(self, blocks: dict[str, list[bytes]]) -> None:
        """The same of rows that are blocks already; all blocks of a table in one insert. Empties the lists."""
        client, settings = self.opened(), self._settings
        if _DEDUPLICATE not in client.server_settings:
            settings = {name: value for name, value in settings.items() if name != _DEDUPLICATE}
        for table in TABLES:
            if table.name in blocks:
                data = b"".join(blocks[table.name])
                blocks[table.name].clear()
                client.raw_insert(self.table(table), list(table.columns), data, settings=settings, fmt="Native")

    def table(self, table: Table, suffix: str | None = None) -> str:
        """Its name, with the database."""
        return f"{self._place.database}.{table.name}{self._suffix if suffix is None else suffix}"

    def _rows(
        self,
        sql: str,
        parameters: dict[str, Any],
        table: Table = TABLES[-1],
        *,
        suffix: str | None = None,
        formats: Any = None,
    ) -> Any:
        named = sql.replace("{table}", self.table(table, suffix)).replace("{version}", table.version)
        return self.opened().query(named, parameters=parameters, column_formats=formats).result_rows

    def opened(self) -> "Client":
        if self._client is None:
            raise SinkUnavailable("ClickHouse is not connected")
        return self._client


def recover(client: "Client", place: Place, mark: Mark | None) -> None:
    """Takes out of embedded tables what a power cut may have left incomplete, before anything is read or written."""
    last = mark.lost_behind() if mark is not None else None
    if mark is None or last is None:
        return
    for table in TABLES:
        client.command(place.fill("DROP TABLE IF EXISTS {database}." + table.name + "_rebuild SYNC"))
    behind = f"DELETE WHERE seq > {last} SETTINGS mutations_sync = 2"
    client.command(place.fill("ALTER TABLE {database}.order_events " + behind))
    mark.set(last)


def translated(error: Exception) -> Exception:
    """The vendor's error as one of ours: what time may heal, or what it never will."""
    from clickhouse_connect.driver.exceptions import DataError

    code = getattr(error, "code", None)
    if code is None:
        match = re.search(r"\bCode: (\d+)", str(error))
        code = int(match[1]) if match else None
    text = " ".join(str(error).split())[:300]
    if isinstance(error, DataError) or code in _DATA_CODES:
        return SinkRefused(f"ClickHouse cannot take these rows: {text}", "report the event: its rows do not fit")
    if code in _SCHEMA_CODES:
        return SinkRefused(f"ClickHouse has another schema: {text}", "compare its tables with the migrations")
    return SinkUnavailable(f"ClickHouse: {text}")
