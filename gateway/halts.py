"""Halts: who stops trading, and who lets it go on.

Four sources: an operator, the configuration, a limit, and the dead-man's switch (no heartbeat from upstream). Each
lifts only its own halt, and a halt survives a restart, since it is an event. While any stands nothing opens or adds to
a position (`plan.next_step` asks before every send); closes, cancels and changes of stops pass. Our working orders
stay at the broker, or are cancelled, as the halt says.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from gateway.config import Settings
from gateway.errands import Errands, cancel_order
from gateway.watch import Watch
from ledger.account_events import TradingHalted, TradingResumed
from ledger.errors import LedgerError
from ledger.events import Envelope, Recorded, account_stream
from ledger.order import ENDED, Status
from ledger.order_events import OrderPartiallyFilled, OrderPlaced
from ledger.values import shorten
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

OPERATOR: Final = "operator"
CONFIGURATION: Final = "configuration"
LIMIT: Final = "limit"
HEARTBEAT: Final = "heartbeat"
ACTOR: Final = "gateway"
MAX_REASON: Final = 256
AGAIN_S: Final = 60.0  # how often a working order is cancelled again that could not be
AGAIN_LIFE_S: Final = 10.0  # of such a cancel: a few attempts, not one every few seconds for a whole weekend
_IN_VAIN: Final = ENDED - {Status.COMPLETED}


class Halts:
    """The halts of one account. A repeated halt with the same words is no new event. Without `errands` it cannot be
    started: it halts and lifts all the same."""

    def __init__(self, ledger: Ledger, errands: Errands | None, settings: Settings) -> None:
        self._ledger, self._errands, self._settings = ledger, errands, settings
        self._stream = account_stream(ledger.login)
        self._cancel_wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, watch: Watch) -> "asyncio.Task[None]":
        assert self._errands is not None
        """Brings the halts up to date with the settings, and cancels working orders where a halt says so."""
        self.apply_configuration(self._settings)
        for kind in (OrderPlaced, OrderPartiallyFilled, TradingHalted):
            watch.on(kind.topic(), self._look)
        if self._cancelling() is not None:
            self._cancel_wanted.set()
        self._task = asyncio.create_task(self._cancel_loop(self._errands), name="halts")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def apply_configuration(self, settings: Settings) -> None:
        """The configuration's own halt stands while `HALT` names a reason. A source that was switched off lifts its
        halt; an operator's no settings lift."""
        self._settings = settings
        cause = Cause(actor=ACTOR)
        if settings.halt:
            self.halt(CONFIGURATION, settings.halt, cause)
        else:
            self.resume(CONFIGURATION, "no longer in the configuration", cause)
        if not settings.heartbeat_timeout_s:
            self.resume(HEARTBEAT, "the dead-man's switch is off", cause)
        if not settings.limits.daily_loss:
            self.resume(LIMIT, "there is no limit of the daily loss any more", cause)

    def halt(
        self,
        source: str,
        reason: str,
        cause: Cause,
        *,
        by: str = "",
        cancel_orders: bool | None = None,
        until: datetime | None = None,
    ) -> "asyncio.Future[Any] | None":
        """From now on nothing opens. The future resolves when that is durable; None when it stands already."""
        cancel = self._settings.halt_cancel_orders if cancel_orders is None else cancel_orders
        wanted = TradingHalted(
            source=source, reason=shorten(reason, MAX_REASON), by=by, cancel_orders=cancel, until=until
        )
        if self._ledger.account.halt(source) == wanted:
            return None
        return self._ledger.append(self._stream, wanted, cause)

    def resume(self, source: str, reason: str, cause: Cause, *, by: str = "") -> "asyncio.Future[Any] | None":
        """Lifts the halt of this source alone; None when it has none."""
        if self._ledger.account.halt(source) is None:
            return None
        return self._ledger.append(
            self._stream, TradingResumed(source=source, reason=shorten(reason, MAX_REASON), by=by), cause
        )

    # --- working orders -----------------------------------------------------------------------------------------

    def _cancelling(self) -> TradingHalted | None:
        """The halt in force that wants working orders cancelled."""
        return next((halt for halt in self._ledger.account.halts if halt.cancel_orders), None)

    def _look(self, _: Recorded, __: Envelope) -> None:
        if self._cancelling() is not None:
            self._cancel_wanted.set()

    async def _cancel_loop(self, errands: Errands) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if self._cancelling() and errands.working() else None):
                    await self._cancel_wanted.wait()
            self._cancel_wanted.clear()
            halt = self._cancelling()
            if halt is None:
                continue
            try:
                await self._cancel(errands, halt)
            except LedgerError as error:
                log.warning("working orders are not cancelled", error=str(error))
                return

    async def _cancel(self, errands: Errands, halt: TradingHalted) -> None:
        """One cancel for each working order, and another one where the last has ended without success: in a closed
        market none can be cancelled, and what still works when that opens would open a position."""
        mark = hashlib.sha256(msgspec.json.encode(halt)).hexdigest()[:12]
        left, number = [order for order in errands.working() if order.order_ticket], 0
        while left:
            name = f"halt.{mark}" if not number else f"halt.{mark}.again-{number}"
            wanted = [cancel_order(f"{name}.{order.order_ticket}", order.order_ticket, order.symbol) for order in left]
            given = await errands.give(wanted, Cause(actor=ACTOR), life_s=AGAIN_LIFE_S if number else None)
            left = [order for order, one in zip(left, given, strict=True) if one.known and one.status in _IN_VAIN]
            number += 1


class DeadMansSwitch:
    """Halts when upstream falls silent: any message on the heartbeat's subject is a sign of life.

    Silence counts monotonically, from the start of this process on, so a restart gives upstream its time again; a
    halt that stood before stands until the next sign of life.
    """

    def __init__(
        self, halts: Halts, timeout_s: float, subject: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._halts, self._timeout_s, self._subject, self._clock = halts, timeout_s, subject, clock
        self._heard = clock()
        self._beat = asyncio.Event()
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, connection: Client) -> "asyncio.Task[None]":
        self._subscription = await connection.subscribe(self._subject, cb=self._hear)
        self._task = asyncio.create_task(self._run(), name="dead-mans-switch")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _hear(self, _: Msg) -> None:
        self._heard = self._clock()
        self._beat.set()

    async def _run(self) -> None:
        while True:
            self._beat.clear()
            left_s = self._heard + self._timeout_s - self._clock()
            try:
                async with asyncio.timeout(max(left_s, 0)):
                    await self._beat.wait()
            except TimeoutError:
                text = f"no heartbeat on {self._subject} for {self._timeout_s:g} s"
                self._halts.halt(HEARTBEAT, text, Cause(actor=ACTOR))
                await self._beat.wait()
            self._halts.resume(HEARTBEAT, f"a heartbeat on {self._subject}", Cause(actor=ACTOR))


def next_midnight(now: datetime, server_utc_offset_s: int) -> datetime:
    """When the server's next day begins, in UTC."""
    offset = timedelta(seconds=server_utc_offset_s)
    server = now + offset
    return server.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1) - offset
