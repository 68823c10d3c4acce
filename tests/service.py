"""`order-ledger serve` as a test sees it: a process with a data folder, started, asked, stopped or killed."""

import asyncio
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

READY_S = 30.0
STOP_S = 5.0
# What the service may see of the environment of the tests: nothing that configures it.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")


def environment(**settings: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return (
        kept
        | {"NATS_PORT": "0", "CLICKHOUSE_HTTP_PORT": "0", "SERVICE_PORT": "0", "PYTHONWARNINGS": "error"}
        | settings
    )


def run_cli(*arguments: str, stdin: str = "", timeout_s: float = 60, **settings: str) -> subprocess.CompletedProcess:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**settings),
    )


class Service:
    """One data folder, and the process that serves it."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        self.folder, self.options = folder, options
        self.environment = environment(**settings)
        self.process: subprocess.Popen[bytes] | None = None
        self.output = ""

    def start(self) -> "Service":
        """Starts and waits for READY."""
        self.launch()
        self.output = self.read_until(b"READY")
        return self

    def launch(self) -> None:
        """Starts and does not wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve", "--data", str(self.folder), *self.options],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def read_until(self, wanted: bytes) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        seen = b""
        deadline = time.monotonic() + READY_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while wanted not in seen:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    break
                piece = os.read(self.process.stdout.fileno(), 65536)
                if not piece:
                    break
                seen += piece
        if wanted not in seen:
            raise AssertionError(f"no {wanted!r}:\n{seen.decode()}\n{self.log()[-3000:]}")
        return seen.decode()

    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    @property
    def info(self) -> dict[str, Any]:
        return orjson.loads((self.folder / "run.json").read_bytes())

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def cli(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
        return run_cli(*arguments, "--data", str(self.folder), stdin=stdin)

    def stop(self) -> float:
        """Asks it to end and returns how many seconds that took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=20)
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9: nothing of it gets a chance to tidy up."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
        stop_simulated_broker(self.folder)


def stop_simulated_broker(folder: Path) -> None:
    """The simulated broker outlives the service on purpose; a test does not leave it behind."""
    for address in folder.glob("terminal/broker/broker.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            os.kill(int(orjson.loads(address.read_bytes())["pid"]), signal.SIGTERM)


@contextlib.contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Service]:
    """A service that takes orders, ended at the end."""
    service = Service(folder, **settings)
    try:
        yield service.start()
    finally:
        service.end()


async def until(found: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """What `found` returns, once that is anything: another process brings it about and tells nobody."""
    async with asyncio.timeout(timeout_s):
        while not (value := found()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return value


class Listener:
    """Hears what the service says, and sends it orders."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self._connection: Client | None = None
        self._arrived: Any = None

    async def __aenter__(self) -> "Listener":
        self._arrived = asyncio.Condition()
        self._connection = await nats.connect(self._url)
        for kind in ("fill", "error", "order", "alert"):
            await self._connection.subscribe(f"broker.{kind}.>", cb=self._take)
        await self._connection.flush()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    @property
    def connection(self) -> Client:
        assert self._connection is not None
        return self._connection

    async def _take(self, message: Msg) -> None:
        async with self._arrived:
            self.messages.append((message.subject, orjson.loads(message.data)))
            self._arrived.notify_all()

    async def send(self, payload: bytes | dict[str, Any], symbol: str = "EURUSD") -> None:
        data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        await self.connection.jetstream().publish(f"orders.submitted.{symbol}", data)

    async def wait_for(self, wanted: Any, timeout_s: float = 15.0) -> tuple[str, dict[str, Any]]:
        """The first message for which `wanted(subject, body)` holds."""
        async with asyncio.timeout(timeout_s), self._arrived:
            while True:
                for subject, body in self.messages:
                    if wanted(subject, body):
                        return subject, body
                await self._arrived.wait()

    async def final(self, order_id: str, timeout_s: float = 15.0) -> tuple[str, dict[str, Any]]:
        return await self.wait_for(lambda _, body: body.get("order_id") == order_id and body.get("final"), timeout_s)


def market_order(order_id: str, **changes: Any) -> dict[str, Any]:
    return {"order_id": order_id, "symbol": "EURUSD", "order_type": "buy", "volume": 0.01} | changes
