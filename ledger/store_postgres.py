"""A ledger in PostgreSQL: the table of the `eventsourcing` library, connections of our own.

The library's pool cannot be told how long a call may take, and its connections know no `sslmode`. Here every call
has a deadline that also holds when the server does not answer at all: a watch then cuts its connection.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import Buffer, Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier, Literal

from ledger.cut import cut
from ledger.errors import LedgerLocked, LedgerUnavailable
from ledger.events import Recorded
from ledger.listen_postgres import CHANNEL, Listener
from ledger.store import STOP_IT, EventStore, VersionTaken, WriterLock

T = TypeVar("T")
CONNECT_S: Final = 5
CALL_S: Final = 10.0
COPY_S: Final = 3_600.0
CHECK_S: Final = 1.5
WATCH_EVERY_S: Final = 0.25
_DEFAULTS: Final = {"host": "127.0.0.1", "port": "5432", "user": "postgres", "dbname": "postgres"}
_TAKE: Final = "SELECT pg_try_advisory_lock(hashtext('order-ledger'), hashtext(%s))"
_HOLDER: Final = """SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database() AND a.datid = l.database
    AND l.classid::bigint = hashtext('order-ledger')::bigint & 4294967295
    AND l.objid::bigint = hashtext(%s)::bigint & 4294967295"""


class _Array(bytes):
    """A one-dimensional array without nulls in PostgreSQL's binary form."""

    @classmethod
    def of(cls, oid: int, values: Sequence[bytes]) -> "_Array":
        parts = [struct.pack("!iiIii", 1, 0, oid, len(values), 1)]
        for value in values:
            parts.append(len(value).to_bytes(4, "big"))
            parts.append(value)
        return cls(b"".join(parts))


class _ArrayDumper(Dumper):
    """psycopg's own dumpers of lists take several times as long, and that is time of every commit."""

    format = pq.Format.BINARY

    def dump(self, obj: Any) -> Buffer | None:
        return bytes(obj)


_TEXT, _INT8, _BYTEA = 25, 20, 17


def _arrays(batch: Sequence[Recorded]) -> tuple[_Array, ...]:
    """The batch as the parameters of one insert, a column each."""
    return (
        _Array.of(_TEXT, [one.stream.encode() for one in batch]),
        _Array.of(_INT8, [one.version.to_bytes(8, "big") for one in batch]),
        _Array.of(_TEXT, [one.topic.encode() for one in batch]),
        _Array.of(_BYTEA, [one.state for one in batch]),
    )


class _Watch:
    """Cuts a connection whose call takes longer than it may."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._busy: dict[object, tuple[float, int]] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, connection: "psycopg.Connection[Any]", seconds: float) -> Iterator[None]:
        key = object()
        with self._guard:
            self._busy[key] = (time.monotonic() + seconds, connection.fileno())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ledger-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._guard:
                del self._busy[key]

    def close(self) -> None:
        """Ends the watch, and every call that is still under way."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._guard:
            for _, descriptor in self._busy.values():
                cut(descriptor)

    def _run(self) -> None:
        while not self._ended.wait(WATCH_EVERY_S):
            now = time.monotonic()
            # Under the guard: a connection that is watched has not been closed, so the descriptor is still its own.
            with self._guard:
                for deadline, descriptor in self._busy.values():
                    if now > deadline:
                        cut(descriptor)


class PostgresStore(EventStore):
    """Made by `ledger.store.open_store`."""

    cursor = "notification_id"
    place = "%s"
    binary = ' COLLATE "C"'

    def __init__(self, url: str, *, readonly: bool) -> None:
        try:
            # What stands in the query of the URL (sslmode, options, …) is passed on as it is.
            given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value not in (None, "")}
        except psycopg.Error:
            # Its text may quote a part of the URL, and so of the password.
            raise LedgerUnavailable(
                "LEDGER_URL cannot be read: check its parameters, and encode / @ : % in user and password"
            ) from None
        self._parameters: dict[str, Any] = {"connect_timeout": CONNECT_S, **_DEFAULTS, **given}
        super().__init__("postgresql://{host}:{port}/{dbname}".format(**self._parameters))
        self._watch = _Watch()
        self._free: list[psycopg.Connection[Any]] = []
        self._listeners: list[Listener] = []
        self._closed = False
        try:
            with self._connection() as connection:
                self._schema = self._examined(connection)
                found = connection.execute("SELECT to_regclass(%s)", (f"{self._schema}.stored_events",)).fetchone()
            table = SQL("{}.stored_events").format(Identifier(self._schema))
            if not readonly and (not found or found[0] is None):
                self._create()
        except BaseException:
            self.close()
            raise
        self.table = table.as_string()
        self._lock_table = SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(table)
        self._insert = SQL(
            "INSERT INTO {} (originator_id, originator_version, topic, state) "
            "SELECT * FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::bytea[])"
        ).format(table)
        self._notify = SQL("NOTIFY {}, {}").format(Identifier(CHANNEL), Literal(self._schema))
        self._copy = SQL("COPY {} (originator_id, originator_version, topic, state) FROM STDIN").format(table)

    def _examined(self, connection: "psycopg.Connection[Any]") -> str:
        """The schema of the ledger. Raises LedgerUnavailable when the server does not keep what it confirms."""
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            row = connection.execute(f"SHOW {setting}").fetchone()
            if row and row[0] == "off":
                raise LedgerUnavailable(f"{self.name} runs with {setting}=off and may lose commits: turn it on")
        row = connection.execute("SELECT current_schema()").fetchone()
        if row is None or row[0] is None:
            raise LedgerUnavailable(f"{self.name} has no schema in its search_path: create one")
        return str(row[0])

    def _create(self) -> None:
        """The library's table; only where there is none, so that a ledger needs no right to create."""
        from eventsourcing.persistence import PersistenceError
        from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

        dbname, host, port, user = (str(self._parameters[name]) for name in ("dbname", "host", "port", "user"))
        datastore = PostgresDatastore(dbname, host, port, user, "", schema=self._schema, originator_id_type="text")
        rows = datastore.pool.kwargs
        assert isinstance(rows, dict)
        datastore.pool.kwargs = {"row_factory": rows["row_factory"], **self._parameters}
        try:
            # Never with enable_db_functions: readers then miss events under several writers.
            PostgresApplicationRecorder(datastore).create_table()
        except PersistenceError as error:
            raise LedgerUnavailable(f"ledger {self.name}: {_first_line(error)}") from error
        finally:
            datastore.close()

    # --- connections --------------------------------------------------------------------------------------------

    def _connect(self, role: str) -> "psycopg.Connection[Any]":
        name = {"application_name": f"order-ledger {role} {socket.gethostname()} {os.getpid()}"}
        connection = psycopg.connect(**{**name, **self._parameters}, autocommit=True)
        connection.adapters.register_dumper(_Array, _ArrayDumper)
        connection.prepare_threshold = 0
        with self._watch.over(connection, CALL_S):
            milliseconds = round(CALL_S * 1000)
            connection.execute(
                f"SET statement_timeout = {milliseconds}; SET lock_timeout = {milliseconds}; "
                f"SET idle_in_transaction_session_timeout = {2 * milliseconds}; SET client_encoding = 'UTF8'",
                prepare=False,
            )
        return connection

    @contextlib.contextmanager
    def _connection(self, seconds: float | None = None) -> Iterator["psycopg.Connection[Any]"]:
        """A connection for one call. After any failure it is thrown away."""
        if self._closed:
            raise LedgerUnavailable(f"ledger {self.name} is closed")
        try:
            connection = self._free.pop() if self._free else self._connect("ledger")
        except psycopg.Error as error:
            raise LedgerUnavailable(f"cannot reach {self.name}: {_first_line(error)}") from None
        try:
            with self._watch.over(connection, seconds or CALL_S):
                yield connection
        except BaseException as error:
            connection.close()
            if isinstance(error, psycopg.errors.UniqueViolation):
                raise VersionTaken from error
            if isinstance(error, psycopg.Error):
                raise LedgerUnavailable(f"ledger {self.name}: {_first_line(error)}") from error
            raise
        self._give_back(connection)

    def _give_back(self, connection: "psycopg.Connection[Any]") -> None:
        self._free.append(connection)
        if self._closed:
            self._close_free()

    def listen(self, told: Callable[[], None]) -> None:
        self._listeners.append(Listener(self._parameters, self._schema, told))

    def close(self) -> None:
        self._closed = True
        for listener in self._listeners:
            listener.close()
        self._close_free()
        self._watch.close()

    def _close_free(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._free.pop().close()

    # --- reading and writing ------------------------------------------------------------------------------------

    def _rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        return self._call(lambda one: one.cursor(binary=True).execute(statement, parameters).fetchall())

    def _call(self, work: Callable[["psycopg.Connection[Any]"], T]) -> T:
        """A connection that was cut while it lay unused says so only when it is used: then another one is tried."""
        unused = len(self._free)
        while True:
            try:
                with self._connection() as connection:
                    return work(connection)
            except LedgerUnavailable as error:
                if not unused or not isinstance(error.__cause__, psycopg.OperationalError):
                    raise
                unused -= 1

    def insert(self, batch: Sequence[Recorded]) -> None:
        # The table's lock is taken before an id is, and held to the end of the transaction: ids are given in the
        # order of the commits, and a reader who sees one sees all that are lower. Without it a reader could pass an
        # id whose transaction ends later, and miss its event for ever.
        values = _arrays(batch)
        self._call(lambda connection: self._commit(connection, values))

    def insert_next(self, build: Callable[[], Sequence[Recorded]]) -> None:
        with self._connection() as connection, connection.transaction():
            connection.execute(self._lock_table)
            if batch := build():
                connection.execute(self._insert, _arrays(batch))

    def _commit(self, connection: "psycopg.Connection[Any]", values: tuple[_Array, ...]) -> None:
        failure: psycopg.Error | None = None
        try:
            with connection.pipeline() as pipeline:  # one way to the server and back
                try:
                    connection.execute("BEGIN")
                    connection.execute(self._lock_table)
                    connection.execute(self._insert, values)
                    connection.execute(self._notify)  # heard when the transaction is committed, and not else
                    connection.execute("COMMIT")
                    pipeline.sync()
                except psycopg.Error as error:
                    failure = error
        except psycopg.Error as error:
            # What comes behind a failure says only that the pipeline was aborted: the first one has the reason.
            failure = failure or error
        if failure is not None:
            raise failure

    def fill(self, records: Iterable[Recorded]) -> None:
        with self._connection(COPY_S) as connection, connection.transaction():
            connection.execute(f"SET LOCAL statement_timeout = {round(COPY_S * 1000)}")
            connection.execute(self._lock_table)
            if connection.execute(f"SELECT 1 FROM {self.table} LIMIT 1").fetchone():  # noqa: S608
                raise LedgerUnavailable(f"ledger {self.name} is not empty: name another database or schema")
            with connection.cursor().copy(self._copy) as copy:
                for one in records:
                    copy.write_row((one.stream, one.version, one.topic, one.state))

    # --- the writer's lock --------------------------------------------------------------------------------------

    def lock(self) -> WriterLock:
        # Advisory locks belong to a database; the second key names the schema in it.
        try:
            connection = self._connect("writer")
        except psycopg.Error as error:
            raise LedgerUnavailable(f"cannot reach {self.name}: {_first_line(error)}") from None
        try:
            with self._watch.over(connection, CALL_S):
                taken = connection.execute(_TAKE, (self._schema,)).fetchone()
                if taken and taken[0]:
                    return _AdvisoryLock(connection, self._watch, self.name)
                holder = connection.execute(_HOLDER, (self._schema,)).fetchone()
        except psycopg.Error as error:
            connection.close()
            raise LedgerUnavailable(f"ledger {self.name}: {_first_line(error)}") from None
        connection.close()
        who = f" ({holder[0]})" if holder and holder[0] else ""
        raise LedgerLocked(f"another process writes the ledger {self.name}{who}: {STOP_IT}")


class _AdvisoryLock:
    """Held by a connection of its own: when that ends, the lock is free for another writer."""

    def __init__(self, connection: "psycopg.Connection[Any]", watch: _Watch, name: str) -> None:
        self._connection, self._watch, self._name = connection, watch, name
        self._one = threading.Lock()  # it may be let go while another thread looks whether it is held

    def check(self) -> None:
        try:
            with self._one, self._watch.over(self._connection, CHECK_S):
                self._connection.execute("SELECT 1")
        except psycopg.Error:
            raise LedgerLocked(f"lost the writer's lock of {self._name}: its connection ended. Start again") from None

    def release(self) -> None:
        with self._one:
            # Said in so many words: the server notices the end of a connection only after a while.
            with contextlib.suppress(psycopg.Error), self._watch.over(self._connection, CHECK_S):
                self._connection.execute("SELECT pg_advisory_unlock_all()")
            self._connection.close()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
