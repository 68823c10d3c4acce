"""Which parts of the service a process is: `serve --roles`.

`gateway` takes orders: message bus, ledger, terminals, news, HTTP. `projections` fills ClickHouse, `mirror` keeps the
audit log, in Kafka or in files. The latter two read the ledger and nothing else, so they may run on other machines:
PostgreSQL wakes them at every commit, a SQLite file is looked at once a second. Each refuses by itself a ledger that
lacks what it holds.
"""

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

from gateway.config import Settings, safe_url
from gateway.embedded import ProjectionProcess, kept_port, make_folder
from gateway.guarded import cancelled
from gateway.observation import Observation
from gateway.parts import audit_folder, projection_settings
from gateway.run_file import write_run_file
from gateway.variables import MIRROR, PROJECTIONS
from ledger.store import sqlite_path


class Elsewhere:
    """Stands for the projections' process where all that it does is the role of others."""

    is_running = True

    def __init__(self) -> None:
        self.sinks: dict[str, dict[str, Any]] = {}

    async def ready(self, timeout_s: float) -> dict[str, Any]:
        return {}

    def wake(self) -> None: ...

    def listen(self, on_status: Callable[[dict[str, Any]], None]) -> None: ...

    async def stop(self) -> None: ...


async def start_projections(settings: Settings) -> ProjectionProcess | Elsewhere:
    """The process of the projections and the audit log, as far as they are among the roles."""
    if not {PROJECTIONS, MIRROR} & set(settings.roles):
        return Elsewhere()
    port = 0
    if settings.clickhouse_url is None and PROJECTIONS in settings.roles:
        port = kept_port(settings.data / "clickhouse.port", settings.clickhouse_http_port)
    process = ProjectionProcess(
        projection_settings(settings, port),
        settings.data / "log" / ("projections.log" if PROJECTIONS in settings.roles else "mirror.log"),
    )
    await process.start()
    return process


def tell_projections(settings: Settings, found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says where ClickHouse and the audit log are, and keeps the port of the embedded one for the next start."""
    url = found.get("clickhouse_http")
    if PROJECTIONS not in settings.roles:
        say("  clickhouse   the role of another process")
    elif settings.clickhouse_url is None and url:
        (settings.data / "clickhouse.port").write_text(url.rpartition(":")[2])
        say(f"  clickhouse   {url} (embedded, read only)")
    elif settings.clickhouse_url is not None:
        say(f"  clickhouse   {safe_url(settings.clickhouse_url.reveal())}")
    if MIRROR not in settings.roles:
        say("  audit log    the role of another process")
    elif settings.kafka_brokers is None:
        say(f"  audit log    {settings.data / 'audit'} (files)")
    else:
        say(f"  audit log    {settings.kafka_brokers}")


class Followers:
    """A service without the role `gateway`: follows a ledger that another process writes."""

    def __init__(
        self, settings: Settings, say: Callable[[str], None], build: str, clock: Callable[[], datetime]
    ) -> None:
        self._settings, self._say, self._build, self._clock = settings, say, build, clock
        self._stop_asked = asyncio.Event()

    def ask_to_stop(self) -> None:
        self._stop_asked.set()

    async def run(self) -> None:
        """Runs until asked to stop. Raises StartFailed with one clear line."""
        settings = self._settings
        self._say(f"order-ledger {self._build} ({' and '.join(settings.roles)}), data in {settings.data}")
        make_folder(settings.data)
        observation = Observation(settings, self._build, self._clock)
        process: ProjectionProcess | Elsewhere = Elsewhere()
        try:
            await observation.start()
            self._say(f"  http         {observation.url}")
            process = await start_projections(settings)
            observation.watch_projections(process)
            found = await self._unless_stopped(process.ready(float("inf")))
            if found is None:
                return
            tell_projections(settings, found, self._say)
            run_file = settings.data / f"run.{settings.roles[0]}.json"
            write_run_file(run_file, self._about(found, observation.url))
            observation.following()
            ledger_url = settings.ledger_url.reveal()
            self._say(f"READY: follows the ledger {sqlite_path(ledger_url) or safe_url(ledger_url)}")
            await self._stop_asked.wait()
            await asyncio.to_thread(run_file.unlink, True)  # never that of a process which was here before this one
        finally:
            await process.stop()
            await observation.stop()

    async def _unless_stopped(self, work: Any) -> dict[str, Any] | None:
        """What `work` gives; None when it was asked to stop before."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop_asked.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            await cancelled(task, stop)

    def _about(self, found: dict[str, Any], http_url: str) -> dict[str, Any]:
        settings = self._settings
        audit = audit_folder(settings)
        return {
            "pid": os.getpid(),
            "version": self._build,
            "roles": list(settings.roles),
            "http_url": http_url,
            "clickhouse_http": found.get("clickhouse_http") or None,
            "clickhouse_database": settings.clickhouse_database,
            "audit_dir": str(audit) if audit is not None else None,
            "ledger_id": found.get("ledger_id"),
        }
