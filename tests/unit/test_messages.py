"""What goes out on NATS for each event: subject, fields, and what upstream may rely on."""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages import as_known, encode, outgoing, repeated
from gateway.times import iso
from ledger.account_events import MessageRejected
from ledger.events import TOPICS, Envelope, Recorded
from ledger.facts import OrderRequest
from ledger.intake import raw_of
from ledger.order import OUTCOMES
from ledger.order_events import (
    DuplicateReceived,
    FillCorrected,
    FillCostsChanged,
    OrderFilled,
    OrderModified,
    OrderPartiallyFilled,
    OrderPlaced,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeUnknown,
)
from tests.make_frozen_events import EXAMPLES, current

AT = datetime(2026, 11, 22, 12, 0, 0, 5, tzinfo=UTC)
FILL = OrderFilled(
    symbol="EURUSD",
    side="buy",
    order_ticket=7,
    deal=8,
    position_id=9,
    volume=Decimal("0.01"),
    price=Decimal("1.0813"),
    filled_volume=Decimal("0.01"),
    remaining_volume=Decimal(0),
    requested_price=Decimal("1.08125"),
    point=Decimal("0.00001"),
    commission=Decimal("-0.04"),
)


def told(event, stream="order/o-1", version=5, seq=12):
    recorded = Recorded(seq, stream, version, event.topic(), b"")
    envelope = Envelope(
        seq=seq, event_id=f"L:{seq}", schema_version=1, recorded_at=AT, account="1", correlation_id="c", data=event
    )
    made = outgoing(recorded, envelope)
    return (made.subject, orjson.loads(encode(made.message))) if made else None


def test_a_fill_carries_the_stated_fields_and_ours():
    subject, body = told(FILL)
    assert subject == "broker.fill.EURUSD"
    for name in ("order_id", "ticket", "symbol", "volume", "price", "timestamp", "commission", "swap", "fee", "profit"):
        assert name in body
    assert body["event_id"] == "L:12"
    assert (body["stream_version"], body["seq"], body["status"], body["final"]) == (5, 12, "FILLED", True)
    assert body["recorded_at"] == "2026-11-22T12:00:00.000005Z"


def test_numbers_are_json_numbers_with_exact_digits():
    made = outgoing(
        Recorded(1, "order/o", 1, "order.filled", b""),
        Envelope(seq=1, event_id="L:1", schema_version=1, recorded_at=AT, data=FILL),
    )
    assert b'"price":1.0813,' in encode(made.message)
    assert b'"volume":0.01,' in encode(made.message)


@pytest.mark.parametrize(
    ("side", "price", "slippage", "points"),
    [("buy", "1.0813", 0.00005, 5), ("buy", "1.0812", -0.00005, -5), ("sell", "1.0812", 0.00005, 5)],
)
def test_slippage_is_positive_when_it_went_against_us(side, price, slippage, points):
    _, body = told(msgspec.structs.replace(FILL, side=side, price=Decimal(price)))
    assert (body["slippage"], body["slippage_points"]) == (slippage, points)


def test_a_partial_fill_is_not_final():
    fields = {name: getattr(FILL, name) for name in FILL.__struct_fields__}
    partial = OrderPartiallyFilled(**fields | {"remaining_volume": Decimal("0.02")})
    _, body = told(partial)
    assert (body["status"], body["final"], body["remaining_volume"]) == ("PARTIALLY_FILLED", False, 0.02)


# --- what goes out for each event ------------------------------------------------------------------------------------

DEAL = {
    "ticket": 900,
    "deal": 7,
    "position_id": 901,
    "side": "sell",
    "volume": 0.3,
    "price": 1.10002,
    "timestamp": "2026-03-01T12:00:00.123000Z",
    "broker_time": "2026-03-01T12:00:00.123000Z",
    "commission": -0.35,
    "swap": -0.01,
    "fee": -0.02,
    "profit": 12.5,
    "requested_price": 1.10001,
    "slippage": -0.00001,
    "slippage_points": -1,
    "retcode": 10009,
    "retcode_name": "TRADE_RETCODE_DONE",
    "attempts": 2,
    "provisional": True,
}
REFUSED = {"retriable": False, "final": True}
# The examples of the stored events (tests/make_frozen_events.py): kind of the subject, and the fields beside the base.
OF_THE_ORDER = (
    "requested_price",
    "slippage",
    "slippage_points",
    "attempts",
    "provisional",
    "retcode",
    "retcode_name",
)
TOLD = {
    "order.conflict_received": (
        "error",
        {
            **REFUSED,
            "category": "conflict",
            "reasons": ["volume: 'NaN' is not a decimal number"],
            "description": "this order_id is taken by an order with other content; the first one stands",
        },
    ),
    "order.refused": (
        "error",
        {
            **REFUSED,
            "status": "REJECTED",
            "category": "malformed",
            "reasons": ["symbol is empty", "volume is missing"],
            "description": "symbol is empty; volume is missing",
        },
    ),
    "order.stale": (
        "error",
        {
            **REFUSED,
            "status": "FAILED",
            "category": "stale",
            "description": "not sent again: 300.001 s old, more than the 300.0 s it may live",
        },
    ),
    "order.retry_scheduled": (
        "order",
        {
            "status": "PENDING",
            "final": False,
            "category": "retriable",
            "retriable": True,
            "description": "requote",
            "attempts": 1,
            "retcode": 10004,
            "retcode_name": "TRADE_RETCODE_REQUOTE",
            "next_attempt_at": "2026-03-01T12:00:04.690456Z",
        },
    ),
    "order.parked": (
        "order",
        {
            "status": "PENDING",
            "final": False,
            "category": "retriable",
            "retriable": True,
            "description": "market is closed",
            "attempts": 1,
            "retcode": 10018,
            "retcode_name": "TRADE_RETCODE_MARKET_CLOSED",
            "next_attempt_at": "2026-03-01T12:00:05.123456Z",
        },
    ),
    "order.outcome_unknown": (
        "order",
        {
            "status": "SUBMITTED",
            "final": False,
            "category": "unknown",
            "description": "no reply before the deadline",
            "attempts": 1,
            "retcode": -10005,
        },
    ),
    "order.outcome_resolved": ("order", {"final": False, "description": "found: deal 7"}),
    "order.placed": (
        "order",
        {
            "status": "SUBMITTED",
            "final": False,
            "ticket": 903,
            "side": "sell",
            "order_type": "sell_stop_limit",
            "volume": 0.3,
            "price": 1.10001,
            "stop_limit_price": 1.09,
            "sl": 1.2,
            "tp": 0.9,
            "attempts": 2,
            "retcode": 10008,
            "retcode_name": "TRADE_RETCODE_PLACED",
        },
    ),
    "order.partially_filled": (
        "fill",
        DEAL | {"status": "PARTIALLY_FILLED", "final": False, "remaining_volume": 0.1},
    ),
    "order.filled": ("fill", DEAL | {"status": "FILLED", "final": True, "remaining_volume": 0}),
    "order.fill_corrected": (
        "order",
        DEAL
        | {
            "status": "PARTIALLY_FILLED",
            "final": False,
            "remaining_volume": 0.1,
            "was_volume": 0.2,
            "was_price": 1.10001,
        },
    ),
    "order.fill_costs_changed": (
        "order",
        {"deal": 7, "commission": -0.4, "swap": -0.02, "fee": -0.03, "profit": 12.45},
    ),
    "order.modified": (
        "order",
        {
            "ticket": 903,
            "position_id": 901,
            "price": 1.10003,
            "stop_limit_price": 1.08,
            "sl": 1.3,
            "tp": 0.8,
            "expiration": 1_772_413_200,
            "by": "ord_2",
        },
    ),
    "order.cancelled": (
        "order",
        {
            "status": "CANCELLED",
            "final": True,
            "ticket": 903,
            "remaining_volume": 0.2,
            "description": "cancelled at the broker",
            "by": "ord_2",
        },
    ),
    "order.expired": (
        "order",
        {
            "status": "CANCELLED",
            "final": True,
            "ticket": 903,
            "remaining_volume": 0.2,
            "description": "expired at the broker",
        },
    ),
    "order.completed": (
        "order",
        {
            "status": "COMPLETED",
            "final": True,
            "action": "modify",
            "ticket": 903,
            "position_id": 901,
            "target_order_id": "ord_0",
            "attempts": 2,
            "retcode": 10009,
            "retcode_name": "TRADE_RETCODE_DONE",
        },
    ),
    "order.rejected": (
        "error",
        {
            "status": "REJECTED",
            "final": True,
            "category": "fatal",
            "retriable": True,
            "retcode": 10019,
            "retcode_name": "TRADE_RETCODE_NO_MONEY",
            "description": "not enough money",
            "advice": "add funds",
            "attempts": 2,
        },
    ),
    "order.failed": (
        "error",
        {
            "status": "FAILED",
            "final": True,
            "category": "fatal",
            "retriable": True,
            "description": "proven absent",
            "attempts": 2,
        },
    ),
    "order.anomaly_detected": (
        "alert.anomaly",
        {"kind": "anomaly", "symbol": "EURUSD", "description": "late_fill: a deal after failed"},
    ),
    "account.disconnected": ("alert.disconnected", {"kind": "disconnected", "description": "the terminal closed"}),
    "account.login_refused": (
        "alert.login_refused",
        {"kind": "login_refused", "description": "authorization failed", "retcode": -6},
    ),
    "account.external_deal_observed": (
        "order",
        {
            **{name: value for name, value in DEAL.items() if name not in OF_THE_ORDER},
            "description": "by hand",
        },
    ),
    "account.halted": (
        "alert.halted",
        {"kind": "halted", "source": "operator", "by": "ann", "description": "loss of the day"},
    ),
    "account.resumed": (
        "alert.resumed",
        {"kind": "resumed", "source": "operator", "by": "bob", "description": "checked"},
    ),
    "account.alert_raised": (
        "alert.slow_broker",
        {"kind": "slow_broker", "symbol": "EURUSD", "description": "1.5 s to the broker"},
    ),
    "writer.took_over": (
        "alert.fenced",
        {"kind": "fenced", "description": "the writer host-1:1234 was displaced by host-2 (4711)"},
    ),
    "inbox.message_rejected": (
        "error",
        {
            **REFUSED,
            "category": "malformed",
            "reasons": ["order_id is missing"],
            "description": "order_id is missing",
        },
    ),
    "account.reconciled": (
        "alert.reconciliation",
        {"kind": "reconciliation", "description": "volume EURUSD: ours 0.3, the broker's 0.2 (adopt)"},
    ),
}
# Of the service itself, or on the way to an outcome: nobody upstream is told.
SILENT = {
    "order.requested",  # told when it was accepted; this example was not
    "order.duplicate_received",  # answered by the standing outcome, see `repeated`
    "order.checked",
    "order.send_started",
    "order.broker_answered",
    "order.send_abandoned",
    "order.outcome_probed",
    "account.connected",
    "account.deals_followed",
    "account.control_received",
    "account.configuration_accepted",
    "account.configuration_refused",
    "account.position_corrected",
    "account.snapshot_taken",
    "writer.ledger_created",
    "writer.checkpointed",
    "writer.head_signed",
    "writer.batch_sealed",
}


def told_of(topic):
    """Subject and body for the stored example of an event."""
    made = outgoing(Recorded(42, "order/ord_1", 5, topic, b""), EXAMPLES[current(topic)])
    return (made.subject, orjson.loads(encode(made.message))) if made else None


def test_of_every_event_it_is_said_here_what_goes_out():
    assert TOLD.keys() | SILENT == TOPICS
    assert not TOLD.keys() & SILENT


@pytest.mark.parametrize("topic", sorted(TOLD))
def test_an_event_goes_out_on_its_subject_with_just_these_fields(topic):
    kind, fields = TOLD[topic]
    subject, body = told_of(topic)
    assert subject == (f"broker.{kind}" if kind.startswith("alert") else f"broker.{kind}.EURUSD")
    named = {} if kind.startswith("alert") else {"symbol": "EURUSD"}
    assert body == named | fields | {
        "event": topic,
        "event_id": "ledger-a:42",
        "seq": 42,
        "stream_version": 5,
        "account": "5001",
        "recorded_at": "2026-03-01T12:00:00.123456Z",
        "order_id": "a/b" if topic == "inbox.message_rejected" else "ord_1",
        "correlation_id": "corr-1",
    }


@pytest.mark.parametrize("topic", sorted(SILENT))
def test_what_concerns_nobody_upstream_is_not_told(topic):
    assert told_of(topic) is None


def test_every_outcome_a_duplicate_may_be_answered_with_says_status_and_whether_it_is_final():
    for kind in OUTCOMES:
        if kind is not OrderRequested:
            _, body = told_of(kind.topic())
            assert body["status"], kind
            assert body["final"] is (body["status"] not in ("PENDING", "SUBMITTED", "PARTIALLY_FILLED")), kind


def test_an_accepted_request_is_pending_and_says_what_it_acts_on():
    def accepted(**fields):
        request = OrderRequest(order_id="o-1", **fields)
        event = OrderRequested(request=request, content="x", raw=raw_of(b"{}"), symbol=request.symbol)
        subject, body = told(event)
        assert (body["status"], body["final"]) == ("PENDING", False)
        names = (
            "action",
            "side",
            "order_type",
            "volume",
            "requested_price",
            "ticket",
            "position_id",
            "target_order_id",
        )
        return subject, {name: body[name] for name in names if name in body}

    pending = {"symbol": "EURUSD", "order_type": "buy_limit", "volume": Decimal("0.1"), "price": Decimal("1.05")}
    assert accepted(**pending) == (
        "broker.order.EURUSD",
        {"action": "open", "side": "buy", "order_type": "buy_limit", "volume": 0.1, "requested_price": 1.05},
    )
    close = accepted(action="close", symbol="EURUSD", position_id=901)
    assert close[1] == {"action": "close", "position_id": 901}
    cancel = accepted(action="cancel", symbol="EURUSD", target_order_id="o-0")
    assert cancel[1] == {"action": "cancel", "target_order_id": "o-0"}


def test_an_accepted_request_names_the_fields_that_have_no_effect():
    request = OrderRequest(order_id="o", symbol="EURUSD", order_type="buy", volume=Decimal(1))
    event = OrderRequested(request=request, content="x", raw=raw_of(b"{}"), symbol="EURUSD", ignored=("stoploss",))
    assert told(event)[1]["ignored"] == ["stoploss"]


def test_a_refused_request_is_told_once_by_its_refusal():
    request = OrderRequest(order_id="o", symbol="EURUSD", order_type="buy", volume=Decimal(1))
    assert told(OrderRequested(request=request, content="x", raw=raw_of(b"{}"), accepted=False)) is None


@pytest.mark.parametrize(
    ("cause", "limit_s", "description"),
    [
        ("age", 30, "not sent: 31 s old, more than 30 s"),
        ("life", 30, "not sent again: 31 s old, more than the 30 s it may live"),
        ("valid_until", 0, "not sent: its valid_until passed 31 s ago"),
    ],
)
def test_a_stale_order_says_which_limit_it_met(cause, limit_s, description):
    event = OrderStale(age_s=Decimal(31), limit_s=Decimal(limit_s), symbol="EURUSD", cause=cause)
    assert told(event)[1]["description"] == description


def test_a_correction_of_price_or_costs_says_nothing_of_the_state_of_the_order():
    corrected = EXAMPLES["v1/order.fill_corrected"].data
    _, body = told(msgspec.structs.replace(corrected, was_volume=corrected.volume))
    assert not {"status", "final"} & body.keys()
    assert (body["price"], body["was_price"], body["commission"]) == (1.10002, 1.10001, -0.35)


def test_a_stop_that_was_taken_away_is_told_as_0_and_a_position_has_no_expiration():
    _, body = told(OrderModified(symbol="EURUSD", position_id=901, tp=Decimal("1.2")))
    assert (body["sl"], body["tp"], body["position_id"]) == (0, 1.2, 901)
    assert not {"ticket", "price", "stop_limit_price", "expiration", "by"} & body.keys()
    assert told(OrderModified(symbol="EURUSD", order_ticket=903))[1]["expiration"] == 0


def test_a_rejection_without_a_return_code_names_none():
    event = OrderRejected(symbol="EURUSD", retcode=0, retcode_name="", category="fatal", description="later")
    assert not {"retcode", "retcode_name"} & told(event)[1].keys()


# --- other properties ------------------------------------------------------------------------------------------------


def test_a_message_without_an_order_goes_to_the_invalid_subject():
    event = MessageRejected(reasons=("order_id is missing",), raw=raw_of(b"x"))
    subject, body = told(event, stream="inbox/2026-11-22")
    assert subject == "broker.error._invalid"
    assert "order_id" not in body


def test_an_unknown_outcome_is_told_but_not_as_an_end():
    subject, body = told(OutcomeUnknown(attempt=1, code=10012, reason="timeout", symbol="EURUSD"))
    assert (subject, body["category"], body["final"], body["retcode_name"]) == (
        "broker.order.EURUSD",
        "unknown",
        False,
        "TIMEOUT",
    )


def test_a_duplicate_is_answered_with_the_standing_outcome_under_its_own_id():
    standing = outgoing(
        Recorded(12, "order/o-1", 5, "order.filled", b""),
        Envelope(seq=12, event_id="L:12", schema_version=1, recorded_at=AT, data=FILL),
    )
    again = DuplicateReceived(number=1, standing_version=5, standing_topic="order.filled", status="filled")
    recorded = Recorded(20, "order/o-1", 6, "order.duplicate_received", b"")
    envelope = Envelope(seq=20, event_id="L:20", schema_version=1, recorded_at=AT, data=again)
    answer = repeated(recorded, envelope, standing)
    assert answer.subject == "broker.fill.EURUSD"
    assert (answer.message.duplicate, answer.message.event_id, answer.message.deal) == (True, "L:20", 8)


def test_what_became_known_of_an_outcome_since_is_told_of_it_and_of_no_other():
    def known(standing, *later):
        recorded = Recorded(12, "order/o-1", 5, standing.topic(), b"")
        first = Envelope(seq=12, event_id="L:12", schema_version=1, recorded_at=AT, data=standing)
        return as_known(outgoing(recorded, first), later).message

    placed = OrderPlaced(symbol="EURUSD", side="buy", order_ticket=7, price=Decimal("1.05"), sl=Decimal("1.01"))
    moved = known(placed, OrderModified(symbol="EURUSD", order_ticket=7, price=Decimal("1.06"), by="m-1"))
    assert (moved.price, moved.sl, moved.by, moved.status) == (Decimal("1.06"), None, None, "SUBMITTED")
    assert known(placed, OrderModified(symbol="EURUSD", position_id=7, sl=Decimal(1))).sl == Decimal("1.01")
    costs = {"commission": Decimal(-2), "swap": Decimal(0), "fee": Decimal(0), "profit": Decimal(1)}
    paid = known(FILL, FillCostsChanged(deal=8, fill_version=5, **costs))
    assert (paid.commission, paid.profit, paid.price) == (Decimal(-2), Decimal(1), FILL.price)
    assert known(FILL, FillCostsChanged(deal=3, fill_version=4, **costs)).commission == FILL.commission
    fields = {name: getattr(FILL, name) for name in FILL.__struct_fields__} | {"remaining_volume": Decimal("0.005")}
    other = FillCorrected(**fields | {"deal": 3}, corrects=4, was_volume=Decimal("0.01"), was_price=Decimal(1))
    less = known(FILL, other)
    assert (less.deal, less.status, less.final, less.remaining_volume) == (
        8,
        "PARTIALLY_FILLED",
        False,
        Decimal("0.005"),
    )


@given(st.text(max_size=80))
def test_whatever_the_symbol_the_subject_is_one_nats_takes(symbol):
    subject, _ = told(OrderRefused(reasons=("r",), category="refused", symbol=symbol))
    token = subject.removeprefix("broker.error.")
    assert 1 <= len(token) <= 32
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in token)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_utc_with_microseconds(when):
    assert iso(when).endswith("Z")
    assert len(iso(when)) == 27
    assert datetime.fromisoformat(iso(when)) == when
