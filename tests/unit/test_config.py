"""Settings: flags over environment over defaults, every problem at once, secrets that never show."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ConfigurationError, described, load, safe_url, version_of
from gateway.parts import terminal_settings
from gateway.secret import Secret
from gateway.variables import VARIABLES


def test_without_anything_everything_is_embedded(tmp_path):
    settings = load({"data": str(tmp_path)}, {})
    assert settings.mode == "embedded"
    assert (settings.nats_url, settings.kafka_brokers, settings.clickhouse_url) == (None, None, None)
    assert settings.ledger_url.reveal() == f"sqlite:///{tmp_path}/ledger.db"
    assert settings.terminal == "simulated"


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_default(tmp_path):
    assert load({}, {}).nats_port == 4222
    assert load({}, {"NATS_PORT": "5000"}).nats_port == 5000
    assert load({"NATS_PORT": "6000"}, {"NATS_PORT": "5000"}).nats_port == 6000
    assert load({"NATS_PORT": None}, {"NATS_PORT": "5000"}).nats_port == 5000


def test_the_order_policy_is_read_too():
    policy = load({}, {"MAX_ORDER_AGE_S": "7.5", "VALIDATE_BEFORE_SEND": "off"}).policy
    assert (policy.max_order_age_s, policy.validate_before_send) == (7.5, False)


def test_clickhouse_may_be_named_by_host_and_port():
    url = load({}, {"CLICKHOUSE_HOST": "ch", "CLICKHOUSE_PORT": "9"}).clickhouse_url
    assert url == Secret("http://ch:9")


def test_every_problem_is_named_at_once():
    environment = {"MODE": "x", "NATS_PORT": "70000", "MAX_ORDER_AGE_S": "nan", "TERMINAL": "native"}
    with pytest.raises(ConfigurationError) as raised:
        load({}, environment)
    assert [line.split()[0] for line in str(raised.value).splitlines()] == [
        "MODE",
        "NATS_PORT",
        "MAX_ORDER_AGE_S",
        "MT5_LOGIN",
        "MT5_SERVER",
        "MT5_PATH",
    ]


@given(st.sampled_from(sorted(VARIABLES)), st.text(max_size=30))
def test_any_text_in_any_variable_is_a_value_or_a_clear_problem(name, text):
    try:
        load({}, {name: text})
    except ConfigurationError as error:
        assert str(error)


def test_a_secret_never_shows_itself(tmp_path):
    settings = load(
        {}, {"MT5_PASSWORD": "hunter2", "NATS_URL": "nats://u:hunter2@h", "LEDGER_URL": "postgresql://u:hunter2@h/d"}
    )
    assert "hunter2" not in repr(settings) + str(settings) + f"{settings.mt5_password}"
    assert settings.mt5_password.reveal() == "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://user:pass@host:4222", "nats://host:4222"),
        ("postgresql://u:p@host/db?password=p", "postgresql://host/db"),
        ("nats://host", "nats://host"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url, shown):
    assert safe_url(url) == shown


def test_the_settings_for_the_record_hold_no_secret_and_change_their_version_with_every_value():
    env = {
        "NATS_URL": "nats://me:hush-1@bus:4222",
        "LEDGER_URL": "postgresql://me:hush-2@db/ledger",
        "CLICKHOUSE_URL": "http://me:hush-3@rows:8123",
        "CLICKHOUSE_PASSWORD": "hush-4",
        "MT5_PASSWORD": "hush-5",
    }
    settings = load({}, env)
    assert "hush" not in str(described(settings))
    assert described(settings)["nats_url"] == "nats://bus:4222"
    assert described(settings)["mt5_password"] == "••••"
    assert version_of(settings) == version_of(load({}, env | {"MT5_PASSWORD": "another"}))
    assert version_of(settings) != version_of(load({}, env | {"MAX_ORDER_AGE_S": "31"}))


def test_the_deadline_of_every_call_is_that_of_the_connection_too(tmp_path):
    terminal = terminal_settings(load({}, {"CALL_DEADLINE_S": "33"}), tmp_path)
    assert (terminal.timeout_s, terminal.call_deadline_s) == (33, 33)


def test_faults_to_rehearse_are_judged_before_anything_starts():
    assert load({}, {"SIMULATED_FAULTS": "seed=7"}).simulated_faults == "seed=7"
    with pytest.raises(ConfigurationError, match="SIMULATED_FAULTS fault"):
        load({}, {"SIMULATED_FAULTS": "often"})


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """Without the rights of the superuser, if the tests have them."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows asks otherwise who may enter a folder")
def test_a_data_folder_that_may_not_be_entered_is_named_and_not_the_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir(mode=0o000)
    with as_somebody_else(), pytest.raises(ConfigurationError) as refused:
        load({"data": str(folder)}, {})
    assert str(refused.value).startswith(f"this user may not enter the data folder {folder}: run it as the user")
