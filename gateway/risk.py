"""What the limits need to know of the account: how many positions are open, and what today has lost.

Asked of the query terminal by interval, and only when a limit needs it. What it last knew is used as long as it is
fresh; after that it is unknown, and a limit that depends on it refuses what opens.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import structlog

from gateway.broker import Activity, Broker, TerminalError
from gateway.elapsed import elapsed_s
from gateway.halts import ACTOR, LIMIT, Halts, next_midnight
from gateway.validate import Limits
from ledger.order import IDLE, Status
from ledger.trade import TYPE_SELL, ZERO
from ledger.values import plain
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

EVERY_S: Final = 1.0
FRESH_S: Final = 10.0
# Let through, and not yet seen to be a position, a working order or nothing.
_UNDER_WAY: Final = IDLE | {Status.SENDING, Status.UNKNOWN}
_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def daily_loss(activity: Activity, midnight_msc: int) -> Decimal:
    """What was lost since the server's midnight: the results and costs of today's deals, and what the open
    positions would lose now. Never negative. Deposits and the like are no results."""
    dealt = sum(
        (
            deal.profit + deal.commission + deal.swap + deal.fee
            for deal in activity.deals
            if deal.type <= TYPE_SELL and deal.time_msc >= midnight_msc
        ),
        ZERO,
    )
    floating = sum((position.profit + position.swap for position in activity.positions), ZERO)
    return plain(max(-(dealt + floating), ZERO))


class RiskWatch:
    """Polls while a limit needs it, and halts when the daily loss is reached: until the server's next midnight."""

    def __init__(
        self,
        query: Broker,
        ledger: Ledger,
        halts: Halts,
        limits: Limits,
        clock: Callable[[], datetime],
        server_utc_offset_s: Callable[[], int | None],
    ) -> None:
        self._query, self._ledger, self._halts, self._limits = query, ledger, halts, limits
        self._clock, self._server_utc_offset_s = clock, server_utc_offset_s
        self._positions, self._loss, self._at = 0, ZERO, float("-inf")
        self._under_way: dict[str, float] = {}  # orders let through, and when
        self._look_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def _offset_s(self) -> int:
        return self._server_utc_offset_s() or 0

    @property
    def needed(self) -> bool:
        return bool(self._limits.open_positions or self._limits.daily_loss)

    async def start(self) -> "asyncio.Task[None]":
        self._take_up()
        if self.needed:
            await self._look()
        self._task = asyncio.create_task(self._run(), name="risk")
        return self._task

    def use(self, limits: Limits) -> None:
        """What is counted newly is looked at now; until then an order that depends on it is refused."""
        needed, self._limits = self.needed, limits
        if self.needed and not needed:
            self._take_up()
            self._look_now.set()

    def _take_up(self) -> None:
        for order in self._ledger.open_orders.values():
            if order.status in _UNDER_WAY:
                self.let_through(order.order_id)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def let_through(self, order_id: str) -> None:
        """An order that opens goes on to the broker: it counts as a position until it is seen what became of it."""
        if self.needed:
            self._under_way[order_id] = elapsed_s()

    def open_positions(self, but: str) -> int | None:
        """Open positions and orders under way, without the order `but`; None while that is not known."""
        if elapsed_s() - self._at > FRESH_S:
            return None
        return self._positions + len(self._under_way.keys() - {but})

    def daily_loss(self) -> Decimal | None:
        return None if elapsed_s() - self._at > FRESH_S else self._loss

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._look_now.wait()
            self._look_now.clear()
            if self.needed:
                await self._look()

    async def _look(self) -> None:
        began = elapsed_s()
        offset_s = self._offset_s
        midnight = next_midnight(self._clock(), offset_s) - timedelta(days=1)
        midnight_msc = round((midnight - _EPOCH) / timedelta(milliseconds=1)) + offset_s * 1000
        arrived = [one for one in self._under_way if not self._is_under_way(one)]
        try:
            activity = await self._query.activity(midnight_msc)
        except TerminalError as error:
            log.debug("limits cannot be looked at", error=str(error))
            return
        for one in arrived:  # what was dealt before the question is among the positions of the answer
            self._under_way.pop(one, None)
        self._positions, self._loss, self._at = len(activity.positions), daily_loss(activity, midnight_msc), began
        self._judge()

    def _is_under_way(self, order_id: str) -> bool:
        order = self._ledger.order(order_id)
        return order is not None and order.status in _UNDER_WAY

    def _judge(self) -> None:
        now, cause = self._clock(), Cause(actor=ACTOR)
        standing = self._ledger.account.halt(LIMIT)
        if standing is not None and (standing.until is None or now >= standing.until):
            self._halts.resume(LIMIT, "a new day of the server", cause)
            standing = None
        if standing is None and self._limits.daily_loss and self._loss >= self._limits.daily_loss:
            reason = f"today's loss {self._loss} has reached {plain(self._limits.daily_loss)}"
            self._halts.halt(LIMIT, reason, cause, until=next_midnight(now, self._offset_s))
