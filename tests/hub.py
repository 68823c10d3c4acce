"""The Central Hub as a test sees it: `order-ledger hub` as a process, and a hub that answers what it is told to."""

import contextlib
import os
import selectors
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.config import SERVICE
from gateway.documents import deep_merge, nested
from gateway.hub import Hub
from tests.servers import free_port
from tests.service import READY_S, environment

PATH = f"/api/v1/config/{SERVICE}"


class HubProcess:
    """`order-ledger hub` on one port and file, for as long as it is wanted."""

    def __init__(self, folder: Path, nats_url: str = "", **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "gateway.cli", "hub", "--port", str(self.port)]
        self._command += ["--file", str(folder / "hub-state.json"), *(("--nats", nats_url) if nats_url else ())]
        self._environment = environment(**settings)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "HubProcess":
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, env=self._environment)
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(READY_S), "the hub does not start"
        line = os.read(self._process.stdout.fileno(), 4096)
        assert line == f"READY on {self.url}\n".encode(), line
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    async def post(self, config: dict[str, Any], version: str = "") -> None:
        """Replaces the whole configuration of the service."""
        assert await Hub(self.url).post(f"{PATH}?version={version}", config) == 200


class AnyHub:
    """A hub whose answers a test decides: `answer` gets each request, `asked` holds their paths."""

    def __init__(self, port: int = 0) -> None:
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = not_found
        self.asked: list[str] = []
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Again on the port it had before."""
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        return await self.answer(request)


async def not_found(_: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


@contextlib.asynccontextmanager
async def any_hub(port: int = 0) -> AsyncIterator[AnyHub]:
    hub = AnyHub(port)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()


def operational(values: dict[str, Any], base: dict[str, Any] | None = None) -> dict[str, Any]:
    """The document with these values by path, over `base`."""
    return deep_merge(base or {}, nested({f"operational.{path}": value for path, value in values.items()}))
