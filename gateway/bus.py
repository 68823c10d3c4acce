"""Orders in: a durable pull consumer on the JetStream stream ORDERS.

A message is acknowledged once what it caused is durable in the ledger. Nothing is dropped: what is not an order
becomes an event of the inbox stream. A lost or late acknowledgement is harmless, since the same order is recognised.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from gateway.guarded import cancelled
from gateway.submit import Submitter
from ledger.account_events import MessageRejected
from ledger.commands import ReceiveOrder
from ledger.errors import LedgerError
from ledger.events import Source, inbox_stream
from ledger.intake import Received, read_order
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

STREAM: Final = "ORDERS"
SUBMITTED: Final = "orders.submitted.>"
ADDRESSED: Final = "orders.account.>"
# How long an order waits that a killed gateway had taken and not recorded. While this one has a message in hand it
# says so; else a long stall of ledger or broker would look like messages that kill every gateway.
ACK_WAIT_S: Final = 5.0
IN_HAND_EVERY: Final = 3  # times within that
MAX_DELIVERIES: Final = 20
PULL: Final = 256
PULL_EXPIRES_S: Final = 30.0
HEARTBEAT_S: Final = 5.0
MAX_BACKLOG: Final = 2_000
KEEP_ORDERS_S: Final = 7 * 86_400  # what nobody took for a week is far past its age limit


class BusRefused(Exception):
    """The message bus is set up in a way the service cannot work with; the text says what to change."""


class Pull:
    """Messages of a durable consumer, with requests renewed before they run dry, so that none waits for a round trip.

    The client's own `fetch` ends each request before it begins the next; here they overlap.
    """

    def __init__(self, connection: Client, stream: str, consumer: str, recover: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._recover = recover  # sets up the consumer again
        self._gone = False
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._outstanding = 0
        self._heard = time.monotonic()
        self._subscription: Subscription | None = None
        self._inbox = ""

    async def open(self) -> None:
        self._inbox = self._connection.new_inbox()
        self._subscription = await self._connection.subscribe(self._inbox, cb=self._receive)

    async def next(self, most: int) -> list[Msg]:
        """At least one message, at most `most`."""
        while not self._messages:
            self._arrived.clear()
            if self._gone:
                await self._recover()
                self._gone = False
            if self._outstanding < PULL // 2 or time.monotonic() - self._heard > 3 * HEARTBEAT_S:
                await self._request()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._arrived.wait()
        if self._outstanding < PULL // 2:
            await self._request()
        return [self._messages.popleft() for _ in range(min(most, len(self._messages)))]

    @property
    def waiting(self) -> Sequence[Msg]:
        """Messages that arrived and were not asked for yet."""
        return tuple(self._messages)

    def reset(self) -> None:
        """After a reconnect the server knows nothing of the requests made before."""
        self._outstanding = 0
        self._arrived.set()

    async def close(self) -> None:
        if self._subscription is not None and not self._connection.is_closed:
            with contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()

    async def _request(self) -> None:
        nanoseconds = 1_000_000_000
        body = msgspec.json.encode(
            {
                "batch": PULL,
                "expires": int(PULL_EXPIRES_S * nanoseconds),
                "idle_heartbeat": int(HEARTBEAT_S * nanoseconds),
            }
        )
        self._outstanding = PULL
        self._heard = time.monotonic()
        try:
            await self._connection.publish(self._subject, body, reply=self._inbox)
        except nats.errors.Error as error:
            self._outstanding = 0
            log.warning("cannot ask for orders", error=str(error) or type(error).__name__)

    async def _receive(self, message: Msg) -> None:
        self._heard = time.monotonic()
        status = message.headers.get("Status") if message.headers and not message.reply else None
        if status is None:
            self._messages.append(message)
            self._outstanding -= 1
        elif status == "100":
            return
        else:
            # 408: the request ended; 409: the consumer moved or is gone. Either way it is asked anew.
            self._outstanding = 0
            description = (message.headers or {}).get("Description", "")
            if status == "503" or "Consumer Deleted" in description:
                self._gone = True
            if status != "408":
                log.warning("consumer", status=status, description=description)
                await asyncio.sleep(0.2)
        self._arrived.set()


class OrderBus:
    """Reads orders, records them, answers for them to the bus, and hands them on."""

    def __init__(
        self,
        connection: Client,
        ledger: Ledger,
        submitter: Submitter,
        clock: Callable[[], datetime],
        *,
        max_ack_pending: int = 2_000,
        unaddressed: bool = True,
        ack_wait_s: float = ACK_WAIT_S,
    ) -> None:
        self._ack_wait_s = ack_wait_s
        self._connection, self._ledger, self._submitter, self._clock = connection, ledger, submitter, clock
        self._max_ack_pending, self._unaddressed = max_ack_pending, unaddressed
        self._account = str(ledger.login)
        self._pull = Pull(connection, STREAM, f"order-ledger-{self._account}", self._set_up)
        self._task: asyncio.Task[None] | None = None
        self._acks: dict[asyncio.Task[None], Sequence[Msg]] = {}
        self._in_hand: asyncio.Task[None] | None = None
        self._unrecorded: dict[str, int] = {}
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Sets up stream and consumer and begins to read. Raises BusRefused."""
        await self._set_up()
        await self._pull.open()
        self._task = asyncio.create_task(self._run(), name="order-bus")
        self._in_hand = asyncio.create_task(self._keep_in_hand(), name="order-bus-in-hand")

    def reconnected(self) -> None:
        self._pull.reset()

    async def stop(self) -> None:
        """Reads nothing more; what was read is acknowledged when durable."""
        for task in (self._task, self._in_hand):
            await cancelled(task)
        await self._pull.close()
        if self._acks:
            await asyncio.wait(self._acks, timeout=0.5)

    async def _set_up(self) -> None:
        js = self._connection.jetstream()
        try:
            info = await js.stream_info(STREAM)
        except nats.js.errors.NotFoundError:
            try:
                await js.add_stream(StreamConfig(name=STREAM, subjects=[SUBMITTED, ADDRESSED], max_age=KEEP_ORDERS_S))
            except nats.js.errors.APIError as error:
                raise BusRefused(f"cannot create the stream {STREAM}: {error.description}") from None
            info = await js.stream_info(STREAM)
        except nats.js.errors.APIError as error:
            raise BusRefused(f"JetStream does not answer for {STREAM}: {error.description}") from None
        wanted = self._wanted_subjects(info.config)
        if self._unaddressed:
            await self._refuse_rivals(js)
        config = ConsumerConfig(
            durable_name=f"order-ledger-{self._account}",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait_s,
            max_ack_pending=self._max_ack_pending,
            filter_subjects=wanted,
        )
        try:
            await js.add_consumer(STREAM, config)
        except nats.js.errors.APIError as error:
            raise BusRefused(
                f"the consumer {config.durable_name} of {STREAM} differs from what is needed "
                f"({error.description}): delete it, nothing is lost by that"
            ) from None

    def _wanted_subjects(self, stream: StreamConfig) -> list[str]:
        """What is read of the stream. Raises BusRefused when the stream is none that orders are safe in."""
        subjects = stream.subjects or []
        if stream.storage == StorageType.MEMORY:
            raise BusRefused(f"the stream {STREAM} is kept in memory, orders would be lost: use file storage")
        if stream.retention == RetentionPolicy.INTEREST:
            raise BusRefused(f"the stream {STREAM} keeps nothing while nobody listens: use retention limits")
        if stream.sealed:
            raise BusRefused(f"the stream {STREAM} is sealed: it takes no orders")
        addressed = f"orders.account.{self._account}.>"
        covered = any(one in subjects for one in (ADDRESSED, "orders.>", addressed))
        if not self._unaddressed:
            if not covered:
                raise BusRefused(f"the stream {STREAM} listens on {subjects}: add {ADDRESSED}")
            return [addressed]
        if SUBMITTED not in subjects and "orders.>" not in subjects:
            raise BusRefused(f"the stream {STREAM} listens on {subjects}: add {SUBMITTED}")
        return [SUBMITTED, addressed] if covered else [SUBMITTED]

    async def _refuse_rivals(self, js: JetStreamContext) -> None:
        """Two gateways that take the same unaddressed orders would each send them. Raises BusRefused."""
        own = f"order-ledger-{self._account}"
        for other in await js.consumers_info(STREAM):
            filters = other.config.filter_subjects or [other.config.filter_subject or ""]
            if other.name != own and other.name.startswith("order-ledger-") and SUBMITTED in filters:
                raise BusRefused(
                    f"the gateway of account {other.name.removeprefix('order-ledger-')} takes {SUBMITTED} already: set "
                    f"TAKE_UNADDRESSED=off here, or delete the consumer {other.name} of {STREAM} if that one is gone"
                )

    async def _run(self) -> None:
        try:
            while True:
                if self._submitter.backlog > MAX_BACKLOG:
                    await asyncio.sleep(0.01)
                    continue
                messages = await self._pull.next(PULL)
                await self._take(messages)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self.failure.done():
                self.failure.set_result(error)

    async def _keep_in_hand(self) -> None:
        """Tells the server of the messages that wait here, or for their commit, so that it does not send them again."""
        while True:
            await asyncio.sleep(self._ack_wait_s / IN_HAND_EVERY)
            waiting = [*self._pull.waiting, *(one for messages in self._acks.values() for one in messages)]
            try:
                for message in waiting:
                    await message.in_progress()
            except nats.errors.Error as error:
                log.warning("orders may be delivered again", error=str(error) or type(error).__name__)

    async def _take(self, messages: Sequence[Msg]) -> None:
        received = [read_order(message.data, self._account) for message in messages]
        await self._ledger.load({one.order_id for one in received if one.order_id is not None})
        durable: list[asyncio.Future[Any]] = []
        poison: set[int] = set()
        for number, (message, one) in enumerate(zip(messages, received, strict=True)):
            if self._is_poison(message, one):
                poison.add(number)
                one = msgspec.structs.replace(  # recorded as what it is
                    one,
                    order_id=None,
                    reasons=(*one.reasons, f"delivered more than {MAX_DELIVERIES} times without being recorded"),
                )
            elif one.order_id is None:
                poison.add(number)
            durable.append(self._record(message, one))
        task = asyncio.create_task(self._acknowledge(messages, durable, poison))
        self._acks[task] = messages
        task.add_done_callback(self._acks.pop)

    def _is_poison(self, message: Msg, received: Received) -> bool:
        """Whether it was delivered so often, and never got into the ledger, that it must be what stops the service."""
        try:
            deliveries = message.metadata.num_delivered or 1
        except nats.errors.Error:
            return False
        return deliveries > MAX_DELIVERIES and (
            received.order_id is None or self._ledger.order(received.order_id) is None
        )

    def _record(self, message: Msg, received: Received) -> "asyncio.Future[Any]":
        arrived, source = _origin(message)
        cause = Cause(
            actor="client", source=source, correlation_id=received.correlation_id, causation_id=received.causation_id
        )
        if received.order_id is None:
            rejected = MessageRejected(reasons=received.reasons, raw=received.raw, symbol=received.symbol)
            return self._ledger.append(inbox_stream(self._clock()), rejected, cause)
        created = received.request.created_at if received.request else None
        executed = self._ledger.execute(
            received.order_id,
            ReceiveOrder(
                received=received,
                age_from=_age_from(created, arrived, self._clock()),
                unrecorded=self._unrecorded.get(received.order_id, 0),
            ),
            cause,
            soon=True,
        )
        if not executed.events:
            self._unrecorded[received.order_id] = self._unrecorded.get(received.order_id, 0) + 1
        else:
            self._unrecorded.pop(received.order_id, None)
            if executed.order.version == len(executed.events) and executed.order.is_open:
                self._submitter.take(received.order_id, cause)
        return executed.durable

    async def _acknowledge(
        self, messages: Sequence[Msg], durable: "Sequence[asyncio.Future[Any]]", poison: set[int]
    ) -> None:
        """Acknowledges when durable; what is no order is terminated, so that it never comes again. The server handles
        the acknowledgements of one connection in order, so its answer to the last speaks for all; if it does not
        come, the messages come again and are recognised."""
        try:
            for one in durable:
                await one
        except LedgerError:
            return  # not durable, not acknowledged
        await asyncio.sleep(0)  # what else waits for this commit comes first: a call to the broker
        try:
            for number, message in enumerate(messages):
                if number in poison:
                    await message.term()
                elif number < len(messages) - 1:
                    await message.ack()
                else:
                    await message.ack_sync(timeout=5)
        except (nats.errors.Error, TimeoutError) as error:
            log.warning("orders will be delivered again", error=str(error) or type(error).__name__)


def _age_from(created: datetime | None, arrived: datetime | None, now: datetime) -> datetime:
    """When the age of an order begins: when it was created, but never later than it arrived."""
    arrived = arrived or now
    return min(created, arrived) if created is not None else arrived


def _origin(message: Msg) -> tuple[datetime | None, Source]:
    headers = message.headers or {}
    traceparent = headers.get("traceparent", "")[:64]
    try:
        metadata = message.metadata
    except nats.errors.Error:
        return None, Source(subject=message.subject[:256], traceparent=traceparent)
    arrived = metadata.timestamp
    if arrived is not None and arrived.tzinfo is None:
        arrived = arrived.replace(tzinfo=UTC)
    sequence = metadata.sequence.stream if metadata.sequence else 0
    return arrived, Source(
        subject=message.subject[:256], stream=metadata.stream, stream_seq=sequence, traceparent=traceparent
    )
