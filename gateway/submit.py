"""Drives each order by `plan.next_step`, with the real clock and the real broker.

Stages, each a queue in which what reduces risk goes first: prepare (look at the target, build, check: no effect at the
broker, so it overlaps the commit of the request), send (the intent is durable first, and only for the next few).
Unknown outcomes go to the prober. A restart is: put every open order into the stage that `next_step` names. An order
is in one stage at a time (`_staged`), or waits for one reason: a time, the connection, a target.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

import msgspec
import structlog

from gateway import answers
from gateway.broker import Broker, CheckOutcome, NotSent, Outcome, Send, TerminalError
from gateway.config import Settings
from gateway.connection import Connection
from gateway.elapsed import elapsed_s
from gateway.flight import Flight
from gateway.guarded import Guard
from gateway.prepare import Admit, Built, NotYet, Preparer
from gateway.probe import Prober
from gateway.queueing import Pace, Timers, TwoLanes
from gateway.requests import Refusal
from gateway.stepping import Stepper, at_broker_first
from gateway.targets import InFlight, Withdraw, acts_on_target, is_overtaken
from ledger.commands import (
    Again,
    CompleteCancel,
    ExpireOrder,
    GiveUp,
    OrderCommand,
    ParkOrder,
    RecordUnknown,
    RefuseOrder,
    StartSend,
    WithdrawOrder,
)
from ledger.order import AT_BROKER, Order, Status
from ledger.plan import Abandon, Check, Expire, Probe, Refuse, Wait, opens_risk
from ledger.plan import Send as SendStep
from ledger.trade import ZERO
from ledger.writer import Cause, Executed, Ledger

log = structlog.get_logger()

MAX_SENDS: Final = 8
MAX_PREPARED: Final = 16
SENDERS: Final = 2
RETRY_TERMINAL_S: Final = 0.25
IMAGE_FRESH_S: Final = 0.25  # an image of a target that is older is taken again
LOOK_AGAIN_S: Final = 1.0  # for those that wait for something without a time: their age goes on
PARK_AFTER_S: Final = 1.0  # a shorter loss of the connection is not told of each order
CAUSE: Final = Cause(actor="gateway")


class _Sending(NamedTuple):
    order_id: str
    attempt: int
    built: Built


class Submitter:
    """Takes orders that are in the ledger and sees each to its end. `on_answer` hears of every recorded answer."""

    def __init__(
        self,
        ledger: Ledger,
        trade: Broker,
        query: Broker,
        settings: Settings,
        clock: Callable[[], datetime],
        connection: Connection,
    ) -> None:
        self._ledger, self._trade, self._query = ledger, trade, query
        self._settings, self._clock = settings, clock
        self._steps = Stepper(ledger, clock, settings.policy)
        self._connection = connection
        self._prepares, self._sends, self._pace = TwoLanes(), TwoLanes(), Pace(settings.max_requests_per_s)
        self._flight = InFlight()
        self._preparer = Preparer(ledger, query, connection, self._flight, settings.default_deviation_points)
        self.closes = self._preparer.closes
        self._targets = Flight(ledger, self._flight, lambda: self._preparer.netting, self._advance)
        self._staged: set[str] = set()
        self._timers = Timers(self._advance)
        self._held: dict[str, None] = {}  # those that wait for the connection
        self._causes: dict[str, Cause] = {}
        self._arrivals: dict[str, int] = {}  # of requests on targets: which came first
        self._counter, self._down_since = itertools.count(), 0.0
        self._settings_at = 0.0  # what was judged before is judged again: other limits may hold now
        self._built: dict[str, Built] = {}
        self._halts, self._guard = ledger.account.halts, Guard()
        self.prober = Prober(
            ledger,
            query,
            clock,
            policy_of=self._steps.policy_of,
            settle_s=settings.settle_s,
            offset_s=lambda: self._offset_s or 0,
            resolved=self._resolved,
        )
        self.on_answer: Callable[[Executed, OrderCommand], None] = lambda _executed, _command: None
        self.in_hand, self._stopping = 0, False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def failure(self) -> "asyncio.Future[BaseException]":
        """Ends with the error that the service cannot survive."""
        return self._guard.failure

    def judge_by(self, admit: Admit) -> None:
        """From now on `admit` says what speaks against each request; before this nothing does."""
        self._preparer.admit = admit

    def use(self, settings: Settings) -> None:
        self._steps.use(settings.policy)
        self._preparer.deviation_points = settings.default_deviation_points
        self._settings_at = elapsed_s()

    @property
    def backlog(self) -> int:
        """Orders that wait for the broker or are on their way to it."""
        return len(self._prepares) + len(self._sends) + self.in_hand + len(self._held)

    def start(self) -> None:
        """Takes up every open order, then runs."""
        self._connection.on_change(self._connection_changed)
        self._ledger.tail.on_commit(self._committed)
        self._guard.start(self._prepare_loop(), "submit-prepare")
        for number in range(SENDERS):
            self._guard.start(self._send_loop(), f"submit-send-{number}")
        self._guard.start(self.prober.run(), "submit-probe")
        # What may be at the broker holds its target before anything else may have it; the rest in the order it came.
        for order in sorted(self._ledger.open_orders.values(), key=at_broker_first):
            self.take(order.order_id, CAUSE)

    async def stop(self, patience_s: float) -> None:
        """Begins nothing new; waits for what is at the broker, at most `patience_s`. The rest is for the next start."""
        self._stopping = True
        self._timers.stop()
        try:
            await asyncio.wait_for(self._idle.wait(), patience_s)
        except TimeoutError:
            log.warning("stopping with calls at the broker: their outcome is settled at the next start")
        await self._guard.stop()

    def take(self, order_id: str, cause: Cause) -> None:
        """Sees to an order that this process has not seen yet. `cause` goes into the events of its life."""
        if cause.source is not None:  # that is the origin of the request alone, not of what follows from it
            cause = msgspec.structs.replace(cause, source=None, actor=CAUSE.actor)
        order = self._ledger.order(order_id)
        if order is None or self._stopping:
            return
        self._causes[order_id] = cause
        if acts_on_target(order):
            self._arrivals.setdefault(order_id, next(self._counter))
        if order.status in AT_BROKER:
            self._take_up(order)
        self._advance(order_id)

    def recheck(self, order_ids: Iterable[str] | None = None) -> None:
        """What orders wait for has changed: asks again for each, or for these."""
        for order_id in self._timers.waiting() if order_ids is None else order_ids:
            self._advance(order_id)

    def acting_on(self, kind: str, number: int) -> str:
        """The order whose request on this `position` or `order` has no outcome yet; empty when there is none."""
        return self._targets.acting_on(kind, number)

    def _take_up(self, order: Order) -> None:
        """Left at the broker by a process that has ended, perhaps between the intent and the answer."""
        self._targets.take_up(order)
        if order.status is Status.SENDING:
            ended = RecordUnknown(attempt=order.attempt, code=0, reason="the process ended before the answer")
            self._tell(order.order_id, ended)

    # --- what is next -------------------------------------------------------------------------------------------

    def _advance(self, order_id: str) -> None:
        """Puts an order into the stage that comes next for it."""
        order = self._ledger.order(order_id)
        if order is None or self._stopping or order_id in self._staged:
            return
        self._timers.cancel(order_id)
        self._held.pop(order_id, None)
        match self._steps.step(order):
            case Check():
                self._stage(self._prepares, order)
            case SendStep():
                prepared = order_id in self._built or not acts_on_target(order)
                self._stage(self._sends if prepared else self._prepares, order)
            case Probe():
                self._targets.unknown(order, self._settings.settle_s)
                self.prober.add(order)
            case Expire() as expire:
                command = ExpireOrder(age_s=expire.age_s, limit_s=expire.limit_s, cause=expire.cause)
                self._end_here(order_id, command)
            case Refuse() as refuse:
                self._refuse(order_id, refuse.reasons)
            case Abandon() as abandon:
                self._end_here(order_id, GiveUp(reason=abandon.reason))
            case Wait() as wait:
                self._timers.later(order_id, wait.delay_s)
            case _:
                self._forget(order_id)

    def _stage(self, queue: TwoLanes, order: Order) -> None:
        self._staged.add(order.order_id)
        queue.put(order.order_id, urgent=acts_on_target(order) and not opens_risk(order))

    def _go_on(self, order_id: str) -> None:
        """Its stage is done."""
        self._staged.discard(order_id)
        self._advance(order_id)

    def _wait(self, order_id: str, delay_s: float) -> None:
        """Its stage could not be done now."""
        self._staged.discard(order_id)
        self._timers.later(order_id, delay_s)

    def _end_here(self, order_id: str, command: OrderCommand) -> None:
        """Ends an order that is not at the broker."""
        self._tell(order_id, command)
        self._forget(order_id)

    def _refuse(self, order_id: str, reasons: tuple[str, ...]) -> None:
        self._end_here(order_id, RefuseOrder(reasons=reasons))

    def _forget(self, order_id: str) -> None:
        """Nothing more is to be sent of it."""
        self._staged.discard(order_id)
        self._built.pop(order_id, None)
        self._steps.forget(order_id)
        self._causes.pop(order_id, None)
        self._arrivals.pop(order_id, None)
        self._targets.release(order_id)

    def _committed(self) -> None:
        self._targets.look()
        if self._ledger.account.halts is not self._halts:
            self._halts = self._ledger.account.halts
            self.recheck()

    # --- connection ---------------------------------------------------------------------------------------------

    def _connection_changed(self, up: bool) -> None:
        if not up:
            self._down_since = elapsed_s()
            return
        self.prober.hasten()
        for order_id in list(self._held):
            self._advance(order_id)

    def _hold(self, order_ids: list[str]) -> None:
        """They wait for the connection, up to their age limit, and say so when it takes long."""
        park = elapsed_s() - self._down_since >= PARK_AFTER_S
        for order_id in order_ids:
            order = self._ledger.order(order_id)
            self._staged.discard(order_id)
            self._built.pop(order_id, None)
            if order is None or not isinstance(self._steps.step(order), SendStep):
                self._advance(order_id)
                continue
            if park:
                again = Again(delay_s=ZERO, not_before=self._clock())
                reason = f"not connected to the broker: {self._connection.reason}"
                self._tell(order_id, ParkOrder(reason=reason, again=again))
            self._held[order_id] = None
            self._timers.later(order_id, LOOK_AGAIN_S)

    # --- prepare ------------------------------------------------------------------------------------------------

    async def _prepare_loop(self) -> None:
        while True:
            await self._prepares.ready()
            order_ids = self._prepares.take(MAX_PREPARED)
            self._begin(len(order_ids))
            try:
                await self._prepare(order_ids)
            finally:
                self._end(len(order_ids))

    async def _prepare(self, order_ids: list[str]) -> None:
        checks: list[tuple[str, Built]] = []
        targets = []
        for order_id in order_ids:
            order = self._ledger.order(order_id)
            if order is None or order_id not in self._staged:
                continue
            if acts_on_target(order):
                targets.append(self._prepare_target(order))
                continue
            try:
                found = await self._preparer.opening(order)
            except TerminalError as error:
                self._after_check(order_id, None, str(error))
                continue
            if isinstance(found, Refusal):
                self._refuse(order_id, found.reasons)
            else:
                checks.append((order_id, found))
        if targets:
            await asyncio.gather(*targets)
        if checks:
            outcomes = await self._query.check([built.request for _, built in checks])
            for (order_id, built), outcome in zip(checks, outcomes, strict=True):
                self._built[order_id] = built
                self._after_check(order_id, outcome, "")

    def _after_check(self, order_id: str, outcome: CheckOutcome | None, problem: str) -> None:
        command = answers.checked(outcome, problem)
        # A passed check is followed by the intent at once: one commit does for both.
        self._tell(order_id, command, soon=command.passed)
        self._go_on(order_id)

    async def _prepare_target(self, order: Order) -> None:
        if (built := await self._look(order)) is not None:
            self._built[order.order_id] = built
            self._go_on(order.order_id)

    async def _look(self, order: Order) -> Built | None:
        """The request of the next attempt, from symbol and target as they are now; None when the order goes another
        way."""
        order_id, preparer = order.order_id, self._preparer
        try:
            found = await (preparer.on_target(order) if acts_on_target(order) else preparer.opening(order))
        except TerminalError as error:
            log.warning("the terminal does not answer, the order waits", order_id=order_id, error=str(error))
            self._wait(order_id, RETRY_TERMINAL_S)
            return None
        match found:
            case Built():
                return found
            case Refusal(reasons):
                self._refuse(order_id, reasons)
            case Withdraw(target_id):
                self._withdraw(order_id, target_id)
            case NotYet(look_again_s):
                self._wait(order_id, look_again_s)
        return None

    def _withdraw(self, order_id: str, target_id: str) -> None:
        """A cancel of what has not been sent needs no broker."""
        self._tell(target_id, WithdrawOrder(by=order_id))
        self._forget(target_id)
        self._end_here(order_id, CompleteCancel())

    def _overtake(self, newer: Order) -> None:
        """A change that waits for its next attempt must not undo a newer one of the same values."""
        came = self._arrivals.get(newer.order_id, 0)
        for order_id in [one for one in self._steps.waiting() if self._arrivals.get(one, came) < came]:
            older = self._ledger.order(order_id)
            if older is not None and is_overtaken(older, newer):
                self._refuse(order_id, (f"overtaken by the newer change {newer.order_id} of the same target",))

    # --- send ---------------------------------------------------------------------------------------------------

    async def _send_loop(self) -> None:
        while True:
            await self._sends.ready()
            # Nothing is taken out of its lane before it may go: what is urgent meanwhile goes first.
            if not self._connection.is_fresh and not await self._connection.verify():
                self._hold(self._sends.take(len(self._sends)))
                continue
            room = self._pace.room(MAX_SENDS)
            if not room:
                await asyncio.sleep(self._pace.wait_s())
                continue
            order_ids = self._sends.take(room)
            self._pace.count(len(order_ids))
            self._begin(len(order_ids))
            try:
                await self._send(order_ids)
            finally:
                self._end(len(order_ids))

    async def _send(self, order_ids: list[str]) -> None:
        built: list[tuple[str, Built]] = []
        for order_id in order_ids:
            if (ready := await self._ready(order_id)) is not None:
                built.append((order_id, ready))
        # From here to the intent nothing is waited for: what is judged young enough now is sent now.
        sends: list[_Sending] = []
        durable = None
        for order_id, ready in built:
            started = self._start(order_id, ready)
            if started is not None:
                sends.append(_Sending(order_id, started.order.attempt, ready))
                durable = started.durable
        self._pace.give_back(len(order_ids) - len(sends))
        if durable is None:
            return
        # Counted from before the commit: a process that is paused behind it, and displaced, sends nothing any more.
        not_after = elapsed_s() + self._settings.not_after_s
        # One writer commits in order: when the last intent is durable, all are.
        await durable
        if self._ledger.account.halted:
            sends = self._without_halted(sends)
        began = time.perf_counter()
        outcomes = await self._trade.send([Send(one.built.request, not_after) for one in sends])
        latency_s = Decimal(round((time.perf_counter() - began) * 1e6)) / 1_000_000
        for one, outcome in zip(sends, outcomes, strict=True):
            self._after_send(one, outcome, latency_s)

    def _without_halted(self, sends: list[_Sending]) -> list[_Sending]:
        """Trading may have been halted while the intents were made durable: what opens is not sent then."""
        opening = [one for one in sends if (order := self._ledger.order(one.order_id)) and opens_risk(order)]
        for one in opening:
            self._after_send(one, NotSent(0, "trading was halted before it was sent"), ZERO)
        return [one for one in sends if one not in opening]

    async def _ready(self, order_id: str) -> Built | None:
        """The request to be sent; None when the order goes another way."""
        built = self._built.pop(order_id, None)
        order = self._ledger.order(order_id)
        if order is None or order_id not in self._staged:
            return None
        # Of a target only the present counts: while it waited here the target may have moved.
        if built is not None and (built.before is None or elapsed_s() - built.at <= IMAGE_FRESH_S):
            return built
        return await self._look(order)

    def _start(self, order_id: str, built: Built) -> Executed | None:
        """Records the intent, if that is still the next step."""
        order = self._ledger.order(order_id)
        if order is None or self._stopping:
            return None
        step = self._steps.step(order)
        if not isinstance(step, SendStep) or built.at < self._settings_at:
            self._go_on(order_id)
            return None
        targeted = built.before is not None
        if not targeted and not self._targets.may_open(order_id, built.request.symbol):
            self._wait(order_id, LOOK_AGAIN_S)
            return None
        self._steps.forget(order_id)
        intent = StartSend(attempt=step.attempt, request=built.request, before=built.before)
        started = self._tell(order_id, intent)
        if targeted and order.action == "modify":
            self._overtake(started.order)
        return started

    def _after_send(self, sending: _Sending, outcome: Outcome, latency_s: Decimal) -> None:
        order_id, attempt, built = sending
        order = self._ledger.order(order_id)
        if order is None:
            return
        if answers.proves_connection(outcome):
            self._connection.answered()
        command = answers.sent(
            order,
            attempt,
            built.request,
            outcome,
            self._clock(),
            self._steps.policy_of(order_id),
            point=built.point,
            broker_utc_offset_s=self._offset_s or 0,
            latency_s=latency_s,
        )
        executed = self._tell(order_id, command)
        self.on_answer(executed, command)
        if executed.order.status is not Status.UNKNOWN:
            self._targets.release(order_id)
        if not executed.order.is_open:
            self._forget(order_id)
        elif isinstance(outcome, NotSent):
            self._wait(order_id, RETRY_TERMINAL_S * 2 ** min(executed.order.unreached - 1, 5))
        else:
            self._go_on(order_id)

    def _resolved(self, order_id: str) -> None:
        """Its outcome is unknown no more."""
        self._targets.release(order_id)
        self._advance(order_id)

    # --- common -------------------------------------------------------------------------------------------------

    @property
    def _offset_s(self) -> int | None:
        return self._connection.account.server_utc_offset_s

    def _tell(self, order_id: str, command: OrderCommand, *, soon: bool = False) -> Executed:
        return self._ledger.execute(order_id, command, self._causes.get(order_id, CAUSE), soon=soon)

    def _begin(self, orders: int) -> None:
        self.in_hand += orders
        self._idle.clear()

    def _end(self, orders: int) -> None:
        self.in_hand -= orders
        if not self.in_hand:
            self._idle.set()
