"""The one line in which the command line tells what became of an order, from the news of its end."""

import orjson
import pytest

from gateway.messages import encode, outgoing
from gateway.show import outcome_line
from ledger.events import Recorded
from tests.make_frozen_events import EXAMPLES, current


def line(topic: str, **changes: object) -> str:
    made = outgoing(Recorded(42, "order/ord_1", 5, topic, b""), EXAMPLES[current(topic)])
    assert made is not None
    return outcome_line(orjson.loads(encode(made.message)) | changes)


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        (
            "order.filled",
            "ord_1: filled: sell 0.3 EURUSD at 1.10002, deal 7, position 901, commission -0.35",
        ),
        ("order.completed", "ord_1: completed: 10009 TRADE_RETCODE_DONE: modify"),
        ("order.cancelled", "ord_1: cancelled: cancelled at the broker, 0.2 not filled"),
        ("order.expired", "ord_1: cancelled: expired at the broker, 0.2 not filled"),
        ("order.rejected", "ord_1: fatal: 10019 TRADE_RETCODE_NO_MONEY: not enough money"),
        ("order.refused", "ord_1: malformed: symbol is empty; volume is missing"),
        ("order.stale", "ord_1: stale: not sent again: 300.001 s old, more than the 300.0 s it may live"),
    ],
)
def test_an_outcome_is_told_in_one_line(topic, told):
    assert line(topic) == told


def test_an_order_that_another_request_cancelled_names_it():
    assert line("order.cancelled", description=None) == "ord_1: cancelled: by ord_2, 0.2 not filled"


def test_the_answer_to_a_duplicate_says_so():
    assert line("order.completed", duplicate=True).startswith("ord_1: completed (again: a duplicate): ")
