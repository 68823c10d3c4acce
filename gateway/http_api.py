"""The routes of the HTTP API, and what each answers."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec
import orjson
from aiohttp import web

from gateway.exposition import CONTENT_TYPE
from gateway.health import Health
from gateway.http_guard import Role
from gateway.openapi import (
    ORDER_ID,
    PROBLEM,
    STATE,
    SYMBOL,
    Handler,
    Parameter,
    Problem,
    Reply,
    Route,
    choice_parameter,
    document,
    number_parameter,
    switch_parameter,
    time_parameter,
)
from gateway.reader import Holdings, OneOrder, Orders, Question
from gateway.reader import Reply as Read
from gateway.reading import ReaderBusy, ReaderFailed
from gateway.verification import TooSoon, Verification

MAX_SEQ: Final = 2**63 - 1
PAGE: Final = 100
MAX_PAGE: Final = 500
MAX_POSITIONS: Final = 10_000


class Liveness(msgspec.Struct, frozen=True):
    status: Literal["alive"]


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """`waiting_for`: the needed parts that are not up."""

    ready: bool
    status: str
    waiting_for: list[str]
    parts: dict[str, str]


class OrderShown(msgspec.Struct, frozen=True, kw_only=True):
    """Where an order stands. `outcome` is the standing event, `told` the same in words."""

    order_id: str
    state: str
    open: bool
    action: str
    symbol: str
    side: str
    volume: str
    filled_volume: str
    average_price: str | None
    attempts: int
    created: datetime
    last_event_at: datetime
    outcome: str
    told: str


class OrderPage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest first. `next`: give it as `before` for the page that follows, which may be there even when this one
    is empty; null at the beginning of the ledger."""

    orders: list[OrderShown]
    next: int | None


class OrderState(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    open: bool
    attempt: int
    volume: str
    filled_volume: str
    remaining_volume: str
    average_price: str | None
    order_ticket: int
    deals: list[int]


class OrderEventShown(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event, what it says in words, and the state after it. `stored`: the bytes as they are sealed, for auditors
    who ask for them."""

    seq: int
    stream: str
    version: int
    event_id: str
    recorded_at: datetime
    topic: str
    schema_version: int
    account: str
    actor: str
    source: dict[str, Any] | None
    correlation_id: str
    causation_id: str
    config_version: str
    build: str
    data: dict[str, Any]
    told: str
    state: OrderState
    stored: str = ""
    stored_sha256: str = ""


class OrderHistory(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is the one `as_of` then, null when nothing was recorded by then; `later_events` came after it."""

    order_id: str
    as_of: datetime | None
    later_events: int
    state: OrderState | None
    acts_on: list[str]
    acted_on_by: list[str]
    events: list[OrderEventShown]


class PositionShown(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts are text; costs and profit in the account's currency. `side` is that of the open volume, of a closed
    position that of the volume last open."""

    position_id: int
    symbol: str
    side: str
    volume: str
    entry_price: str
    opened_at: datetime
    closed_at: datetime | None
    sl: str
    tp: str
    initial_sl: str
    realized_profit: str
    commission: str
    swap: str
    fee: str
    exit_volume: str
    exit_price: str
    exit_reason: str
    entry_order_id: str
    exit_order_id: str
    current_price: str | None
    floating_profit: str | None
    deals: int


class PositionPage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest `limit` of them, by identifier; `truncated` when there are more."""

    as_of: datetime | None
    by: Literal["recorded", "broker"]
    truncated: bool
    positions: list[PositionShown]


class VerificationShown(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: `never`, `running`, `sound`, `not_sound` (`result` names the first bad event), or `failed` (it could not
    be made: `problem`). `result` is that of the last one that was made."""

    state: Literal["never", "running", "sound", "not_sound", "failed"]
    started_at: datetime | None
    finished_at: datetime | None
    problem: str
    result: dict[str, Any] | None


_UNAVAILABLE: Final = Reply(text="It cannot be read now.", type=Problem, media=PROBLEM)
_NOT_READY: Final = {503: Reply(text="Not ready.", type=Readiness)}
ROUTES: Final = (
    Route(
        path="/health",
        name="health",
        summary="How the service and its dependencies stand; 503 when it is unhealthy.",
        roles=None,
        tag="service",
        replies={
            200: Reply(text="Healthy, degraded or starting.", type=Health),
            503: Reply(text="Unhealthy.", type=Health),
        },
    ),
    Route(
        path="/livez",
        name="livez",
        summary="Whether the process answers at all.",
        roles=None,
        tag="service",
        replies={200: Reply(text="It does.", type=Liveness)},
    ),
    Route(
        path="/readyz",
        name="readyz",
        summary="Whether orders are taken: the ledger, the message bus and the broker are up.",
        roles=None,
        tag="service",
        replies={200: Reply(text="Ready.", type=Readiness), **_NOT_READY},
    ),
    Route(
        path="/metrics",
        name="metrics",
        summary="Numbers for Prometheus.",
        roles=frozenset({Role.OPERATOR}),
        tag="service",
        replies={200: Reply(text="Prometheus' text format.", media="text/plain")},
    ),
    Route(
        path="/openapi.json",
        name="openapi",
        summary="This document.",
        roles=None,
        tag="service",
        replies={200: Reply(text="OpenAPI 3.1.", type=dict[str, Any])},
    ),
    Route(
        path="/api/v1/orders",
        name="orders",
        summary="Which orders there are and where they stand, the newest first.",
        parameters=(
            STATE,
            SYMBOL,
            switch_parameter("open", "Only orders that have not ended."),
            time_parameter("since", "Only orders created from then on"),
            time_parameter("until", "Only orders created before then", end=True),
            number_parameter("before", "`next` of the page before; 0: from the end.", 0, MAX_SEQ, 0),
            number_parameter("limit", "Orders on a page.", 1, MAX_PAGE, PAGE),
        ),
        replies={200: Reply(text="A page.", type=OrderPage), 503: _UNAVAILABLE},
    ),
    Route(
        path="/api/v1/orders/{order_id}",
        name="order",
        summary="Every event of one order, and the state after each.",
        parameters=(
            ORDER_ID,
            time_parameter("as_of", "What was recorded until then", as_of=True),
            switch_parameter("stored", "With the stored bytes of each event: for auditors."),
        ),
        replies={
            200: Reply(text="Its history.", type=OrderHistory),
            404: Reply(text="No such order.", type=Problem, media=PROBLEM),
            503: _UNAVAILABLE,
        },
    ),
    Route(
        path="/api/v1/positions",
        name="positions",
        summary="Positions at a time, folded from the ledger.",
        parameters=(
            time_parameter("as_of", "At that time; left out: now", as_of=True),
            choice_parameter(
                "by",
                "`recorded`: what was known then; `broker`: what had happened at the broker by then, as everything "
                "recorded since tells it.",
                "recorded",
                "broker",
            ),
            SYMBOL,
            switch_parameter("all", "With those that were closed by then."),
            number_parameter("limit", "The newest so many.", 1, MAX_POSITIONS, PAGE),
        ),
        replies={200: Reply(text="Positions.", type=PositionPage), 503: _UNAVAILABLE},
    ),
    Route(
        path="/api/v1/verification",
        name="verification",
        summary="How the last verification of the whole ledger ended.",
        replies={200: Reply(text="Its result.", type=VerificationShown)},
    ),
    Route(
        path="/api/v1/verification",
        method="POST",
        name="verify",
        summary="Verify the whole ledger now: every event, seal and signed head.",
        replies={
            202: Reply(text="It began.", type=VerificationShown),
            409: Reply(text="One is running, or has just ended.", type=Problem, media=PROBLEM),
        },
    ),
)
STORED: Final = "stored"


class Refusal(Exception):
    """An answer that is a problem."""

    def __init__(self, status: int, detail: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s


class Ask(Protocol):
    """`gateway.reading.Reader.ask`."""

    def __call__(self, question: Question) -> Awaitable[Read]: ...


class Api:
    """Answers the routes. `metrics` gives the text of `/metrics`; None while there is nothing to tell."""

    def __init__(
        self,
        version: str,
        health: Callable[[], Health],
        metrics: Callable[[], Awaitable[bytes | None]],
        ask: Ask,
        verification: Verification,
    ) -> None:
        self._health, self._metrics, self._ask, self._verification = health, metrics, ask, verification
        self._document = orjson.dumps(document(ROUTES, version), option=orjson.OPT_INDENT_2)
        self.handlers: dict[str, Handler] = {
            "health": self._answer_health,
            "livez": self._livez,
            "readyz": self._readyz,
            "metrics": self._answer_metrics,
            "openapi": self._openapi,
            "orders": self._orders,
            "order": self._order,
            "positions": self._positions,
            "verification": self._answer_verification,
            "verify": self._verify,
        }

    async def _answer_health(self, _: web.Request, __: dict[str, Any], roles: frozenset[Role]) -> web.Response:
        health = self._health()
        if not roles:  # whoever reaches the port learns whether it works, not what it is made of
            parts = {name: msgspec.structs.replace(one, detail="") for name, one in health.parts.items()}
            health = msgspec.structs.replace(
                health, parts=parts, account=None, ledger_id=None, head_seq=None, instance_id=""
            )
        return json_response(health, 503 if health.status == "unhealthy" else 200)

    async def _livez(self, *_: Any) -> web.Response:
        return json_response(Liveness("alive"))

    async def _readyz(self, *_: Any) -> web.Response:
        health = self._health()
        waiting = [name for name, one in health.parts.items() if one.needed and one.state not in ("up", "degraded")]
        parts = {name: one.state for name, one in health.parts.items()}
        told = Readiness(ready=health.ready, status=health.status, waiting_for=waiting, parts=dict(parts))
        return json_response(told, 200 if health.ready else 503)

    async def _answer_metrics(self, *_: Any) -> web.Response:
        return web.Response(body=await self._metrics() or b"", headers={"Content-Type": CONTENT_TYPE})

    async def _openapi(self, *_: Any) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def _orders(self, _: web.Request, given: dict[str, Any], __: frozenset[Role]) -> web.Response:
        since, until = given["since"], given["until"]
        if since and until and until < since:
            raise Refusal(400, "until lies before since")
        asked = Orders(
            states=tuple(given["state"]),
            symbol=given["symbol"],
            open_only=given["open"],
            since=since,
            until=until,
            before=given["before"],
            limit=given["limit"],
        )
        return await self._read(asked)

    async def _order(self, _: web.Request, given: dict[str, Any], roles: frozenset[Role]) -> web.Response:
        if given[STORED] and Role.AUDITOR not in roles:
            raise Refusal(403, "the stored bytes are for auditors")
        return await self._read(OneOrder(order_id=given["order_id"], as_of=given["as_of"], stored=given[STORED]))

    async def _positions(self, _: web.Request, given: dict[str, Any], __: frozenset[Role]) -> web.Response:
        asked = Holdings(
            as_of=given["as_of"],
            by=given["by"],
            symbol=given["symbol"],
            everything=given["all"],
            limit=given["limit"],
        )
        return await self._read(asked)

    async def _answer_verification(self, *_: Any) -> web.Response:
        return json_response(self._shown())

    async def _verify(self, *_: Any) -> web.Response:
        try:
            self._verification.begin()
        except TooSoon as error:
            raise Refusal(409, str(error)) from None
        return json_response(self._shown(), 202)

    def _shown(self) -> VerificationShown:
        now = self._verification
        return VerificationShown(
            state=now.state,
            started_at=now.started_at,
            finished_at=now.finished_at,
            problem=now.problem,
            result=now.result,
        )

    async def _read(self, question: Question) -> web.Response:
        try:
            found = await self._ask(question)
        except ReaderBusy as error:
            raise Refusal(503, str(error), retry_after_s=1) from None
        except ReaderFailed as error:
            raise Refusal(503, str(error)) from None
        if found.status != 200:
            raise Refusal(found.status, str(found.body))
        return web.Response(body=orjson.dumps(found.body), content_type="application/json")


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


__all__ = ["ROUTES", "Api", "Parameter", "Refusal"]
