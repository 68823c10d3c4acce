"""What people and machines see of the running service: HTTP, metrics, the log of communications, traces.

Listens before anything else is started, so that `/livez` answers and `/readyz` says what is waited for; is told of each
part when it is there.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

import structlog

from gateway.communications import CommunicationLog
from gateway.config import OFF, SERVICE_PORT, Settings
from gateway.connection import Connection
from gateway.embedded import free_port
from gateway.exposition import Exposition, Readings, SinkReading
from gateway.guarded import cancelled
from gateway.health import HealthBook, Part, Standing, State
from gateway.http import HttpServer
from gateway.http_api import Api
from gateway.http_guard import Tokens, is_loopback
from gateway.metrics import Metrics
from gateway.reader import ReaderSettings
from gateway.reading import Reader
from gateway.terminal import TerminalProcess
from gateway.traces import Traces
from gateway.variables import GATEWAY, MIRROR, PROJECTIONS
from gateway.verification import Verification
from ledger.account import HALT_SOURCES
from ledger.writer import Ledger

log = structlog.get_logger()

_TERMINAL: Final[dict[str, State]] = {"connected": "up", "connecting": "starting", "closed": "starting"}


class SinkProgress(Protocol):
    """`projections.follower.Progress`."""

    @property
    def state(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def lag(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def error(self) -> str: ...


class Projections(Protocol):
    """`gateway.embedded.ProjectionProcess`, or what stands for it where others have its role."""

    @property
    def is_running(self) -> bool: ...
    @property
    def sinks(self) -> Mapping[str, Mapping[str, Any]]: ...


class Bus(Protocol):
    """The connection to NATS."""

    @property
    def is_connected(self) -> bool: ...


class Observation:
    def __init__(self, settings: Settings, version: str, clock: Callable[[], datetime]) -> None:
        self._settings, self._version = settings, version
        began = time.monotonic()
        self.health = HealthBook(version, settings.instance_id, clock, lambda: time.monotonic() - began)
        self._alone = GATEWAY not in settings.roles  # what follows the ledger is all this process is for
        if not self._alone:
            for name in ("ledger", "nats", "broker"):
                self.health.expect(name, needed=True)
            for name in ("queries", "news"):
                self.health.expect(name, needed=False)
        for name in ("clickhouse", "kafka" if settings.kafka_brokers else "audit"):
            self.health.expect(name, needed=self._alone)
        read = ReaderSettings(
            ledger_url=settings.ledger_url.reveal(),
            data=str(settings.data),
            witnessed=settings.kafka_brokers is None,
        )
        log_file = settings.data / "log" / "reader.log"
        self._reader = Reader(read, log_file)
        self._verification = Verification(Reader(read, log_file, answer_s=None), clock)
        api = Api(version, self.health.look, self._metrics_text, self._reader.ask, self._verification)
        tokens = Tokens(settings.auditor_tokens.reveal(), settings.operator_tokens.reveal())
        self._server = HttpServer(
            api,
            tokens,
            clock,
            host=settings.service_host,
            port=_port(settings),
            requests_per_s=settings.http_requests_per_s,
        )
        self._traces: Traces | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._last: list[Callable[[], Awaitable[None]]] = []
        self._ledger: Ledger | None = None
        self._full = ""
        self._communications: CommunicationLog | None = None
        self._metrics: Metrics | None = None
        self._exposition: Exposition | None = None
        self._queues: dict[str, Callable[[], int]] = {}
        self._news: Callable[[], SinkProgress] | None = None
        self._projections: Projections | None = None
        self._reconnects = {"nats": 0}

    @property
    def url(self) -> str:
        return self._server.url

    async def start(self) -> None:
        """Listens. Raises StartFailed, TracesUnavailable."""
        # The exporter's thread inherits how its maker is scheduled: it is not on the path of an order.
        self._traces = await asyncio.to_thread(Traces.of, self._settings, self._version)
        await self._server.start()

    def disk_full(self, text: str) -> None:
        """Of the ledger: what is wrong, or "" when there is room again. From any thread."""
        if text:
            log.error("the ledger waits for room on its disk, nothing is acknowledged or sent", reason=text)
        else:
            log.info("the ledger waits for room no more")
        self._full = text

    async def follow(self, ledger: Ledger) -> None:
        """Counts, logs and traces what the ledger commits from now on, until `unfollow`."""
        self._ledger = ledger
        head = await ledger.tail.head()
        self._metrics = Metrics(ledger.tail, head, ledger.commit_times)
        self._exposition = Exposition(self._version, self._metrics, self._read)
        self._queues["commits"] = lambda: ledger.waiting
        self.health.watch("ledger", lambda: _ledger_part(ledger, self._full))
        self.health.standing = lambda: _standing(ledger)
        self._run(self._metrics.run(), "metrics")
        self._log_communications(head)
        if self._traces is not None:
            self._run(self._traces.follow(ledger.tail, head), "traces")
            self._last.append(partial(self._traces.catch_up, ledger.tail))
        if self._settings.verify_every_s:
            self._run(self._verification.every(self._settings.verify_every_s), "verification")

    async def unfollow(self) -> None:
        """To be called before the ledger is closed. What was committed until then is logged and traced."""
        self.health.taking_orders = False
        await cancelled(*self._tasks)
        self._tasks.clear()
        self._metrics = self._exposition = None
        for catch_up in self._last:
            await catch_up()
        self._last.clear()
        if self._communications is not None:
            await self._communications.catch_up()

    def use(self, settings: Settings) -> None:
        """What is logged of the broker, from now on."""
        self._settings = settings
        if self._ledger is not None:
            self._log_communications(self._ledger.tail.newest)

    def _log_communications(self, after: int) -> None:
        wanted, running, ledger = self._settings.log_all_communications, self._communications, self._ledger
        if wanted and running is None and ledger is not None:
            self._communications = CommunicationLog(ledger.tail, after)
            self._run(self._communications.run(), "log of communications")
        elif running is not None and not wanted:
            running.end()
            self._communications = None

    def watch_terminals(self, trade: TerminalProcess, query: TerminalProcess) -> None:
        self.health.watch("broker", lambda: _terminal_part(trade, needed=True))
        self.health.watch("queries", lambda: _terminal_part(query, needed=False))

    def watch_connection(self, link: Connection) -> None:
        """Of the trading terminal to its broker: one that runs may still be cut off."""

        def ask() -> Part:
            return Part(state="up" if link.up else "down", needed=True, detail=link.reason)

        self.health.watch("broker", ask)

    def watch_bus(self, bus: Bus) -> None:
        self.health.watch("nats", lambda: Part(state="up" if bus.is_connected else "down", needed=True))

    def bus_reconnected(self) -> None:
        self._reconnects["nats"] += 1

    def watch_news(self, progress: Callable[[], SinkProgress]) -> None:
        self._news = progress
        self.health.watch("news", lambda: _sink_part(progress().state, progress().error))

    def when_not_sound(self, tell: Callable[[int, str], None]) -> None:
        """`tell` hears of each verification that finds a fault: the first bad seq, and the problem."""
        self._verification.on_unsound = tell

    def watch_queue(self, name: str, depth: Callable[[], int]) -> None:
        self._queues[name] = depth

    def following(self) -> None:
        """A process without the gateway's role: its metrics are those of what it follows the ledger for."""
        self._exposition = Exposition(self._version, None, self._read)
        self.health.taking_orders = True

    def watch_projections(self, process: Projections) -> None:
        self._projections = process
        settings = self._settings
        log = "kafka" if settings.kafka_brokers else "audit"
        for name, role, setting in (
            ("clickhouse", PROJECTIONS, settings.clickhouse_url.reveal() if settings.clickhouse_url else ""),
            (log, MIRROR, settings.kafka_brokers or ""),
        ):
            off = setting == OFF or role not in settings.roles
            self.health.watch(name, partial(self._projection_part, name, off))

    def taking_orders(self, taking: bool = True) -> None:
        self.health.taking_orders = taking

    async def stop(self) -> None:
        await self._server.close()
        await asyncio.gather(self._reader.close(), self._verification.close())
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    # --- inside -------------------------------------------------------------------------------------------------

    def _run(self, work: Awaitable[None], name: str) -> None:
        self._tasks.append(asyncio.ensure_future(work))
        self._tasks[-1].set_name(name)

    async def _metrics_text(self) -> bytes | None:
        if self._exposition is None:
            return None
        if self._metrics is not None:
            await self._metrics.catch_up()
        return self._exposition.text()

    def _read(self) -> Readings:
        ledger, metrics = self._ledger, self._metrics
        if self._alone:
            return Readings(sinks=self._sinks(), parts=self.health.parts(), ready=self.health.look().ready)
        assert ledger is not None
        assert metrics is not None
        halted = {halt.source for halt in ledger.account.halts}
        return Readings(
            open_orders=Counter(order.status.value for order in ledger.open_orders.values()),
            halts={source: source in halted for source in HALT_SOURCES},
            queues={name: depth() for name, depth in self._queues.items()},
            sinks=self._sinks(),
            parts=self.health.parts(),
            reconnects=self._reconnects | {"broker": metrics.broker_reconnects},
            head_seq=ledger.tail.newest,
            epoch=ledger.epoch,
            ready=self.health.look().ready,
            verified_seq=self._verification.sound_to,
            verified_at_s=self._verification.sound_at_s,
            verified_sound=self._verification.state != "not_sound",
        )

    def _sinks(self) -> dict[str, SinkReading]:
        found = {}
        if self._projections is not None:
            for name, one in self._projections.sinks.items():
                found[name] = SinkReading(
                    state=one["state"],
                    position=one.get("position", 0),
                    lag=one.get("lag", 0),
                    retries=one.get("retries", 0),
                )
        if self._news is not None:
            now = self._news()
            found["nats"] = SinkReading(state=now.state, position=now.position, lag=now.lag, retries=now.retries)
        return found

    def _projection_part(self, name: str, off: bool) -> Part:
        if off:
            return Part(state="off", needed=False)
        process = self._projections
        if process is None or not process.is_running:
            return Part(state="down", needed=self._alone, detail="the projections' process is not running")
        sink = process.sinks.get(name)
        if sink is None:
            return Part(state="starting", needed=self._alone)
        return _sink_part(sink["state"], sink.get("error", ""), needed=self._alone)


def _sink_part(state: str, error: str, *, needed: bool = False) -> Part:
    if state == "following":
        return Part(state="up", needed=needed)
    return Part(state="starting" if state == "starting" else "down", needed=needed, detail=error)


def _ledger_part(ledger: Ledger, full: str) -> Part:
    if ledger.failure.done() or full:
        return Part(state="down", needed=True, detail=full or str(ledger.failure.result()))
    return Part(state="up", needed=True)


def _terminal_part(terminal: TerminalProcess, *, needed: bool) -> Part:
    status = terminal.status
    return Part(state=_TERMINAL.get(status.state, "down"), needed=needed, detail=status.text)


def _standing(ledger: Ledger) -> Standing:
    return Standing(
        account=ledger.login,
        ledger_id=ledger.ledger_id,
        head_seq=ledger.tail.newest,
        halts=[halt.source for halt in ledger.account.halts],
    )


def _port(settings: Settings) -> int:
    """One that was chosen is kept or refused. The usual one, embedded, gives way to a free one where it is taken, as
    those of the other parts do."""
    if settings.service_port == SERVICE_PORT and settings.mode == "embedded" and is_loopback(settings.service_host):
        return free_port(SERVICE_PORT)
    return settings.service_port
