"""Composition: starts the parts of the service in order, watches them, stops them in reverse.

Start: folder lock, ledger, then message bus, terminals and projections side by side; READY once orders are taken.
Stop: no new orders, calls at the broker end, news go out, the ledger is closed with a checkpoint. Within 5 s.
"""

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import msgspec
import structlog
from nats.aio.client import Client

from gateway import nats_connection
from gateway.broker import Account, LoginRefused, TerminalError
from gateway.bus import OrderBus
from gateway.config import Settings, safe_url, version_of
from gateway.connection import Connection
from gateway.edge import Edge
from gateway.embedded import NatsServer, ProjectionProcess, StartFailed, lock_folder
from gateway.guarded import cancelled
from gateway.heads import PUBLIC_FILE, HeadSigner, seal_key
from gateway.linger import Lingering
from gateway.observation import Observation
from gateway.outbox import Outbox
from gateway.parts import audit_folder, terminal_settings
from gateway.processes import as_others, prefer_this_process, tune_collector
from gateway.reconcile import Reconciler
from gateway.reload import HubSettings, registration, set_log_level
from gateway.roles import Elsewhere, Followers, start_projections, tell_projections
from gateway.run_file import GATEWAYS, write_run_file
from gateway.standby import lock_when_free
from gateway.submit import Submitter
from gateway.sync import Sync
from gateway.terminal import TerminalProcess, TerminalStatus
from gateway.traces import TracesUnavailable
from gateway.variables import GATEWAY
from ledger.errors import SinkAhead
from ledger.heads import key_id
from ledger.store import EventStore, open_store, sqlite_path
from ledger.values import plain
from ledger.writer import Ledger
from projections.follower import Follower, Pace, remedy_of

log = structlog.get_logger()

BUILD: Final = version("order-ledger")
OUTBOX_OPEN_S: Final = 10.0
OUTBOX_RETRY_S: Final = 2.0  # senders wait for the news: no longer than that after NATS is back
PROJECTIONS_READY_S: Final = 20.0
STOP_SENDS_S: Final = 1.5
STOP_NEWS_S: Final = 1.0
STOP_S: Final = 4.0  # for all parts together
STOP_LEAST_S: Final = 0.2  # for each, however late it is
MARGIN_MODES: Final = {0: "netting", 1: "exchange", 2: "hedging"}


def utc_now() -> datetime:
    return datetime.now(UTC)


class Service:
    """The whole service. `say` gets the lines for a person."""

    def __init__(
        self,
        settings: Settings,
        hub: HubSettings,
        say: Callable[[str], None],
        *,
        take_over: bool = False,
        standby: bool = False,
    ) -> None:
        self._settings, self._hub, self._say = settings, hub, say
        self._take_over, self._standby = take_over, standby
        self._stop_asked = asyncio.Event()
        self._undo: list[tuple[str, Callable[[], Awaitable[Any]]]] = []
        self._failures: list[asyncio.Future[Any]] = []
        self._url = ""
        self._reconnected: Callable[[], None] = lambda: None
        self._trade_changed: Callable[[TerminalStatus], None] = lambda _: None
        self._observation: Observation | None = None

    def ask_to_stop(self) -> None:
        self._stop_asked.set()

    async def run(self) -> None:
        """Runs until asked to stop. Raises StartFailed, LedgerError, BusRefused, TerminalError with one clear line."""
        began = time.monotonic()
        try:
            if not await self._started():
                return
            # What stands now stays: a full pass of the collector would stop every order for milliseconds.
            tune_collector()
            self._say(
                f"READY in {time.monotonic() - began:.1f} s: send orders to orders.submitted.{{symbol}} on {self._url}"
            )
            await self._watch()
        finally:
            await self._stop()

    async def _started(self) -> bool:
        """Starts the parts; False when it was asked to stop before that was done."""
        start = asyncio.create_task(self._start(), name="start")
        stop = asyncio.create_task(self._stop_asked.wait(), name="stop")
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        await cancelled(stop)
        if not start.done():
            await cancelled(start)
            return False
        await start
        return True

    # --- start --------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        settings = self._settings
        self._say(f"order-ledger {BUILD}, data in {settings.data}")
        self._prefer_orders()
        lock = lock_folder(settings.data)
        self._later("folder", lambda: asyncio.to_thread(lock.release))
        observation = await self._start_observation()
        key = await asyncio.to_thread(seal_key, settings.data, settings.seal_key)
        store = await asyncio.to_thread(open_store, settings.ledger_url.reveal())
        held = await lock_when_free(store, self._say) if self._standby else None
        if held is not None:
            self._later("the writer's lock", lambda: asyncio.to_thread(held.release))
        projections = await self._start_projections()
        observation.watch_projections(projections)
        trade, query = self._terminals()
        observation.watch_terminals(trade, query)
        connection, account, _ = await _together(self._connect_nats(), trade.connect(), query.connect())
        ledger = await Ledger.open(
            store,
            login=account.login,
            server=account.server,
            clock=utc_now,
            build=BUILD,
            config_version=version_of(settings)[0],
            take_over=self._take_over,
            lock=held,
            on_full=observation.disk_full,
        )
        self._later("ledger", ledger.close)
        self._failures.append(ledger.failure)
        await observation.follow(ledger)
        self._later("what is observed", observation.unfollow)
        self._tell_ledger(store, ledger)
        self._say(f"  seal key     {key_id(key.public_key().public_bytes_raw())} ({settings.data / PUBLIC_FILE})")
        self._tell_terminal(account)
        # Before anything is committed or sent: whoever follows this ledger may hold what a restored one lacks.
        await self._start_outbox(connection, store, ledger)
        found = await self._await_projections(projections)

        every_s, every_seals = settings.seal_sign_every_s, settings.seal_sign_every_seals
        signer = HeadSigner(ledger, key, utc_now, every_s=every_s, every_seals=every_seals)
        self._failures.append(signer.start())
        self._later("signed head", signer.stop)
        link = Connection(
            trade,
            ledger,
            account,
            query=query,
            terminal=settings.terminal,
            check_s=settings.connection_check_s,
            auto_reconnect=settings.auto_reconnect,
            reconnect_interval_s=settings.reconnect_interval_s,
        )
        self._trade_changed = link.terminal_changed
        link.start()
        observation.watch_connection(link)
        self._later("connection to the broker", link.stop)
        submitter = Submitter(ledger, trade, query, settings, utc_now, link)
        ledger.tail.on_commit(projections.wake)
        sync = Sync(ledger, store, query, settings, utc_now, link, submitter)
        reconciler = Reconciler(ledger, store, query, settings, utc_now, link, submitter, sync)
        ask = reconciler.on_demand
        edge = Edge(settings, ledger, store, query, submitter, link, connection, utc_now, BUILD, ask, sync)
        self._later("limits and alerts", edge.stop)
        self._failures.extend(await edge.start())
        projections.listen(edge.alerts.projections_changed)
        observation.when_not_sound(edge.alerts.tampered)
        await sync.start(after=reconciler.start)
        self._later("the account followed", sync.stop)
        self._later("reconciliation", reconciler.stop)

        def use(new: Settings) -> None:
            set_log_level(new.log_level)
            for part in (submitter, edge, sync, reconciler, link, trade, query, observation):
                part.use(new)

        about = registration(observation.url, BUILD, settings.instance_id)
        await self._hub.follow(ledger, connection, use, about, lambda: observation.health.look().status)
        self._later("the hub followed", self._hub.stop)
        submitter.start()
        self._failures += (submitter.failure, sync.failure, reconciler.failure)
        bus = OrderBus(
            connection,
            ledger,
            submitter,
            utc_now,
            max_ack_pending=settings.max_ack_pending,
            unaddressed=settings.take_unaddressed,
        )
        self._reconnected = bus.reconnected
        self._later("orders at the broker", lambda: submitter.stop(STOP_SENDS_S))
        self._later("orders in", bus.stop)
        self._later("queries and control", edge.close)
        await bus.start()
        self._failures.append(bus.failure)
        await edge.listen()
        observation.watch_queue("orders", lambda: submitter.backlog)
        self._write_run_file(ledger, account, found)
        observation.taking_orders()

    async def _start_observation(self) -> Observation:
        """Before all that takes time, so that whoever asks is told what the start waits for."""
        self._observation = Observation(self._settings, BUILD, utc_now)
        self._later("HTTP", self._observation.stop)
        try:
            await self._observation.start()
        except TracesUnavailable as problem:
            raise StartFailed(str(problem)) from None
        self._say(f"  http         {self._observation.url}")
        return self._observation

    def _prefer_orders(self) -> None:
        """Before any process or thread is started: each inherits it, and the projections and threads take it back."""
        wanted = self._settings.real_time
        if wanted == "off":
            return
        if prefer_this_process():
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=as_others))
            self._say("  scheduling   real time for the path of an order (REAL_TIME=off: like all others)")
        elif wanted == "on":
            raise StartFailed("REAL_TIME=on is not allowed here: run as root, or with CAP_SYS_NICE or `ulimit -r 1`")

    async def _start_projections(self) -> ProjectionProcess | Elsewhere:
        process = await start_projections(self._settings)
        self._later("projections", process.stop)
        return process

    def _terminals(self) -> tuple[TerminalProcess, TerminalProcess]:
        settings = self._settings
        folder = settings.data / "terminal"
        folder.mkdir(parents=True, exist_ok=True)
        common = terminal_settings(settings, folder)
        password = settings.mt5_password.reveal()
        log_trade = _log_terminal("trade")

        def changed(status: TerminalStatus) -> None:
            log_trade(status)
            self._trade_changed(status)

        trade = TerminalProcess(common, password, on_change=changed)
        port = settings.mt5linux_query_port or settings.mt5linux_port
        query = TerminalProcess(
            msgspec.structs.replace(common, role="query", restart=True, bridge_port=port),
            password,
            on_change=_log_terminal("query"),
        )
        self._later("terminals", lambda: asyncio.gather(trade.close(), query.close()))
        return trade, query

    async def _connect_nats(self) -> Client:
        settings = self._settings
        if settings.nats_url is None:
            server = NatsServer(settings.data / "nats", settings.nats_port)
            await server.start()
            self._later("message bus", server.stop)
            watch = asyncio.create_task(_ended(server), name="nats-server")
            self._later("watch of the message bus", lambda: cancelled(watch))
            self._failures.append(watch)
            url, what = server.url, "bundled nats-server"
        else:
            url, what = settings.nats_url.reveal(), "NATS_URL"
        servers = [one.strip() for one in url.split(",") if one.strip()]
        self._url = ",".join(safe_url(one) for one in servers)

        async def disconnected() -> None:
            if not self._stop_asked.is_set():
                log.warning("connection to NATS lost, connecting again", url=self._url)

        async def reconnected() -> None:
            log.info("connected to NATS again", url=self._url)
            self._reconnected()
            if self._observation is not None:
                self._observation.bus_reconnected()

        name = f"order-ledger {settings.instance_id}"
        try:
            connection = await nats_connection.connect(
                settings, servers, name=name, disconnected=disconnected, reconnected=reconnected
            )
        except nats_connection.NatsUnreachable as problem:
            raise StartFailed(f"{problem}. Is it running, is {what} right?") from None
        if settings.nats_url is not None:
            await nats_connection.warn_of_early_acks(settings)
        self._later("connection to NATS", connection.close)
        if self._observation is not None:
            self._observation.watch_bus(connection)
        self._say(f"  message bus  {self._url} ({what})")
        return connection

    async def _start_outbox(self, connection: Client, store: EventStore, ledger: Ledger) -> None:
        outbox = Outbox(
            connection,
            store,
            ledger.tail,
            ledger.ledger_id,
            ledger.login,
            new_ledger=ledger.epoch == 1,
            on_failure=ledger.tail.wake,
            shared=self._settings.nats_news == "shared",
        )
        follower = Follower(Lingering(ledger.tail), outbox, Pace(max_events=2048, retry_most_s=OUTBOX_RETRY_S))
        try:
            await follower.start(OUTBOX_OPEN_S)
        except SinkAhead as ahead:
            raise SinkAhead(f"{ahead}: {remedy_of(ahead)}") from None
        task = asyncio.create_task(follower.run(), name="outbox")

        async def stop() -> None:
            follower.stop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(task, STOP_NEWS_S)
            await outbox.close()

        if self._observation is not None:
            self._observation.watch_news(lambda: follower.progress)
        self._later("news out", stop)
        self._failures.append(task)

    async def _await_projections(self, process: ProjectionProcess | Elsewhere) -> dict[str, Any]:
        """What the projections say of themselves. One that holds what this ledger does not ends the start; without
        an answer in time the service goes on, degraded."""
        try:
            found = await process.ready(PROJECTIONS_READY_S)
        except TimeoutError:
            self._say("  clickhouse   not ready yet: orders are taken, rows follow")
            self._failures.append(asyncio.ensure_future(_refused_late(process)))
            return {}
        tell_projections(self._settings, found, self._say)
        return found

    def _tell_ledger(self, store: EventStore, ledger: Ledger) -> None:
        kind = "SQLite" if sqlite_path(self._settings.ledger_url.reveal()) else "PostgreSQL"
        count = len(ledger.open_orders)
        waiting = f", {count} open order{'s' * (count != 1)} taken up" if count else ""
        self._say(f"  ledger       {store.name} ({kind}, epoch {ledger.epoch}{waiting})")

    def _tell_terminal(self, account: Account) -> None:
        mode = MARGIN_MODES.get(account.margin_mode, "?")
        self._say(
            f"  terminal     {self._settings.terminal}, account {account.login} on {account.server} "
            f"({mode}, {plain(account.balance):,} {account.currency})"
        )

    def _write_run_file(self, ledger: Ledger, account: Account, projections: dict[str, Any]) -> None:
        settings = self._settings
        ledger_url = settings.ledger_url.reveal()
        path = settings.data / GATEWAYS
        audit = audit_folder(settings)
        content = {
            "pid": os.getpid(),
            "version": BUILD,
            "started_at": utc_now().isoformat(),
            "nats_url": self._url,
            "http_url": self._observation.url if self._observation is not None else None,
            "ledger_url": ledger_url if sqlite_path(ledger_url) else safe_url(ledger_url),
            "clickhouse_http": projections.get("clickhouse_http"),
            "clickhouse_database": settings.clickhouse_database,
            "audit_dir": str(audit) if audit is not None else None,
            "ledger_id": ledger.ledger_id,
            "login": account.login,
            "server": account.server,
        }
        write_run_file(path, content)
        self._later("run file", lambda: asyncio.to_thread(path.unlink, True))

    # --- run and stop -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Waits for the request to stop, or for the first part whose end the service cannot survive."""
        stop = asyncio.ensure_future(self._stop_asked.wait())
        try:
            await asyncio.wait({stop, *self._failures}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if self._stop_asked.is_set():
            return
        for failure in self._failures:
            if failure.done() and not failure.cancelled():
                error = failure.exception() or failure.result()
                if isinstance(error, BaseException):
                    raise error
                raise StartFailed(str(error or "the news to NATS stopped: see the log"))

    async def _stop(self) -> None:
        """Undoes the start in reverse. A part that does not end in its time is left: it ends with this process."""
        self._stop_asked.set()
        if self._observation is not None:
            self._observation.taking_orders(False)
        deadline = time.monotonic() + STOP_S
        while self._undo:
            what, undo = self._undo.pop()
            try:
                await asyncio.wait_for(undo(), max(deadline - time.monotonic(), STOP_LEAST_S))
            except Exception as error:
                log.warning("while stopping", part=what, error=str(error) or type(error).__name__)

    def _later(self, what: str, undo: Callable[[], Awaitable[Any]]) -> None:
        self._undo.append((what, undo))


async def serve(
    flags: Mapping[str, str | None], say: Callable[[str], None], *, take_over: bool = False, standby: bool = False
) -> None:
    """Runs the service until SIGINT or SIGTERM. Raises ConfigurationError, and what `Service.run` raises."""
    hub = HubSettings(flags, os.environ)
    settings = await hub.ask()
    set_log_level(settings.log_level)
    service: Service | Followers = Followers(settings, say, BUILD, utc_now)
    if GATEWAY in settings.roles:
        service = Service(settings, hub, say, take_over=take_over, standby=standby)
    elif take_over or standby:
        raise StartFailed("--take-over and --standby concern the ledger's writer: name gateway among --roles")
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers in its loop
            loop.add_signal_handler(name, service.ask_to_stop)
    await service.run()


async def _ended(server: NatsServer) -> StartFailed:
    await server.wait_ended()
    return StartFailed("the bundled nats-server ended: see its log under nats/ in the data folder")


async def _refused_late(process: ProjectionProcess | Elsewhere) -> None:
    """Raises StartFailed should the projections still refuse this ledger."""
    await process.ready(math.inf)
    await asyncio.Event().wait()


async def _together(
    nats_connection: Awaitable[Client], trade: Awaitable[Account], query: Awaitable[Account]
) -> tuple[Client, Account, Account]:
    """All three, or the first failure after all have ended."""
    found = await asyncio.gather(nats_connection, trade, query, return_exceptions=True)
    for one in found:
        if isinstance(one, LoginRefused):
            raise StartFailed(f"the broker refused the login: {one}. Check MT5_LOGIN, MT5_SERVER and MT5_PASSWORD")
        if isinstance(one, TerminalError):
            raise StartFailed(f"the terminal does not answer: {one}")
        if isinstance(one, BaseException):
            raise one
    return found[0], found[1], found[2]  # type: ignore[return-value]  # the exceptions are gone


def _log_terminal(role: str) -> Callable[[TerminalStatus], None]:
    def changed(status: TerminalStatus) -> None:
        level = log.warning if status.state in ("down", "refused") else log.info
        level("terminal", role=role, state=status.state, text=status.text)

    return changed
