"""Where events are kept: the table of the `eventsourcing` library's recorders, on SQLite or PostgreSQL.

The library makes the table: (stream, version, topic, bytes), versions unique. What the bytes mean, and the dense
`seq` inside them, is ours (`events.py`). Its notification ids are read cursors only: on PostgreSQL they have gaps.
Rows are read and written by plain SQL on that table, because the recorders build objects for every row that a
ledger of millions of events does not need; the recorders' contract holds: what they read and write is the same, and
the order of the cursors is the order of the commits (see `insert` of either store).
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

import msgspec

from ledger.errors import DiskFull, LedgerDamaged, LedgerLocked, LedgerUnavailable
from ledger.events import WRITER_STREAM, BatchSealed, Recorded, decode, order_stream, seq_of
from ledger.sqlite_log import LogKeeper, lengthen

PAGE: Final = 4_000
OPEN_WAIT_S: Final = 10.0  # at the start and a take-over, for a program that holds the file
STOP_IT: Final = "stop it first, or take the ledger over by `serve --take-over`"
_MANY: Final = 500  # SQLite bounds the parameters of a statement
_LOWEST: Final = -(2**63)
_COLUMNS: Final = "originator_id, originator_version, topic, state"
_INSERT: Final = f"INSERT INTO stored_events ({_COLUMNS}) VALUES (?, ?, ?, ?)"  # noqa: S608


class EventSource(Protocol):
    """What a follower reads from: the events in `seq` order, and a way to wait for more."""

    async def read(self, after: int, limit: int) -> list[Recorded]:
        """At most `limit` events with seq > `after`; the last batch may be cut."""
        ...

    async def at(self, seq: int) -> Recorded | None: ...

    async def head(self) -> int:
        """The seq of the last seal, 0 in an empty ledger."""
        ...

    async def wait(self, after: int, timeout_s: float) -> None:
        """Returns when an event after `after` may be there, at the latest after `timeout_s`."""
        ...


class VersionTaken(Exception):
    """A stream already has an event of this version: a commit was repeated, or another writer is at work."""


class WriterLock(Protocol):
    """Says that there is one writer. `check` raises LedgerLocked when the lock was lost."""

    def check(self) -> None: ...

    def release(self) -> None: ...


class EventStore:
    """A ledger's events. Reads may be called from any thread; only the writer calls `insert`.

    `is_local`: calls end within a millisecond or so, so that an event loop may make them itself.
    """

    is_local = False
    table = "stored_events"
    cursor = "rowid"
    place = "?"
    binary = ""  # what makes a comparison of texts one of bytes
    page = PAGE  # rows that a scan reads at a time

    def __init__(self, name: str) -> None:
        self.name = name
        self._hint = (0, 0)  # the seq and the cursor of a row that was read

    def _rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises LedgerUnavailable."""
        raise NotImplementedError

    def _quick_rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """As `_rows`, for a query of a few rows that a commit may have to wait for."""
        return self._rows(statement, parameters)

    def read(self, after: int, limit: int) -> list[Recorded]:
        """At most `limit` events with seq > `after`, in order."""
        return self._first(after, limit)[0]

    def scan(self, after: int = 0) -> Iterator[Recorded]:
        """Every event after `after`, in stored order, in pages; from 0 every row there is, whatever its seq says."""
        most = self.page
        page, last = self._page(_LOWEST, most, 1) if after == 0 else self._first(after, most)
        while True:
            yield from (page if after == 0 else [one for one in page if one.seq > after])
            if len(page) < most:
                return
            page, last = self._page(last + 1, most, page[-1].seq + 1)

    def at(self, seq: int) -> Recorded | None:
        found = self.read(seq - 1, 1) if seq > 0 else []
        return found[0] if found and found[0].seq == seq else None

    def stream(self, stream: str, after: int = 0) -> list[Recorded]:
        """The events of one stream with version > `after`."""
        where = f"originator_id = {self.place} AND originator_version > {self.place} ORDER BY originator_version"
        return self._select(where, (stream, after))

    def streams(self, streams: Sequence[str]) -> dict[str, list[Recorded]]:
        """The events of each of the streams that exist; one query for many of them."""
        found: dict[str, list[Recorded]] = {}
        for start in range(0, len(streams), _MANY):
            part = streams[start : start + _MANY]
            for one in self._select(f"{self._among(part)} ORDER BY originator_id, originator_version", part):
                found.setdefault(one.stream, []).append(one)
        return found

    def last_version(self, stream: str) -> int:
        """The version of the newest event of a stream, 0 when there is none."""
        statement = f"SELECT max(originator_version) FROM {self.table} WHERE originator_id = {self.place}"  # noqa: S608
        return int(self._rows(statement, (stream,))[0][0] or 0)

    def existing(self, streams: Sequence[str]) -> set[str]:
        """Those of the streams that hold an event: one query for all of them."""
        found: set[str] = set()
        for start in range(0, len(streams), _MANY):
            part = streams[start : start + _MANY]
            statement = f"SELECT originator_id FROM {self.table} WHERE originator_version = 1 AND {self._among(part)}"  # noqa: S608
            found.update(row[0] for row in self._quick_rows(statement, part))
        return found

    def order_ids(self, prefix: str = "") -> Iterator[str]:
        """The ids of all orders that begin with the prefix, in pages."""
        column = f"originator_id{self.binary}"
        last, end = order_stream(prefix), order_stream(prefix) + "~"  # behind all that an order id may hold
        statement = (
            f"SELECT {column} FROM {self.table} WHERE {column} >= {self.place} AND {column} < {self.place} "  # noqa: S608
            f"AND originator_version = 1 ORDER BY {column} LIMIT {PAGE}"
        )
        while True:
            page = [str(row[0]) for row in self._rows(statement, (last, end))]
            yield from (one.removeprefix("order/") for one in page)
            if len(page) < PAGE:
                return
            last = page[-1] + " "  # before all that an order id may hold

    def head(self) -> Recorded | None:
        """The last seal."""
        where = f"originator_id = {self.place} ORDER BY originator_version DESC LIMIT 1"
        found = self._select(where, (WRITER_STREAM,))
        return found[0] if found else None

    def insert(self, batch: Sequence[Recorded]) -> None:
        """Appends all or nothing, durably.

        Raises VersionTaken when an event of that stream and version exists, LedgerUnavailable when it is not
        known whether the batch is stored (the caller repeats it identically). Never waits long: on SQLite not at
        all for a transaction of somebody else, on PostgreSQL a bounded time for the server.
        """
        raise NotImplementedError

    def insert_next(self, build: Callable[[], Sequence[Recorded]]) -> None:
        """As `insert`, of what `build` makes while nobody else can commit: the head it reads is the head it
        continues. Whoever else commits is kept out, not outrun."""
        raise NotImplementedError

    def fill(self, records: Iterable[Recorded]) -> None:
        """Stores a whole ledger, all or nothing, durably, as a restore does.

        Raises LedgerUnavailable when the store holds any event, or cannot be written.
        """
        raise NotImplementedError

    def is_stored(self, recorded: Recorded) -> bool:
        """Whether exactly this event is stored."""
        where = f"originator_id = {self.place} AND originator_version = {self.place}"
        found = self._select(where, (recorded.stream, recorded.version))
        return len(found) == 1 and found[0].state == recorded.state

    def lock(self) -> WriterLock:
        """The writer's lock. Raises LedgerLocked when another process holds it; never waits for it."""
        raise NotImplementedError

    def listen(self, told: Callable[[], None]) -> None:
        """Calls `told` from another thread whenever anybody may have committed, until `close`. It is never called
        where the database cannot tell of commits, as SQLite."""

    def close(self) -> None:
        raise NotImplementedError

    def _among(self, streams: Sequence[str]) -> str:
        return f"originator_id IN ({','.join([self.place] * len(streams))})"

    def _first(self, after: int, limit: int) -> tuple[list[Recorded], int]:
        """The next events after `after`, and the cursor of the last of them."""
        known, cursor = self._hint
        start = guess = cursor + after + 1 - known if 0 < known <= after else after + 1
        while True:
            found, last = self._page(start, limit, after + 1)
            if start == guess > after + 1 and not (found and found[0].seq <= after + 1):
                guess = start = after + 1  # there is nothing yet, or somebody has numbered the rows anew
            elif not found:
                return found, last
            elif found[0].seq > after:
                self._hint = (found[-1].seq, last)
                return found, last
            else:
                # A cursor is never below its seq, and two cursors never lie closer than their seqs:
                # stepping by the difference cannot pass the event that is wanted.
                start += after + 1 - found[0].seq

    def _page(self, start: int, limit: int, expected: int) -> tuple[list[Recorded], int]:
        """Rows by cursor, and the cursor of the last. `expected`: the seq that most likely comes first."""
        statement = (
            f"SELECT {self.cursor}, {_COLUMNS} FROM {self.table} WHERE {self.cursor} >= {self.place} "  # noqa: S608
            f"ORDER BY {self.cursor} LIMIT {self.place}"
        )
        rows = self._rows(statement, (start, limit))
        found = []
        for cursor, stream, version, topic, state in rows:
            # Comparing the beginning with what is expected is much quicker than decoding.
            if type(state) is bytes and state.startswith(b'{"seq":%d,' % expected):
                seq = expected
            else:
                state = _bytes(state)
                seq = _seq(state, cursor)
            found.append(Recorded(seq, str(stream), version, str(topic), state))
            expected = seq + 1
        return found, rows[-1][0] if rows else 0

    def _select(self, where: str, parameters: Sequence[object]) -> list[Recorded]:
        rows = self._rows(f"SELECT {_COLUMNS} FROM {self.table} WHERE {where}", parameters)  # noqa: S608
        states = [_bytes(row[3]) for row in rows]
        return [
            Recorded(_seq(state, 0), str(row[0]), row[1], str(row[2]), state)
            for row, state in zip(rows, states, strict=True)
        ]


def _seq(state: bytes, otherwise: int) -> int:
    """The seq in the bytes. Unreadable bytes keep their place: verification names them, a follower stops at them."""
    try:
        return seq_of(state)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return otherwise


def _bytes(value: object) -> bytes:
    """The stored bytes. SQLite keeps any type in any column: what someone wrote there by hand is to be found, too."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return value.encode(errors="surrogateescape") if isinstance(value, str) else repr(value).encode()


# --- SQLite -----------------------------------------------------------------------------------------------------

_REMEDIES: Final = {
    sqlite3.SQLITE_BUSY: "another program holds a transaction on it: end that program",
    sqlite3.SQLITE_FULL: "free space",
    sqlite3.SQLITE_NOTADB: "name the file of a ledger, or restore a backup by `order-ledger restore`",
    sqlite3.SQLITE_CORRUPT: "keep the file, and restore a backup by `order-ledger restore` into another folder",
    sqlite3.SQLITE_READONLY: "allow writing to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "allow reading and writing of the file and its folder",
    sqlite3.SQLITE_IOERR: "check the disk",
}


@contextlib.contextmanager
def _unavailable(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        remedy, kind = _REMEDIES.get(code, ""), DiskFull if code == sqlite3.SQLITE_FULL else LedgerUnavailable
        raise kind(f"ledger {name}: {error}{remedy and ': '}{remedy}") from error


class _SqliteStore(EventStore):
    is_local = True
    page = 256  # a query costs next to nothing here, and so few rows stay in the processor's cache

    def __init__(self, path: Path, *, readonly: bool, journal: str = "wal") -> None:
        super().__init__(str(path))
        self._path, self._journal = path, journal
        self._readonly = readonly
        self._writing = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []  # free ones; each is used by one thread at a time
        self._closed = False
        self._log = LogKeeper(lambda: self._connect("rw", 0))
        if readonly and not path.exists():
            raise LedgerUnavailable(f"no ledger at {path}: start `order-ledger serve`, or name its folder by --data")
        if not readonly:
            self._create()
        self._page(_LOWEST, 1, 1)

    def _create(self) -> None:
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lost = path.exists() and not path.stat().st_size and self._lock_file.exists()
        except OSError as error:
            raise LedgerUnavailable(f"cannot create the folder of the ledger {path}: {error.strerror}") from error
        if lost:
            raise LedgerUnavailable(
                f"the ledger {path} was emptied: restore a backup, or remove the file to begin a new ledger"
            )
        from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

        datastore = SQLiteDatastore(":memory:", originator_id_type="text")
        with _unavailable(self.name):
            self._writer = self._connect("rwc", OPEN_WAIT_S)
            if self._writer.execute("PRAGMA journal_mode").fetchone()[0] != self._journal:
                self._writer.execute(f"PRAGMA journal_mode={self._journal}")
            for statement in SQLiteApplicationRecorder(datastore).create_table_statements:
                self._writer.execute(statement)
            if self._journal == "wal":
                self._writer.execute("SELECT 1 FROM stored_events LIMIT 1").fetchone()  # a log exists from here on
                lengthen(Path(f"{path}-wal"))
            self._writer.execute("PRAGMA busy_timeout=0")
        datastore.close()

    def _connect(self, mode: str, wait_s: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,  # transactions are begun where they are meant
            check_same_thread=False,
            timeout=wait_s,
        )
        # A commit returns when it is on the disk.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection

    def _rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        with _unavailable(self.name):
            if self._closed:
                raise sqlite3.ProgrammingError("it is closed")
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect("ro", OPEN_WAIT_S)
            try:
                return connection.execute(statement, parameters).fetchall()
            finally:
                self._give_back(connection)

    def _quick_rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        # The writer's own connection keeps in its cache what it wrote; any other one looks it up in the log anew
        # after every commit. A commit that is under way is not waited for.
        if self._writing.acquire(blocking=False):
            try:
                if self._writer is not None:
                    with _unavailable(self.name):
                        return self._writer.execute(statement, parameters).fetchall()
            finally:
                self._writing.release()
        return self._rows(statement, parameters)

    def insert(self, batch: Sequence[Recorded]) -> None:
        # One writer at a time holds the file, and a rowid is one more than the greatest: rows come in the order
        # of the commits. A transaction of somebody else is not waited for: this may be called by an event loop.
        self._store_all(lambda: batch, wait_s=0)

    def insert_next(self, build: Callable[[], Sequence[Recorded]]) -> None:
        self._store_all(build, wait_s=OPEN_WAIT_S)

    def _store_all(self, build: Callable[[], Sequence[Recorded]], *, wait_s: float) -> None:
        with self._transaction(wait_s) as connection:
            rows = [(one.stream, one.version, one.topic, one.state) for one in build()]
            connection.executemany(_INSERT, rows)
            connection.execute("COMMIT")
            self._log.committed(len(rows), connection)

    def fill(self, records: Iterable[Recorded]) -> None:
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM stored_events LIMIT 1").fetchone():
                raise LedgerUnavailable(f"ledger {self.name} is not empty: name another folder")
            connection.executemany(_INSERT, ((one.stream, one.version, one.topic, one.state) for one in records))
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _transaction(self, wait_s: float = 0) -> Iterator[sqlite3.Connection]:
        """The caller commits as the last thing; whatever is raised before that leaves nothing behind. `wait_s`: for
        a transaction of somebody else."""
        with self._writing, _unavailable(self.name):
            if self._writer is None:
                self._writer = self._connect("ro" if self._readonly else "rw", 0)
            connection = self._writer
            try:
                if wait_s:
                    connection.execute(f"PRAGMA busy_timeout={round(wait_s * 1000)}")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                if wait_s:
                    connection.execute("PRAGMA busy_timeout=0")
            except sqlite3.IntegrityError as error:
                connection.execute("ROLLBACK")
                raise VersionTaken from error
            except BaseException:
                # Whatever state it is in: the next transaction gets a new one.
                self._writer = None
                connection.close()
                raise

    def close(self) -> None:
        self._closed = True
        # The writer's last: only a connection that may write carries the log over into the file at its end.
        self._close_readers()
        with self._writing:
            self._log.close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _give_back(self, connection: sqlite3.Connection) -> None:
        self._readers.append(connection)
        if self._closed:
            self._close_readers()

    def _close_readers(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._readers.pop().close()

    @property
    def _lock_file(self) -> Path:
        return Path(f"{self._path}.lock")

    def lock(self) -> WriterLock:
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock_file, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise LedgerLocked(f"another process writes the ledger {self._path}: {STOP_IT}") from None
        except OSError as error:
            raise LedgerUnavailable(f"cannot write beside the ledger {self._path}: {error.strerror}") from None
        return _FileLock(lock)


class _FileLock:
    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def check(self) -> None:
        """A file lock cannot be lost while its process lives."""

    def release(self) -> None:
        self._lock.release()


def sqlite_path(url: str) -> Path | None:
    """The file of a `sqlite:///relative` or `sqlite:////absolute` URL, None for another scheme."""
    return Path(unquote(url.removeprefix("sqlite:///"))).absolute() if url.startswith("sqlite:///") else None


def open_store(url: str, *, readonly: bool = False) -> EventStore:
    """The store behind `sqlite:///…` or `postgresql://…`; created when missing, unless `readonly`.

    Raises LedgerUnavailable with the reason.
    """
    path = sqlite_path(url)
    if path is not None:
        return _SqliteStore(path, readonly=readonly)
    if url.startswith(("postgresql://", "postgres://")):
        from ledger.store_postgres import PostgresStore

        return PostgresStore(url, readonly=readonly)
    raise LedgerUnavailable("LEDGER_URL must be sqlite:///relative, sqlite:////absolute or postgresql://…")


def open_file(path: Path) -> EventStore:
    """The ledger in a file that `create_file` made, read only."""
    return _SqliteStore(path, readonly=True)


def create_file(path: Path) -> EventStore:
    """A new ledger as one file that can be moved and put on read-only media, to be filled and closed."""
    return _SqliteStore(path, readonly=False, journal="delete")


def last_seal(store: EventStore) -> tuple[Recorded, BatchSealed] | None:
    """The head of the ledger. Raises LedgerDamaged when the writer's stream does not end with a seal."""
    head = store.head()
    if head is None:
        return None
    try:
        data = decode(head).data
    except (msgspec.MsgspecError, ValueError):
        data = None
    if not isinstance(data, BatchSealed):
        raise LedgerDamaged(f"ledger {store.name}: its last batch {head.seq} is not sealed: run verify", head.seq)
    return head, data
