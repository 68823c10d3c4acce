"""What every benchmark needs: ledgers of its own that are cleaned up, a progress bar that does not disturb, numbers."""

import contextlib
import os
import platform
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gateway.config import safe_url
from ledger.errors import LedgerError, LedgerUnavailable
from ledger.events import LedgerCreated, decode
from ledger.store import EventStore, open_store

# The account that the ledgers of a benchmark are bound to: none of the service's can be taken for one.
LOGIN: Final = 1
SERVER: Final = "order-ledger bench"
SYNC_SAMPLES: Final = 500
SYNC_BYTES: Final = 4096
# A disk that keeps its word needs longer than this for a sync.
NO_DISK_MS: Final = 0.02
_REDRAW_S: Final = 0.2
_STEPS_TOGETHER: Final = 1_000
Item = TypeVar("Item")
_MARKS: Final = ("ledger.db", "run.json")  # what a data folder of the service holds


class BenchRefused(LedgerError):
    """The benchmark would touch what is not its own, or was asked for what it cannot do."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The middle and the tail of some times, in milliseconds."""

    samples: int
    p50_ms: float
    p99_ms: float
    p999_ms: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers depend on. `load`: the load average of the last minute before the start, 0 if not known."""

    version: str
    python: str
    system: str
    cpus: int
    load: float
    sqlite: str


def spread(seconds: Sequence[float]) -> Spread:
    """p50, p99 and p99.9 of times given in seconds, by nearest rank. Raises ValueError when there is none."""
    if not seconds:
        raise ValueError("no times")
    ranked = sorted(seconds)

    def at(share: float) -> float:
        return round(ranked[min(int(share * len(ranked)), len(ranked) - 1)] * 1e3, 4)

    return Spread(samples=len(ranked), p50_ms=at(0.5), p99_ms=at(0.99), p999_ms=at(0.999))


def median(numbers: Sequence[float], digits: int = 3) -> float:
    return round(statistics.median(numbers), digits)


def machine() -> Machine:
    return Machine(
        version=version("order-ledger"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        sqlite=sqlite3.sqlite_version,
    )


def sync_cost(folder: Path, samples: int = SYNC_SAMPLES) -> Spread:
    """What the disk asks for one durable write: appending 4 KiB to a file of the folder and syncing it."""
    sync = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have the slower one only
    path = folder / "sync"
    block = os.urandom(SYNC_BYTES)
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(samples):
            began = time.perf_counter()
            file.write(block)
            sync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return spread(times)


@contextlib.contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """A new folder, in `given` or among the temporary files; gone at the end, and `given` too if it was made here.

    Raises BenchRefused when `given` is the data folder of a ledger, or cannot be written.
    """
    if given is not None and any((given / mark).exists() for mark in _MARKS):
        raise BenchRefused(f"{given} holds a ledger: name another folder on the same disk by --data")
    made = given is not None and not given.exists()
    try:
        if given is not None:
            given.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="order-ledger-bench-", dir=given))
    except OSError as error:
        raise BenchRefused(f"cannot work in {given or tempfile.gettempdir()}: {error.strerror}") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made and given is not None:
            with contextlib.suppress(OSError):  # someone else put something there
                given.rmdir()


class Meter:
    """Progress on the terminal's stderr. It is drawn only when told to, never by a thread beside a measurement."""

    def __init__(self, *, shown: bool) -> None:
        out = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=out,
            auto_refresh=False,
            transient=True,
            disable=not (shown and out.is_terminal),
        )
        self._task = self._bar.add_task("", total=1)
        self._drawn = 0.0

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str, total: float) -> None:
        """The next phase, of `total` steps."""
        self._bar.reset(self._task, description=what, total=total)
        self._draw()

    def step(self, done: float = 1) -> None:
        self._bar.advance(self._task, done)
        if time.monotonic() - self._drawn >= _REDRAW_S:
            self._draw()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, a step for each."""
        for number, item in enumerate(items, 1):
            yield item
            if number % _STEPS_TOGETHER == 0:
                self.step(_STEPS_TOGETHER)

    def _draw(self) -> None:
        self._bar.refresh()
        self._drawn = time.monotonic()


# --- ledgers to measure on --------------------------------------------------------------------------------------


class Place(Protocol):
    """Where a benchmark keeps its ledgers, one at a time."""

    name: str
    version: str

    def fresh(self) -> EventStore:
        """A store without a ledger; the one that was here is gone."""
        ...

    def again(self) -> EventStore:
        """The store that `fresh` made, opened once more."""
        ...

    def commit_cost(self) -> Spread | None:
        """What one durable row costs without the ledger, where that is not the sync of a file."""
        ...

    def close(self) -> None:
        """Removes what is left."""
        ...


class SqlitePlace:
    """Files of a folder that someone else removes."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bench.db"
        self.version = f"SQLite {sqlite3.sqlite_version}"
        self.url = f"sqlite:///{self._path}"

    def fresh(self) -> EventStore:
        for left in self._path.parent.glob(f"{self._path.name}*"):
            left.unlink()
        return self.again()

    def again(self) -> EventStore:
        return open_store(self.url)

    def commit_cost(self) -> None:
        return None

    def close(self) -> None:
        """The folder goes as a whole."""


class PostgresPlace:
    """A database that holds no ledger, and holds none at the end."""

    name = "postgresql"

    def __init__(self, url: str) -> None:
        """Raises BenchRefused when there is a ledger, LedgerUnavailable when there is no server."""
        parts = urlsplit(url)
        # As the store reads it: neither may end up in a database or schema that the other does not mean.
        self._url = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self._shown = safe_url(url)
        self._opened = False
        row = self._run("SHOW server_version")
        self.version = f"PostgreSQL {row[0][0].split()[0]}"
        self._had_table = self._has_table()
        if self._had_table and self._run("SELECT 1 FROM stored_events LIMIT 1"):
            remedy = "name another database by LEDGER_URL"
            if self._is_ours():
                remedy = "it is what an interrupted benchmark left: drop its table stored_events, or " + remedy
            raise BenchRefused(f"{self._shown} holds a ledger: {remedy}")

    def fresh(self) -> EventStore:
        self._clear()
        self._opened = True
        return self.again()

    def again(self) -> EventStore:
        return open_store(self._url)

    def commit_cost(self) -> Spread:
        """A transaction that inserts one row of 4 KiB."""
        times = []
        with self._connection() as connection:
            connection.execute("CREATE TABLE order_ledger_bench (block bytea)")
            try:
                for _ in range(SYNC_SAMPLES):
                    began = time.perf_counter()
                    connection.execute("INSERT INTO order_ledger_bench VALUES (%s)", (os.urandom(SYNC_BYTES),))
                    times.append(time.perf_counter() - began)
            finally:
                connection.execute("DROP TABLE order_ledger_bench")
        return spread(times)

    def close(self) -> None:
        if not self._opened:
            return
        self._clear()
        if not self._had_table:
            self._run("DROP TABLE IF EXISTS stored_events")
            self._run("DROP TYPE IF EXISTS stored_event_text CASCADE")  # with the functions that take it

    def _clear(self) -> None:
        if not self._has_table():
            return
        if self._run("SELECT 1 FROM stored_events LIMIT 1") and not self._is_ours():
            raise BenchRefused(f"someone else began a ledger in {self._shown} meanwhile: it is left as it is")
        self._run("TRUNCATE stored_events RESTART IDENTITY")

    def _has_table(self) -> bool:
        return self._run("SELECT to_regclass('stored_events') IS NOT NULL")[0][0] is True

    def _is_ours(self) -> bool:
        """Whether the ledger there is one of a benchmark."""
        store = open_store(self._url, readonly=True)
        try:
            first = store.at(1)
            created = decode(first).data if first is not None else None
        except (LedgerError, msgspec.MsgspecError):
            return False
        finally:
            store.close()
        return isinstance(created, LedgerCreated) and (created.login, created.server) == (LOGIN, SERVER)

    def _run(self, statement: str) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        try:
            import psycopg
        except ImportError:
            raise LedgerUnavailable("PostgreSQL needs the extra: pip install 'order-ledger[postgres]'") from None
        try:
            with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                yield connection
        except psycopg.Error as error:
            raise LedgerUnavailable(f"{self._shown}: {str(error).strip().splitlines()[0]}") from None
