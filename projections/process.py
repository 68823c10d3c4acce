"""The projections' own process: `python -m projections.process`.

In on stdin: one line of JSON, the `ProjectionSettings`; then every byte says "there may be more in the ledger"; its
end means stop. Out on stdout: one line of JSON per `status`: ready, lag, sink_stopped, failed, stopped. Logs go to
stderr. Signals that a terminal sends to a whole group are ignored, since the parent decides when this process ends;
if the parent dies, stdin ends too.

Exit codes: 0 stopped when asked, 1 it could not start, 3 a sink holds what this ledger does not.
"""

import asyncio
import contextlib
import gc
import logging
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from ledger.errors import LedgerError, LedgerUnavailable, SinkAhead
from ledger.store import EventStore, open_store
from projections.audit_files import AuditFilesSink
from projections.clickhouse import ClickHouseSink
from projections.follower import Follower, Pace, Progress, Sink, remedy_of
from projections.rebuild import Rebuild
from projections.request import RebuildService
from projections.settings import OFF, ProjectionSettings, target_of
from projections.source import StoreSource

MAX_SETTINGS: Final = 1024 * 1024
WAIT_FOR_PREDECESSOR_S: Final = 10.0
WAIT_FOR_LEDGER_S: Final = 10.0
MEMORY_FOR_FILES: Final = 256 * 1024 * 1024
REPORT_EVERY_S: Final = 0.25
log = structlog.get_logger()


class _Reporter:
    """Status lines to the parent, written by a thread: a parent that does not read never holds up the loop."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def tell(self, status: str, **fields: Any) -> None:
        self._lines.put(msgspec.json.encode({"status": status, **fields}) + b"\n")

    @property
    def is_behind(self) -> bool:
        return not self._lines.empty()

    def close(self, timeout_s: float) -> None:
        self._lines.put(None)
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            view = memoryview(line)
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError:
                return  # the parent is gone


class Projections:
    """The sinks of one ledger, each with its follower, and the endpoint of the embedded engine."""

    def __init__(self, settings: ProjectionSettings, reporter: _Reporter) -> None:
        self._settings, self._reporter = settings, reporter
        self._followers: list[Follower] = []
        self._sinks: list[Sink] = []
        self._source: StoreSource | None = None
        self._endpoint: Any = None
        self._rebuilds: RebuildService | None = None
        self._changed = asyncio.Event()
        self._told_stopped: set[str] = set()
        self._ready = False

    def wake(self) -> None:
        if self._source is not None:
            self._source.wake()

    async def start(self) -> None:
        """Opens everything. Raises LedgerError or OSError when that is not possible, SinkAhead among them."""
        settings = self._settings
        store = await _opened(settings.ledger_url)
        self._source = StoreSource(store, on_head=self._note_head)
        loop = asyncio.get_running_loop()
        store.listen(lambda: _wake_from_thread(loop, self.wake))
        ledger_id = await self._source.ledger_id(WAIT_FOR_LEDGER_S)
        if ledger_id is None:
            raise LedgerUnavailable("the ledger has no first event: start the gateway before the projections")
        target = target_of(settings)
        if target is not None:
            sink = ClickHouseSink(
                target[0],
                ledger_id,
                database=target[1],
                cluster=settings.clickhouse_cluster,
                past=self._source.streams,
                migrate_at_start=settings.migrate_at_start,
            )
            pace = Pace(
                min_interval_s=settings.clickhouse_interval_s,
                most_lag_s=settings.clickhouse_lag_s,
                calm_s=settings.clickhouse_calm_s,
                few_events=settings.clickhouse_few_events,
            )
            self._add(sink, pace)
            self._rebuilds = RebuildService(
                Path(settings.data_dir),
                lambda hold, advance: Rebuild(
                    store,
                    target[0],
                    ledger_id,
                    database=target[1],
                    cluster=settings.clickhouse_cluster,
                    url=settings.ledger_url,
                    hold=hold,
                    advance=advance,
                ),
                sink.call,
            )
        if settings.audit_dir:
            # A file that grows and is synced holds up the ledger's own sync, on the same disk: the less often.
            pace = Pace(
                min_interval_s=settings.audit_interval_s,
                calm_s=settings.audit_calm_s,
                few_events=settings.audit_few_events,
            )
            self._add(AuditFilesSink(Path(settings.audit_dir)), pace)
        if settings.kafka not in (OFF, ""):
            self._add(_kafka_sink(settings, ledger_id), Pace(min_interval_s=settings.kafka_interval_s))
        async with asyncio.TaskGroup() as starts:
            for follower in self._followers:
                starts.create_task(follower.start(settings.patience_s))
        if target is not None and target[0].embedded:
            from projections.endpoint import Endpoint

            self._endpoint = Endpoint(
                target[0].path, host=settings.http_host, port=settings.http_port, database=target[1]
            )
            await self._endpoint.start()
        gc.freeze()  # what is here now stays: later collections need not look at it
        gc.set_threshold(20_000, 50, 100)
        self._ready = True
        self._reporter.tell(
            "ready",
            clickhouse_http=self._endpoint.url if self._endpoint else "",
            ledger_id=ledger_id,
            sinks=[_shown(one.progress) for one in self._followers],
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Follows until `stop`, then takes the sinks to the end of the ledger, within the time allowed."""
        runs = [asyncio.create_task(one.run()) for one in self._followers]
        beside = [asyncio.create_task(self._report())]
        if self._rebuilds is not None:
            beside.append(asyncio.create_task(self._rebuilds.run()))
        await stop.wait()
        if self._rebuilds is not None:
            self._rebuilds.stop()
        for follower in self._followers:
            follower.stop()
        if runs:
            _, late = await asyncio.wait(runs, timeout=self._settings.stop_s * 0.7)
            for run in late:
                run.cancel()
        for task in beside:
            task.cancel()

    async def close(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.close()
        await asyncio.gather(*(sink.close() for sink in self._sinks), return_exceptions=True)
        if self._source is not None:
            self._source.close()

    def final(self) -> list[dict[str, Any]]:
        return [_shown(one.progress) for one in self._followers]

    def _add(self, sink: Sink, pace: Pace) -> None:
        self._sinks.append(sink)
        self._followers.append(Follower(self._of_ledger(), sink, pace, on_change=self._note))

    def _of_ledger(self) -> StoreSource:
        if self._source is None:
            raise LedgerUnavailable("the ledger is not open")
        return self._source

    def _note_head(self, head: int) -> None:
        for follower in self._followers:
            follower.note_head(head)

    def _note(self, progress: Progress) -> None:
        self._changed.set()
        if self._ready and progress.state == "failed" and progress.sink not in self._told_stopped:
            self._told_stopped.add(progress.sink)
            self._reporter.tell("sink_stopped", sink=progress.sink, error=progress.error, remedy=progress.remedy)

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._reporter.is_behind:
                self._reporter.tell("lag", sinks=[_shown(one.progress) for one in self._followers])
            await asyncio.sleep(REPORT_EVERY_S)


def _shown(progress: Progress) -> dict[str, Any]:
    return {**msgspec.structs.asdict(progress), "lag": progress.lag}


def _kafka_sink(settings: ProjectionSettings, ledger_id: str) -> Sink:
    from projections.kafka import KafkaSink

    return KafkaSink(settings.kafka, ledger_id, options=settings.kafka_options, replication=settings.kafka_replication)


async def _opened(url: str) -> EventStore:
    """The store, waiting for a ledger that is just being created."""
    deadline = time.monotonic() + WAIT_FOR_LEDGER_S
    while True:
        try:
            return await asyncio.to_thread(open_store, url, readonly=True)
        except LedgerUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


def _wake_from_thread(loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(wake)


def _watch_stdin(loop: asyncio.AbstractEventLoop, wake: Callable[[], None], stop: asyncio.Event, stop_s: float) -> None:
    """A thread that passes on the wake-ups and the end of stdin, and behind that ends the process for certain."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 65536):
                _wake_from_thread(loop, wake)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        time.sleep(stop_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


async def _serve(settings: ProjectionSettings, reporter: _Reporter) -> int:
    stop = asyncio.Event()
    projections = Projections(settings, reporter)
    _watch_stdin(asyncio.get_running_loop(), projections.wake, stop, settings.stop_s)
    starting = asyncio.create_task(projections.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        return 0
    try:
        starting.result()
    except BaseExceptionGroup as group:
        return _refused(_worst(group), reporter)
    except (LedgerError, OSError) as error:
        return _refused(error, reporter)
    await projections.run(stop)
    # Whatever happens from here on, the sinks hold what they hold: a close that hangs may be cut short.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(projections.close(), settings.stop_s * 0.25)
    reporter.tell("stopped", sinks=projections.final())
    return 0


def _worst(group: BaseExceptionGroup[BaseException]) -> BaseException:
    errors = list(_flat(group))
    return next((one for one in errors if isinstance(one, SinkAhead)), errors[0])


def _flat(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        inner for one in group.exceptions for inner in (_flat(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


def _refused(error: BaseException, reporter: _Reporter) -> int:
    if not isinstance(error, LedgerError | OSError):
        log.error("projections cannot start", exc_info=error)
    reporter.tell("failed", error=" ".join(str(error).split())[:500], remedy=remedy_of(error))
    return 3 if isinstance(error, SinkAhead) else 1


def _first_line() -> bytes:
    """The first line of stdin, read byte by byte so that nothing behind it is taken."""
    line = bytearray()
    while len(line) < MAX_SETTINGS and (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


def _configure_logging(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)


def main() -> int:
    for name in ("SIGINT", "SIGTERM", "SIGPIPE"):
        if hasattr(signal, name):  # not every platform has them all
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Status lines have a descriptor of their own: what a library prints must not end up between them.
    reporter = _Reporter(os.dup(1))
    os.dup2(2, 1)
    try:
        settings = msgspec.json.decode(_first_line(), type=ProjectionSettings)
        _leave_out(settings)
        _use_memory()
        _configure_logging(settings.log_level)
        _after_orders(settings.nice)
        code = _locked(settings, reporter)
    except (msgspec.MsgspecError, ValueError) as error:
        reporter.tell("failed", error=f"settings: {error}", remedy="give one line of JSON on stdin")
        code = 1
    reporter.close(0.5)
    return code


def _after_orders(nice: int) -> None:
    """Orders go first: gives back the real-time priority that the gateway may have handed on, and is nice to others."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(AttributeError, OSError):
        os.nice(nice)


def _use_memory() -> None:
    """Blocks on their way into the embedded engine are temporary files: in memory where there is plenty."""
    memory = Path("/dev/shm")  # noqa: S108  # names in it are made by tempfile
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_FOR_FILES:
        tempfile.tempdir = str(memory)


def _leave_out(settings: ProjectionSettings) -> None:
    """Found, these would be imported at the first insert (1.5 s of a held interpreter); nothing here uses them."""
    names = ["pandas", "pyarrow"]
    if not settings.ledger_url.startswith("postgres"):
        names.append("numpy")  # psycopg's pool cannot connect where importing it fails
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None makes the import fail, as documented


def _locked(settings: ProjectionSettings, reporter: _Reporter) -> int:
    from filelock import FileLock, Timeout

    Path(settings.data_dir).mkdir(parents=True, exist_ok=True)
    locks = [FileLock(one, thread_local=False) for one in settings.lock_files]
    try:
        for lock in locks:
            # The predecessor may be an orphan that is just finishing.
            lock.acquire(timeout=WAIT_FOR_PREDECESSOR_S, poll_interval=0.05)
    except Timeout:
        reporter.tell(
            "failed",
            error=f"another process writes the projections in {settings.data_dir}",
            remedy="stop it first, or name another data folder",
        )
        return 1
    return asyncio.run(_serve(settings, reporter))


if __name__ == "__main__":
    exit_code = main()
    # Without waiting for threads that may hang in a server call: every sink survives being cut short.
    sys.stderr.flush()
    os._exit(exit_code)
