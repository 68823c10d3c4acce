"""A client of the running service: finds it, publishes an order, waits for what becomes of it."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway import nats_connection
from gateway.config import Settings
from gateway.run_file import GATEWAYS, read_run_file
from ledger.intake import MARKET_TYPES, read_order
from ledger.values import subject_token

CONNECT_S: Final = 5.0
NEWS: Final = ("broker.fill.>", "broker.error.>", "broker.order.>")


class NoAnswer(Exception):
    """The service cannot be reached, or said nothing in time."""


def running(settings: Settings) -> dict[str, Any] | None:
    """What the service of this data folder wrote about itself, None when none runs."""
    return read_run_file(settings.data / GATEWAYS)


async def connect(settings: Settings) -> Client:
    """A connection to the bus of the running service, or to NATS_URL. Raises NoAnswer."""
    found = running(settings)
    if settings.nats_url is not None:
        servers = [one.strip() for one in settings.nats_url.reveal().split(",")]
    elif found is not None:
        servers = str(found["nats_url"]).split(",")
    else:
        raise NoAnswer(f"no service runs on {settings.data}: start `order-ledger serve`, or set NATS_URL")
    try:
        return await nats_connection.connect(
            settings, servers, name="order-ledger command", reconnect=False, within_s=CONNECT_S
        )
    except nats_connection.NatsUnreachable as error:
        raise NoAnswer(f"{error}. Does `order-ledger serve` run?") from None


class News:
    """Collects what the service says, by order id."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._all: list[tuple[str, dict[str, Any]]] = []
        self._arrived = asyncio.Condition()

    async def open(self) -> None:
        for subject in NEWS:
            await self._connection.subscribe(subject, cb=self._take)
        await self._connection.flush()

    async def _take(self, message: Msg) -> None:
        with contextlib.suppress(orjson.JSONDecodeError):
            async with self._arrived:
                self._all.append((message.subject, orjson.loads(message.data)))
                self._arrived.notify_all()

    async def outcome(self, order_id: str | None, after: int, timeout_s: float) -> tuple[dict[str, Any], int]:
        """The first final news behind index `after` about the order (None: about a message without one), and the
        index behind it. Raises TimeoutError."""

        def find() -> tuple[dict[str, Any], int] | None:
            for index in range(after, len(self._all)):
                subject, body = self._all[index]
                named = body.get("order_id")
                if (named == order_id or (order_id is None and not named)) and body.get("final"):
                    return body | {"subject": subject}, index + 1
            return None

        async with self._arrived, asyncio.timeout(timeout_s):
            while (found := find()) is None:
                await self._arrived.wait()
            return found

    async def first(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float) -> dict[str, Any]:
        """The first news that is wanted, with its subject. Raises TimeoutError."""
        async with self._arrived, asyncio.timeout(timeout_s):
            seen = 0
            while True:
                for subject, body in self._all[seen:]:
                    if wanted(body):
                        return body | {"subject": subject}
                seen = len(self._all)
                await self._arrived.wait()


def order_id_of(payload: bytes) -> str | None:
    """The order id a payload names. What is no order id to the gateway is none here: the answer names none then."""
    return read_order(payload).order_id


def _symbol_of(payload: bytes) -> str:
    """The symbol a payload names, as it stands there; empty when there is none."""
    try:
        body = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return ""
    symbol = body.get("symbol") if isinstance(body, dict) else None
    return symbol if isinstance(symbol, str) else ""


async def publish(connection: Client, payload: bytes, timeout_s: float = 5.0) -> None:
    """Publishes an order; returns when the stream of orders has it. Raises NoAnswer."""
    subject = f"orders.submitted.{subject_token(_symbol_of(payload))}"
    try:
        await connection.jetstream().publish(subject, payload, timeout=timeout_s)
    except (nats.errors.Error, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise NoAnswer(f"the order was not taken by the message bus: {reason}") from None


def settled(body: dict[str, Any]) -> bool:
    """Whether news of an order are what its sender waits for: its end, or that it works at the broker."""
    return bool(body.get("final")) or (
        body.get("event") == "order.placed" and body.get("order_type", "buy") not in MARKET_TYPES
    )


async def submit_order(settings: Settings, payload: bytes, timeout_s: float) -> dict[str, Any]:
    """Publishes the order and returns its outcome, of a pending order that it works. Raises NoAnswer."""
    order_id = order_id_of(payload)
    last: dict[str, Any] = {}

    def wanted(body: dict[str, Any]) -> bool:
        if (body.get("order_id") or None) != order_id:
            return False
        last.update(body)
        return settled(body)

    connection = await connect(settings)
    try:
        news = News(connection)
        await news.open()
        await publish(connection, payload)
        try:
            return await news.first(wanted, timeout_s)
        except TimeoutError:
            raise NoAnswer(_no_outcome(order_id, last, timeout_s)) from None
    finally:
        await connection.close()


def _no_outcome(order_id: str | None, last: dict[str, Any], timeout_s: float) -> str:
    if order_id is None:
        return f"no answer to the message within {timeout_s:g} s; it waits in the stream ORDERS: does the gateway run?"
    if not last:
        return (
            f"no news of order {order_id} within {timeout_s:g} s; it waits in the stream ORDERS, and is taken when the "
            "gateway runs"
        )
    said = last.get("description") or "; ".join(last.get("reasons") or ())
    standing = f"{last.get('event', '')}: {said}" if said else str(last.get("event", ""))
    return (
        f"no outcome of order {order_id} within {timeout_s:g} s, it goes on ({standing}): "
        f"see `order-ledger history {order_id}`"
    )
