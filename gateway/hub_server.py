"""A small Central Hub for local use and tests: its HTTP interface, its messages over NATS, its state in one file."""

import asyncio
import contextlib
import hmac
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import nats
import nats.errors
import orjson
from aiohttp import web
from nats.aio.client import Client

from gateway.guarded import cancelled
from gateway.hub import UPDATED

_SERVICE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
CONNECT_S: Final = 1.0
MAX_BODY: Final = 1 << 20


class HubState:
    """The configurations by service, in a file that is replaced whole. Raises OSError, ValueError for another file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = orjson.loads(path.read_bytes()) if path.exists() else {}
        if not isinstance(found, dict):
            raise ValueError(f"{path} is not the state of a hub")  # noqa: TRY004
        self.configs: dict[str, dict[str, Any]] = found
        self.registered: dict[tuple[str, str], dict[str, Any]] = {}

    def put(self, service: str, config: dict[str, Any], version: str, by: str) -> dict[str, Any]:
        """Replaces the whole configuration of the service."""
        before = self.configs.get(service, {})
        updated = max(round(time.time() * 1000), int(before.get("updated_at", 0)) + 1)
        self.configs[service] = {
            "service_name": service,
            "config": config,
            "version": version or f"1.0.{updated}",
            "updated_at": updated,
            "updated_by": by,
            "description": "",
            "tags": [],
            "active": True,
        }
        scratch = self._path.with_suffix(".tmp")
        scratch.write_bytes(orjson.dumps(self.configs, option=orjson.OPT_INDENT_2))
        scratch.replace(self._path)
        return self.configs[service]


class Teller:
    """Tells of changes over NATS. While that is not there it goes on trying; whoever missed a change is told then."""

    def __init__(self, state: HubState, url: str) -> None:
        self._state = state
        self._servers = [one.strip() for one in url.split(",")]
        self._connection: Client | None = None
        self._connecting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns at the latest after `CONNECT_S`. Raises nats.errors.Error, ValueError for an address that is none."""
        self._connecting = asyncio.create_task(self._connect(), name="hub-nats")
        done, _ = await asyncio.wait({self._connecting}, timeout=CONNECT_S)
        if done:
            self._connecting.result()

    async def _connect(self) -> None:
        self._connection = await nats.connect(
            self._servers,
            max_reconnect_attempts=-1,
            connect_timeout=5,
            reconnect_time_wait=0.5,
            error_cb=_quietly,
            reconnected_cb=self._tell_all,
        )
        await self._tell_all()

    async def _tell_all(self) -> None:
        for service in list(self._state.configs):
            await self.tell(service)

    async def tell(self, service: str) -> None:
        if self._connection is None or not self._connection.is_connected:
            return
        stored = self._state.configs[service]
        message = {name: stored[name] for name in ("service_name", "config", "version", "updated_at", "updated_by")}
        with contextlib.suppress(nats.errors.Error):
            await self._connection.publish(UPDATED + service, orjson.dumps(message))
            await self._connection.flush(1)

    async def stop(self) -> None:
        await cancelled(self._connecting)
        if self._connection is not None:
            await self._connection.close()


async def _quietly(_: Exception) -> None:
    """That NATS is not there shows where changes are waited for."""


def application(state: HubState, teller: Teller | None, api_key: str = "") -> web.Application:
    @web.middleware
    async def only_with_key(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("X-API-Key", "")
        if api_key and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise web.HTTPUnauthorized(text="X-API-Key is missing or wrong")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def get_config(request: web.Request) -> web.Response:
        found = state.configs.get(request.match_info["service"])
        return _json({"detail": "no configuration"}, 404) if found is None else _json(found)

    async def put_config(request: web.Request) -> web.Response:
        service, config = request.match_info["service"], await _body(request)
        if not _SERVICE.fullmatch(service):
            raise web.HTTPBadRequest(text="a service is named by 1-64 letters, digits, _ and -")
        stored = state.put(service, config, request.query.get("version", ""), request.query.get("updated_by", ""))
        if teller is not None:
            await teller.tell(service)
        return _json(stored)

    async def register(request: web.Request) -> web.Response:
        about = await _body(request)
        state.registered[_instance(about.get("name"), about.get("metadata"))] = about
        return _json({"status": "registered"})

    async def heartbeat(request: web.Request) -> web.Response:
        beat = await _body(request)
        known = _instance(beat.get("service_name"), beat) in state.registered
        return _json({"status": "ok"} if known else {"detail": "not registered"}, 200 if known else 404)

    app = web.Application(middlewares=[only_with_key], client_max_size=MAX_BODY)
    app.router.add_get("/api/v1/config/{service}", get_config)
    app.router.add_post("/api/v1/config/{service}", put_config)
    app.router.add_post("/api/v1/discovery/register", register)
    app.router.add_post("/api/v1/discovery/heartbeat", heartbeat)
    return app


@contextlib.asynccontextmanager
async def hub_server(
    file: Path, host: str, port: int, nats_url: str = "", api_key: str = ""
) -> AsyncIterator[tuple[str, HubState]]:
    """The running hub: its address and its state. Raises OSError where the port is taken or the file unreadable."""
    state = HubState(file)
    teller = Teller(state, nats_url) if nats_url else None
    runner = web.AppRunner(application(state, teller, api_key), access_log=None, shutdown_timeout=1.0)
    try:
        if teller is not None:
            await teller.start()
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}", state
    finally:
        await runner.cleanup()
        if teller is not None:
            await teller.stop()


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        found = orjson.loads(await request.read())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise web.HTTPBadRequest(text="the body must be a JSON object")
    return found


def _instance(name: Any, holder: Any) -> tuple[str, str]:
    return str(name), str(holder.get("instance_id", "") if isinstance(holder, dict) else "")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
