"""Whether the projections hold exactly what the ledger holds: content, order and nothing more.

The comparison is pure: two runs of events in `seq` order. Around it stand thin readers of ClickHouse (any client
with `query`, over HTTP or embedded) and of the audit files. Everything is read in bounded pages.
"""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ledger.errors import LedgerLocked, LedgerUnavailable
from ledger.events import Recorded
from ledger.store import EventStore
from projections.audit_files import read_audit
from projections.clickhouse import Target, connect
from projections.digest import TableAgreement, agree_tables
from projections.migrate import check_database
from projections.tables import ORDER_EVENTS

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

PAGE: Final = 5_000
_EVENTS: Final = (
    "SELECT seq, stream, stream_version, event, data FROM {database}.order_events FINAL "
    "WHERE ledger_id = {ledger:String} AND seq > {after:UInt64} ORDER BY seq LIMIT {page:UInt32}"
)


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found. `compared` counts what both hold alike; `difference` describes the first that is not,
    `seq` says where; `behind` counts what the projection does not hold yet, which alone is no difference."""

    projection: str
    compared: int
    ledger: int
    held: int
    behind: int = 0
    seq: int | None = None
    difference: str = ""

    @property
    def ok(self) -> bool:
        """Nothing differs and nothing is missing."""
        return self.seq is None and self.behind == 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All comparisons of one ledger."""

    agreements: tuple[Agreement, ...]

    @property
    def ok(self) -> bool:
        return all(one.ok for one in self.agreements)


def compare(projection: str, ledger: Iterable[Recorded], held: Iterable[Recorded]) -> Agreement:
    """Compares two runs of events, each in the order of `seq` and each seq once."""
    ours, theirs = iter(ledger), iter(held)
    compared = total = found = 0
    difference: tuple[int, str] | None = None
    while True:
        want, have = next(ours, None), next(theirs, None)
        total += want is not None
        found += have is not None
        if want is None and have is None:
            break
        if have is None:
            total += sum(1 for _ in ours)
            break
        if want is None:
            difference = difference or (have.seq, f"holds event {have.seq}, which the ledger does not")
            found += sum(1 for _ in theirs)
            break
        if want != have:
            difference = (min(want.seq, have.seq), _described(want, have))
            break
        compared += 1
    return Agreement(
        projection=projection,
        compared=compared,
        ledger=total,
        held=found,
        behind=max(0, total - found) if difference is None else 0,
        seq=difference[0] if difference else None,
        difference=difference[1] if difference else "",
    )


def _described(want: Recorded, have: Recorded) -> str:
    if have.seq > want.seq:
        return f"event {want.seq} is missing, {have.seq} stands in its place"
    if have.seq < want.seq:
        return f"event {have.seq} stands there again or out of order"
    for name in ("stream", "version", "topic"):
        ours, theirs = getattr(want, name), getattr(have, name)
        if ours != theirs:
            return f"event {want.seq} has {name} {theirs!r} instead of {ours!r}"
    return f"event {want.seq} has other bytes than the ledger"


def scan(store: EventStore) -> Iterator[Recorded]:
    """All events of a ledger that a seal covers, in order."""
    head = store.head()
    last = head.seq if head else 0
    return takewhile(lambda one: one.seq <= last, store.scan())


def held_by_clickhouse(client: "Client", database: str, ledger_id: str) -> Iterator[Recorded]:
    """The events in `order_events`, deduplicated, in the order of `seq`."""
    after = 0
    while True:
        rows = client.query(
            _EVENTS.replace("{database}", check_database(database)),
            parameters={"ledger": ledger_id, "after": after, "page": PAGE},
            column_formats={"data": "bytes"},
        ).result_rows
        for seq, stream, version, event, data in rows:
            yield Recorded(int(seq), str(stream), int(version), str(event), bytes(data))
        if len(rows) < PAGE:
            return
        after = int(rows[-1][0])


def agree_clickhouse(store: EventStore, client: "Client", database: str, ledger_id: str) -> tuple[Agreement, ...]:
    """`order_events` byte for byte, and every other table by the digest of the rows the ledger gives."""
    events = compare("clickhouse.order_events", scan(store), held_by_clickhouse(client, database, ledger_id))
    tables = agree_tables(scan(store), store.streams, client, database, ledger_id)
    return events, *(_of_table(one) for one in tables if one.table != ORDER_EVENTS.name)


def _of_table(found: TableAgreement) -> Agreement:
    wanted, held = found.ledger, found.held
    behind = max(0, wanted.rows - held.rows)
    return Agreement(
        projection=f"clickhouse.{found.table}",
        compared=held.rows if found.ok else 0,
        ledger=wanted.rows,
        held=held.rows,
        behind=behind,
        seq=None if found.ok or behind else found.seq,
        difference=""
        if found.ok or behind
        else f"its {held.rows} rows have not the digest of the ledger's {wanted.rows}",
    )


def agree_audit(store: EventStore, folder: Path) -> Agreement:
    """The audit files against the ledger. Raises SinkRefused at a line that is no record."""
    return compare("audit", scan(store), read_audit(folder))


@contextlib.contextmanager
def open_readonly(data_dir: Path) -> Iterator["Client"]:
    """The embedded ClickHouse of a data folder in this process, for reading while no service runs.

    Raises LedgerLocked when a service runs (ask its endpoint then), SinkRefused or SinkUnavailable when there is
    nothing to open.
    """
    from filelock import FileLock, Timeout

    engine = data_dir / "clickhouse"
    if not engine.is_dir():
        raise LedgerUnavailable(
            f"there is no ClickHouse data in {data_dir}: start the service once, or name its folder"
        )
    lock = FileLock(data_dir / "projections.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LedgerLocked(f"a service uses the projections in {data_dir}: ask it by its ClickHouse endpoint") from None
    try:
        client = connect(Target(path=str(engine)))
        try:
            client.command("SET final = 1")
            client.command("SET readonly = 1")
            yield client
        finally:
            client.close()
    finally:
        lock.release()
