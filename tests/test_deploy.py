"""What stands in deploy/: it parses, it is pinned, and it names only what exists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import load
from gateway.variables import VARIABLES
from tests.promql import DEPLOY, panels, rules, selectors

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
ROOT = DEPLOY.parent
# Read beside the settings: where the data is, and what goes to Kafka's client as it is.
BESIDE = {
    "ORDER_LEDGER_DATA",
    "KAFKA_SECURITY_PROTOCOL",
    "KAFKA_SASL_MECHANISM",
    "KAFKA_SASL_USERNAME",
    "KAFKA_SASL_PASSWORD",
}


def environment(filled: dict[str, str]) -> dict[str, str]:
    """The gateway's environment as compose makes it of a `.env`."""

    def value(found: re.Match[str]) -> str:
        name, how, otherwise = found.groups()
        if how == ":?":
            assert filled.get(name), f"{name} is needed"
        return filled.get(name) or (otherwise if how == ":-" else "")

    stated = SERVICES["gateway"]["environment"]
    return {name: re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, str(text)) for name, text in stated.items()}


def filled_in() -> list[tuple[str, str]]:
    """Names and values of the example."""
    lines = (DEPLOY / "env.example").read_text().splitlines()
    return [
        (line.split("=", 1)[0], line.split("=", 1)[1]) for line in lines if "=" in line and not line.startswith("#")
    ]


def example(**filled: str) -> dict[str, str]:
    lines = filled_in()
    given = {name: text or f"{name.lower().replace('_', '-')}-0123456789abcdef" for name, text in lines}
    return given | {"MT5_LOGIN": "", "SEAL_KEY": "", "OPERATOR_TOKENS": "", "AUDITOR_TOKENS": ""} | filled


def test_every_variable_of_the_gateway_is_a_setting():
    assert set(SERVICES["gateway"]["environment"]) - BESIDE <= set(VARIABLES)


@pytest.mark.parametrize("page", sorted(DEPLOY.glob("*.md")), ids=lambda one: one.name)
def test_every_variable_the_pages_name_is_a_setting(page):
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", page.read_text()))
    theirs = set().union(*(one.get("environment", {}) for one in SERVICES.values())) | set(example())
    assert named - BESIDE - theirs <= set(VARIABLES)


def test_every_variable_to_fill_in_stands_in_the_example_and_is_used():
    asked = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    named = {name for name, _ in filled_in()}
    assert named <= asked | {COMPOSE["secrets"]["metrics_token"]["environment"]}
    assert asked - named <= {"NATS_USER"}


def test_the_gateway_starts_with_what_the_example_gives():
    settings = load({}, environment(example()))
    assert (settings.terminal, settings.service_host) == ("simulated", "0.0.0.0")
    assert settings.operator_tokens


def test_in_production_it_needs_no_stand_in():
    filled = {"MODE": "production", "TERMINAL": "mt5linux", "MT5_LOGIN": "5", "MT5_SERVER": "B", "SEAL_KEY": "00" * 32}
    assert load({}, environment(example(**filled))).mode == "production"


def test_without_a_token_for_the_metrics_nothing_starts():
    with pytest.raises(AssertionError, match="METRICS_TOKEN"):
        environment(example(METRICS_TOKEN=""))


def test_every_image_is_pinned_to_one_version():
    images = [one["image"] for one in SERVICES.values()]
    images += re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) > 8
    for image in images:
        tag = image.rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+\.\d+", tag) or re.match(r"\d+\.\d+-", tag), image


def test_no_port_is_open_to_other_machines():
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"


def test_every_file_that_is_named_is_there():
    for config in COMPOSE["configs"].values():
        assert (DEPLOY / config["file"]).is_file()
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for path in line.split()[1:-1]:
                assert (ROOT / path).exists(), path
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for config in service.get("configs", ()):
            assert config["source"] in COMPOSE["configs"]


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", path.read_text(), re.MULTILINE))


def test_the_image_holds_the_versions_that_were_tested_and_no_test_tools():
    tested, deployed = pins(ROOT / "requirements.lock"), pins(DEPLOY / "requirements.lock")
    assert deployed.items() <= tested.items()
    assert not {"pytest", "mypy", "schemathesis"} & set(deployed)
    assert {"chdb", "psycopg", "opentelemetry-sdk", "rpyc", "nats-py"} <= set(deployed)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda one: one.name)
def test_every_yaml_file_can_be_read(path):
    assert yaml.safe_load(path.read_text())


@pytest.mark.parametrize(("what", "query"), [*rules().items(), *panels()])
def test_every_query_is_one(what, query):
    assert selectors(query), what


def test_every_alert_says_what_to_do_and_whom_to_wake():
    parsed = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
    for rule in parsed["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"]) > 20


def test_the_panels_of_the_dashboard_do_not_overlap():
    taken = set()
    for panel in json.loads((DEPLOY / "grafana" / "order-ledger.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
