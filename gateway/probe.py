"""Looks for the traces of attempts whose outcome is unknown, until the evidence decides.

All attempts that are due are looked for by one set of queries; each that acts on a target also has that shown. How
long absence has been seen is counted monotonically, from the end of the first complete look of this process to the
beginning of this one, so that neither a restart, nor a clock that is set, nor an answer that takes long makes an
absence older than it is.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

import msgspec
import structlog

from gateway.broker import Broker, Evidence, TargetView, TerminalError
from gateway.targets import target_of
from ledger.commands import RecordEvidence
from ledger.order import Order, Status
from ledger.plan import PROBE_DELAYS_S, Policy, resend
from ledger.values import comment_of, magic_of
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

AT_ONCE: Final = 64
# Beyond the age of the order: it was requested by a clock that may have been set right since, by hours where a machine
# began with its local time.
LOOK_BACK_S: Final = 86_400.0
CAUSE: Final = Cause(actor="gateway")


class _Case(msgspec.Struct):
    attempt: int
    due_at: float
    probes: int = 0
    complete_since: float | None = None


class Prober:
    """`resolved` is called with the id of each order that is unknown no more."""

    def __init__(
        self,
        ledger: Ledger,
        query: Broker,
        clock: Callable[[], datetime],
        *,
        policy_of: Callable[[str], Policy],
        settle_s: float,
        offset_s: Callable[[], int],
        resolved: Callable[[str], None],
    ) -> None:
        self._ledger, self._query, self._clock = ledger, query, clock
        self._policy_of, self._settle_s, self._resolved = policy_of, settle_s, resolved
        self._offset_s = offset_s
        self._cases: dict[str, _Case] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._cases)

    def add(self, order: Order) -> None:
        """The outcome of its attempt is unknown. One that is known here already goes on as it is."""
        case = self._cases.get(order.order_id)
        if case is None or case.attempt != order.attempt:
            self._cases[order.order_id] = _Case(order.attempt, time.monotonic() + PROBE_DELAYS_S[0])
            self._wake.set()

    def hasten(self, order_ids: Iterable[str] | None = None) -> None:
        """There may be news: looks at once for these, or for all."""
        now = time.monotonic()
        for order_id in self._cases if order_ids is None else order_ids:
            if (case := self._cases.get(order_id)) is not None:
                case.due_at = min(case.due_at, now)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wait()
            now = time.monotonic()
            due = sorted((case.due_at, one) for one, case in self._cases.items() if case.due_at <= now)
            orders = [order for _, one in due[:AT_ONCE] if (order := self._still_unknown(one)) is not None]
            if orders:
                await self._look(orders)

    async def _wait(self) -> None:
        self._wake.clear()
        next_at = min((case.due_at for case in self._cases.values()), default=None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(next_at):  # the loop's clock is time.monotonic
                await self._wake.wait()

    def _still_unknown(self, order_id: str) -> Order | None:
        order = self._ledger.order(order_id)
        if order is not None and order.status is Status.UNKNOWN and order.attempt == self._cases[order_id].attempt:
            return order
        self._close(order_id)
        return None

    def _close(self, order_id: str) -> None:
        del self._cases[order_id]
        self._resolved(order_id)

    async def _look(self, orders: list[Order]) -> None:
        began = time.monotonic()
        evidence = await self._find(orders)
        for order in orders:
            view, problem = await self._target(order)
            current = self._still_unknown(order.order_id)
            if current is None:
                continue
            case = self._cases[order.order_id]
            now = time.monotonic()
            complete = evidence.complete and not problem
            if complete and case.complete_since is None:
                case.complete_since = now
            settled = complete and case.complete_since is not None and began - case.complete_since >= self._settle_s
            command = _evidence_of(order, evidence, view, complete=complete, settled=settled, problem=problem)
            command = msgspec.structs.replace(
                command,
                broker_utc_offset_s=self._offset_s(),
                again=resend(current, self._clock(), self._policy_of(current.order_id)),
            )
            executed = self._ledger.execute(order.order_id, command, CAUSE)
            if executed.events:
                log.info("probed", order_id=order.order_id, status=executed.order.status.value, reason=command.reason)
            if executed.order.status is not Status.UNKNOWN:
                self._close(order.order_id)
                continue
            case.probes += 1
            case.due_at = now + PROBE_DELAYS_S[min(case.probes, len(PROBE_DELAYS_S) - 1)]

    async def _find(self, orders: list[Order]) -> Evidence:
        now = self._clock()
        since = [order.requested.age_from or now for order in orders if order.requested is not None]
        age_s = max((now - min(since, default=now)).total_seconds(), 0.0)
        magics = [magic_of(order.order_id, order.attempt) for order in orders]
        comments = [comment_of(order.order_id, order.attempt) for order in orders]
        try:
            return await self._query.find(magics, comments, age_s + LOOK_BACK_S)
        except TerminalError as error:
            return Evidence(complete=False, reason=str(error))

    async def _target(self, order: Order) -> tuple[TargetView | None, str]:
        """What the attempt acted on, as it is now, and why that could not be seen."""
        target = target_of(order)
        if target is None:
            return None, ""
        try:
            return await self._query.target(target), ""
        except TerminalError as error:
            return None, str(error)


def _evidence_of(
    order: Order, evidence: Evidence, view: TargetView | None, *, complete: bool, settled: bool, problem: str
) -> RecordEvidence:
    """What of all that was found is this attempt's."""
    magic, comment = magic_of(order.order_id, order.attempt), comment_of(order.order_id, order.attempt)

    def ours(row: object) -> bool:
        return getattr(row, "magic", 0) == magic or comment in getattr(row, "comment", "")

    orders = tuple(row for row in evidence.orders if ours(row))
    history = tuple(row for row in evidence.history if ours(row))
    tickets = {row.ticket for row in (*orders, *history)}
    return RecordEvidence(
        attempt=order.attempt,
        complete=complete,
        settled=settled,
        orders=orders,
        history=history,
        deals=tuple(row for row in evidence.deals if ours(row) or row.order in tickets),
        positions=tuple(row for row in evidence.positions if ours(row)),
        target=view.image if view is not None else None,
        target_history=view.history if view is not None else None,
        target_deals=view.deals if view is not None else (),
        reason=problem or evidence.reason,
    )
