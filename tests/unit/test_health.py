"""What the health of the whole follows from that of its parts."""

from datetime import UTC, datetime

import pytest

from gateway.health import HealthBook, Part, Standing


def book(taking_orders: bool = True, **parts: str) -> HealthBook:
    found = HealthBook("1.0", "7", lambda: datetime(2026, 3, 1, tzinfo=UTC), lambda: 12.3456)
    for name, state in parts.items():
        part = Part(state=state, needed=name in ("ledger", "nats", "broker"))
        found.watch(name, lambda part=part: part)
    found.taking_orders = taking_orders
    return found


@pytest.mark.parametrize(
    ("parts", "status", "ready"),
    [
        ({"ledger": "up", "broker": "up", "kafka": "up"}, "healthy", True),
        ({"ledger": "up", "kafka": "off"}, "healthy", True),
        ({"ledger": "up", "kafka": "down"}, "degraded", True),
        ({"ledger": "up", "clickhouse": "starting"}, "degraded", True),
        ({"ledger": "up", "broker": "down"}, "unhealthy", False),
        ({"ledger": "down", "kafka": "down"}, "unhealthy", False),
        ({"ledger": "up", "nats": "starting"}, "starting", False),
    ],
)
def test_a_needed_part_decides_and_any_other_degrades(parts, status, ready):
    health = book(**parts).look()
    assert (health.status, health.ready) == (status, ready)


def test_before_orders_are_taken_it_is_starting_and_not_ready():
    health = book(taking_orders=False, ledger="up", nats="up", broker="up").look()
    assert (health.status, health.ready) == ("starting", False)


def test_a_part_that_was_not_heard_of_is_starting():
    found = book()
    found.expect("broker", needed=True)
    assert found.look().parts["broker"].state == "starting"
    assert found.look().status == "starting"


def test_it_says_what_the_contract_names_and_which_halts_stand():
    found = book(ledger="up")
    found.standing = lambda: Standing(account=5, ledger_id="abc", head_seq=9, halts=["operator"])
    health = found.look()
    assert (health.service, health.version, health.uptime_seconds) == ("mt5-connector", "1.0", 12.346)
    assert (health.trading, health.halts, health.account, health.head_seq) == ("halted", ["operator"], 5, 9)
    assert health.timestamp.isoformat() == "2026-03-01T00:00:00+00:00"
