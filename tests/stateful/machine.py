"""Any life of a ledger: orders that arrive well or badly, a broker that answers late or never, processes that die.

The rules do what a gateway does, led by `plan.next_step`, and what the world does to it. What was decided waits in
the writer's queue until a rule lets it be committed, or lets the process end. `world.py` holds the truth to compare.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Final

import msgspec
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger.account_events import AccountDisconnected
from ledger.commands import (
    Again,
    ExpireOrder,
    GiveUp,
    OrderCommand,
    RecordCheck,
    RecordDeals,
    RecordModified,
    RecordNotSent,
    RecordOrderState,
    RecordUnknown,
    RefuseOrder,
    ResolveOutcome,
    StartSend,
)
from ledger.decide import decide
from ledger.order import AT_BROKER, ENDED, IDLE, UNRESOLVED, Order, Status
from ledger.order_events import (
    AnomalyDetected,
    ConflictReceived,
    DuplicateReceived,
    OrderRefused,
    OrderRequested,
    SendStarted,
)
from ledger.plan import (
    Abandon,
    Await,
    Check,
    End,
    Expire,
    Policy,
    Probe,
    Refuse,
    Send,
    Wait,
    next_step,
    park,
    resend,
    retry,
)
from ledger.trade import (
    ORDER_STATE_CANCELED,
    ORDER_STATE_EXPIRED,
    ORDER_STATE_FILLED,
    ZERO,
)
from tests.decider import NOW, check
from tests.stateful.life import Crash, Fault, Life
from tests.stateful.world import FATES, FIRST_PART, FULL, KINDS, Attempt, View, World, answers, received, request_of

ORDERS: Final = tuple(f"{kind}_{number}" for number in (1, 2, 3) for kind in KINDS)
POLICIES: Final = tuple(
    Policy(validate_before_send=validate, resend_after_proven_absence=resend_, max_unreached=3, **limits)
    for validate in (True, False)
    for resend_ in (True, False)
    for limits in ({}, {"max_order_age_s": 0, "max_order_life_s": 0})
)
MESSAGES: Final = ("sound",) * 5 + ("spelled otherwise", "other content", "malformed")
# A crash here is the end of a process, not of the machine: memory keeps the file as well as a disk, and is quicker.
FOLDER: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
CHECKS: Final = (
    check(),
    check(passed=False, retcode=10019),
    RecordCheck(result=None, passed=False, problem="no reply"),
)
ACTS: Final = ("deal a part", "deal the rest", "cancel", "expire", "change")
VIEWS: Final = st.builds(View, *[st.booleans()] * 6) | st.just(FULL)
ENDS: Final = (*Crash, "cleanly", "overtaken")
AFTER: Final = st.integers(0, 2)  # commits before the one that is disturbed
_AT_THE_BROKER: Final = {Status.PLACED, Status.PARTIALLY_FILLED, Status.FILLED, Status.CANCELLED, Status.EXPIRED}

order_ids = st.sampled_from(ORDERS)


class LedgerMachine(RuleBasedStateMachine):
    """`url` of a ledger to use; a fresh SQLite file for each life when it is empty."""

    url = ""
    lives: ClassVar["Counter[str]"] = Counter()  # what all of them met

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="ledger-", dir=FOLDER)
        self.now, self.ticks = NOW, 0
        self.halted = ""
        self.world = World()
        self.contents: dict[str, str] = {}
        self.fates: dict[tuple[str, int], Any] = {}
        self.calls: set[tuple[str, int]] = set()  # sends whose end this process still waits for
        self.seen: dict[str, list[Any]] = {}  # evidence that was asked for before
        self.given_up: set[str] = set()  # orders that an operator ended, whatever became of them
        self.misled: set[str] = set()  # orders that an operator said to be there, and are not
        self.life: Life | None = None

    @initialize(policy=st.sampled_from(POLICIES), is_local=st.booleans(), first=st.sets(order_ids, min_size=1))
    def begin(self, policy: Policy, is_local: bool, first: set[str]) -> None:
        self.policy = policy
        url = self.url or f"sqlite:///{self.folder}/ledger.db"
        self.life = Life(url, self.clock, is_local=is_local and not self.url)
        self.life.on_sent = self.sent
        for order_id in sorted(first):
            self.message(order_id, "sound", 0)

    def clock(self) -> datetime:
        self.ticks += 1  # no two decisions at the same instant
        return self.now + timedelta(microseconds=self.ticks)

    def met(self, what: str) -> None:
        self.lives[what] += 1

    def sent(self, order_id: str, command: StartSend) -> None:
        """The intent is durable, the request leaves: only from here on the broker can have it."""
        self.world.send(order_id, command.attempt, command.request, self.fates[order_id, command.attempt])

    def tell(self, order_id: str, command: OrderCommand, *, soon: bool = False) -> Order:
        assert self.life is not None
        sends = len(self.world.of(order_id))
        before = self.life.order(order_id)
        executed = self.life.execute(order_id, command, soon=soon)
        assert sends == len(self.world.of(order_id))
        for one in executed.events:
            note(f"  {order_id}: {one.topic()} -> {executed.order.status}")
            self.met(f"event {one.topic()}{f' ({one.kind})' if isinstance(one, AnomalyDetected) else ''}")
            if isinstance(one, AnomalyDetected):
                # The world tells the truth, if late: nothing of it contradicts what is known, but for an operator's
                # word, a result that names one deal and the volume of all while another deal shows first, and an
                # answer that comes when its attempt was settled without it.
                provisional = one.kind == "fill_volume" and any(deal.provisional for deal in before.deals)
                expected = one.kind in ("late_answer", UNRESOLVED)  # an outcome that stays unknown is told of, too
                assert provisional or expected or order_id in self.given_up | self.misled, one
            if isinstance(one, SendStarted):
                self.met(f"attempt {one.attempt}")
        return executed.order

    # --- messages -------------------------------------------------------------------------------------------------

    @rule(order_id=order_ids, kind=st.sampled_from(MESSAGES), unrecorded=st.integers(0, 25))
    def message(self, order_id: str, kind: str, unrecorded: int) -> None:
        """A message names the order, for the first time or again."""
        before = self.life.order(order_id)
        command = received(order_id, kind, self.now, unrecorded)
        self.tell(order_id, command)
        after = self.life.order(order_id)
        events = decide(before, command)
        known = self.contents.setdefault(order_id, command.received.content)
        if before.status is Status.NEW:
            refused = [OrderRefused] if command.received.reasons else []
            assert [type(one) for one in events] == [OrderRequested, *refused]
            return
        same = command.received.content == known
        assert {type(one) for one in events} <= {DuplicateReceived if same else ConflictReceived}
        assert events or unrecorded or before.duplicates >= 20 or before.conflicts >= 20
        # Neither changes anything but the counts: above all, it sends nothing.
        assert after.status is before.status
        assert after.attempt == before.attempt
        assert self.step(after) == self.step(before)

    # --- the gateway ----------------------------------------------------------------------------------------------

    def step(self, order: Order) -> Any:
        return next_step(order, self.now, self.policy, halted=self.halted)

    @precondition(lambda self: self.life.ledger.open_orders)
    @rule(times=st.integers(1, 8), data=st.data())
    def an_order_goes_on(self, times: int, data: st.DataObject) -> None:
        """The gateway takes it up, does what comes next, and waits where it has to."""
        order_id = data.draw(st.sampled_from(list(self.life.ledger.open_orders)), "order_id")
        for _ in range(times):
            if not self.go_on(order_id, data):
                self.life.settle()

    @precondition(lambda self: self.life.ledger.open_orders)
    @rule(times=st.integers(1, 4), halted=st.integers(0, 9), data=st.data())
    def all_orders_go_on(self, times: int, halted: int, data: st.DataObject) -> None:
        """Each a step, in turn; nobody waits."""
        self.halted = "by an operator" if halted == 9 else ""
        for order_id in list(self.life.ledger.open_orders) * times:
            self.go_on(order_id, data)
        self.halted = ""

    def go_on(self, order_id: str, data: st.DataObject) -> bool:
        """One step. False when it has to wait for the intent to be durable."""
        order = self.life.order(order_id)
        if order.status is Status.SENDING:
            return self.finish_call(order)
        self.take(order, data)
        return True

    def take(self, order: Order, data: st.DataObject) -> None:
        order_id = order.order_id
        match self.step(order):
            case Check():
                checked = data.draw(st.sampled_from(CHECKS), "check")
                self.tell(order_id, checked, soon=checked.passed)
            case Send() as send:
                self.send(order, send.attempt, data)
            case Probe():
                self.probe(order, data)
            case Wait() as wait:
                self.now += timedelta(seconds=wait.delay_s)
            case Expire() as expire:
                self.tell(order_id, ExpireOrder(age_s=expire.age_s, limit_s=expire.limit_s, cause=expire.cause))
            case Refuse() as refuse:
                self.tell(order_id, RefuseOrder(reasons=refuse.reasons))
            case Abandon() as abandon:
                self.tell(order_id, GiveUp(reason=abandon.reason))
            case Await() | End():
                pass

    def send(self, order: Order, attempt: int, data: st.DataObject) -> None:
        order_id = order.order_id
        assert not self.world.held(order_id), "a second send, while the first may have an effect (I1)"
        self.fates[order_id, attempt] = data.draw(st.sampled_from(FATES), "fate")
        self.calls.add((order_id, attempt))
        self.tell(order_id, StartSend(attempt=attempt, request=request_of(order, attempt)))

    def finish_call(self, order: Order) -> bool:
        """The call that sends comes back, or its process is gone. False while it has not begun."""
        sent = self.world.find(order.order_id, order.attempt)
        call = (order.order_id, order.attempt)
        if call in self.calls and sent is None:
            return False
        if call in self.calls and sent is not None and sent.fate.reply == "not_sent":
            self.tell(order.order_id, RecordNotSent(attempt=order.attempt, code=-10005, reason="no connection"))
        elif call in self.calls and sent is not None and sent.answer is not None:
            self.answer(order, sent)
        else:
            self.tell(order.order_id, RecordUnknown(attempt=order.attempt, code=0, reason="no answer"))
        self.calls.discard(call)
        return True

    def answer(self, order: Order, sent: Attempt) -> None:
        for command in answers([sent]):
            self.tell(order.order_id, msgspec.structs.replace(command, again=self.again(order, command)))

    def again(self, order: Order, command: Any) -> Again | None:
        if command.verdict == "wait":
            return park(order, self.now, self.policy)
        return retry(order, command.attempt, self.now, self.policy) if command.verdict == "retriable" else None

    def probe(self, order: Order, data: st.DataObject) -> None:
        view = data.draw(VIEWS, "view")
        found = self.world.evidence(order.order_id, order.attempt, view)
        past = self.seen.setdefault(order.order_id, [])
        past.append(found)
        if data.draw(st.booleans(), "an earlier probe comes back only now"):
            found = data.draw(st.sampled_from(past), "which")
        again = resend(order, self.now, self.policy)
        after = self.tell(order.order_id, msgspec.structs.replace(found, again=again))
        self.met(f"probed: {after.status}")

    # --- late news ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.some("answer"))
    @rule(data=st.data())
    def an_answer_comes_again(self, data: st.DataObject) -> None:
        """Twice, late, or to an attempt that is long over."""
        attempt = self.one_of("answer", data)
        self.answer(self.life.order(attempt.order_id), attempt)

    @precondition(lambda self: self.some("deals"))
    @rule(data=st.data())
    def deals_show(self, data: st.DataObject) -> None:
        """Some of them, in any order, known or not."""
        attempt = self.one_of("deals", data)
        shown = data.draw(st.lists(st.sampled_from(attempt.deals), min_size=1, max_size=3), "deals")
        self.tell(attempt.order_id, RecordDeals(deals=tuple(shown)))

    @precondition(lambda self: self.some("shown"))
    @rule(data=st.data())
    def the_order_shows(self, data: st.DataObject) -> None:
        """As it is now, or as it was."""
        attempt = self.one_of("shown", data)
        newest_first = attempt.shown[::-1]
        self.tell(attempt.order_id, RecordOrderState(order=data.draw(st.sampled_from(newest_first), "state")))

    @precondition(lambda self: self.some("deals"))
    @rule(data=st.data(), sl=st.sampled_from([ZERO, Decimal("1.01"), Decimal("1.02")]))
    def the_position_has_other_stops(self, data: st.DataObject, sl: Decimal) -> None:
        attempt = self.one_of("deals", data)
        self.tell(attempt.order_id, RecordModified(position=self.world.position(attempt, sl)))

    # --- the broker and the people --------------------------------------------------------------------------------

    def some(self, what: str) -> list[Attempt]:
        """The attempts that have it."""
        return [one for attempts in self.world.attempts.values() for one in attempts if getattr(one, what)]

    def one_of(self, what: str, data: st.DataObject) -> Attempt:
        return data.draw(st.sampled_from(self.some(what)), what)

    @precondition(lambda self: self.some("works"))
    @rule(data=st.data(), acts=st.lists(st.sampled_from(ACTS), min_size=1, max_size=3))
    def the_broker_acts(self, data: st.DataObject, acts: list[str]) -> None:
        """Something happens there that the ledger has to find out, or more than that."""
        attempt = self.one_of("works", data)
        for act in acts:
            if attempt.works:
                self.the_broker_does(act, attempt)

    def the_broker_does(self, act: str, attempt: Attempt) -> None:
        match act:
            case "deal a part":
                self.world.deal(attempt, FIRST_PART)
            case "deal the rest":
                self.world.deal(attempt, attempt.volume)
            case "cancel" | "expire":
                self.world.end(attempt, expired=act == "expire")
            case _:
                self.world.change(attempt, Decimal("1.0") if attempt.terms else Decimal("1.01"))

    @precondition(lambda self: self.some("deals"))
    @rule(data=st.data())
    def costs_are_booked_late(self, data: st.DataObject) -> None:
        self.world.book_costs(self.one_of("deals", data))

    @precondition(lambda self: self.some("deals"))
    @rule(data=st.data())
    def a_position_is_closed(self, data: st.DataObject) -> None:
        self.one_of("deals", data).closed = True

    @precondition(lambda self: self.some("in_flight"))
    @rule(data=st.data(), lost=st.booleans())
    def a_late_request_lands(self, data: st.DataObject, lost: bool) -> None:
        self.world.land(self.one_of("in_flight", data), lost=lost)

    @precondition(lambda self: self.unknown())
    @rule(data=st.data(), word=st.sampled_from(["found", "absent", "abandoned"]))
    def an_operator_speaks(self, data: st.DataObject, word: str) -> None:
        order_id = data.draw(st.sampled_from(self.unknown()), "order_id")
        truth = self.world.held(order_id)
        ticket = truth[0].ticket if truth else 0
        if word != "found":
            self.given_up.add(order_id)
        elif not ticket:
            self.misled.add(order_id)
        self.tell(order_id, ResolveOutcome(resolution=word, reason="seen in the terminal", order_ticket=ticket))

    def unknown(self) -> list[str]:
        orders = self.life.ledger.open_orders.values() if self.life else ()
        return [order.order_id for order in orders if order.status is Status.UNKNOWN]

    @rule(seconds=st.sampled_from([0, 0, 0.5, 6, 40, 400, -3600]))
    def time_goes_by(self, seconds: float) -> None:
        """And the wall clock may jump. A fact of another stream comes between those of the orders."""
        self.now += timedelta(seconds=seconds)
        self.life.append("account/5001", AccountDisconnected(login=5001, server="Demo", reason="test"))

    # --- the writer -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.life.waiting)
    @rule(after=AFTER, fault=st.sampled_from([Fault.NONE, Fault.NONE, Fault.REPLY_LOST, Fault.REQUEST_LOST]))
    def what_waits_becomes_durable(self, after: int, fault: Fault) -> None:
        self.life.settle(after=after, fault=fault)

    @precondition(lambda self: self.life.waiting)
    @rule(how=st.sampled_from(ENDS), after=AFTER, data=st.data())
    def the_process_ends(self, how: str, after: int, data: st.DataObject) -> None:
        """By a crash, in good order, or because another writer took its ledger; the next one begins."""
        self.met(f"process ended: {how}")
        if isinstance(how, Crash):
            self.life.crash(how, after)
        elif how == "cleanly":
            self.life.restart()
        else:
            self.is_overtaken(data)
        self.a_process_begins()

    def is_overtaken(self, data: st.DataObject) -> None:
        messages = []
        for who in ("mine", "theirs"):
            order_id = data.draw(order_ids, who)
            messages.append((order_id, received(order_id, "other content", self.now, 0)))
        if not all(decide(self.life.order(order_id), command) for order_id, command in messages):
            return self.life.restart()  # repeated so often that nobody records it any more
        self.life.overtaken(messages[0], messages[1], ahead=data.draw(st.booleans(), "ahead"))
        for order_id, command in messages:
            if order_id in self.life.orders:
                self.contents.setdefault(order_id, command.received.content)
        return None

    def a_process_begins(self) -> None:
        """It waits for no call; what was not stored will be brought again, as if for the first time."""
        self.calls.clear()
        for order_id in set(self.contents) - set(self.life.orders):
            del self.contents[order_id]

    @precondition(lambda self: any(order.status in ENDED for order in self.life.orders.values()))
    @rule()
    def ended_orders_leave_the_memory(self) -> None:
        self.life.forget()

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def the_broker_holds_each_order_at_most_once(self) -> None:
        for order_id in ORDERS:
            assert len(self.world.held(order_id)) <= 1

    @invariant()
    def nothing_is_sent_whose_effect_may_still_show(self) -> None:
        for order_id in ORDERS if self.life else ():
            order = self.life.ledger.order(order_id)
            if order is not None and self.world.held(order_id):
                assert not isinstance(self.step(order), Send), f"{order_id} may be sent twice"

    def teardown(self) -> None:
        """The life ends well: all truth comes out, and the ledger holds it. After a failure that would only hide it."""
        try:
            if self.life is not None and sys.exc_info()[0] is None:
                self.the_truth_comes_out()
                self.life.restart()
                self.life.check_all()
        finally:
            if self.life is not None:
                self.life.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def the_truth_comes_out(self) -> None:
        self.life.settle()
        for order_id in self.life.orders:
            for attempt in self.world.of(order_id):
                if attempt.in_flight:
                    self.world.land(attempt, lost=False)
        self.the_broker_holds_each_order_at_most_once()
        for order_id in list(self.life.orders):
            order = self.life.order(order_id)
            if order.status is Status.SENDING:
                order = self.tell(order_id, RecordUnknown(attempt=order.attempt, code=0, reason="the end"))
            if order.status is Status.UNKNOWN:
                self.tell(order_id, self.world.evidence(order_id, order.attempt, FULL))
            for attempt in self.world.of(order_id):
                if attempt.deals:
                    self.tell(order_id, RecordDeals(deals=tuple(attempt.deals)))
                if attempt.shown:
                    self.tell(order_id, RecordOrderState(order=attempt.shown[-1]))
            order = self.life.order(order_id)
            self.met(f"ended as {order.status}")
            if order_id not in self.misled:
                self.agrees_with_the_world(order)
        self.life.settle()

    def agrees_with_the_world(self, order: Order) -> None:
        held = self.world.held(order.order_id)
        if not held:
            assert order.status in (IDLE | ENDED) - _AT_THE_BROKER
            return
        (attempt,) = held
        assert order.filled_volume == attempt.dealt
        assert {(one.ticket, one.volume, one.commission) for one in order.deals} == {
            (one.ticket, one.volume, one.commission) for one in attempt.deals
        }
        assert not any(one.provisional for one in order.deals)
        if attempt.works:
            assert order.status in AT_BROKER - {Status.SENDING}
            assert (order.status is Status.PARTIALLY_FILLED) == bool(attempt.deals)
        elif attempt.state == ORDER_STATE_FILLED:
            assert order.status is Status.FILLED
        elif attempt.deals or order.order_id not in self.given_up:
            ended = {ORDER_STATE_CANCELED: Status.CANCELLED, ORDER_STATE_EXPIRED: Status.EXPIRED}
            assert order.status is ended[attempt.state]
        else:
            assert order.status in {Status.CANCELLED, Status.EXPIRED, Status.FAILED}
