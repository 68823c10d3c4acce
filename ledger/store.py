"""Where events are kept: the recorders of the `eventsourcing` library on SQLite or PostgreSQL.

The library stores (stream, version, topic, bytes) and keeps versions unique; what the bytes mean, and the dense
`seq` inside them, is ours (`events.py`). Its notification ids are read cursors only: on PostgreSQL they have gaps.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote, urlsplit

import msgspec
from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    Notification,
    PersistenceError,
    StoredEvent,
)
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteConnection, SQLiteConnectionPool, SQLiteDatastore

from ledger.errors import LedgerDamaged, LedgerLocked, LedgerUnavailable
from ledger.events import WRITER_STREAM, BatchSealed, Recorded, seq_of

PAGE: Final = 2_000
_EXISTING: Final = "SELECT originator_id FROM stored_events WHERE originator_version = 1 AND originator_id"


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

    def __init__(self, recorder: ApplicationRecorder, name: str) -> None:
        self._recorder = recorder
        self.name = name

    def read(self, after: int, limit: int) -> list[Recorded]:
        """At most `limit` events with seq > `after`, in order."""
        start = after + 1
        while True:
            found = self._select(start, limit)
            if not found or found[0].seq > after:
                return found
            # A cursor is never below its seq, and two cursors never lie closer than their seqs:
            # stepping by the difference cannot pass the event that is wanted.
            start += after + 1 - found[0].seq

    def scan(self, after: int = 0) -> Iterator[Recorded]:
        """Every event after `after`, in stored order, in pages; from 0 every row there is, whatever its seq says."""
        start = None if after == 0 else after + 1
        while True:
            with _unavailable(self.name):
                page = self._recorder.select_notifications(start, PAGE)
            for one in page:
                recorded = _recorded(one)
                if recorded.seq > after or after == 0:
                    yield recorded
            if len(page) < PAGE:
                return
            start = page[-1].id + 1

    def at(self, seq: int) -> Recorded | None:
        found = self.read(seq - 1, 1) if seq > 0 else []
        return found[0] if found and found[0].seq == seq else None

    def stream(self, stream: str, after: int = 0) -> list[Recorded]:
        """The events of one stream with version > `after`."""
        with _unavailable(self.name):
            return [_recorded(one) for one in self._recorder.select_events(stream, gt=after)]

    def last_version(self, stream: str) -> int:
        """The version of the newest event of a stream, 0 when there is none."""
        with _unavailable(self.name):
            found = self._recorder.select_events(stream, desc=True, limit=1)
        return found[0].originator_version if found else 0

    def existing(self, streams: Sequence[str]) -> set[str]:
        """Those of the streams that hold an event: one query for all of them."""
        raise NotImplementedError

    def head(self) -> Recorded | None:
        """The last seal."""
        with _unavailable(self.name):
            found = self._recorder.select_events(WRITER_STREAM, desc=True, limit=1)
        return _recorded(found[0]) if found else None

    def insert(self, batch: Sequence[Recorded]) -> None:
        """Appends all or nothing, durably.

        Raises VersionTaken when an event of that stream and version exists, LedgerUnavailable when it is not
        known whether the batch is stored (the caller repeats it identically).
        """
        with _unavailable(self.name):
            try:
                self._recorder.insert_events([StoredEvent(r.stream, r.version, r.topic, r.state) for r in batch])
            except IntegrityError as error:
                raise VersionTaken from error

    def is_stored(self, recorded: Recorded) -> bool:
        """Whether exactly this event is stored."""
        with _unavailable(self.name):
            found = self._recorder.select_events(recorded.stream, gt=recorded.version - 1, lte=recorded.version)
        return len(found) == 1 and _bytes(found[0].state) == recorded.state

    def lock(self) -> WriterLock:
        """The writer's lock. Raises LedgerLocked when another process holds it."""
        raise NotImplementedError

    def close(self) -> None:
        datastore = cast(Any, self._recorder).datastore
        datastore.close()

    def _select(self, start: int, limit: int) -> list[Recorded]:
        with _unavailable(self.name):
            return [_recorded(one) for one in self._recorder.select_notifications(start, limit)]


def _recorded(stored: StoredEvent | Notification) -> Recorded:
    state = _bytes(stored.state)
    try:
        seq = seq_of(state)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # Unreadable bytes keep their place: verification names them, a follower stops at them.
        seq = stored.id if isinstance(stored, Notification) else 0
    return Recorded(seq, str(stored.originator_id), stored.originator_version, str(stored.topic), state)


def _bytes(value: object) -> bytes:
    """The stored bytes. SQLite keeps any type in any column: what someone wrote there by hand is to be found, too."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return value.encode(errors="surrogateescape") if isinstance(value, str) else repr(value).encode()


@contextlib.contextmanager
def _unavailable(name: str) -> Iterator[None]:
    try:
        yield
    except PersistenceError as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise LedgerUnavailable(f"ledger {name}: {reason}") from error
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"ledger {name}: {error}") from error


# --- SQLite -----------------------------------------------------------------------------------------------------


class _DurablePool(SQLiteConnectionPool):
    """Connections that return from a commit only when it is on the disk."""

    def _create_connection(self) -> SQLiteConnection:
        connection = super()._create_connection()
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")
        # A larger log between checkpoints: fewer long pauses in the commit path.
        cursor.execute("PRAGMA wal_autocheckpoint=4000")
        return connection


class _SqliteStore(EventStore):
    is_local = True

    def __init__(self, path: Path, *, readonly: bool) -> None:
        self._path = path
        self._asking = threading.Lock()
        self._ask: sqlite3.Connection | None = None
        if readonly:
            if not path.exists():
                raise LedgerUnavailable(
                    f"no ledger at {path}: start `order-ledger serve`, or name its folder by --data"
                )
            database = f"{path.as_uri()}?mode=ro"
        else:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerUnavailable(f"cannot create the folder of the ledger {path}: {error.strerror}") from error
            database = path.as_uri()
        datastore = SQLiteDatastore(database, originator_id_type="text")
        datastore.pool = _DurablePool(db_name=database, lock_timeout=10)
        self._datastore = datastore
        recorder = SQLiteApplicationRecorder(datastore)
        super().__init__(recorder, str(path))
        with _unavailable(self.name):
            if not readonly:
                recorder.create_table()
            recorder.select_notifications(None, 1)

    def existing(self, streams: Sequence[str]) -> set[str]:
        # Asked for every order that arrives: a connection of its own saves the pool and its transaction.
        found: set[str] = set()
        with _unavailable(self.name), self._asking:
            if self._ask is None:
                self._ask = sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
            for start in range(0, len(streams), 500):  # SQLite bounds the parameters of a statement
                part = streams[start : start + 500]
                rows = self._ask.execute(f"{_EXISTING} IN ({','.join('?' * len(part))})", part)
                found.update(row[0] for row in rows)
        return found

    def close(self) -> None:
        with self._asking:
            if self._ask is not None:
                self._ask.close()
                self._ask = None
        super().close()

    def lock(self) -> WriterLock:
        from filelock import FileLock, Timeout

        lock = FileLock(f"{self._path}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise LedgerLocked(f"another process writes the ledger {self._path}: stop it first") from None
        return _FileLock(lock)


class _FileLock:
    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def check(self) -> None:
        """A file lock cannot be lost while its process lives."""

    def release(self) -> None:
        self._lock.release()


# --- PostgreSQL -------------------------------------------------------------------------------------------------


class _PostgresStore(EventStore):
    def __init__(self, url: str, *, readonly: bool) -> None:
        try:
            import psycopg
            from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
        except ImportError as error:
            raise LedgerUnavailable(
                "a PostgreSQL ledger needs the extra: pip install 'order-ledger[postgres]'"
            ) from error
        parts = urlsplit(url)
        self._parameters: dict[str, Any] = {
            "dbname": parts.path.lstrip("/") or "postgres",
            "host": parts.hostname or "127.0.0.1",
            "port": parts.port or 5432,
            "user": unquote(parts.username or "postgres"),
            "password": unquote(parts.password or ""),
        }
        name = f"postgresql://{self._parameters['host']}:{self._parameters['port']}/{self._parameters['dbname']}"
        try:
            # psycopg's pool would retry in the background; one plain connection says at once what is wrong.
            with psycopg.connect(**self._parameters, connect_timeout=5) as connection:
                for setting in ("fsync", "synchronous_commit"):
                    row = connection.execute(f"SHOW {setting}").fetchone()
                    if row and row[0] == "off":
                        raise LedgerUnavailable(f"{name} runs with {setting}=off and may lose commits: turn it on")
        except psycopg.Error as error:
            raise LedgerUnavailable(f"cannot reach {name}: {str(error).strip().splitlines()[0]}") from None
        # Never enable_db_functions: readers then miss events under several writers.
        datastore = PostgresDatastore(**self._parameters, originator_id_type="text", pool_size=2, max_overflow=4)
        self._datastore = datastore
        with _unavailable(name):
            recorder = PostgresApplicationRecorder(datastore)
            super().__init__(recorder, name)
            if not readonly:
                recorder.create_table()

    def existing(self, streams: Sequence[str]) -> set[str]:
        with _unavailable(self.name), self._datastore.get_connection() as connection:
            rows = connection.execute(
                f"{_EXISTING} = ANY(%s)",
                (list(streams),),
            ).fetchall()
        return {str(row["originator_id"]) for row in rows}

    def lock(self) -> WriterLock:
        import psycopg

        try:
            connection = psycopg.connect(**self._parameters, connect_timeout=5, autocommit=True)
            taken = connection.execute(
                "SELECT pg_try_advisory_lock(hashtext('order-ledger'), hashtext(current_schema()))"
            ).fetchone()
        except psycopg.Error as error:
            raise LedgerUnavailable(f"cannot reach {self.name}: {str(error).strip().splitlines()[0]}") from None
        if taken is None or not taken[0]:
            connection.close()
            raise LedgerLocked(f"another process writes the ledger {self.name}: stop it first")
        return _AdvisoryLock(connection, self.name)


class _AdvisoryLock:
    def __init__(self, connection: Any, name: str) -> None:
        self._connection, self._name = connection, name

    def check(self) -> None:
        import psycopg

        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            raise LedgerLocked(f"lost the writer's lock of {self._name}: its connection ended") from None

    def release(self) -> None:
        self._connection.close()


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
        return _PostgresStore(url, readonly=readonly)
    raise LedgerUnavailable("LEDGER_URL must be sqlite:///relative, sqlite:////absolute or postgresql://…")


def last_seal(store: EventStore) -> tuple[Recorded, BatchSealed] | None:
    """The head of the ledger. Raises LedgerDamaged when the writer's stream does not end with a seal."""
    from ledger.events import decode

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
