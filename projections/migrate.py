"""Brings a ClickHouse database to the schema this version writes, by the numbered files of `migrations/clickhouse`.

Each file is recorded with its checksum in `schema_migrations`: as `started` before its first statement, as
`applied` behind its last. ClickHouse has no transactions, so every statement can be repeated, and a file that failed
is run again as a whole, also after it was corrected. An applied file that has changed since is refused.

The files serve one server, the embedded engine and a replicated cluster alike: `{database}`, `{on_cluster}`,
`{replicated}`, `{merged}` and `{written}` in them are replaced. A statement behind a line `-- server only` (roles,
quotas) is left out where the engine is embedded, and where the user may not manage access; one behind a line
`-- embedded only` everywhere else.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from projections.durable import boot_id
from projections.follower import SinkRefused

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

FOLDER: Final = Path(__file__).resolve().parent.parent / "migrations" / "clickhouse"
_NAME: Final = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")
_DATABASE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SERVER_ONLY: Final = "-- server only"
_EMBEDDED_ONLY: Final = "-- embedded only"
_ACCESS_DENIED: Final = (497, 514, 515)  # and the embedded engine's storage of users cannot be written
_SYNCED: Final = "fsync_after_insert = 1, fsync_part_directory = 1"
# Embedded tables get some small parts a second while few orders come: merged by thirty instead of five, and without
# statistics, which no query of ours needs, merging takes a third of the CPU time.
_SELDOM: Final = "merge_selector_base = 30, auto_statistics_types = ''"
_RECORD: Final = (
    "CREATE TABLE IF NOT EXISTS {database}.schema_migrations {on_cluster} ("
    "version UInt32 COMMENT 'Number of the migration file. Source: file name', "
    "name String COMMENT 'Name of the file. Source: migrations', "
    "checksum String COMMENT 'SHA-256 of the file, hexadecimal. Source: migrations', "
    "state Enum8('started' = 1, 'applied' = 2) COMMENT 'started = it may be half done. Source: migration run', "
    "changed_at DateTime64(6, 'UTC') COMMENT 'When the state was written, UTC. Source: database clock'"
    ") ENGINE = {replicated}ReplacingMergeTree(changed_at) ORDER BY version COMMENT 'Which schema files were applied'"
)

_RECORDED: Final = (
    "SELECT version, name, checksum, toString(state) FROM {database}.schema_migrations FINAL ORDER BY version"
)
_WRITE: Final = (
    "INSERT INTO {database}.schema_migrations SELECT {v:UInt32}, {n:String}, {c:String}, {s:String}, now64(6)"
)


class Statement(msgspec.Struct, frozen=True):
    sql: str
    server_only: bool = False
    embedded_only: bool = False


class Migration(msgspec.Struct, frozen=True):
    """One file. `statements` still hold the names that a `Place` replaces."""

    version: int
    name: str
    checksum: str
    statements: tuple[Statement, ...]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the schema goes. `cluster`: its name, empty without one; then every statement goes to all its servers and
    the tables replicate. `server`: not the embedded engine."""

    database: str
    cluster: str = ""
    server: bool = False

    @property
    def is_marked(self) -> bool:
        """Whether inserts go without fsync, since a mark tells what is on the disk: see `durable.py`."""
        return not self.server and bool(boot_id())

    def fill(self, sql: str) -> str:
        """The statement for this place. Raises SinkRefused for a name that could carry SQL."""
        named = sql.replace("{database}", check_database(self.database))
        on_cluster = f" ON CLUSTER {check_database(self.cluster)}" if self.cluster else ""
        merged = "" if self.server else f"{_SELDOM}, "
        synced = "" if self.is_marked else f"{_SYNCED}, "
        named = named.replace("{merged}, ", merged).replace("{written}, ", merged + synced)
        return named.replace(" {on_cluster}", on_cluster).replace("{replicated}", "Replicated" if self.cluster else "")


def load(folder: Path = FOLDER) -> list[Migration]:
    """The files in order. Raises SinkRefused for a misnamed file or a gap in the numbers."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise SinkRefused(f"migration {path.name} is not named NNNN_name.sql")
        text = path.read_text(encoding="utf-8")
        checksum = hashlib.sha256(text.encode()).hexdigest()
        found.append(Migration(int(match[1]), path.name, checksum, _statements(text)))
    if not found or [one.version for one in found] != list(range(1, len(found) + 1)):
        raise SinkRefused(f"the migrations in {folder} are not numbered 0001, 0002 … without a gap")
    return found


def _statements(text: str) -> tuple[Statement, ...]:
    """Statements end with a semicolon at the end of a line; lines that are only a comment are left out."""
    found = []
    for part in re.split(r";[ \t]*(?:\n|$)", text):
        lines = part.splitlines()
        sql = "\n".join(line for line in lines if not line.lstrip().startswith("--")).strip()
        if sql:
            marks = {line.strip() for line in lines}
            found.append(Statement(sql, _SERVER_ONLY in marks, _EMBEDDED_ONLY in marks))
    return tuple(found)


def check_database(name: str) -> str:
    """The name, if it may stand in a statement as it is."""
    if _DATABASE.fullmatch(name) is None:
        raise SinkRefused(f"database name {name[:70]!r} must be a letter or _ and then letters, digits and _")
    return name


def pending(client: "Client", database: str, migrations: Sequence[Migration]) -> list[Migration]:
    """What is still to be applied. Raises SinkRefused for a changed file or a newer schema than ours."""
    rows = client.query(_RECORDED.replace("{database}", database)).result_rows
    known = {one.version: one for one in migrations}
    applied = set()
    for version, name, checksum, state in rows:
        ours = known.get(version)
        if ours is None:
            raise SinkRefused(
                f"{database} has migration {name}, which this version does not know",
                "upgrade this program: the database was written by a newer version",
            )
        if state == "applied":
            if ours.checksum != checksum:
                raise SinkRefused(
                    f"migration {ours.name} was changed after {database} had applied it",
                    "restore the file and put the change into a new migration, or rebuild the database",
                )
            applied.add(version)
    return [one for one in migrations if one.version not in applied]


def is_prepared(client: "Client", database: str) -> bool:
    """Whether the table of migrations exists."""
    found = client.query(
        "SELECT count() FROM system.tables WHERE database = {db:String} AND name = 'schema_migrations'",
        parameters={"db": database},
    )
    return bool(found.result_rows[0][0])


class Applied(msgspec.Struct, frozen=True):
    """A file that was applied, or would be. `left_out`: how many of its statements are not for this place."""

    name: str
    statements: tuple[str, ...]
    left_out: int = 0


def plan(client: "Client", place: Place, migrations: Sequence[Migration] | None = None) -> list[Applied]:
    """What `migrate` would run; changes nothing. Raises SinkRefused as it does."""
    check_database(place.database)
    files = load() if migrations is None else migrations
    if is_prepared(client, place.database):
        files = pending(client, place.database, files)
    return [
        Applied(
            one.name,
            tuple(
                place.fill(statement.sql)
                for statement in one.statements
                if not (statement.embedded_only if place.server else statement.server_only)
            ),
            sum(statement.server_only and not place.server for statement in one.statements),
        )
        for one in files
    ]


def migrate(client: "Client", place: Place, migrations: Sequence[Migration] | None = None) -> list[Applied]:
    """Applies what is missing; returns the applied files, none when the schema was current.

    Raises SinkRefused when the files contradict the database, and what the client raises when a statement fails:
    then the file stands as `started`, and the next call runs it again.
    """
    database = check_database(place.database)
    if not is_prepared(client, database):
        client.command(place.fill("CREATE DATABASE IF NOT EXISTS {database} {on_cluster}"))
        client.command(place.fill(_RECORD))
    done = []
    for migration in pending(client, database, load() if migrations is None else migrations):
        _record(client, database, migration, "started")
        run, left_out = [], 0
        may = place.server
        for statement in migration.statements:
            sql = place.fill(statement.sql)
            if statement.embedded_only and place.server:
                continue
            if statement.server_only:
                may = may and _allowed(client, sql)  # one that is denied takes the rest of its file along
            else:
                client.command(sql)
            if statement.server_only and not may:
                left_out += 1
            else:
                run.append(sql)
        _record(client, database, migration, "applied")
        done.append(Applied(migration.name, tuple(run), left_out))
    return done


def _allowed(client: "Client", sql: str) -> bool:
    """Runs a statement on access; False where this user or engine may not."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    try:
        client.command(sql)
    except ClickHouseError as error:
        code = getattr(error, "code", None) or int((re.search(r"\bCode: (\d+)", str(error)) or [0, 0])[1])
        if code in _ACCESS_DENIED:
            return False
        raise
    return True


def check(client: "Client", database: str) -> None:
    """Raises SinkRefused unless the schema is exactly the one this version writes."""
    check_database(database)
    remedy = "run `order-ledger migrate`, or let the service migrate at its start"
    if not is_prepared(client, database):
        raise SinkRefused(f"ClickHouse has no schema in {database}", remedy)
    missing = pending(client, database, load())
    if missing:
        raise SinkRefused(f"ClickHouse database {database} lacks migration {missing[0].name}", remedy)


def _record(client: "Client", database: str, migration: Migration, state: str) -> None:
    values: dict[str, Any] = {"v": migration.version, "n": migration.name, "c": migration.checksum, "s": state}
    client.command(_WRITE.replace("{database}", database), parameters=values, settings={"async_insert": 0})
