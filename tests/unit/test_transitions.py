"""The table of states, and what each event leaves of itself in the state."""

import msgspec
import pytest

from ledger.order import (
    AT_BROKER,
    CONCLUDED,
    ENDED,
    IDLE,
    OUTCOMES,
    TRANSITIONS,
    KnownDeal,
    Order,
    Status,
    Terms,
    evolve,
    next_status,
)
from ledger.order_events import (
    BrokerAnswered,
    FillCorrected,
    FillCostsChanged,
    OrderCancelled,
    OrderEvent,
    OrderFilled,
    OrderModified,
    OrderPartiallyFilled,
    OrderPlaced,
    OrderRequested,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    SendStarted,
)
from ledger.trade import TradeResult
from tests.decider import (
    ORDER_ID,
    D,
    filled,
    given,
    limit_sending,
    lost,
    partly,
    receive,
    replayed,
    sending,
    start,
    waiting,
)
from tests.make_docs import MEANING, PAGE, page

EVERY_EVENT = OrderEvent.__args__


def sources(event: type, to: Status) -> set[Status]:
    return {state for (state, one), target in TRANSITIONS.items() if (one, target) == (event, to)}


def fill(kind: type = OrderFilled, remaining: str = "0", **changes):
    fields = {
        "symbol": "EURUSD",
        "side": "buy",
        "order_ticket": 900,
        "deal": 1,
        "position_id": 900,
        "volume": D("0.3"),
        "price": D("1.1"),
        "filled_volume": D("0.3"),
        "remaining_volume": D(remaining),
    }
    return kind(**(fields | changes))


def corrected(remaining: str, **changes) -> FillCorrected:
    return fill(FillCorrected, remaining, **({"corrects": 5, "was_volume": D("0.3"), "was_price": D("1.1")} | changes))


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_of_the_states_is_current():
    assert PAGE.read_text() == page(), "docs/states.md is not what ledger/order.py says: make docs"


def test_every_state_has_one_sentence():
    assert set(MEANING) == set(Status)
    assert all(text.endswith(".") and "\n" not in text for text in MEANING.values())


# --- the table --------------------------------------------------------------------------------------------------


def test_every_state_is_new_idle_at_the_broker_or_ended_and_only_one_of_them():
    groups = [{Status.NEW}, IDLE, AT_BROKER, ENDED]
    assert sorted(state for group in groups for state in group) == sorted(Status)
    assert CONCLUDED < ENDED


def test_every_state_can_be_reached_and_every_state_but_new_can_be_left():
    assert set(TRANSITIONS.values()) == set(Status) - {Status.NEW}
    assert {state for state, _ in TRANSITIONS} == set(Status)


def test_an_attempt_starts_in_every_idle_state_and_nowhere_else():
    assert sources(SendStarted, Status.SENDING) == IDLE
    assert {state for state, to in ((one[0], to) for one, to in TRANSITIONS.items()) if to is Status.SENDING} == IDLE


def test_what_may_be_at_the_broker_becomes_idle_only_by_word_that_the_attempt_is_over():
    ways = {(event.topic(), to) for (state, event), to in TRANSITIONS.items() if state in AT_BROKER and to in IDLE}
    assert ways == {
        ("order.send_abandoned", Status.READY),
        ("order.retry_scheduled", Status.WAITING),
        ("order.parked", Status.PARKED),
    }


def test_no_state_that_has_ended_becomes_idle():
    assert not [key for key, to in TRANSITIONS.items() if key[0] in ENDED and to in IDLE | {Status.SENDING}]


@pytest.mark.parametrize("state", sorted(IDLE | CONCLUDED))
def test_late_facts_move_what_is_idle_or_was_concluded(state):
    assert TRANSITIONS[state, OrderFilled] is Status.FILLED
    assert TRANSITIONS[state, OrderPartiallyFilled] is Status.PARTIALLY_FILLED
    assert TRANSITIONS[state, OrderPlaced] is Status.PLACED
    assert TRANSITIONS[state, OutcomeUnknown] is Status.UNKNOWN


def test_a_requested_order_is_requested_once():
    assert sources(OrderRequested, Status.REQUESTED) == {Status.NEW}


@pytest.mark.parametrize("kind", EVERY_EVENT, ids=lambda kind: kind.topic())
def test_an_event_leads_where_the_table_says_or_nowhere(kind):
    event = msgspec.convert(EXAMPLES[kind.topic()], kind)
    for state in Status:
        after = evolve(Order(order_id=ORDER_ID, status=state, version=7), event)
        assert (after.version, after.order_id) == (8, ORDER_ID)
        if kind is not FillCorrected:
            assert after.status is TRANSITIONS.get((state, kind), state)
        assert after.is_open == (after.status in IDLE | AT_BROKER)


@pytest.mark.parametrize(
    ("state", "remaining", "to"),
    [
        ("filled", "0", "filled"),
        ("filled", "0.1", "partially_filled"),
        ("partially_filled", "0", "filled"),
        ("partially_filled", "0.1", "partially_filled"),
        ("cancelled", "0", "cancelled"),
        ("unknown", "0.1", "unknown"),
    ],
)
def test_a_correction_moves_the_order_only_as_what_remains_says(state, remaining, to):
    assert next_status(Status(state), corrected(remaining)) is Status(to)


# --- what an event leaves in the state --------------------------------------------------------------------------


def test_an_outcome_is_remembered_with_its_version():
    given(*lost).and_order(outcome_version=4, outcome_topic="order.outcome_unknown")
    for kind in EVERY_EVENT:
        after = evolve(Order(order_id=ORDER_ID, version=7), msgspec.convert(EXAMPLES[kind.topic()], kind))
        expected = (8, kind.topic()) if kind in OUTCOMES else (0, "")
        assert (after.outcome_version, after.outcome_topic) == expected


def test_the_state_keeps_the_request_without_the_text_of_its_message():
    order = given(receive()).order
    assert order.requested.raw.text is None
    assert (order.requested.raw.size, order.requested.raw.sha256) == (
        receive().received.raw.size,
        receive().received.raw.sha256,
    )
    assert (order.request, order.symbol) == (receive().received.request, "EURUSD")


def test_a_new_attempt_has_the_terms_it_is_sent_with_and_no_probe():
    sent = start(2, price=D(1), stoplimit=D(2), sl=D(3), tp=D(4), expiration=5, symbol="")
    after = evolve(
        msgspec.structs.replace(given(*waiting).order, probed=OutcomeProbed(attempt=1, complete=True, found=False)),
        SendStarted(attempt=2, request=sent.request),
    )
    assert (after.terms, after.probed, after.symbol) == (Terms(D(1), D(2), D(3), D(4), 5), None, "EURUSD")


def test_the_ticket_of_the_broker_s_order_is_the_last_that_was_named():
    def ticket(event: OrderEvent) -> int:
        return evolve(msgspec.structs.replace(given(*sending).order, order_ticket=800), event).order_ticket

    def answered(order: int) -> BrokerAnswered:
        return BrokerAnswered(attempt=1, result=TradeResult(retcode=1, order=order), retcode_name="", verdict="success")

    def resolved(order: int) -> OutcomeResolved:
        return OutcomeResolved(attempt=1, resolution="found", by="probe", evidence="", order_ticket=order)

    def placed(order: int) -> OrderPlaced:
        return OrderPlaced(symbol="", side="buy", order_ticket=order)

    for kind in (answered, resolved, placed, lambda order: fill(order_ticket=order)):
        assert (ticket(kind(901)), ticket(kind(0))) == (901, 800)


def test_a_fill_is_known_by_its_ticket_and_a_correction_replaces_it():
    made = evolve(given(*sending).order, fill(commission=D(1), swap=D(2), fee=D(3), profit=D(4), provisional=True))
    known = KnownDeal(1, 4, D("0.3"), D("1.1"), D(1), D(2), D(3), D(4), True)
    assert (made.deals, made.deal(1), made.deal(2)) == ((known,), known, None)
    after = evolve(made, corrected("0.1", volume=D("0.2"), filled_volume=D("0.2"), corrects=4))
    assert (after.deals, after.filled_volume) == (
        (KnownDeal(1, 4, D("0.2"), D("1.1"), D(0), D(0), D(0), D(0), False),),
        D("0.2"),
    )


def test_changed_costs_and_terms_touch_nothing_else():
    costs = FillCostsChanged(deal=1, fill_version=5, commission=D(1), swap=D(2), fee=D(3), profit=D(4))
    after = evolve(given(*filled).order, costs)
    assert after.deals == (KnownDeal(1, 5, D("0.3"), D("1.1"), D(1), D(2), D(3), D(4), False),)
    moved = evolve(given(*limit_sending).order, OrderModified(symbol="", position_id=1, sl=D(1), tp=D(2)))
    assert moved.terms == Terms(price=D("1.05"), sl=D(1), tp=D(2))
    whole = OrderModified(symbol="", order_ticket=9, price=D(1), stop_limit_price=D(2), sl=D(3), tp=D(4), expiration=5)
    assert evolve(given(*limit_sending).order, whole).terms == Terms(D(1), D(2), D(3), D(4), 5)


def test_a_fold_is_one_event_after_the_other():
    assert replayed([]) == Order(order_id=ORDER_ID)
    assert replayed([fill(remaining="0.1", kind=OrderPartiallyFilled), fill(deal=2)]).version == 2


@pytest.mark.parametrize("past", [partly, filled])
def test_what_remains_is_never_less_than_nothing(past):
    over = evolve(given(*past).order, fill(deal=9, volume=D(9), filled_volume=D(9)))
    assert (over.remaining, over.filled_volume) == (D(0), D(9))


def test_an_order_nobody_requested_is_not_open_and_has_no_volume():
    new = Order(order_id=ORDER_ID)
    assert (new.is_open, new.action, new.volume, new.remaining) == (False, "", D(0), D(0))


def example(kind: type) -> dict:
    """The least that makes such an event, as builtins."""
    values = {"str": "x", "int": 1, "Decimal": "0.1", "bool": True, "datetime": "2026-03-01T12:00:00Z"}
    built = {"event": kind.topic()}
    for field in msgspec.structs.fields(kind):
        if field.required:
            name = getattr(field.type, "__name__", "")
            nested = {"Raw": {"size": 1, "sha256": "x"}, "TradeRequest": {"action": 1}, "TradeResult": {"retcode": 1}}
            built[field.name] = nested.get(name, values.get(name, [] if "tuple" in str(field.type) else None))
    return built


EXAMPLES = {kind.topic(): example(kind) for kind in EVERY_EVENT}


def test_a_cancelled_order_keeps_what_was_filled():
    cancelled = OrderCancelled(symbol="", order_ticket=900, filled_volume=D("0.1"), remaining_volume=D("0.2"))
    after = evolve(given(*partly).order, cancelled)
    assert (after.status, after.filled_volume, len(after.deals)) == (Status.CANCELLED, D("0.1"), 1)
