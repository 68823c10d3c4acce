"""A digest per table: of the rows that the ledger gives, and of those that ClickHouse holds.

The digest of a table is the number of its rows and the sum, modulo 2^256, of the SHA-256 of each row as text
(`tables.line`), so it does not depend on the order of the rows, and the database computes its own in one pass. Rows
are those of a position of the ledger: a row that has changed since is left out on both sides.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ledger.events import Recorded
from projections.feed import Feed, Past, folds_of
from projections.follower import SEALED, Batch
from projections.migrate import check_database
from projections.tables import EXECUTIONS, ORDERS, POSITION_HISTORY, POSITIONS, TABLES, Row, Table, line, line_sql

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

MODULUS: Final = 1 << 256
BATCH: Final = 256  # what so few events become stays in the processor's cache: a quarter of the time
REPLACED: Final = (ORDERS, EXECUTIONS, POSITIONS)
_HELD: Final = (
    "SELECT countIf({version} <= {seq:UInt64}), "
    "sumIf(reinterpretAsUInt256(SHA256({line})), {version} <= {seq:UInt64}), "
    "groupArrayIf(({key}), {version} > {seq:UInt64}) FROM {table} FINAL WHERE ledger_id = {ledger:String}{others}"
)

_COUNT: Final = "SELECT count() FROM {table} FINAL WHERE ledger_id = {ledger:String} AND {version} <= {seq:UInt64}"


class Digest(msgspec.Struct, frozen=True):
    """`rows` of a table and their digest, hexadecimal."""

    rows: int
    digest: str


class TableAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a table holds what the ledger gives, up to `seq`."""

    table: str
    seq: int
    ledger: Digest
    held: Digest

    @property
    def ok(self) -> bool:
        return self.ledger == self.held


def _hash(table: Table, row: Row) -> int:
    return int.from_bytes(hashlib.sha256(line(table, row)).digest(), "little")


class Expected:
    """The digests of the rows that a ledger gives."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._rows = {table.name: 0 for table in TABLES}
        self._sums = {table.name: 0 for table in TABLES}
        self._last: dict[str, dict[tuple[Any, ...], int]] = {table.name: {} for table in REPLACED}
        self._places = {table.name: [list(table.columns).index(one) for one in table.key] for table in TABLES}

    def take(self, batch: Batch) -> None:
        """Adds the rows of the next batch; those that replace others take their place."""
        rows = self._feed.rows(batch)
        for table in TABLES:
            last = self._last.get(table.name)
            places = self._places[table.name]
            gone = list(table.columns).index(table.deleted) if table.deleted else None
            for row in rows.get(table.name, ()):
                found = None if gone is not None and row[gone] else _hash(table, row)
                if last is None:
                    self._add(table, found, 1)
                    continue
                key = tuple(row[place] for place in places)
                self._add(table, last.pop(key, None), -1)
                self._add(table, found, 1)
                if found is not None:
                    last[key] = found

    def without(self, table: Table, keys: Iterable[Sequence[Any]]) -> Digest:
        """Of all rows but those of these keys."""
        rows, total = self._rows[table.name], self._sums[table.name]
        for key in keys:
            found = self._last.get(table.name, {}).get(tuple(key))
            if found is not None:
                rows, total = rows - 1, total - found
        return _digest(rows, total)

    def _add(self, table: Table, found: int | None, sign: int) -> None:
        if found is not None:
            self._rows[table.name] += sign
            self._sums[table.name] += sign * found


def _digest(rows: int, total: int) -> Digest:
    return Digest(rows, f"{total % MODULUS:064x}")


def held(
    client: "Client",
    table: Table,
    database: str,
    ledger_id: str,
    seq: int,
    suffix: str = "",
    without: Sequence[Sequence[Any]] = (),
) -> tuple[Digest, list[Any]]:
    """The digest of the rows up to `seq`, but those of the keys `without`; and the keys of those that changed since."""
    keys = ", ".join(f"({', '.join(map(_literal, key))})" for key in without)
    sql = (
        _HELD.replace("{others}", f" AND ({', '.join(table.key)}) NOT IN ({keys})" if keys else "")
        .replace("{table}", f"{check_database(database)}.{table.name}{suffix}")
        .replace("{version}", table.version)
        .replace("{line}", line_sql(table))
        .replace("{key}", ", ".join(table.key))
    )
    ((rows, total, changed),) = client.query(sql, parameters={"ledger": ledger_id, "seq": seq}).result_rows
    return _digest(rows, int(total)), changed


def count(client: "Client", table: Table, database: str, ledger_id: str, seq: int, suffix: str = "") -> int:
    """How many rows there are up to `seq`."""
    sql = _COUNT.replace("{table}", f"{check_database(database)}.{table.name}{suffix}").replace(
        "{version}", table.version
    )
    return int(client.query(sql, parameters={"ledger": ledger_id, "seq": seq}).result_rows[0][0])


def _literal(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def agree_tables(
    records: Iterable[Recorded], past: Past, client: "Client", database: str, ledger_id: str
) -> list[TableAgreement]:
    """Every table against the rows that these events, a ledger from its beginning to a seal, give."""
    expected = Expected(
        Feed(past, folds_of(lambda: client, f"{check_database(database)}.{POSITION_HISTORY.name}", ledger_id))
    )
    seq = 0
    for batch in batches_of(records):
        expected.take(batch)
        seq = batch.position.seq
    found = []
    for table in TABLES:
        digest, changed = held(client, table, database, ledger_id, seq)
        found.append(TableAgreement(table=table.name, seq=seq, ledger=expected.without(table, changed), held=digest))
    return found


def batches_of(records: Iterable[Recorded], most: int = BATCH) -> Iterable[Batch]:
    """The events in batches that end at seals. What follows the last seal is left out."""
    waiting: list[Recorded] = []
    for one in records:
        waiting.append(one)
        if len(waiting) >= most and one.topic == SEALED:
            yield Batch(waiting)
            waiting = []
    last = next((place for place in range(len(waiting), 0, -1) if waiting[place - 1].topic == SEALED), 0)
    if last:
        yield Batch(waiting[:last])
