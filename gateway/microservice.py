"""The NATS micro service `mt5-connector`: `broker.query.*` and `broker.control.*`, found by `nats micro ls`.

Several gateways, each of its own account, may listen on the same subjects: each gets every request, and the one that
is meant answers. A request that names no account is for the gateway that takes unaddressed orders; when it names one
that nobody serves, that gateway says so after a while.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import nats.errors
import nats.micro
import structlog
from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service

from gateway import interface as api
from gateway.control import Control
from gateway.guarded import cancelled
from gateway.proof import Proofs
from gateway.queries import Declined, Queries

log = structlog.get_logger()

STRANGER_WAIT_S: Final = 2.0
MAX_HEADER: Final = 300
_Do = Callable[[str, bytes, Request], Awaitable[api.Answer]]


def semantic_version(version: str) -> str:
    """The package's version as semantic versioning writes it: `1.0.0.dev0` is `1.0.0-dev0`."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)[.-]?([0-9A-Za-z.-]*)", version)
    if found is None:
        return "0.0.0"
    core = ".".join(str(int(part)) for part in found.groups()[:3])
    return f"{core}-{found[4]}" if found[4] else core


class MicroService:
    def __init__(
        self,
        connection: Client,
        queries: Queries,
        control: Control,
        proofs: Proofs,
        *,
        login: int,
        version: str,
        control_enabled: bool,
        unaddressed: bool,
    ) -> None:
        self._connection, self._queries, self._control, self._proofs = connection, queries, control, proofs
        self._account = str(login)
        self._version = semantic_version(version)
        self._control_enabled, self._unaddressed = control_enabled, unaddressed
        self._service: Service | None = None
        self._work: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        service = await nats.micro.add_service(
            self._connection,
            name=api.SERVICE,
            version=self._version,
            description="Queries to the broker and control of the gateway",
            metadata={"account": self._account},
            # Each gateway has its own group: all of them hear a request, and the one that is meant answers.
            queue_group=f"{api.SERVICE}-{self._account}",
        )
        self._service = service
        for prefix, kinds, do in (
            (api.QUERY, dict(api.QUERIES), self._query),
            (api.CONTROL, {name: (kind, api.ControlAnswer) for name, kind in api.CONTROLS.items()}, self._order),
        ):
            group = service.add_group(name=prefix)
            for name, (request, answer) in kinds.items():
                metadata = {
                    "description": " ".join((request.__doc__ or "").split()),
                    "request_schema": msgspec.json.encode(api.schema(request)).decode(),
                    "response_schema": msgspec.json.encode(api.schema(answer)).decode(),
                }
                await group.add_endpoint(name=name, handler=self._handler(name, do), metadata=metadata)
        await self._connection.flush()

    async def stop(self) -> None:
        if self._service is not None and not self._connection.is_closed:
            await self._service.stop()
        await cancelled(*self._work)

    def _handler(self, name: str, do: _Do) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            # Beside the subscription, so that a slow answer delays no other.
            task = asyncio.create_task(self._handle(name, request, do), name=f"micro-{name}")
            self._work.add(task)
            task.add_done_callback(self._work.discard)

        return handle

    async def _handle(self, name: str, request: Request, do: _Do) -> None:
        account = api.account_of(request.data)
        if account != self._account and not (self._unaddressed and not account):
            if not self._unaddressed:
                return  # another gateway is meant
            await asyncio.sleep(STRANGER_WAIT_S)
            refusal = Declined("404", f"no gateway of account {account[:64]!r} has answered; this is {self._account}")
            await self._decline(request, refusal)
            return
        try:
            answer = await do(name, request.data, request)
        except Declined as declined:
            await self._decline(request, declined)
        except Exception:
            log.exception("a request failed", subject=request.subject)
            await self._decline(request, Declined("500", "a defect of the service: see its log"))
        else:
            await self._respond(request.respond(api.encode(answer)))

    async def _query(self, name: str, payload: bytes, _: Request) -> api.Answer:
        return await self._queries.answer(name, payload)

    async def _order(self, name: str, payload: bytes, request: Request) -> api.Answer:
        proof = (request.headers or {}).get(api.PROOF_HEADER, "")
        enabled = self._control_enabled or self._proofs.accepts(proof, request.subject, payload)
        return await self._control.call(name, payload, request.subject, enabled=enabled)

    async def _decline(self, request: Request, declined: Declined) -> None:
        body = api.Refusal(code=declined.code, reasons=declined.reasons, account=self._account)
        # A header is one line of ASCII.
        text = "".join(c if " " <= c <= "~" else "?" for c in str(declined))[:MAX_HEADER]
        await self._respond(request.respond_error(declined.code, text, api.encode(body)))

    @staticmethod
    async def _respond(answer: Awaitable[None]) -> None:
        try:
            await answer
        except ValueError:  # nobody waits for an answer
            pass
        except nats.errors.Error as error:
            log.warning("cannot answer a request", error=str(error) or type(error).__name__)
