"""The HTTP API of the running service against its own OpenAPI document: whatever is asked, the answer is described."""

import asyncio
import os
import time
from collections import defaultdict

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import ignored_auth

from gateway.demo import samples
from gateway.http_api import ROUTES
from tests.http_server import AUDITOR, BOTH, OPERATOR, TOKENS
from tests.promql import panels, rules, selectors
from tests.service import Listener, Service, market_order, serving

EXAMPLES = int(os.environ.get("HTTP_EXAMPLES", "12"))


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("http"), HTTP_REQUESTS_PER_S="100000", **TOKENS) as running:
        asyncio.run(some_orders(running))
        yield running


async def some_orders(service: Service) -> None:
    async with Listener(service.info["nats_url"]) as listener:
        for number in range(5):
            await listener.send(market_order(f"api-{number}", sl=1.05))
        await listener.send(market_order("api-bad", volume="NaN"))
        for name in [*(f"api-{number}" for number in range(5)), "api-bad"]:
            await listener.final(name)


def get(service: Service, path: str, token: str = BOTH) -> requests.Response:
    return requests.get(service.info["http_url"] + path, headers={"Authorization": f"Bearer {token}"}, timeout=20)


@pytest.mark.parametrize("name", [route.name for route in ROUTES])
def test_whatever_is_asked_the_answer_is_as_described(service, name):
    url = service.info["http_url"]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=SchemathesisConfig())
    schema.config.update(base_url=url)
    ours = schema.include(operation_id=name)
    strategy = next(one.ok() for one in ours.get_all_operations()).as_strategy()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def ask(case):
        assume(not {"since", "until"} <= set(case.query or ()))  # which of them comes first no schema can say
        # Who may ask is a table of its own; wrong tokens here would lock this address out.
        answer = case.call_and_validate(
            headers={"Authorization": f"Bearer {BOTH}"}, excluded_checks=[ignored_auth], timeout=20
        )
        assert answer.status_code != 429

    ask()


@pytest.mark.parametrize("token", [AUDITOR, OPERATOR])
def test_nothing_that_is_asked_with_less_than_all_roles_is_an_error_of_the_service(service, token):
    for route in ROUTES:
        answer = requests.request(
            route.method,
            service.info["http_url"] + route.path.replace("{order_id}", "api-1"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        )
        assert answer.status_code < 500
        assert answer.headers["Cache-Control"] == "no-store"


def test_an_order_of_the_running_service_is_shown(service):
    found = get(service, "/api/v1/orders/api-1").json()
    told = orjson.loads(service.cli("history", "api-1", "--json").stdout)
    assert found["state"]["status"] == "filled"
    assert [one["event_id"] for one in found["events"]] == [one["event_id"] for one in told]
    (position,) = [
        one for one in get(service, "/api/v1/positions").json()["positions"] if one["entry_order_id"] == "api-1"
    ]
    assert (position["side"], position["volume"], position["sl"]) == ("long", "0.01", "1.05")


def test_what_is_counted_is_what_happened(service):
    lines = dict(line.rsplit(" ", 1) for line in get(service, "/metrics").text.splitlines() if not line.startswith("#"))
    assert float(lines['order_ledger_order_outcomes_total{category="",outcome="filled"}']) == 5
    assert float(lines['order_ledger_order_outcomes_total{category="malformed",outcome="refused"}']) == 1
    assert float(lines['order_ledger_fills_total{side="buy",symbol="EURUSD"}']) == 5
    assert float(lines["order_ledger_ready"]) == 1


def test_hostile_names_make_no_new_series_and_no_broken_line_of_the_log(service):
    before = get(service, "/metrics").text
    asyncio.run(hostile_orders(service))
    after = get(service, "/metrics").text
    assert series(after) - series(before) <= {'order_ledger_order_outcomes_total{category="refused",outcome="refused"}'}
    assert "evil" not in after
    for line in service.log().splitlines():
        orjson.loads(line)


def series(text: str) -> set[str]:
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")}


async def hostile_orders(service: Service) -> None:
    async with Listener(service.info["nats_url"]) as listener:
        for number in range(100):
            evil = f'evil{number}"}} 1\n# HELP x \u2028\x1b[2J'
            await listener.send(market_order(f"hostile-{number}", symbol=evil, correlation_id=evil, strategy_id=evil))
            await listener.send(market_order(evil))
        await listener.final("hostile-99")


def test_the_service_says_how_it_is_and_goes_not_ready_while_the_broker_is_away(service):
    health = get(service, "/health").json()
    assert (health["status"], health["service"], health["trading"]) == ("healthy", "mt5-connector", "open")
    assert {name for name, part in health["parts"].items() if part["needed"]} == {"ledger", "nats", "broker"}
    assert service.cli("sim", "cut").returncode == 0
    assert until(service, 503)["waiting_for"] == ["broker"]
    assert get(service, "/health").status_code == 503
    assert service.cli("sim", "cut", "off").returncode == 0
    assert until(service, 200)["waiting_for"] == []


def until(service: Service, status: int) -> dict:
    deadline = time.monotonic() + 30
    while (answer := get(service, "/readyz")).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer.json()


def test_without_clickhouse_and_kafka_orders_are_taken_and_it_is_degraded(tmp_path):
    away = {"CLICKHOUSE_URL": "http://127.0.0.1:1", "KAFKA_BROKERS": "127.0.0.1:1"}
    with serving(tmp_path / "d", LOG_LEVEL="error", **away) as service:
        deadline = time.monotonic() + 30
        while (health := get(service, "/health").json())["parts"]["kafka"]["state"] != "down":
            assert time.monotonic() < deadline, health
            time.sleep(0.1)
        assert (health["status"], health["ready"]) == ("degraded", True)
        assert get(service, "/readyz").status_code == 200
        asyncio.run(one_order(service))


async def one_order(service: Service) -> None:
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order("degraded-1"))
        await listener.final("degraded-1")


def test_every_metric_of_the_dashboard_and_the_alerts_is_there_after_the_demo(tmp_path):
    with serving(tmp_path / "d") as service:
        asyncio.run(the_demo(service))
        requests.post(service.info["http_url"] + "/api/v1/verification", timeout=20)
        text = requests.get(service.info["http_url"] + "/metrics", timeout=20).text
    held = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            held[sample.name].append((sample.labels, sample.value))
    missing = [
        (what, selector)
        for what, query in [*rules().items(), *panels()]
        for selector in selectors(query)
        if selector.name != "up" and not any(selector.takes(labels) for labels, _ in held[selector.name])
    ]
    assert missing == []
    measured = [name for name in held if name.startswith("order_ledger_") and name.endswith("_bucket")]
    assert len(measured) == 5
    assert [name for name in measured if not any(value for _, value in held[name])] == []


async def the_demo(service: Service) -> None:
    async with Listener(service.info["nats_url"]) as listener:
        for sample in samples():
            await listener.send(sample.payload)
        await listener.send(market_order("asked-1", price=1.08))  # the demo's name no price to be worse than
        await listener.final("asked-1")
        await listener.final("demo-18")
