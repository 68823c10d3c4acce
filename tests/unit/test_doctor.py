"""What the doctor makes of the events it finds."""

from datetime import timedelta

import pytest

from gateway.config import load
from gateway.doctor import FAILED, diagnose
from gateway.doctor_facts import LATELY, Found
from ledger.events import Envelope, Event, Recorded, encode
from ledger.facts import OrderRequest, Raw
from ledger.order_events import OrderRefused, OrderRequested
from tests.ledgers import BEGINNING

EURUSD = {"volume_min": 0.01, "volume_max": 100.0, "volume_step": 0.01, "trade_mode": 4}
TOO_LARGE = OrderRequested(
    request=OrderRequest(order_id="o-1", symbol="EURUSD", order_type="buy", volume=1_000),
    content="c",
    raw=Raw(size=2, sha256="0" * 64),
    symbol="EURUSD",
)


def failed(*events: Event, age: timedelta = timedelta()) -> list[str]:
    """What fails of the orders that were refused, looked at that long after these events."""
    found = Found(since=BEGINNING + age - LATELY, symbols={"EURUSD": EURUSD})
    for seq, event in enumerate(events, 1):
        envelope = Envelope(seq=seq, event_id=f"l:{seq}", schema_version=1, recorded_at=BEGINNING, data=event)
        found.events.append((Recorded(seq, "order/o-1", seq, event.topic(), encode(envelope)), envelope))
    checks = diagnose(load({}, {}), found)
    return [one.name for one in checks if one.status == FAILED and one.trouble == "orders rejected with 10013"]


def test_an_order_that_was_refused_fails_the_hour_in_which_it_was():
    assert failed(TOO_LARGE) == ["volume"]
    assert failed(TOO_LARGE, age=LATELY) == ["volume"]
    assert failed(TOO_LARGE, age=LATELY + timedelta(seconds=1)) == []


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        ("sl 1.5 must be at least 10 points below the price", ["SL and TP"]),
        ("limit: an order needs a take profit (tp)", ["SL and TP"]),
        ("nothing to modify: none of sl, tp, price is given", []),
    ],
)
def test_only_a_reason_against_the_stops_is_told_of_them(reason, names):
    assert failed(OrderRefused(reasons=(reason,), category="refused", symbol="EURUSD")) == names
