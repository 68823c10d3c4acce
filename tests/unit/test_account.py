"""The state of the trading account, folded from its events."""

from functools import reduce

import pytest

from ledger.account import HALT_SOURCES, Account, evolve_account
from ledger.account_events import (
    AccountConnected,
    AccountDisconnected,
    AccountEvent,
    AccountReconciled,
    AlertRaised,
    ConfigurationAccepted,
    ConfigurationRefused,
    ControlReceived,
    ExternalDealObserved,
    LoginRefused,
    SnapshotTaken,
    TradingHalted,
    TradingResumed,
)
from tests.decider import D, deal

connected = AccountConnected(
    login=5001, server="Demo", currency="EUR", margin_mode=2, balance=D(1), equity=D(1), terminal="5.0"
)
disconnected = AccountDisconnected(login=5001, server="Demo", reason="no reply")
refused = LoginRefused(login=5001, server="Demo", code=-6, reason="wrong password")


def halt(source: str, reason: str = "stop") -> TradingHalted:
    return TradingHalted(source=source, reason=reason)


def resume(source: str) -> TradingResumed:
    return TradingResumed(source=source)


def after(*events: AccountEvent) -> Account:
    return reduce(evolve_account, events, Account())


def test_a_connection_is_known_until_it_is_lost():
    assert not after().connected
    assert after(connected).connected
    assert not after(connected, disconnected).connected


def test_a_refused_login_says_why_until_a_connection_succeeds():
    assert (after(connected, refused).connected, after(refused).refused) == (False, "wrong password")
    assert after(refused, disconnected).refused == "wrong password"
    assert after(refused, connected).refused == ""


def test_nothing_is_halted_at_first():
    assert after().halted == ""


def test_every_halt_in_force_is_named_in_one_line_in_the_order_they_came():
    both = after(halt("operator", "news at 14:30"), halt("limit", "daily loss"))
    assert both.halted == "operator: news at 14:30; limit: daily loss"


def test_a_second_halt_of_a_source_replaces_its_first_and_no_other():
    again = after(halt("operator", "one"), halt("limit"), halt("operator", "two"))
    assert [(one.source, one.reason) for one in again.halts] == [("limit", "stop"), ("operator", "two")]


@pytest.mark.parametrize("source", HALT_SOURCES)
def test_a_halt_stands_until_its_own_source_lifts_it(source):
    others = [one for one in HALT_SOURCES if one != source]
    halted = [halt(one) for one in HALT_SOURCES]
    assert [one.source for one in after(*halted, resume(source)).halts] == others
    assert [one.source for one in after(*halted, *map(resume, others)).halts] == [source]
    assert after(resume(source)).halts == ()


def test_a_new_configuration_is_in_force_and_lifts_no_halt():
    accepted = ConfigurationAccepted(version="7", origin="file", digest="d")
    changed = after(halt("operator"), accepted)
    assert (changed.config_version, changed.halted) == ("7", "operator: stop")


@pytest.mark.parametrize(
    "event",
    [
        ExternalDealObserved(deal=deal()),
        ConfigurationRefused(version="8", origin="hub", errors=("max: not a number",)),
        AccountReconciled(trigger="start", positions=0, orders=0, deals=0),
        SnapshotTaken(currency="EUR", balance=D(1), equity=D(1)),
        ControlReceived(command="halt", by="ann"),
        AlertRaised(kind="slow_broker", text="2 s to the broker"),
    ],
    ids=lambda event: event.topic(),
)
def test_what_is_only_observed_changes_nothing(event):
    before = after(connected, halt("operator"))
    seen = evolve_account(before, event)
    assert (seen.halts, seen.connected, seen.config_version) == (before.halts, True, "")
