"""Drives each order by `plan.next_step`, with the real clock and the real broker.

Three stages, each a queue: check (no effect at the broker, so it overlaps the commit of the request), send (the
intent is durable first, and only for the next few), probe (an unknown outcome, one task each). A restart is: put
every open order into the stage that `next_step` names.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from typing import Final

import msgspec
import structlog

from gateway.broker import (
    Answered,
    Broker,
    Checked,
    CheckOutcome,
    Evidence,
    NotSent,
    Outcome,
    Send,
    Symbol,
    TerminalError,
)
from gateway.config import Settings
from gateway.retcodes import Retcode, RetcodeClass, lookup
from ledger.commands import (
    Again,
    ExpireOrder,
    GiveUp,
    OrderCommand,
    RecordAnswer,
    RecordCheck,
    RecordEvidence,
    RecordNotSent,
    RecordUnknown,
    RefuseOrder,
    StartSend,
)
from ledger.intake import MARKET_TYPES, Supported
from ledger.order import Order, Status
from ledger.plan import Abandon, Check, Expire, Probe, Refuse, Step, Wait, next_step, park, resend, retry
from ledger.plan import Send as SendStep
from ledger.trade import (
    ACTION_DEAL,
    FILLING_BOC,
    FILLING_FOK,
    FILLING_IOC,
    FILLING_RETURN,
    TYPE_BUY,
    TYPE_SELL,
    ZERO,
    TradeRequest,
)
from ledger.values import comment_of, magic_of
from ledger.writer import Cause, Executed, Ledger

log = structlog.get_logger()

MAX_SENDS: Final = 8
MAX_CHECKS: Final = 16
SENDERS: Final = 2
SYMBOL_TTL_S: Final = 60.0
UNKNOWN_SYMBOL_TTL_S: Final = 5.0
MAX_SYMBOLS: Final = 2_000
RETRY_TERMINAL_S: Final = 0.25
ACTOR: Final = "gateway"
# Of what the domain knows, what this gateway can already send, and follow to its end.
SUPPORTED: Final = Supported(frozenset({"open"}), frozenset(MARKET_TYPES))

_FILLINGS: Final = {"fok": FILLING_FOK, "ioc": FILLING_IOC, "return": FILLING_RETURN, "boc": FILLING_BOC}
_EXECUTION_MARKET: Final = 2
Admit = Callable[[str, TradeRequest, Symbol], Awaitable[tuple[str, ...]]]  # every reason against it
_Built = tuple[TradeRequest, Decimal]  # a request, and the point of its symbol
_FLAG_FOK, _FLAG_IOC = 1, 2


class Submitter:
    """Takes orders that are in the ledger and sees each to its end."""

    def __init__(
        self, ledger: Ledger, trade: Broker, query: Broker, settings: Settings, clock: Callable[[], datetime]
    ) -> None:
        self._ledger, self._trade, self._query = ledger, trade, query
        self._settings, self._clock = settings, clock
        self._policy = settings.policy
        self._checks, self._sends = deque[str](), deque[str]()
        self._check_wake, self._send_wake = asyncio.Event(), asyncio.Event()
        self._causes: dict[str, Cause] = {}
        self._waiting: dict[str, tuple[int, float]] = {}  # the failed attempt, and since when (monotonic)
        self._built: dict[str, _Built] = {}  # checked just now, to be sent as checked
        self._symbols: dict[str, tuple[Symbol, float]] = {}  # as many as the broker has
        self._no_symbols: dict[str, float] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.admit: Admit | None = None  # judges a request before it is checked or sent
        self._offset_s = 0
        self.in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @property
    def backlog(self) -> int:
        """Orders that wait or are on their way to the broker."""
        return len(self._checks) + len(self._sends) + self.in_hand

    def start(self) -> None:
        """Takes up every open order, then runs."""
        self._tasks.append(self._guarded(self._check_loop(), "submit-check"))
        self._tasks.extend(self._guarded(self._send_loop(), f"submit-send-{i}") for i in range(SENDERS))
        for order_id in list(self._ledger.open_orders):
            self.take(order_id, Cause(actor=ACTOR))

    async def stop(self, patience_s: float) -> None:
        """Begins nothing new; waits for what is at the broker, at most `patience_s`. The rest is for the next start."""
        self._stopping = True
        for task in self._probing.values():
            task.cancel()
        try:
            await asyncio.wait_for(self._idle.wait(), patience_s)
        except TimeoutError:
            log.warning("stopping with calls at the broker: their outcome is settled at the next start")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._probing.values(), return_exceptions=True)

    def take(self, order_id: str, cause: Cause) -> None:
        """Puts an order into the stage that comes next for it. `cause` goes into the events of its life."""
        if cause.source is not None:  # that is the origin of the request alone, not of what follows from it
            cause = msgspec.structs.replace(cause, source=None, actor=ACTOR)
        order = self._ledger.order(order_id)
        if order is None or self._stopping:
            return
        if order.status is Status.SENDING and order_id not in self._causes:
            # Left by a process that ended between the intent and the answer.
            order = self._tell(
                order_id,
                RecordUnknown(attempt=order.attempt, code=0, reason="the process ended before the answer"),
                cause,
            ).order
        match self._step(order):
            case Check():
                self._causes[order_id] = cause
                self._checks.append(order_id)
                self._check_wake.set()
            case SendStep():
                self._causes[order_id] = cause
                self._sends.append(order_id)
                self._send_wake.set()
            case Probe():
                self._probe_soon(order_id, cause)
            case Expire() as expire:
                command = ExpireOrder(age_s=expire.age_s, limit_s=expire.limit_s, cause=expire.cause)
                self._end_here(order_id, command, cause)
            case Refuse() as refuse:
                self._end_here(order_id, RefuseOrder(reasons=refuse.reasons), cause)
            case Abandon() as abandon:
                self._end_here(order_id, GiveUp(reason=abandon.reason), cause)
            case Wait() as wait:
                self._causes[order_id] = cause
                asyncio.get_running_loop().call_later(wait.delay_s, self.take, order_id, cause)
            case _:
                self._causes.pop(order_id, None)

    def _end_here(self, order_id: str, command: OrderCommand, cause: Cause) -> None:
        """Ends an order that is not at the broker, and forgets what was kept for its sending."""
        self._tell(order_id, command, cause)
        self._built.pop(order_id, None)
        self._waiting.pop(order_id, None)
        self._causes.pop(order_id, None)

    def _step(self, order: Order) -> Step:
        """What is next, with how long this process has waited for it: the wall clock may go back meanwhile."""
        waited_s = 0.0
        if order.status in (Status.WAITING, Status.PARKED):
            attempt, since = self._waiting.get(order.order_id, (0, 0.0))
            if attempt != order.attempt:
                since = time.monotonic()
                self._waiting[order.order_id] = (order.attempt, since)
            waited_s = time.monotonic() - since
        halted = self._ledger.account.halted
        return next_step(order, self._clock(), self._policy, waited_s=waited_s, halted=halted)

    # --- check --------------------------------------------------------------------------------------------------

    async def _check_loop(self) -> None:
        while True:
            order_ids = await _next(self._checks, self._check_wake, MAX_CHECKS)
            self._begin(len(order_ids))
            try:
                await self._check(order_ids)
            finally:
                self._end(len(order_ids))

    async def _check(self, order_ids: list[str]) -> None:
        built: list[tuple[str, TradeRequest]] = []
        for order_id in order_ids:
            try:
                ready = await self._build(order_id)
            except TerminalError as error:
                self._after_check(order_id, None, str(error))
                continue
            if ready is not None:
                built.append((order_id, ready[0]))
                self._built[order_id] = ready
        if not built:
            return
        outcomes = await self._query.check([request for _, request in built])
        for (order_id, _), outcome in zip(built, outcomes, strict=True):
            self._after_check(order_id, outcome, "")

    def _after_check(self, order_id: str, outcome: CheckOutcome | None, problem: str) -> None:
        cause = self._causes[order_id]
        if isinstance(outcome, Checked):
            result = outcome.result
            meaning = lookup(result.retcode)
            passed = meaning.retcode_class is RetcodeClass.SUCCESS
            # What is not refused for good is left to the sending to find out.
            final = meaning.retcode_class is RetcodeClass.FATAL
            command = RecordCheck(
                result=result if passed or final else None,
                passed=passed,
                retcode_name=meaning.name,
                description=result.comment or meaning.description,
                category="fatal",
                advice=meaning.advice,
                problem="" if passed or final else f"{result.retcode} {meaning.name}",
            )
        else:
            # The check is a courtesy: a terminal that cannot answer it does not stop the order, sending decides.
            command = RecordCheck(result=None, passed=False, problem=problem or (outcome.text if outcome else ""))
        # A passed check is followed by the intent at once: one commit does for both.
        if not self._tell(order_id, command, cause, soon=command.passed).order.is_open:
            self._built.pop(order_id, None)
        self.take(order_id, cause)

    # --- send ---------------------------------------------------------------------------------------------------

    async def _send_loop(self) -> None:
        while True:
            order_ids = await _next(self._sends, self._send_wake, MAX_SENDS)
            self._begin(len(order_ids))
            try:
                await self._send(order_ids)
            finally:
                self._end(len(order_ids))

    async def _send(self, order_ids: list[str]) -> None:
        built: list[tuple[str, _Built]] = []
        for order_id in order_ids:
            try:
                ready = self._built.pop(order_id, None) or await self._build(order_id)
            except TerminalError as error:
                log.warning("the terminal does not answer, the order waits", order_id=order_id, error=str(error))
                asyncio.get_running_loop().call_later(RETRY_TERMINAL_S, self.take, order_id, self._causes[order_id])
                continue
            if ready is not None:
                built.append((order_id, ready))
        # From here to the intent nothing is waited for: what is judged young enough now is sent now.
        sends: list[tuple[str, int, TradeRequest, Decimal]] = []
        durable = None
        for order_id, (request, point) in built:
            order = self._ledger.order(order_id)
            if order is None or self._stopping:
                continue
            step = self._step(order)
            if not isinstance(step, SendStep):
                self.take(order_id, self._causes[order_id])
                continue
            self._waiting.pop(order_id, None)
            started = self._tell(order_id, StartSend(attempt=step.attempt, request=request), self._causes[order_id])
            durable = started.durable
            sends.append((order_id, step.attempt, request, point))
        if durable is None:
            return
        # Counted from before the commit: a process that is paused behind it, and displaced, sends nothing any more.
        not_after = time.monotonic() + self._settings.not_after_s
        # One writer commits in order: when the last intent is durable, all are.
        await durable
        began = time.perf_counter()
        outcomes = await self._trade.send([Send(request, not_after) for _, _, request, _ in sends])
        latency_s = Decimal(round((time.perf_counter() - began) * 1e6)) / 1_000_000
        for (order_id, attempt, request, point), outcome in zip(sends, outcomes, strict=True):
            self._after_send(order_id, attempt, request, point, outcome, latency_s)

    def _after_send(
        self,
        order_id: str,
        attempt: int,
        request: TradeRequest,
        point: Decimal,
        outcome: Outcome,
        latency_s: Decimal,
    ) -> None:
        cause = self._causes[order_id]
        command: OrderCommand
        if isinstance(outcome, Answered):
            meaning = lookup(outcome.result.retcode, request.action)
            command = RecordAnswer(
                attempt=attempt,
                result=outcome.result,
                retcode_name=meaning.name,
                verdict=meaning.retcode_class.value,
                description=outcome.result.comment or meaning.description,
                advice=meaning.advice,
                latency_s=latency_s,
                deals=outcome.deals,
                point=point,
                broker_utc_offset_s=self._offset_s,
                again=self._again(order_id, attempt, meaning),
            )
        elif isinstance(outcome, NotSent):
            command = RecordNotSent(attempt=attempt, code=outcome.code, reason=outcome.text)
        else:
            command = RecordUnknown(attempt=attempt, code=outcome.code, reason=outcome.text)
        executed = self._tell(order_id, command, cause)
        if executed.order.is_open:
            if isinstance(outcome, NotSent):
                pause_s = RETRY_TERMINAL_S * 2 ** (attempt - 1)
                asyncio.get_running_loop().call_later(pause_s, self.take, order_id, cause)
            else:
                self.take(order_id, cause)
        else:
            self._causes.pop(order_id, None)

    def _again(self, order_id: str, attempt: int, meaning: Retcode) -> Again | None:
        """When to try once more after this answer, if it may be better then and the policy allows it."""
        order = self._ledger.order(order_id)
        if order is None:
            return None
        if meaning.retcode_class is RetcodeClass.WAIT:
            return park(order, self._clock(), self._policy)
        if meaning.retcode_class is RetcodeClass.RETRIABLE:
            return retry(order, attempt, self._clock(), self._policy, max_retries=meaning.max_retries)
        return None

    async def _build(self, order_id: str) -> "_Built | None":
        """The next attempt's request and its symbol's point; None when it was refused instead. Raises TerminalError."""
        order = self._ledger.order(order_id)
        if order is None or order.request is None:
            return None
        symbol = await self._symbol(order.request.symbol)
        reasons: tuple[str, ...] = (f"symbol {order.request.symbol!r} is not known to the broker",)
        if symbol is not None:
            request = build_request(order, order.attempt + 1, symbol, self._settings.default_deviation_points)
            reasons = await self.admit(order_id, request, symbol) if self.admit is not None else ()
            if not reasons:
                return request, symbol.point
        self._end_here(order_id, RefuseOrder(reasons=reasons), self._causes.get(order_id, Cause(actor=ACTOR)))
        return None

    async def _symbol(self, name: str) -> Symbol | None:
        now = time.monotonic()
        known = self._symbols.get(name)
        if known is not None and now < known[1]:
            return known[0]
        if now < self._no_symbols.get(name, 0.0):
            return None
        symbol = await self._query.symbol(name)
        if symbol is None:
            # Names that nobody knows have a place of their own, so that they cannot push out those that trade.
            if len(self._no_symbols) >= MAX_SYMBOLS:
                self._no_symbols.clear()
            self._no_symbols[name] = now + UNKNOWN_SYMBOL_TTL_S
            self._symbols.pop(name, None)
            return None
        self._symbols[name] = (symbol, now + SYMBOL_TTL_S)
        return symbol

    # --- probe --------------------------------------------------------------------------------------------------

    def _probe_soon(self, order_id: str, cause: Cause) -> None:
        if order_id in self._probing:
            return
        task = self._guarded(self._probe(order_id, cause), f"probe-{order_id}")
        self._probing[order_id] = task

        def ended(done: "asyncio.Task[None]") -> None:
            if self._probing.get(order_id) is done:
                del self._probing[order_id]

        task.add_done_callback(ended)

    async def _probe(self, order_id: str, cause: Cause) -> None:
        """Asks for evidence until it decides. What it cannot decide stays UNKNOWN and is asked again."""
        probes = 0
        settling_since: float | None = None
        while True:
            order = self._ledger.order(order_id)
            if order is None or order.status is not Status.UNKNOWN:
                break
            step = next_step(order, self._clock(), self._policy, probes=probes)
            if not isinstance(step, Probe):
                break
            await asyncio.sleep(step.delay_s)
            evidence = await self._ask(order)
            now = time.monotonic()
            if evidence.complete and settling_since is None:
                settling_since = now
            settled = settling_since is not None and now - settling_since >= self._settings.settle_s
            executed = self._tell(
                order_id,
                RecordEvidence(
                    attempt=order.attempt,
                    complete=evidence.complete,
                    settled=settled and evidence.complete,
                    orders=evidence.orders,
                    history=evidence.history,
                    deals=evidence.deals,
                    positions=evidence.positions,
                    reason=evidence.reason,
                    broker_utc_offset_s=self._offset_s,
                    again=resend(order, self._clock(), self._policy),
                ),
                cause,
            )
            if executed.events:
                log.info("probed", order_id=order_id, status=executed.order.status.value, reason=evidence.reason)
            probes += 1
        self._probing.pop(order_id, None)
        self.take(order_id, cause)

    async def _ask(self, order: Order) -> Evidence:
        magic, comment = magic_of(order.order_id, order.attempt), comment_of(order.order_id, order.attempt)
        since = order.requested.age_from if order.requested else None
        age_s = max((self._clock() - since).total_seconds(), 0.0) if since else 0.0
        try:
            return await self._query.find([magic], [comment], age_s + 3600)
        except TerminalError as error:
            return Evidence(complete=False, reason=str(error))

    # --- common -------------------------------------------------------------------------------------------------

    def set_broker_utc_offset(self, offset_s: int) -> None:
        self._offset_s = offset_s

    def _tell(self, order_id: str, command: OrderCommand, cause: Cause, *, soon: bool = False) -> Executed:
        return self._ledger.execute(order_id, command, cause, soon=soon)

    def _begin(self, orders: int) -> None:
        self.in_hand += orders
        self._idle.clear()

    def _end(self, orders: int) -> None:
        self.in_hand -= orders
        if not self.in_hand:
            self._idle.set()

    def _guarded(self, work: "asyncio._CoroutineLike[None]", name: str) -> "asyncio.Task[None]":
        """A task whose unexpected end stops the service: an order must not wait on a dead loop."""
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)

        def ended(done: "asyncio.Task[None]") -> None:
            if not done.cancelled() and (error := done.exception()) is not None and not self.failure.done():
                self.failure.set_result(error)

        task.add_done_callback(ended)
        return task


async def _next(queue: deque[str], wake: asyncio.Event, most: int) -> list[str]:
    """Waits for the queue and takes at most `most`."""
    while not queue:
        wake.clear()
        await wake.wait()
    return [queue.popleft() for _ in range(min(most, len(queue)))]


def build_request(order: Order, attempt: int, symbol: Symbol, default_deviation: int) -> TradeRequest:
    """The trade request of an attempt. The filling is chosen from what the symbol allows when none was given."""
    request = order.request
    assert request is not None
    buy = request.side == "buy"
    if request.filling is not None:
        filling = _FILLINGS[request.filling]
    elif symbol.trade_exemode < _EXECUTION_MARKET or symbol.filling_mode & _FLAG_FOK:
        filling = FILLING_FOK
    else:
        filling = FILLING_IOC if symbol.filling_mode & _FLAG_IOC else FILLING_RETURN
    return TradeRequest(
        action=ACTION_DEAL,
        symbol=request.symbol,
        volume=request.volume or ZERO,
        type=TYPE_BUY if buy else TYPE_SELL,
        price=request.price or (symbol.ask if buy else symbol.bid),
        sl=request.sl or ZERO,
        tp=request.tp or ZERO,
        deviation=request.deviation if request.deviation is not None else default_deviation,
        type_filling=filling,
        magic=magic_of(order.order_id, attempt),
        comment=comment_of(order.order_id, attempt),
    )
