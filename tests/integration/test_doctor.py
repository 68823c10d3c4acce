"""One thing is broken, and the doctor names it and its remedy; and the checklist of a service that is well."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.service import Listener, Service, market_order, run_cli, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("doctor"), SYNC_INTERVAL_MINUTES="0", POLL_INTERVAL_S="60") as running:
        yield running


def diagnosis(service: Service, **settings: str) -> tuple[int, dict[tuple[str, str], dict[str, str]]]:
    done = run_cli("doctor", "--json", "--data", str(service.folder), **settings)
    assert done.stdout, done.stderr
    checks = orjson.loads(done.stdout)["checks"]
    return done.returncode, {(one["trouble"], one["name"]): one for one in checks}


async def final(service: Service, order_id: str, **fields: Any) -> dict[str, Any]:
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order(order_id, **fields))
        return (await listener.final(order_id))[1]


def test_of_a_service_that_is_well_nothing_has_failed(service: Service) -> None:
    code, found = diagnosis(service)
    assert [one for one in found.values() if one["status"] == "failed"] == []
    assert code == 0
    assert len({trouble for trouble, _ in found}) == 6


def test_with_the_connection_cut_it_names_the_terminal_and_what_to_do(service: Service) -> None:
    service.cli("sim", "cut")
    try:
        code, found = diagnosis(service)
    finally:
        service.cli("sim", "cut", "off")
    running = found["connection failing", "terminal running"]
    assert (code, running["status"]) == (1, "failed")
    assert "not connected" in running["found"]
    assert running["remedy"].startswith("start the MetaTrader 5 terminal")


async def test_of_orders_rejected_for_their_symbol_it_names_the_symbol(service: Service) -> None:
    await final(service, "bad-symbol", symbol="EUR/USD")
    _, found = diagnosis(service)
    names = found["orders rejected with 10013", "symbol names"]
    assert (names["status"], names["found"]) == ("failed", "the broker does not know EUR/USD")
    assert "EURUSD, not EUR/USD" in names["remedy"]


async def test_of_a_volume_beyond_the_brokers_limits_it_names_the_order(service: Service) -> None:
    await final(service, "bad-volume", volume=0.001)
    volume = diagnosis(service)[1]["orders rejected with 10013", "volume"]
    assert volume["status"] == "failed"
    assert volume["found"].startswith("bad-volume asked for 0.001 lots of EURUSD")


async def test_positions_traded_by_hand_are_named_with_the_remedy(service: Service) -> None:
    service.cli("sim", "trade", "buy-limit", "EURUSD", "0.1", "--price", "0.9")
    service.cli("reconcile")
    sync = diagnosis(service)[1]["positions differ", "position sync"]
    assert sync["status"] == "failed"
    assert sync["found"].startswith("order_unknown EURUSD")
    assert sync["remedy"] == "run `order-ledger reconcile`"


async def test_a_slow_broker_is_named_with_its_times(service: Service) -> None:
    service.cli("sim", "fault", "order_send:slow=1200ms*1")
    await final(service, "slow-1")
    times = diagnosis(service)[1]["high latency to the broker", "response times"]
    assert times["status"] == "failed"
    assert times["found"].startswith("1 answers took more than 1 s")


def test_without_a_bus_no_fill_can_be_told_and_it_says_so(service: Service) -> None:
    _, found = diagnosis(service, NATS_URL="nats://127.0.0.1:1")
    publishing = found["fills are not told", "NATS publishing"]
    assert publishing["status"] == "failed"
    assert "cannot reach NATS at nats://127.0.0.1:1" in publishing["found"]
    assert found["dependencies", "NATS"]["remedy"].startswith("is the server up")


def test_the_difference_is_shown_as_a_table(service: Service) -> None:
    service.cli("sim", "trade", "buy", "EURUSD", "0.3")
    table = service.cli("reconcile").stdout
    assert "unknown_at_broker" in table
    assert "long 0.3 at" in table
    shown = orjson.loads(service.cli("reconcile", "--json").stdout)
    assert shown["reconciled"].get("differences", []) == []


def test_the_checklist_of_a_running_service_holds_but_for_the_hub_that_is_not_there(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        done = running.cli("doctor", "--checklist", "--json")
        checks = orjson.loads(done.stdout)["checks"]
    assert [one["status"] for one in checks] == ["ok"] * 8 + ["unproven"] * 2, checks


def test_without_a_service_the_checklist_fails(tmp_path: Path) -> None:
    done = run_cli("doctor", "--checklist", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "no service runs" in done.stdout
