"""What the doctor looks at, gathered once: the service, its dependencies, the broker, and the newest events."""

import asyncio
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from gateway.bus import STREAM
from gateway.client import NoAnswer, connect, running
from gateway.config import OFF, Settings, safe_url
from gateway.hub import MAX_ANSWER, HubError, read_answer
from gateway.operations import query
from gateway.queries import Declined
from gateway.run_file import clickhouse_endpoint
from gateway.show import ask_http, open_ledger
from ledger.account_events import ConfigurationAccepted, ConfigurationRefused
from ledger.errors import LedgerError
from ledger.events import Envelope, Recorded, account_stream, decode, event_of
from ledger.order_events import OrderRejected, OrderRequested
from ledger.store import EventStore
from ledger.values import subject_token

RECENT: Final = 5_000
OF_ACCOUNT: Final = 2_000
LOOK_S: Final = 5.0
LATELY: Final = timedelta(hours=1)
HUB_CONFIG: Final = "api/v1/config/mt5-connector"
_MOST_SYMBOLS: Final = 10


class Found(msgspec.Struct, kw_only=True):
    """Of each part, what it said, and an `error` where it did not answer; empty is good."""

    service: dict[str, Any] | None = None
    service_error: str = ""
    data_error: str = ""
    nats_error: str = ""
    orders_subjects: tuple[str, ...] = ()
    consumer: dict[str, Any] | None = None
    consumer_error: str = ""
    echo_s: float | None = None
    published_seq: int = 0  # of the newest fill's message on its subject; 0: none there
    ledger_error: str = ""
    events: list[tuple[Recorded, Envelope]] = []
    since: datetime = datetime.min.replace(tzinfo=UTC)  # what was recorded before this is no longer of today
    configurations: list[ConfigurationAccepted | ConfigurationRefused] = []  # the newest last
    account: dict[str, Any] | None = None
    broker_error: str = ""
    broker_s: float | None = None
    positions_error: str = ""
    symbols: dict[str, dict[str, Any]] = {}
    ticks: dict[str, dict[str, Any]] = {}
    clickhouse: str = ""
    clickhouse_error: str = ""
    kafka: str = ""
    kafka_error: str = ""
    hub: str = ""
    hub_error: str = ""

    def of(self, *kinds: type) -> list[tuple[Recorded, Any]]:
        """The newest events of these kinds, oldest first."""
        return [(recorded, envelope.data) for recorded, envelope in self.events if isinstance(envelope.data, kinds)]

    def lately(self, *kinds: type) -> list[Any]:
        """Those of `LATELY`: of what a sender did, and may have mended long ago."""
        return [one.data for _, one in self.events if isinstance(one.data, kinds) and one.recorded_at >= self.since]

    @property
    def configuration(self) -> ConfigurationAccepted | None:
        """What the service runs by, or ran by last; None where that is not on record."""
        return next((one for one in reversed(self.configurations) if isinstance(one, ConfigurationAccepted)), None)

    def in_force(self, setting: str, otherwise: object) -> str:
        """A setting as the service runs by it, whoever set it there."""
        return (self.configuration.settings if self.configuration else {}).get(setting, str(otherwise))


async def gather(settings: Settings) -> Found:
    """Everything, each part within seconds; nothing of it raises."""
    found = Found(since=datetime.now(UTC) - LATELY)
    _look_at_service(settings, found)
    await asyncio.to_thread(_look_at_ledger, settings, found)
    await asyncio.gather(
        _look_at_bus_and_broker(settings, found),
        asyncio.to_thread(_look_at_clickhouse, settings, found),
        asyncio.to_thread(_look_at_kafka, settings, found),
        asyncio.to_thread(_look_at_hub, settings, found),
    )
    return found


def _look_at_service(settings: Settings, found: Found) -> None:
    if not os.access(settings.data, os.W_OK):
        found.data_error = f"{settings.data} is not there or cannot be written"
    found.service = running(settings)
    if found.service is None:
        found.service_error = f"no service runs on {settings.data}"
        return
    if os.name == "nt":
        return  # there a signal 0 is Ctrl+C: it would end the service that is looked at
    try:
        os.kill(int(found.service["pid"]), 0)
    except ProcessLookupError:
        found.service_error = f"the service of {settings.data} (process {found.service['pid']}) has died"
    except (PermissionError, KeyError, ValueError):
        pass


def _look_at_ledger(settings: Settings, found: Found) -> None:
    try:
        store = open_ledger(settings)
        try:
            head = store.head()
            if head is not None:
                found.events = [(one, decode(one)) for one in store.read(max(head.seq - RECENT, 0), RECENT)]
            found.configurations = _configurations(store, found)
        finally:
            store.close()
    except (LedgerError, msgspec.MsgspecError, ValueError) as error:
        found.ledger_error = " ".join(str(error).split())


def _configurations(store: EventStore, found: Found) -> list[ConfigurationAccepted | ConfigurationRefused]:
    """Of the account's newest events; they may be older than the newest of all."""
    if found.service is None or "login" not in found.service:
        return [event for _, event in found.of(ConfigurationAccepted, ConfigurationRefused)]
    stream = account_stream(int(found.service["login"]))
    events = map(event_of, store.stream(stream, max(store.last_version(stream) - OF_ACCOUNT, 0)))
    return [one for one in events if isinstance(one, ConfigurationAccepted | ConfigurationRefused)]


async def _look_at_bus_and_broker(settings: Settings, found: Found) -> None:
    await _look_at_nats(settings, found)
    if found.nats_error:
        found.broker_error = "not asked: the gateway is asked over NATS, which does not answer"
    else:
        await _look_at_broker(settings, found)


async def _look_at_nats(settings: Settings, found: Found) -> None:
    try:
        connection = await connect(settings)
    except NoAnswer as error:
        found.nats_error = str(error)
        return
    try:
        await _echo(connection, found)
        await _streams(connection, found)
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
        found.nats_error = f"JetStream does not answer: {error or type(error).__name__}"
    finally:
        await connection.close()


async def _echo(connection: Client, found: Found) -> None:
    """A message of our own, heard by a subscription of our own."""
    inbox = connection.new_inbox()
    heard = await connection.subscribe(inbox)
    began = time.monotonic()
    await connection.publish(inbox, b"")
    await heard.next_msg(timeout=LOOK_S)
    found.echo_s = time.monotonic() - began


async def _streams(connection: Client, found: Found) -> None:
    js = connection.jetstream()
    try:
        found.orders_subjects = tuple((await js.stream_info(STREAM)).config.subjects or ())
        login = (found.service or {}).get("login")
        for one in await js.consumers_info(STREAM):
            if login is None or one.name == f"order-ledger-{login}":
                found.consumer = {
                    "name": one.name, "waiting": one.num_waiting or 0, "pending": one.num_pending or 0,
                    "unacknowledged": one.num_ack_pending or 0,
                }  # fmt: skip
    except nats.js.errors.NotFoundError:
        found.consumer_error = f"the stream {STREAM} is not there"
    fills = [one for one in found.events if one[1].data.topic() in ("order.filled", "order.partially_filled")]
    if not fills:
        return
    subject = f"broker.fill.{subject_token(fills[-1][1].data.symbol)}"  # type: ignore[union-attr]
    try:
        stream = await js.find_stream_name_by_subject(subject)
        last = await js.get_last_msg(stream, subject)
        found.published_seq = int(msgspec.json.decode(last.data or b"{}").get("seq", 0))
    except nats.js.errors.NotFoundError:
        found.published_seq = 0


async def _look_at_broker(settings: Settings, found: Found) -> None:
    async def ask(name: str, **fields: Any) -> dict[str, Any]:
        return await asyncio.wait_for(query(settings, name, fields), LOOK_S)

    try:
        began = time.monotonic()
        found.account = await ask("account")
        found.broker_s = time.monotonic() - began
    except (NoAnswer, Declined, LedgerError, TimeoutError) as error:
        found.broker_error = str(error) or f"no answer within {LOOK_S:g} s"
        return
    try:
        await ask("positions")
    except (NoAnswer, Declined, TimeoutError) as error:
        found.positions_error = str(error) or f"no answer within {LOOK_S:g} s"
    named = [event.symbol for _, event in found.of(OrderRequested, OrderRejected) if event.symbol]
    for symbol in list(dict.fromkeys(reversed(named)))[:_MOST_SYMBOLS]:
        try:
            found.symbols[symbol] = (await ask("symbol", symbol=symbol))["symbol"]
            found.ticks[symbol] = await ask("tick", symbol=symbol)
        except (NoAnswer, Declined, TimeoutError) as error:
            found.symbols.setdefault(symbol, {"error": str(error)})


def _look_at_clickhouse(settings: Settings, found: Found) -> None:
    served = clickhouse_endpoint(settings.data)
    url = settings.clickhouse_url.reveal() if settings.clickhouse_url else served and served[0]
    if url == OFF or not url:
        found.clickhouse = "off" if url == OFF else ""
        found.clickhouse_error = "" if url == OFF or found.service_error else "the embedded ClickHouse is not ready"
        return
    found.clickhouse = safe_url(url)
    user, password = settings.clickhouse_user, settings.clickhouse_password.reveal()
    try:
        ask_http(url, "SELECT 1", database=settings.clickhouse_database, format="TSV", user=user, password=password)
    except NoAnswer as error:
        found.clickhouse_error = " ".join(str(error).split())[:300]


def _look_at_kafka(settings: Settings, found: Found) -> None:
    found.kafka = settings.kafka_brokers or "audit files"
    if settings.kafka_brokers in (None, OFF):
        return
    for broker in settings.kafka_brokers.split(","):
        host, _, port = broker.strip().rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=LOOK_S):
                return
        except (OSError, ValueError) as error:
            found.kafka_error = f"{broker.strip()}: {error}"


def _look_at_hub(settings: Settings, found: Found) -> None:
    """The hub that is named here, else the one that the service asks."""
    url = settings.central_hub_url.reveal() or found.in_force("central_hub_url", "")
    if not url.startswith("http"):
        return
    found.hub = safe_url(url)
    request = urllib.request.Request(f"{url.rstrip('/')}/{HUB_CONFIG}")  # noqa: S310  # as an operator configured it
    if settings.central_hub_api_key:
        request.add_header("X-API-Key", settings.central_hub_api_key.reveal())
    try:
        with urllib.request.urlopen(request, timeout=LOOK_S) as response:  # noqa: S310
            read_answer(response.read(MAX_ANSWER + 1))
    except urllib.error.HTTPError as error:
        error.close()
        found.hub_error = (
            "it has no configuration of mt5-connector" if error.code == 404 else f"it answers {error.code}"
        )
    except HubError as error:
        found.hub_error = str(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        found.hub_error = f"it does not answer ({type(error).__name__})"
