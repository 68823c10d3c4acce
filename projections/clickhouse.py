"""The ClickHouse sink: `executions` first, `order_events` last, whose last seq without a gap is the position.

One code for a server over HTTP and for the engine embedded in this process (chDB), both through clickhouse-connect.
Repeated rows replace themselves in the table engine; no deduplication window is relied upon, since a window forgets
and a refill after a loss must not be taken for a repetition. Inserts are synchronous: when one returns, it is there.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from ledger.events import Recorded
from projections.follower import SEALED, Batch, Position, SinkRefused, SinkUnavailable
from projections.migrate import check, check_database, migrate
from projections.records import position_of
from projections.rows import EXECUTIONS, ORDER_EVENTS, columns, execution_row, order_event_row

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

T = TypeVar("T")
_SETTINGS: Final = {"async_insert": 0, "insert_deduplicate": 0}
# Error codes that the same rows will meet again: parse, type, size and range errors of data; then a missing or
# different schema, which a person must bring in order.
_DATA_CODES: Final = frozenset({6, 27, 53, 69, 70, 72, 131, 321, 349, 407})
_SCHEMA_CODES: Final = frozenset({16, 36, 44, 47, 60, 62, 81, 122})

_FOREIGN: Final = "SELECT any(ledger_id) FROM {database}.order_events WHERE ledger_id != {ledger:String}"
# A compressed bitmap counts distinct numbers exactly, and dense ones in little memory.
_EXTENT: Final = "SELECT max(seq), groupBitmap(seq) FROM {database}.order_events WHERE ledger_id = {ledger:String}"
_LAST_FILL: Final = "SELECT max(seq) FROM {database}.executions WHERE ledger_id = {ledger:String}"
_FIRST_GAP: Final = (
    "SELECT min(place) FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS place FROM "
    "(SELECT DISTINCT seq FROM {database}.order_events WHERE ledger_id = {ledger:String})) WHERE seq != place"
)
_LAST_SEAL: Final = (
    "SELECT seq, stream, stream_version, event, data FROM {database}.order_events "
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
    """See the module. `exclusive`: the tables are this ledger's alone (embedded), so foreign rows are an error; on a
    server several ledgers share the tables. `migrate_at_start` False only checks the schema."""

    name = "clickhouse"

    def __init__(
        self,
        target: Target,
        ledger_id: str,
        *,
        database: str = "suho_analytics",
        migrate_at_start: bool = True,
        client: "Callable[[], Client] | None" = None,
    ) -> None:
        self._database = check_database(database)
        self._ledger_id = ledger_id
        self._exclusive = target.embedded
        self._migrate = migrate_at_start
        self._connect = client or (lambda: connect(target))
        self._client: Client | None = None
        # One thread: the calls of one client never overlap, also when a cancelled one is still running.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clickhouse")

    async def open(self) -> None:
        await self._call(self._open)

    async def position(self) -> Position | None:
        return await self._call(self._position)

    async def write(self, batch: Batch) -> None:
        await self._call(lambda: self._write(batch))

    async def close(self) -> None:
        await self._call(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _call(self, work: Callable[[], T]) -> T:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except ClickHouseError as error:
            raise translated(error) from error

    def _open(self) -> None:
        self._disconnect()
        client = self._client = self._connect()
        if self._migrate:
            migrate(client, self._database)
        else:
            check(client, self._database)

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
        ((highest, distinct),) = self._rows(_EXTENT, mine)
        ((fills,),) = self._rows(_LAST_FILL, mine)
        if not highest and not fills:
            return None
        complete = highest if distinct == highest else int(self._rows(_FIRST_GAP, mine)[0][0]) - 1
        seal = self._rows(_LAST_SEAL, {**mine, "seal": SEALED, "seq": complete}, formats={"data": "bytes"})
        if not seal:
            return Position(0, "", max(highest, fills))
        return position_of(Recorded(*seal[0]), max(highest, fills))

    def _write(self, batch: Batch) -> None:
        pairs = list(zip(batch.records, batch.envelopes, strict=True))
        executions = [row for one, envelope in pairs if (row := execution_row(one, envelope)) is not None]
        if executions:
            self._insert("executions", EXECUTIONS, executions)
        self._insert("order_events", ORDER_EVENTS, [order_event_row(one, envelope) for one, envelope in pairs])

    def _insert(self, table: str, schema: dict[str, str], rows: list[tuple[Any, ...]]) -> None:
        self._opened().insert(
            table,
            columns(rows),
            database=self._database,
            column_names=list(schema),
            column_type_names=list(schema.values()),
            column_oriented=True,
            settings=_SETTINGS,
        )

    def _rows(self, sql: str, parameters: dict[str, Any], formats: Any = None) -> Any:
        named = sql.replace("{database}", self._database)
        return self._opened().query(named, parameters=parameters, column_formats=formats).result_rows

    def _opened(self) -> "Client":
        if self._client is None:
            raise SinkUnavailable("ClickHouse is not connected")
        return self._client


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
