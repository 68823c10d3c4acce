"""docs/orders.md: its examples are orders that the service carries out, and no field of an order is missing on it."""

import re
from pathlib import Path

import orjson

from ledger import intake
from tests.service import serving

PAGE = (Path(__file__).parents[2] / "docs" / "orders.md").read_text()


def test_every_field_of_an_order_is_on_the_page() -> None:
    fields = frozenset().union(*intake._ALLOWED.values()) - {"order_id"}
    assert {one for one in fields if f"`{one}`" not in PAGE} == set()
    assert {
        one for one in (*intake.ORDER_TYPES, *intake.FILLINGS, *intake.TIMES_IN_FORCE) if f"`{one}`" not in PAGE
    } == set()


def test_each_example_does_what_it_says(tmp_path: Path) -> None:
    examples = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert examples is not None
    with serving(tmp_path, CLICKHOUSE_URL="off", KAFKA_BROKERS="off") as service:
        told = {}
        for line in examples[1].splitlines():
            done = service.cli("submit", "-", "--json", stdin=line)
            assert done.returncode == 0, done.stdout + done.stderr
            told[orjson.loads(line)["order_id"]] = orjson.loads(done.stdout)["event"]
    assert told == {
        "o-1": "order.filled",
        "o-2": "order.placed",
        "o-3": "order.completed",
        "o-4": "order.completed",
        "o-5": "order.completed",
        "o-6": "order.filled",
        "o-7": "order.filled",
    }
