"""The processes of a campaign: a nats-server and `order-ledger serve`, killed and started again.

They are real ones, with a data folder of their own; the simulated broker is a process of its own and outlives them.
`stop` ends all of them. Needs Linux, whose /proc tells who is whose child.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from gateway.embedded import NatsServer, StartFailed, end
from gateway.processes import child_environment
from gateway.simulated.link import stop_broker

READY_S: Final = 30.0
STOP_S: Final = 10.0
STARTS: Final = 5
# Short deadlines, so that an absence is proven within seconds; no projections: the campaign is about orders.
SETTINGS: Final = {
    "CALL_DEADLINE_S": "1",
    "SERVER_TIMEOUT_S": "0.3",
    "NOT_AFTER_S": "0.5",
    "RETRY_DELAY_S": "0.05",
    "PARK_RECHECK_S": "0.2",
    "RECONNECT_INTERVAL_S": "0.2",
    "CONNECTION_CHECK_S": "0.3",
    "POLL_INTERVAL_S": "0.1",
    "UNRESOLVED_ALERT_S": "5",
    "MAX_ORDER_AGE_S": "30",
    "SERVICE_PORT": "0",
    "CLICKHOUSE_URL": "off",
    "KAFKA_BROKERS": "off",
    "LOG_LEVEL": "warning",
}


class World:
    """`unasked`: how often the gateway ended without having been killed, with its last words."""

    def __init__(self, folder: Path, **settings: str) -> None:
        if not Path("/proc/self/stat").exists():
            raise StartFailed("this needs Linux: it finds the processes to kill in /proc")
        self.folder = folder
        self._settings = SETTINGS | settings
        self._nats = NatsServer(folder / "nats", 0)
        self._gateway: asyncio.subprocess.Process | None = None
        self.start_times_s: list[float] = []
        self.unasked: list[str] = []

    @property
    def nats_url(self) -> str:
        return self._nats.url

    @property
    def broker(self) -> Path:
        return self.folder / "terminal" / "broker"

    async def start(self) -> None:
        """Raises StartFailed."""
        await self._nats.start()
        await self.start_gateway()

    async def stop(self) -> None:
        """Ends everything."""
        await self.stop_gateway()
        await self._nats.stop()
        await asyncio.to_thread(stop_broker, self.broker)

    # --- gateway ------------------------------------------------------------------------------------------------

    async def start_gateway(self) -> None:
        """Returns when it takes orders. One that ends at its start is started again, as a supervisor would."""
        for _ in range(STARTS):
            began = time.monotonic()
            if await self._ready(await self.launch_gateway()):
                self.start_times_s.append(time.monotonic() - began)
                return
            self.unasked.append(f"at its start: {self._last_words()}")
        raise StartFailed(f"the gateway does not start: {self._last_words()}")

    async def launch_gateway(self) -> asyncio.subprocess.Process:
        """Starts it and does not wait."""
        settings = self._settings | {"NATS_URL": self._nats.url}
        with (self.folder / "serve.log").open("ab") as log:
            self._gateway = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway.cli",
                "serve",
                "--data",
                str(self.folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_clean_environment() | settings,
                start_new_session=True,
            )
        return self._gateway

    async def _ready(self, process: asyncio.subprocess.Process) -> bool:
        assert process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                async for line in process.stdout:
                    if line.startswith(b"READY"):
                        return True
        await _killed(process)
        return False

    async def stop_gateway(self) -> None:
        """As an operator ends it."""
        gateway, self._gateway = self._gateway, None
        if gateway is not None and gateway.returncode is None:
            gateway.send_signal(signal.SIGTERM)
            await end(gateway, STOP_S)

    async def kill_gateway(self) -> None:
        assert self._gateway is not None
        self.note_if_ended()
        await _killed(self._gateway)

    def note_if_ended(self) -> bool:
        """Whether the gateway has ended without having been killed."""
        if self._gateway is None or self._gateway.returncode is None:
            return False
        self.unasked.append(f"while it ran: {self._last_words()}")
        return True

    def kill_terminal(self, choice: float) -> None:
        """One of the gateway's terminal processes; `choice` (0 … 1) says which."""
        assert self._gateway is not None
        found = [pid for pid in children(self._gateway.pid) if b"gateway.terminal_child" in _command(pid)]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[int(choice * len(found))], signal.SIGKILL)

    def _last_words(self) -> str:
        lines = (self.folder / "serve.log").read_text(errors="replace").splitlines()
        return lines[-1][:400] if lines else "(nothing)"

    # --- message bus --------------------------------------------------------------------------------------------

    async def kill_nats(self) -> None:
        """Kills the server and starts it again where it was."""
        for pid in children(self._nats.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._nats.stop()
        await self._nats.start()


def children(pid: int) -> list[int]:
    """The processes that `pid` has started, the oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append((int(fields[19]), int(entry.name)))
    return [number for _, number in sorted(found)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def _killed(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _clean_environment() -> dict[str, str]:
    """Nothing of the user's configuration."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: text for name, text in child_environment().items() if name in kept}
