"""The translator, over a terminal whose answers the test writes down. A real one is in the contract suite."""

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker import Answered, Checked, LoginRefused, NotSent, Send, TerminalError, Unknown
from gateway.elapsed import elapsed_s
from gateway.mt5 import Mt5Session, build_request
from gateway.mt5_decode import Unreadable, decimal
from gateway.simulated import structs
from ledger.trade import TradeRequest

REQUEST = TradeRequest(action=1, symbol="EURUSD", volume=Decimal("0.01"), magic=7)


class Scripted:
    """A terminal module: every function answers what it was given, or what the function it was given returns."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "initialize": True,
            "shutdown": True,
            "last_error": (1, "Success"),
            "account_info": account(),
            "terminal_info": structs.TerminalInfo([True] * 22),
            "symbol_info_tick": fill(structs.Tick),
            "history_deals_get": (),
            "history_orders_get": (),
            "orders_get": (),
            "positions_get": (),
        } | answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            answer = self.answers[name]
            return answer(*args, **kwargs) if callable(answer) else answer

        return call

    def called(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def fill(struct: type[structs.StructSequence], **fields: Any) -> Any:
    texts = {"symbol", "comment", "external_id", "server", "name", "currency", "company"}
    return struct([fields.get(name, "" if name in texts else 0) for name in struct.__match_args__])


def account(**fields: Any) -> Any:
    return fill(structs.AccountInfo, **({"login": 42, "server": "Demo"} | fields))


def result(**fields: Any) -> Any:
    return fill(structs.OrderSendResult, **({"retcode": 10009, "deal": 5, "order": 6} | fields))


def connected(module: Scripted, **options: Any) -> Mt5Session:
    session = Mt5Session(module, login=42, server="Demo", **({"deal_wait_s": 0.0} | options))
    session.connect()
    return session


def sent(module: Scripted, **options: Any) -> Any:
    return connected(module, **options).send(Send(REQUEST, 1e12))


def test_a_request_holds_floats_and_ints_only_where_the_binding_wants_them() -> None:
    request = TradeRequest(
        action=1, symbol="EURUSD", volume=Decimal(1), price=Decimal("1.08"), deviation=10, magic=7, comment="c"
    )
    assert build_request(request) == {
        "action": 1, "symbol": "EURUSD", "type": 0, "volume": 1.0, "price": 1.08, "deviation": 10, "magic": 7,
        "comment": "c",
    }  # fmt: skip
    assert type(build_request(request)["volume"]) is float


@given(st.decimals(min_value=Decimal("0.00000001"), max_value=Decimal(9_999_999), places=8))
def test_a_number_arrives_as_the_same_number_and_comes_back_as_it(value: Decimal) -> None:
    if len(value.normalize().as_tuple().digits) <= 15:
        carried = build_request(TradeRequest(action=1, volume=value))["volume"]
        assert decimal(carried) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_is_read_exactly(value: float) -> None:
    assert float(decimal(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_never_becomes_a_decimal(value: float) -> None:
    with pytest.raises(Unreadable):
        decimal(value)


@pytest.mark.parametrize(
    "changes",
    [
        {"volume": Decimal("1e400")},
        {"price": Decimal("1.2345678901234567891")},
        {"comment": "c" * 30},
        {"comment": "ü"},
        {"symbol": "S" * 30},
    ],
)
def test_what_cannot_be_carried_as_it_is_is_not_sent(changes: dict[str, Any]) -> None:
    module = Scripted(order_send=result())
    request = TradeRequest(**({"action": 1, "symbol": "EURUSD"} | changes))
    outcome = connected(module).send(Send(request, 1e12))
    assert isinstance(outcome, NotSent)
    assert module.called("order_send") == []


def test_what_slept_with_the_machine_is_not_sent_when_it_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asleep, Linux' monotonic clock stands still."""
    module = Scripted(order_send=result())
    session, awake = connected(module), time.clock_gettime
    intent = Send(REQUEST, elapsed_s() + 2)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + 7200 * (clock == time.CLOCK_BOOTTIME))
    assert session.send(intent) == NotSent(0, "not_after passed")
    assert module.called("order_send") == []


def test_an_answer_is_told_with_the_deal_it_names() -> None:
    deal = fill(structs.TradeDeal, ticket=5, order=6, commission=-0.04, price=1.08)
    module = Scripted(order_send=result(price=1.08), history_deals_get=(deal,))
    outcome = sent(module)
    assert isinstance(outcome, Answered)
    assert (outcome.result.retcode, outcome.result.price) == (10009, Decimal("1.08"))
    assert [(row.ticket, row.commission) for row in outcome.deals] == [(5, Decimal("-0.04"))]
    assert module.called("history_deals_get") == [((), {"ticket": 5})]


def test_a_deal_that_shows_late_is_waited_for_and_not_longer_than_allowed() -> None:
    now = [0.0]
    visible_at = [0.02]
    deal = fill(structs.TradeDeal, ticket=5)
    module = Scripted(order_send=result(), history_deals_get=lambda **_: (deal,) if now[0] >= visible_at[0] else ())

    def sleep(seconds: float) -> None:
        now[0] += seconds

    session = connected(module, deal_wait_s=0.05, monotonic=lambda: now[0], sleep=sleep)
    assert len(session.send(Send(REQUEST, 1e12)).deals) == 1
    visible_at[0] = 1000.0
    began = now[0]
    assert session.send(Send(REQUEST, 1e12)).deals == ()
    assert now[0] - began == pytest.approx(0.05, abs=0.006)


def test_a_history_that_fails_takes_nothing_from_the_answer() -> None:
    outcome = sent(Scripted(order_send=result(), history_deals_get=None, last_error=(-10002, "IPC recv failed")))
    assert isinstance(outcome, Answered)
    assert outcome.deals == ()


def test_a_refusal_is_an_answer_and_asks_for_no_deal() -> None:
    module = Scripted(order_send=result(retcode=10019, deal=0))
    assert sent(module).result.retcode == 10019
    assert module.called("history_deals_get") == []


def test_the_time_limit_is_looked_at_immediately_before_the_call() -> None:
    now = [0.0]
    module = Scripted(order_send=result(deal=0))
    session = connected(module, monotonic=lambda: now[0])
    assert isinstance(session.send(Send(REQUEST, 1.0)), Answered)
    now[0] = 1.001
    assert session.send(Send(REQUEST, 1.0)) == NotSent(0, "not_after passed")
    assert len(module.called("order_send")) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ((-2, 'Invalid "volume" argument'), NotSent(-2, 'Invalid "volume" argument')),
        ((-8, "Auto-Trading disabled"), NotSent(-8, "Auto-Trading disabled")),
        ((-10004, "No IPC connection"), NotSent(-10004, "No IPC connection")),
        ((-10001, "IPC send failed"), Unknown(-10001, "IPC send failed")),
        ((-10002, "IPC recv failed"), Unknown(-10002, "IPC recv failed")),
        ((-10000, "IPC call failed"), Unknown(-10000, "IPC call failed")),
        ((-10005, "IPC timeout"), Unknown(-10005, "IPC timeout")),
        ((1, "Success"), Unknown(1, "Success")),
        ((-4711, "New"), Unknown(-4711, "New")),
    ],
)
def test_no_answer_means_what_last_error_says(error: tuple[int, str], outcome: object) -> None:
    assert sent(Scripted(order_send=None, last_error=error)) == outcome


def test_after_the_link_broke_nothing_more_is_sent_until_connect() -> None:
    module = Scripted(order_send=None, last_error=(-10002, "IPC recv failed"))
    session = connected(module)
    assert isinstance(session.send(Send(REQUEST, 1e12)), Unknown)
    assert isinstance(session.send(Send(REQUEST, 1e12)), NotSent)
    assert len(module.called("order_send")) == 1
    with pytest.raises(TerminalError):
        session.account()
    session.connect()
    assert isinstance(session.send(Send(REQUEST, 1e12)), Unknown)


def raising(*_: Any, **__: Any) -> Any:
    raise RuntimeError("secret-password in a message")


@pytest.mark.parametrize("broken", [{"order_send": raising}, {"order_send": None, "last_error": raising}])
def test_a_terminal_that_raises_leaves_the_order_unknown(broken: dict[str, Any]) -> None:
    outcome = sent(Scripted(**broken))
    assert isinstance(outcome, Unknown)
    assert "secret" not in outcome.text


@pytest.mark.parametrize("answer", [result(price=float("nan")), (1, 2), object()])
def test_an_answer_that_cannot_be_read_leaves_the_order_unknown(answer: object) -> None:
    assert isinstance(sent(Scripted(order_send=answer)), Unknown)


def test_a_check_passes_with_retcode_zero() -> None:
    checked = connected(Scripted(order_check=fill(structs.OrderCheckResult, comment="Done", margin=2.16))).check(
        REQUEST
    )
    assert isinstance(checked, Checked)
    assert (checked.result.retcode, checked.result.margin) == (0, Decimal("2.16"))


def test_another_account_or_server_is_refused_at_the_connection_and_at_every_look() -> None:
    module = Scripted(account_info=account(login=43))
    with pytest.raises(LoginRefused, match="43"):
        connected(module)
    with pytest.raises(LoginRefused, match="Real"):
        connected(Scripted(account_info=account(server="Real")))
    module = Scripted()
    session = connected(module)
    module.answers["account_info"] = account(login=44)
    with pytest.raises(LoginRefused, match="44"):
        session.account()


def test_a_refused_login_is_told_from_a_terminal_that_does_not_start() -> None:
    with pytest.raises(LoginRefused):
        connected(Scripted(initialize=False, last_error=(-6, "Terminal: Authorization failed")))
    with pytest.raises(TerminalError) as caught:
        connected(Scripted(initialize=False, last_error=(-10003, "IPC initialize failed, no terminal")))
    assert not isinstance(caught.value, LoginRefused)
    assert caught.value.code == -10003


def test_the_password_reaches_initialize_and_nothing_else() -> None:
    module = Scripted(initialize=False, last_error=(-10003, "failed: login=42 password=hunter2"))
    session = Mt5Session(module, login=42, password="hunter2", server="Demo", path="terminal64.exe", timeout_s=5)
    with pytest.raises(TerminalError) as caught:
        session.connect()
    assert module.called("initialize") == [
        (("terminal64.exe",), {"timeout": 5000, "login": 42, "password": "hunter2", "server": "Demo"})
    ]
    assert "hunter2" not in f"{session!r} {caught.value} {caught.value!r}"
    module.answers["initialize"] = raising
    with pytest.raises(TerminalError) as caught:
        session.connect()
    assert "secret" not in str(caught.value)


def test_a_portable_terminal_is_started_as_one() -> None:
    module = Scripted(initialize=False, last_error=(-10003, "failed"))
    with pytest.raises(TerminalError):
        Mt5Session(module, login=0, path="t.exe", portable=True).connect()
    assert module.called("initialize") == [(("t.exe",), {"timeout": 60000, "portable": True})]


def test_a_broker_without_the_clock_symbol_can_be_connected_to() -> None:
    module = Scripted(symbol_info_tick=None, last_error=(-1, "Terminal: Call failed"))
    assert connected(module).account().server_utc_offset_s is None


def order(**fields: Any) -> Any:
    return fill(structs.TradeOrder, **fields)


def test_evidence_is_what_carries_a_wanted_magic_or_token_in_all_four_places() -> None:
    module = Scripted(
        orders_get=(order(ticket=1, magic=7), order(ticket=2, magic=8)),
        history_orders_get=(order(ticket=3, comment="[tok-1]"), order(ticket=4, comment="tok")),
        history_deals_get=(
            fill(structs.TradeDeal, ticket=5, magic=7),
            fill(structs.TradeDeal, ticket=6, order=3),
            fill(structs.TradeDeal, ticket=7, order=4),
        ),
        positions_get=(fill(structs.TradePosition, ticket=8, comment="tok-1"), fill(structs.TradePosition, ticket=9)),
    )
    found = connected(module).find([7, 0], ["tok-1", ""], 60)
    assert found.complete
    assert [row.ticket for row in found.orders] == [1]
    assert [row.ticket for row in found.history] == [3]
    assert [row.ticket for row in found.deals] == [5, 6]
    assert [row.ticket for row in found.positions] == [8]


def test_evidence_is_gathered_in_the_direction_an_order_moves() -> None:
    module = Scripted()
    connected(module).find([7], [], 60)
    asked = [name for name, _, _ in module.calls if name.endswith("_get")]
    assert asked == ["orders_get", "history_orders_get", "history_deals_get", "positions_get"]


@pytest.mark.parametrize("failing", ["orders_get", "history_orders_get", "history_deals_get", "positions_get"])
def test_evidence_with_a_failed_query_is_not_complete(failing: str) -> None:
    module = Scripted(**{failing: None}, last_error=(-1, "Terminal: Call failed"))
    found = connected(module).find([7], [], 60)
    assert not found.complete
    assert "Call failed" in found.reason


def test_evidence_of_a_terminal_without_its_broker_is_not_complete() -> None:
    found = connected(Scripted(terminal_info=structs.TerminalInfo([False] * 22))).find([7], [], 60)
    assert (found.complete, found.orders) == (False, ())


def tick(time_s: float) -> Any:
    return fill(structs.Tick, time=int(time_s), time_msc=int(time_s * 1000), bid=1.0, ask=1.1)


@pytest.mark.parametrize("offset", [7200, 10800, 0, -18000, 20700])
def test_a_live_tick_shows_the_servers_zone_and_history_is_asked_for_in_it(offset: int) -> None:
    now = 1_700_000_000.0
    module = Scripted(symbol_info_tick=tick(now + offset - 1.5))
    session = connected(module, wall=lambda: now)
    assert session.account().server_utc_offset_s == offset
    session.find([7], [], 60)
    (first, last), _ = module.called("history_orders_get")[0]
    assert first <= now + offset - 60
    assert last >= now + offset + 86_400
    assert type(first) is type(last) is int


def test_a_stale_tick_shows_no_zone_and_history_is_then_asked_for_widely() -> None:
    now = 1_700_000_000.0
    module = Scripted(symbol_info_tick=tick(now - 400))
    session = connected(module, wall=lambda: now)
    assert session.account().server_utc_offset_s is None
    session.find([7], [], 60)
    (first, last), _ = module.called("history_deals_get")[0]
    assert first <= now - 60 - 14 * 3600
    assert last >= now + 86_400 + 14 * 3600


def test_only_a_tick_that_has_just_moved_lowers_the_offset() -> None:
    now = [1_700_000_000.0]
    module = Scripted(symbol_info_tick=tick(now[0] + 10_800))
    session = connected(module, wall=lambda: now[0], monotonic=lambda: now[0])
    now[0] += 3600  # the last tick is now an hour old and looks like the zone next to it
    session.tick("EURUSD")
    assert session.server_utc_offset_s == 10_800
    for _ in range(2):
        assert session.server_utc_offset_s == 10_800
        now[0] += 5
        module.answers["symbol_info_tick"] = tick(now[0] + 7200)
        session.tick("EURUSD")
    assert session.server_utc_offset_s == 7200


@pytest.mark.parametrize(("before", "after"), [(7200, 10_800), (10_800, 7200), (37_800, 39_600), (39_600, 37_800)])
def test_the_zone_is_learnt_again_while_the_connection_is_verified(before: int, after: int) -> None:
    now, zone = [1_700_000_000.0], [before]
    module = Scripted(symbol_info_tick=lambda _: tick(now[0] + zone[0] - 0.5))
    session = connected(module, wall=lambda: now[0], monotonic=lambda: now[0])
    zone[0] = after
    for _ in range(20):
        now[0] += 1
        found = session.verify()
    assert found.server_utc_offset_s == after
    assert len(module.called("symbol_info_tick")) <= 11


def test_quotes_that_stand_still_never_move_the_zone() -> None:
    """A weekend, whole quarter hours after the last tick; then the terminal shows another old one."""
    now = [1_700_000_000.0]
    module = Scripted(symbol_info_tick=tick(now[0] + 7200))
    session = connected(module, wall=lambda: now[0], monotonic=lambda: now[0])
    for _ in range(4 * 48):
        now[0] += 900
        assert session.verify().server_utc_offset_s == 7200
    now[0] += 5
    module.answers["symbol_info_tick"] = tick(now[0] + 7200 - 3600)
    for _ in range(20):
        assert session.verify().server_utc_offset_s == 7200
        now[0] += 5


def test_a_clock_of_ours_that_is_set_back_for_a_while_does_not_move_the_zone() -> None:
    now = [1_700_000_000.0]
    module = Scripted(symbol_info_tick=tick(now[0] + 7200))
    session = connected(module, wall=lambda: now[0] - 3600, monotonic=lambda: now[0])
    session.server_utc_offset_s = 7200
    for _ in range(10):
        now[0] += 5
        assert session.verify().server_utc_offset_s == 7200


@pytest.mark.parametrize("slow_s", [20, 40, 440, 460, 860])
def test_a_clock_of_ours_that_is_slow_does_not_make_the_zone_flap(slow_s: int) -> None:
    now, shown = [1_700_000_000.0], set()
    module = Scripted(symbol_info_tick=lambda _: tick(now[0] + 7200 - now[0] % 7))
    session = connected(module, wall=lambda: now[0], monotonic=lambda: now[0])
    session._wall = lambda: now[0] - slow_s
    for _ in range(50):
        now[0] += 5
        shown.add(session.verify().server_utc_offset_s)
    assert shown == {7200}


def test_an_unknown_symbol_is_none_and_a_failure_is_an_error() -> None:
    module = Scripted(symbol_info=None, last_error=(-4, "Terminal: Not found"))
    session = connected(module)
    assert session.symbol("NOPE") is None
    module.answers["last_error"] = (-1, "Terminal: Call failed")
    with pytest.raises(TerminalError):
        session.symbol("EURUSD")
