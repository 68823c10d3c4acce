"""Settings from documents: every problem by its path, nothing unknown let through, no secret repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import ConfigurationError, layered
from gateway.documents import deep_merge
from gateway.hub import HubError, read_answer
from gateway.reload import reloaded
from gateway.settings_table import ABOUT
from gateway.variables import VARIABLES
from tests import make_settings_page

STATED = {
    "operational": {
        "mt5_connection": {"terminal_path": "/x", "server": "s", "login": 12345678, "timeout_seconds": 60},
        "order_settings": {"validate_before_send": True, "max_retries": 3, "retry_delay_seconds": 5},
        "error_handling": {
            "auto_reconnect": True,
            "reconnect_interval_seconds": 30,
            "log_all_communications": True,
        },
        "position_sync": {"sync_interval_minutes": 5, "reconcile_on_disconnect": True},
    }
}
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=10,
)


def test_the_stated_document_is_understood_whole():
    settings = layered({}, {}, STATED).settings
    assert (settings.mt5_login, settings.call_deadline_s, settings.policy.retry_delay_s) == (12345678, 60.0, 5.0)


def test_the_environment_is_stronger_than_the_hub_and_the_hub_than_the_file(tmp_path):
    (tmp_path / "config.toml").write_text("[operational.order_settings]\nmax_retries = 1\nmax_unreached = 4\n")
    flags, hub = {"data": str(tmp_path)}, {"operational": {"order_settings": {"max_retries": 2}}}
    policy = layered(flags, {}, hub).settings.policy
    assert (policy.max_retries, policy.max_unreached) == (2, 4)
    assert layered(flags, {"MAX_RETRIES": "9"}, hub).settings.policy.max_retries == 9


def test_every_problem_of_a_document_is_named_by_its_path():
    section = {"order_settings": {"max_retries": "3", "max_retrys": 3}, "position_sync": [], "logging": {"level": "x"}}
    with pytest.raises(ConfigurationError) as raised:
        layered({}, {}, {"operational": section})
    assert sorted(line.split()[0].removeprefix("operational.") for line in str(raised.value).splitlines()) == [
        "logging.level",
        "order_settings.max_retries",
        "order_settings.max_retrys",
        "position_sync",
    ]


def by_class(given):
    section = {"position_sync": {"reconcile_policy": given}}
    return layered({}, {}, {"operational": section}).settings.reconcile_policy


def test_policies_by_class_of_difference_come_from_a_group_and_from_one_text():
    assert by_class({"stops": "alert", "volume": "correct"}) == {"stops": "alert", "volume": "correct"}
    given = layered({}, {"RECONCILE_POLICY": "stops=alert, volume=correct"}).settings.reconcile_policy
    assert given == {"stops": "alert", "volume": "correct"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"stop": "alert"}, ".stop names 'stop': the classes are missing_at_broker, "),
        ({"stops": "adopt"}, ".stops must say correct or alert for stops, not 'adopt'"),
        ({"stops": True}, ".stops must be text "),
        ({"stops": "alert,volume=alert"}, ".stops must be text without comma and equals sign"),
        ("stops=alert", " must be a group of texts, not text"),
    ],
)
def test_a_class_or_a_policy_that_there_is_not_is_refused_by_its_path(given, problem):
    with pytest.raises(ConfigurationError) as raised:
        by_class(given)
    assert str(raised.value).startswith(f"operational.position_sync.reconcile_policy{problem}")


def test_every_wrong_policy_is_named_at_once():
    with pytest.raises(ConfigurationError) as raised:
        by_class({"stop": "alert", "volume": "alert", "side": "adopt"})
    assert len(str(raised.value).splitlines()) == 2
    with pytest.raises(ConfigurationError) as raised:
        layered({}, {"RECONCILE_POLICY": "stop=alert,side=adopt"})
    assert str(raised.value).startswith("RECONCILE_POLICY names 'stop'")
    assert str(raised.value).endswith("; must say correct or alert for side, not 'adopt'")


def test_a_secret_in_a_document_is_refused_and_not_repeated():
    with pytest.raises(ConfigurationError) as raised:
        layered({}, {}, {"operational": {"mt5_connection": {"password": "hunter2"}}})
    assert "environment only" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@given(json)
def test_no_document_makes_anything_but_settings_or_problems(document):
    try:
        layered({}, {}, {"operational": document})
    except ConfigurationError as error:
        assert str(error)


@given(st.dictionaries(st.text(max_size=3), json, max_size=3), st.dictionaries(st.text(max_size=3), json, max_size=3))
def test_a_merge_keeps_every_default_and_takes_what_is_stronger(weak, strong):
    merged = deep_merge(weak, strong)
    assert merged.keys() == weak.keys() | strong.keys()
    assert repr(deep_merge(merged, strong)) == repr(merged)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"config": 1}', b'{"config": "x"}', b'{"config": "[]"}', b"\xff"]
)
def test_an_answer_that_holds_no_configuration_is_an_error(body):
    with pytest.raises(HubError):
        read_answer(body)


def test_a_config_may_be_a_text_that_holds_an_object():
    assert read_answer(b'{"config": "{\\"a\\": 1}", "version": 2, "updated_at": -5}').config == {"a": 1}


def test_what_needs_a_restart_keeps_its_value_and_is_named():
    old = layered({}, {}, {}).settings
    section = {"mt5_connection": {"login": 5}, "order_settings": {"max_retries": 7}}
    settings, changed, waiting = reloaded(old, layered({}, {}, {"operational": section}).settings)
    assert (settings.policy.max_retries, settings.mt5_login) == (7, 0)
    assert (changed, waiting) == (("policy.max_retries",), ("mt5_login",))


def test_every_setting_is_described_and_the_reference_is_current():
    assert ABOUT.keys() == VARIABLES.keys()
    assert make_settings_page.PAGE.read_text() == make_settings_page.page(), "run `make docs`"
