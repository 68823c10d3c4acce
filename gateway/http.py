"""The HTTP server of the service: limits and tokens before every route, and an answer in JSON whatever happens."""

import asyncio
import math
import time
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web

from gateway.embedded import StartFailed
from gateway.guarded import cancelled
from gateway.http_api import ROUTES, Api, Refusal, json_response
from gateway.http_guard import Limit, Role, Tokens, address_key, comes_from_loopback, failure_limit, names_loopback
from gateway.openapi import PROBLEM, BadParameter, Problem, Route, read_parameters

MAX_BODY: Final = 4096  # nothing here takes one
MAX_HEADER: Final = 8190
BURST_S: Final = 2.0
MAX_CONNECTIONS: Final = 256
IDLE_S: Final = 15.0  # of a connection, until it is closed
LOOK_S: Final = 5.0
REFUSED_S: Final = 0.25  # how long a refusal for asking too often takes: a flood must not take the orders' time
STOP_S: Final = 0.2
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
log = structlog.get_logger()


class HttpServer:
    """Listens from `start` on; `url` tells where. Without tokens whoever reaches loopback has every role."""

    def __init__(
        self,
        api: Api,
        tokens: Tokens,
        clock: Callable[[], datetime],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        requests_per_s: float = 50.0,
    ) -> None:
        self._api, self._tokens, self._clock = api, tokens, clock
        self._host, self._port = host, port
        self._requests = Limit(requests_per_s, max(requests_per_s * BURST_S, 1.0))
        self._failures = failure_limit()
        self._runner: web.AppRunner | None = None
        self._used: dict[Any, float] = {}  # when a connection was last used
        self._busy: set[Any] = set()
        self._keeper: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> None:
        """Raises StartFailed when it cannot listen there."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._serving(route))
            if route.method == "GET":
                app.router.add_route("HEAD", route.path, self._serving(route))
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=STOP_S,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
            keepalive_timeout=IDLE_S,
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self.close()
            raise StartFailed(
                f"cannot listen on SERVICE_HOST {self._host}, SERVICE_PORT {self._port}: {error.strerror or error}. "
                "Is another service there? Name a free port, or 0 for any"
            ) from None
        self._keeper = asyncio.create_task(self._close_idle(), name="idle HTTP connections")
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        await cancelled(self._keeper)
        if runner is not None:
            await runner.cleanup()

    # --- a request ----------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._busy.add(request.protocol)
        try:
            return await self._answer(request, handler)
        finally:
            self._busy.discard(request.protocol)
            self._used[request.protocol] = time.monotonic()

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            self._limit(request)
            response: web.StreamResponse = await handler(request)
        except Refusal as refusal:
            response = _problem(refusal.status, refusal.detail, refusal.retry_after_s)
            if refusal.status == HTTPStatus.TOO_MANY_REQUESTS:
                response.force_close()
                await asyncio.sleep(REFUSED_S)
        except BadParameter as error:
            response = _problem(400, str(error))
        except web.HTTPMethodNotAllowed as error:
            response = _problem(405, f"{', '.join(sorted(error.allowed_methods))} may be used here")
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        except web.HTTPNotFound:
            response = _problem(404, "there is nothing here: see /openapi.json")
        except web.HTTPException as error:
            response = _problem(error.status, error.reason)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("HTTP request failed", path=request.path[:200], exc_info=error)
            response = _problem(500, "an error of the service, which its log tells")
        response.headers.update(_HEADERS)
        return response

    def _limit(self, request: web.Request) -> None:
        if len(self._connections()) > MAX_CONNECTIONS:
            raise Refusal(503, "too many connections", retry_after_s=1)
        wait_s = self._requests.take(_address(request), time.monotonic())
        if wait_s:
            raise Refusal(429, "too many requests", retry_after_s=wait_s)

    def _connections(self) -> list[Any]:
        return self._runner.server.connections if self._runner is not None and self._runner.server else []

    async def _close_idle(self) -> None:
        """Also of connections that never ask, or stop in the middle of a question."""
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = time.monotonic()
            self._used = {one: self._used.get(one, now_s) for one in self._connections()}
            for one, used_s in self._used.items():
                if one not in self._busy and now_s - used_s > IDLE_S:
                    one.force_close()

    def _serving(self, route: Route) -> Callable[[web.Request], Any]:
        handler = self._api.handlers[route.name]

        async def serve(request: web.Request) -> web.StreamResponse:
            roles = self._roles(request, needed=route.roles is not None)
            if route.roles is not None and not roles & route.roles:
                raise Refusal(403, f"this is for {' and '.join(sorted(route.roles))}")
            given = read_parameters(route, request.match_info, list(request.query.items()))
            return await handler(request, given, roles)

        return serve

    def _roles(self, request: web.Request, *, needed: bool) -> frozenset[Role]:
        """Those of the token. A wrong one counts against its address; too many, and no token is looked at any more."""
        if not self._tokens:
            if not names_loopback(request.host):
                raise Refusal(403, "without tokens this answers to loopback names only")
            origin = request.headers.get("Origin")
            if origin is not None and not comes_from_loopback(origin):
                raise Refusal(403, "without tokens this answers no page of another machine")
            return frozenset(Role)
        header = request.headers.get("Authorization", "")
        if not header:
            if needed:
                raise Refusal(401, "give a token: `Authorization: Bearer …`")
            return frozenset()
        address, now_s = _address(request), time.monotonic()
        wait_s = self._failures.full(address, now_s)
        if wait_s:
            raise Refusal(429, "too many wrong tokens", retry_after_s=wait_s)
        roles = self._tokens.roles(header, self._clock())
        if roles is None:
            self._failures.take(address, now_s)
            log.warning("a token was refused", address=address, path=request.path[:200])
            raise Refusal(401, "this token is not known, or has ended")
        return roles


def _address(request: web.Request) -> str:
    return address_key(request.remote or "")


def _problem(status: int, detail: str, retry_after_s: float = 0.0) -> web.Response:
    title = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    response = json_response(Problem(status=status, title=title, detail=detail), status)
    response.content_type = PROBLEM
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="order-ledger"'
    if retry_after_s:
        response.headers["Retry-After"] = str(math.ceil(retry_after_s))
    return response
