"""What holds for every order, whatever happens to it and in whatever sequence."""

from collections.abc import Sequence
from datetime import timedelta

import msgspec
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from ledger.commands import (
    EndCounted,
    ExpireOrder,
    GiveUp,
    OrderCommand,
    RecordDeals,
    RecordOrderState,
    RefuseOrder,
    ResolveOutcome,
    StartSend,
)
from ledger.decide import decide
from ledger.errors import InvariantViolated
from ledger.order import ENDED, IDLE, Order, Status, evolve, next_status
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DealFact,
    DuplicateReceived,
    Fill,
    OrderEvent,
    OrderFilled,
    SendAbandoned,
    SendStarted,
)
from ledger.plan import Abandon, Check, End, Expire, Policy, Probe, Refuse, Send, Wait, next_step, park, retry
from ledger.trade import TargetImage
from tests.decider import (
    NOW,
    ORDER_ID,
    D,
    again,
    answer,
    broker_order,
    cancel_request,
    cancel_sent,
    check,
    close_by_request,
    close_by_sent,
    close_request,
    close_sent,
    deal,
    evidence,
    limit_order,
    limit_sent,
    modify_request,
    modify_sent,
    moved_stops,
    not_sent,
    position,
    receive,
    replayed,
    start,
    stops_request,
    stops_sent,
    unknown,
)

MANY = settings(max_examples=3 * settings().max_examples)
KINDS = {
    "market": (receive(), start(1)),
    "pending": (limit_order, limit_sent),
    "close": (close_request, close_sent),
    "stops": (stops_request, stops_sent),
    "modify": (modify_request, modify_sent),
    "cancel": (cancel_request, cancel_sent),
    "close by": (close_by_request, close_by_sent),
}

attempts = st.integers(1, 3)
verdicts = st.sampled_from(["success", "ambiguous", "retriable", "wait", "fatal"])
maybe_again = st.sampled_from([None, again(2)])
amounts = st.sampled_from([D(0), D("0.1"), D("0.3")])
some_deals = st.lists(
    st.builds(
        deal,
        st.integers(1, 4),
        st.sampled_from(["0.1", "0.2", "0.3", "0"]),
        type=st.integers(0, 2),
        symbol=st.sampled_from(["EURUSD", "GBPUSD", ""]),
        position_id=st.sampled_from([0, 700, 900]),
        reason=st.sampled_from([0, 3, 4]),
        magic=st.sampled_from([0, 1]),
        swap=st.sampled_from([D(0), D(-1)]),
        time_msc=st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=3,
    unique_by=lambda one: one.ticket,
).map(tuple)
one_order = st.builds(
    broker_order,
    st.integers(900, 902),
    st.integers(0, 9),
    volume_initial=amounts,
    volume_current=amounts,
    price_open=st.sampled_from([D(0), D("1.05"), D("1.06")]),
    sl=st.sampled_from([D(0), D("1.0")]),
)
orders = st.lists(one_order, max_size=2).map(tuple)
positions = st.builds(position, st.just(700), st.sampled_from(["0.1", "0.3"]), sl=st.sampled_from([D("1"), D("1.01")]))
targets = st.none() | st.builds(
    TargetImage, position=st.none() | positions, position_by=st.none() | positions, order=st.none() | one_order
)
news = st.one_of(
    st.builds(receive, volume=st.sampled_from(["0.3", "0.4", "NaN"]), unrecorded=st.integers(0, 120)),
    st.builds(check, st.booleans(), st.sampled_from([0, 10019])),
    st.builds(not_sent, attempts),
    st.builds(unknown, attempts),
    st.builds(
        lambda verdict, found, attempt, **result: answer(verdict, *found, attempt=attempt, **result),
        verdicts,
        some_deals,
        attempts,
        again=maybe_again,
        deal=st.integers(0, 4),
        order=st.sampled_from([0, 900]),
        volume=amounts,
    ),
    st.builds(
        evidence,
        complete=st.booleans(),
        settled=st.booleans(),
        attempt=attempts,
        orders=orders,
        history=orders,
        deals=st.just(()) | some_deals,
        positions=st.just(()) | st.tuples(positions),
        target=targets,
        target_history=st.none() | one_order,
        target_deals=some_deals,
        again=maybe_again,
    ),
    st.builds(ResolveOutcome, resolution=st.sampled_from(["found", "absent", "abandoned"]), reason=st.just("seen")),
    st.builds(RecordDeals, deals=some_deals),
    st.builds(RecordOrderState, order=one_order),
    st.builds(EndCounted, deals=some_deals),
    st.builds(moved_stops, st.sampled_from(["1", "1.01"])),
    st.just(RefuseOrder(reasons=("halted",))),
    st.just(ExpireOrder(age_s=D(31), limit_s=D(30), cause="age")),
    st.just(GiveUp(reason="enough")),
)


@st.composite
def lives(draw) -> list[OrderCommand]:
    """An order of any kind, and what happens to it; attempts start often, in their turn and out of it."""
    request, sent = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    starts = st.builds(lambda attempt: msgspec.structs.replace(sent, attempt=attempt), attempts)
    return [request, *draw(st.lists(starts | news, max_size=25))]


def live(life: Sequence[OrderCommand]) -> tuple[Order, list[OrderEvent]]:
    """Lives through the commands; StartSend alone may be turned away."""
    order, events = Order(order_id=ORDER_ID), []
    for command in life:
        try:
            new = decide(order, command)
        except InvariantViolated:
            assert isinstance(command, StartSend)
            continue
        assert decide(order, command) == new
        for event in new:
            order = evolve(order, event)
        events += new
    return order, events


def states(events: Sequence[OrderEvent]) -> list[tuple[Order, OrderEvent, Order]]:
    """Each event with the state before and after it."""
    steps, order = [], Order(order_id=ORDER_ID)
    for event in events:
        after = evolve(order, event)
        steps.append((order, event, after))
        order = after
    return steps


@MANY
@for_all(lives())
def test_a_replay_of_the_events_gives_the_state_of_the_life(life):
    order, events = live(life)
    assert replayed(events) == order
    assert order.version == len(events)


@MANY
@for_all(lives())
def test_attempts_follow_each_other_by_one_and_never_overlap(life):
    _, events = live(life)
    attempt = 0
    for before, event, after in states(events):
        if isinstance(event, SendStarted):
            assert event.attempt == attempt + 1
            assert (before.status in IDLE, after.status) == (True, Status.SENDING)
            attempt = event.attempt
        elif isinstance(event, SendAbandoned):
            assert (before.status, event.attempt) == (Status.SENDING, attempt)


@MANY
@for_all(lives())
def test_once_a_deal_is_known_no_attempt_starts(life):
    _, events = live(life)
    order = Order(order_id=ORDER_ID)
    for _, event, after in states(events):
        assert not (order.deals and isinstance(event, SendStarted))
        order = after
        assert not (order.deals and order.status in IDLE | {Status.SENDING, Status.UNKNOWN, Status.NEW})


@MANY
@for_all(lives())
def test_every_deal_is_filled_once_and_the_sums_agree(life):
    order, events = live(life)
    fills = [event for event in events if isinstance(event, Fill)]
    assert len({fill.deal for fill in fills}) == len(fills) == len(order.deals)
    last = {event.deal: event for event in events if isinstance(event, DealFact)}
    assert order.filled_volume == sum(event.volume for event in last.values())
    for known in order.deals:
        told = last[known.ticket]
        assert (known.volume, known.price, known.provisional) == (told.volume, told.price, told.provisional)
        assert isinstance(events[known.version - 1], Fill)
    assert all(isinstance(fill, OrderFilled) == (fill.remaining_volume == 0) for fill in fills)


@MANY
@for_all(lives())
def test_what_has_ended_moves_again_for_what_the_broker_shows_and_is_flagged(life):
    _, events = live(life)
    flagged = False
    for before, event, after in states(events):
        flagged = flagged or isinstance(event, AnomalyDetected)
        if before.status in ENDED and after.status is not before.status:
            assert before.status is Status.FILLED or flagged
            assert event.topic() in (
                "order.placed",
                "order.partially_filled",
                "order.filled",
                "order.fill_corrected",
                "order.completed",
                "order.outcome_unknown",
            )


@MANY
@for_all(lives(), news)
def test_the_same_fact_told_twice_adds_nothing_but_the_record_that_it_came(life, fact):
    order, _ = live([*life, fact])
    again_told = [event for event in decide(order, fact) if not isinstance(event, AnomalyDetected)]
    assert all(isinstance(one, BrokerAnswered | DuplicateReceived | ConflictReceived) for one in again_told)


@for_all(lives())
def test_a_duplicate_is_always_pointed_to_a_stored_outcome(life):
    _, events = live(life)
    for event in events:
        if isinstance(event, DuplicateReceived):
            assert events[event.standing_version - 1].topic() == event.standing_topic


@for_all(lives())
def test_every_event_can_happen_in_every_state(life):
    _, events = live(life)
    for status in Status:
        for event in events:
            after = evolve(Order(order_id=ORDER_ID, status=status), event)
            assert after.status is next_status(status, event)
            assert after.version == 1


# --- the process manager ----------------------------------------------------------------------------------------


@for_all(lives(), st.floats(-1e4, 1e6), st.integers(0, 9), st.sampled_from(["", "operator: news"]))
def test_there_is_a_next_step_and_it_is_never_a_send_of_what_may_be_at_the_broker(life, after_s, probes, halted):
    order, _ = live(life)
    found = next_step(order, NOW + timedelta(seconds=after_s), Policy(), probes=probes, halted=halted)
    if isinstance(found, Send):
        assert not order.deals
        assert (order.status in IDLE, found.attempt) == (True, order.attempt + 1)
        assert decide(order, msgspec.structs.replace(start(1), attempt=found.attempt))
    assert isinstance(found, Probe) == (order.status in (Status.SENDING, Status.UNKNOWN))
    assert isinstance(found, End) == (not order.is_open)


@MANY
@for_all(
    st.lists(st.sampled_from(["retriable", "wait", "not sent", "lost"]), max_size=30),
    st.sampled_from(["success", "fatal"]),
    st.booleans(),
    st.sampled_from([0.0, 300.0]),
)
def test_following_the_steps_ends_when_the_broker_always_answers_in_the_end(answers, last, resending, life_s):
    policy = Policy(max_order_life_s=life_s, resend_after_proven_absence=resending, max_retries=100)
    order, now, told = live([receive()])[0], NOW, iter([*answers, *[last] * 300])
    for _ in range(1_000):
        step = next_step(order, now, policy)
        if isinstance(step, End):
            break
        now += timedelta(seconds=step.delay_s if isinstance(step, Wait | Probe) else 0.01)
        for event in [one for command in followed(order, step, told, now, policy) for one in decide(order, command)]:
            order = evolve(order, event)
    assert order.status in ENDED


def followed(order: Order, step: object, told, now, policy: Policy) -> list[OrderCommand]:
    """What the service would say after this step."""
    match step:
        case Check():
            return [check()]
        case Send():
            return [start(step.attempt)]
        case Refuse():
            return [RefuseOrder(reasons=step.reasons)]
        case Expire():
            return [ExpireOrder(age_s=step.age_s, limit_s=step.limit_s, cause=step.cause)]
        case Abandon():
            return [GiveUp(reason=step.reason)]
        case Probe() if order.status is Status.UNKNOWN:
            return [evidence(attempt=step.attempt, again=retry(order, step.attempt, now, policy))]
        case Probe():
            word = next(told)
            if word in ("not sent", "lost"):
                return [not_sent(step.attempt) if word == "not sent" else unknown(step.attempt)]
            when = park(order, now, policy) if word == "wait" else retry(order, step.attempt, now, policy)
            found = (deal(step.attempt),) if word == "success" else ()
            return [answer(word, *found, attempt=step.attempt, again=when)]
    return []
