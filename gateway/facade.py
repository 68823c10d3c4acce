"""The classes that programs of the surrounding system use: `OrderSubmitter` and `FillHandler`.

They speak to the running gateway over NATS and change nothing behind its back: an order goes the way of every order,
and a fill is never written by them but found in the ledger, where the gateway recorded it from the broker's deal.
What they do besides is to wait until a projection holds it. Settings come from the environment, as for every command.
"""

import asyncio
import json
import os
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors

from gateway import operations
from gateway.client import News, NoAnswer, connect, publish, running
from gateway.config import OFF, Settings, load
from gateway.queries import Declined
from gateway.run_file import clickhouse_endpoint
from gateway.secret import Secret
from gateway.show import ask_http
from ledger.intake import MARKET_TYPES, ORDER_TYPES
from ledger.values import Refused, parse_order_id, quoted, subject_token

OUTCOME_S: Final = 30.0
HELD_S: Final = 10.0
LOOK_EVERY_S: Final = 0.05
TOPIC: Final = "broker_communication_log"
_FILLS: Final = ("order.filled", "order.partially_filled", "order.fill_corrected")
_COMMENT: Final = re.compile(r"order_id:([A-Za-z0-9._:-]{1,64})")
# Where the broker gave no return code: the one that says the same.
_DONE, _REJECT, _CANCEL, _ERROR, _INVALID, _TIMEOUT = 10009, 10006, 10007, 10011, 10013, 10012
_RETCODES: Final = {
    "refused": _INVALID,
    "malformed": _INVALID,
    "conflict": _INVALID,
    "stale": _CANCEL,
    "fatal": _REJECT,
    "retries_exhausted": _REJECT,
    "unknown": _ERROR,
}


class NotHeld(Exception):
    """What was to be confirmed is not there: one line that says what and where."""


class OrderResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an order under the names of MetaTrader's OrderSendResult, and what documents expect beside them.
    `retcode` is the broker's; where it was never asked, the one that says the same (`category` and `description` tell
    it better). `time`: ISO 8601, UTC."""

    retcode: int
    deal: int = 0
    order: int = 0
    volume: float = 0.0
    price: float = 0.0
    bid: float = 0.0
    ask: float = 0.0
    comment: str = ""
    request_id: int = 0
    retcode_external: int = 0
    symbol: str = ""
    time: str = ""
    commission: float = 0.0
    swap: float = 0.0
    order_id: str = ""
    event: str = ""
    event_id: str = ""
    seq: int = 0
    subject: str = ""
    category: str = ""
    description: str = ""
    duplicate: bool = False


def extract_order_id(comment: str) -> str:
    """The order id in a comment `order_id:{id}`. Raises ValueError when there is none."""
    found = _COMMENT.search(comment or "")
    if found is None:
        raise ValueError(f"the comment {quoted(comment or '')} names no order: write order_id:{{id}} into it")
    return found[1]


class OrderSubmitter:
    """Sends orders through the gateway."""

    def __init__(self, settings: Settings | None = None, *, timeout_s: float = OUTCOME_S) -> None:
        self._settings = settings if settings is not None else load({})
        self._timeout_s = timeout_s

    async def send_order(
        self,
        symbol: str,
        order_type: int | str,
        volume: float | Decimal | str,
        price: float | Decimal | str | None = None,
        sl: float | Decimal | str | None = None,
        tp: float | Decimal | str | None = None,
        comment: str = "",
        order_id: str | None = None,
        **fields: Any,
    ) -> OrderResult:
        """Sends the order and returns what became of it: a market order's end, a pending order's placing.

        `order_type`: MetaTrader's number or our name. `order_id`, or a comment `order_id:{id}`, is what makes a
        second sending harmless: the same id again returns the standing result and sends nothing. `fields`: any other
        of the order message (`stop_limit_price`, `deviation`, `filling`, `expires_at` …).

        Raises ValueError without an order id or for a type that is none, NoAnswer when the gateway does not say in
        time what became of the order: sending the same order again is then safe, too.
        """
        named = order_id if order_id is not None else extract_order_id(comment)
        try:
            parse_order_id(named)
        except Refused as refused:
            raise ValueError(str(refused)) from None
        kind = _type_name(order_type)
        wish: dict[str, Any] = {"order_id": named, "symbol": symbol, "order_type": kind, "volume": _number(volume)}
        wish |= {name: _number(value) for name, value in (("price", price), ("sl", sl), ("tp", tp)) if value}
        if comment:
            wish["comment"] = comment
        outcome = await self._outcome(wish | fields, pending=kind not in MARKET_TYPES)
        return _result(outcome, comment or f"order_id:{named}")

    async def _outcome(self, wish: dict[str, Any], *, pending: bool) -> dict[str, Any]:
        order_id = wish["order_id"]
        connection = await connect(self._settings)
        try:
            news = News(connection)
            await news.open()
            await publish(connection, json.dumps(wish).encode())

            def ends(body: dict[str, Any]) -> bool:
                return bool(body.get("final")) or (pending and body.get("event") == "order.placed")

            try:
                return await news.first(lambda body: body.get("order_id") == order_id and ends(body), self._timeout_s)
            except TimeoutError:
                raise NoAnswer(
                    f"no outcome of order {order_id!r} within {self._timeout_s:g} s: it is recorded, and sending it "
                    "again under the same order_id is safe"
                ) from None
        finally:
            await connection.close()


def _type_name(order_type: int | str) -> str:
    if isinstance(order_type, int) and not isinstance(order_type, bool) and 0 <= order_type < len(ORDER_TYPES):
        return ORDER_TYPES[order_type]
    if order_type in ORDER_TYPES:
        return str(order_type)
    raise ValueError(f"order_type {order_type!r} is none of 0 to {len(ORDER_TYPES) - 1} or {', '.join(ORDER_TYPES)}")


def _number(value: float | Decimal | str) -> Any:
    return format(value, "f") if isinstance(value, Decimal) else value


def _result(told: Mapping[str, Any], comment: str) -> OrderResult:
    category = str(told.get("category") or "")
    return OrderResult(
        retcode=told.get("retcode") or _RETCODES.get(category, _DONE),
        deal=told.get("deal") or 0,
        order=told.get("ticket") or 0,
        volume=float(told.get("volume") or 0),
        price=float(told.get("price") or 0),
        comment=comment,
        symbol=told.get("symbol") or "",
        time=told.get("timestamp") or told.get("recorded_at") or "",
        commission=float(told.get("commission") or 0),
        swap=float(told.get("swap") or 0),
        order_id=told.get("order_id") or "",
        event=told.get("event") or "",
        event_id=told.get("event_id") or "",
        seq=told.get("seq") or 0,
        subject=told.get("subject") or "",
        category=category,
        description=told.get("description") or "",
        duplicate=bool(told.get("duplicate")),
    )


# --- fills ------------------------------------------------------------------------------------------------------


class Fill(msgspec.Struct, frozen=True):
    """A fill as the ledger holds it."""

    event_id: str
    seq: int
    symbol: str
    order_id: str


class FillHandler:
    """Confirms fills: each method returns the fill's event id when the ledger and the projection concerned hold it,
    and raises NotHeld when they do not in time."""

    def __init__(self, settings: Settings | None = None, *, timeout_s: float = HELD_S) -> None:
        self._settings = settings if settings is not None else load({})
        self._timeout_s = timeout_s

    async def save_execution(self, fill_data: Mapping[str, Any]) -> str:
        """Returns when ClickHouse shows the fill in `executions`."""
        fill = await self._fill(fill_data)

        async def held() -> bool:
            return await asyncio.to_thread(self._is_execution, fill.event_id)

        return await self._until(held, fill, "ClickHouse's executions")

    async def publish_fill(self, subject: str, data: Mapping[str, Any]) -> str:
        """Returns when the fill is in the stream of news. It is published once, by the gateway, on
        `broker.fill.{symbol}`: another subject is a mistake (ValueError)."""
        fill = await self._fill(data)
        expected = f"broker.fill.{subject_token(fill.symbol)}"
        if subject not in (expected, f"broker.fill.{fill.symbol}"):
            raise ValueError(f"the fill of {fill.order_id} goes out on {expected}, not on {subject!r}")
        await _until_published(self._settings, expected, fill.seq, self._timeout_s)
        return fill.event_id

    async def archive_to_kafka(self, fill_data: Mapping[str, Any]) -> str:
        """Returns when the audit log holds the fill: Kafka's topic, or the audit files where there is no Kafka."""
        fill = await self._fill(fill_data)
        if self._settings.kafka_brokers == OFF:
            raise NotHeld("KAFKA_BROKERS is off: there is no audit log")
        if self._settings.kafka_brokers is not None:
            await _until_in_kafka(self._settings.kafka_brokers, fill, self._timeout_s)
            return fill.event_id
        found = running(self._settings) or {}
        folder = Path(str(found.get("audit_dir") or self._settings.data / "audit"))

        async def held() -> bool:
            return await asyncio.to_thread(_is_in_files, folder, fill.event_id)

        return await self._until(held, fill, "the audit files")

    async def _fill(self, data: Mapping[str, Any]) -> Fill:
        """The fill these data speak of, in the ledger."""
        order_id = str(data.get("order_id") or "")
        found: list[Fill] = []

        async def recorded() -> bool:
            try:
                history = await operations.query(self._settings, "history", {"order_id": order_id, "limit": 10_000})
            except Declined as declined:
                if declined.code == "404":
                    return False
                raise NotHeld(str(declined)) from None
            found.extend(_matching(history["events"], order_id, data))
            return bool(found)

        if not await _eventually(recorded, self._timeout_s):
            raise NotHeld(
                f"the ledger holds no fill of order {order_id!r} with ticket {data.get('ticket')} and volume "
                f"{data.get('volume')}: fills are recorded from the broker's deals, never from what a program says"
            )
        return found[-1]

    def _is_execution(self, event_id: str) -> bool:
        settings, served = self._settings, clickhouse_endpoint(self._settings.data)
        if settings.clickhouse_url == Secret(OFF):
            raise NotHeld("CLICKHOUSE_URL is off: there are no executions")
        url = settings.clickhouse_url.reveal() if settings.clickhouse_url else served and served[0]
        if not url:
            return False
        login = (
            (settings.clickhouse_user, settings.clickhouse_password.reveal()) if settings.clickhouse_url else ("", "")
        )
        # The id is ours: letters, digits and a colon.
        query = f"SELECT count() AS n FROM executions WHERE execution_id = '{urllib.parse.quote(event_id, safe=':')}'"  # noqa: S608
        try:
            answer = ask_http(
                url, query, database=settings.clickhouse_database, format="JSON", user=login[0], password=login[1]
            )
        except NoAnswer:
            return False
        return int(json.loads(answer.body)["data"][0]["n"]) > 0

    async def _until(self, held: Callable[[], Awaitable[bool]], fill: Fill, where: str) -> str:
        if not await _eventually(held, self._timeout_s):
            raise NotHeld(f"the fill {fill.event_id} of {fill.order_id} is not in {where} after {self._timeout_s:g} s")
        return fill.event_id


async def publish_fill_confirmation(result: OrderResult, settings: Settings | None = None) -> str:
    """Returns the event id of the order's outcome when it is in the stream of news."""
    return await _confirm(result, settings, error=False)


async def publish_broker_error(result: OrderResult, settings: Settings | None = None) -> str:
    """The same for an order that ended without effect."""
    return await _confirm(result, settings, error=True)


async def _confirm(result: OrderResult, settings: Settings | None, *, error: bool) -> str:
    if not result.event_id or result.subject.startswith("broker.error.") is not error:
        raise ValueError(f"the result of {result.order_id or 'no order'} is {'no error' if error else 'an error'}")
    await _until_published(settings if settings is not None else load({}), result.subject, result.seq, HELD_S)
    return result.event_id


def _matching(events: list[dict[str, Any]], order_id: str, data: Mapping[str, Any]) -> list[Fill]:
    """The fills among the events that the data speak of: by ticket (of order or deal), volume and price."""
    found = []
    for one in events:
        fill = one["data"]
        if fill["event"] not in _FILLS:
            continue
        tickets = (int(fill["order_ticket"]), int(fill["deal"]))
        if data.get("ticket") and int(data["ticket"]) not in tickets:
            continue
        if any(data.get(name) and Decimal(str(data[name])) != Decimal(fill[name]) for name in ("volume", "price")):
            continue
        found.append(Fill(one["event_id"], one["seq"], fill["symbol"], order_id))
    return found


async def _eventually(condition: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110  # others bring it about, elsewhere
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        return False
    return True


async def _until_published(settings: Settings, subject: str, seq: int, within_s: float) -> None:
    """The news of a ledger are published in its order: what comes later on a subject says that this has gone out."""
    found = running(settings) or {}
    login = found.get("login") or settings.mt5_login
    stream = f"BROKER-{login}"
    shared = settings.nats_news == "shared"
    place = f"broker.account.{login}.{subject.removeprefix('broker.')}" if shared else subject
    connection = await connect(settings)
    js = connection.jetstream()

    async def held() -> bool:
        try:
            newest = await js.get_last_msg(stream, place)
        except nats.js.errors.NotFoundError:
            return False
        except (nats.errors.Error, TimeoutError) as error:
            raise NotHeld(f"NATS does not show {stream}: {str(error) or type(error).__name__}") from None
        return int((newest.headers or {}).get("Ledger-Seq", "0")) >= seq

    try:
        if not await _eventually(held, within_s):
            raise NotHeld(f"event {seq} is not on {place} after {within_s:g} s")
    finally:
        await connection.close()


def _is_in_files(folder: Path, event_id: str) -> bool:
    """Newest file first: the fill is young."""
    wanted = f'"{event_id}"'.encode()
    for path in sorted(folder.glob("*.jsonl"), key=lambda one: one.stat().st_mtime, reverse=True)[:3]:
        with path.open("rb") as lines:
            if any(wanted in line for line in lines):
                return True
    return False


async def _until_in_kafka(brokers: str, fill: Fill, within_s: float) -> None:
    from projections.follower import SinkUnavailable
    from projections.kafka_log import is_in_kafka
    from projections.settings import kafka_options

    async def held() -> bool:
        return await is_in_kafka(brokers, kafka_options(os.environ), f"order/{fill.order_id}", fill.event_id)

    try:
        if not await _eventually(held, within_s):
            raise NotHeld(f"the fill {fill.event_id} is not in Kafka's {TOPIC} after {within_s:g} s")
    except SinkUnavailable as error:
        raise NotHeld(str(error)) from None
