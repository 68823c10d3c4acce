"""Faults of the connection, over a real broker process: what the program sees, and what the broker has done."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.config import layered
from gateway.parts import terminal_settings
from gateway.processes import child_environment
from gateway.simulated.link import read_address, stop_broker
from gateway.simulated.terminal import load
from gateway.simulated.window import WindowRefused, ask
from gateway.terminal_child import load_module
from tests.simulated import broker_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with broker_in(tmp_path / "broker") as folder:
        yield folder


@pytest.fixture
def mt5(folder: Path) -> Iterator[ModuleType]:
    module = load(folder)
    assert module.initialize()
    yield module
    module.shutdown()


def order(**fields: Any) -> dict[str, Any]:
    return {"action": 1, "symbol": "EURUSD", "volume": 0.01} | fields


def fault(folder: Path, rules: str) -> None:
    ask(folder, "fault", add=rules, clear=True)


def magics(mt5: ModuleType) -> list[int]:
    return [deal.magic for deal in mt5.history_deals_get(1, 2**31 - 1) if deal.symbol]


ERRORS = {
    -1: "Terminal: Call failed",
    -2: "Terminal: Invalid params",
    -3: "Terminal: Out of memory",
    -4: "Terminal: Not found",
    -5: "Terminal: Incompatible versions",
    -6: "Terminal: Authorization failed",
    -7: "Terminal: Unsupported function",
    -8: "Auto-Trading using Python API disabled in Terminal",
    -10000: "IPC call failed",
    -10001: "IPC send failed",
    -10002: "IPC recv failed",
    -10003: "IPC initialize failed, terminal could not be started",
    -10004: "No IPC connection",
    -10005: "IPC timeout",
}


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_can_come_before_the_effect_and_after_it(mt5: ModuleType, folder: Path, code: int) -> None:
    """error, lost [R1]"""
    for number, rule in enumerate((f"error={code}*1", f"lost={code}*1"), 1):
        fault(folder, rule)
        assert mt5.order_send(order(magic=number)) is None
        assert mt5.last_error() == (code, ERRORS[code])
        assert mt5.initialize()
    assert magics(mt5) == [2]


def test_after_a_broken_pipe_every_call_fails_until_initialize(mt5: ModuleType, folder: Path) -> None:
    """lost [R12]"""
    fault(folder, "lost*1")
    assert (mt5.order_send(order(magic=1)), mt5.last_error()[0]) == (None, -10002)
    assert (mt5.account_info(), mt5.last_error()) == (None, (-10001, "IPC send failed"))
    assert mt5.initialize()
    assert magics(mt5) == [1]


def test_a_late_reply_is_late_and_a_slow_request_is_done_late(mt5: ModuleType, folder: Path) -> None:
    """delay, slow"""
    fault(folder, "delay=200ms*1; slow=200ms*1")
    other = load(folder)
    assert other.initialize()
    for magic, done_at_once in ((1, True), (2, False)):
        result: list[Any] = []
        thread = threading.Thread(
            target=lambda magic=magic, into=result: into.append(mt5.order_send(order(magic=magic)))
        )
        thread.start()
        while len(ask(folder, "fault")["rules"]) == 2 - (magic == 2):  # until the call has met its rule
            time.sleep(0.005)
        seen = magic in magics(other)
        waiting = thread.is_alive()
        thread.join(10)
        assert result[0].retcode == 10009
        assert not waiting or seen == done_at_once
        assert magic in magics(other)
    other.shutdown()


@pytest.mark.parametrize(("rule", "done"), [("hang=300ms*1", []), ("hang_after=300ms*1", [5])])
def test_a_hanging_call_ends_only_with_its_connection(
    mt5: ModuleType, folder: Path, rule: str, done: list[int]
) -> None:
    """hang, hang_after"""
    fault(folder, rule)
    assert mt5.order_send(order(magic=5)) is None
    assert mt5.last_error() == (-10002, "IPC recv failed")
    assert mt5.initialize()
    assert magics(mt5) == done


@pytest.mark.parametrize(("rule", "done"), [("kill*1", []), ("kill_after*1", [5])])
def test_a_killed_broker_comes_back_with_what_it_had_done(
    mt5: ModuleType, folder: Path, rule: str, done: list[int]
) -> None:
    """kill, kill_after [R58]"""
    fault(folder, rule)
    assert mt5.order_send(order(magic=5)) is None
    assert mt5.last_error() == (-10002, "IPC recv failed")
    assert mt5.initialize()
    assert magics(mt5) == done
    assert mt5.order_send(order(magic=6)).retcode == 10009


CRASHES = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from gateway.simulated.terminal import load

    mt5 = load(Path(sys.argv[1]))
    assert mt5.initialize()
    mt5.order_send({"action": 1, "symbol": "EURUSD", "volume": 0.01, "magic": 5})
    """
)


@pytest.mark.parametrize(("rule", "done"), [("crash*1", []), ("crash_after*1", [5])])
def test_the_process_of_the_terminal_may_be_killed(mt5: ModuleType, folder: Path, rule: str, done: list[int]) -> None:
    """crash, crash_after"""
    fault(folder, rule)
    ended = subprocess.run([sys.executable, "-c", CRASHES, str(folder)], cwd=ROOT, env=child_environment(), timeout=30)
    assert ended.returncode == -signal.SIGKILL
    assert magics(mt5) == done


def test_a_terminal_cut_off_says_so_sends_nothing_and_shows_what_it_knew(mt5: ModuleType, folder: Path) -> None:
    """cut [R19] [R59]"""
    first = mt5.order_send(order()).order
    ask(folder, "cut")
    assert mt5.terminal_info().connected is False
    assert mt5.order_send(order()).retcode == 10031
    ask(folder, "trade", type="sell", symbol="EURUSD", volume=0.5)
    ask(folder, "close", ticket=first)
    tick = mt5.symbol_info_tick("EURUSD")
    assert [row.ticket for row in mt5.positions_get()] == [first]
    assert len(magics(mt5)) == 1
    assert mt5.symbol_info_tick("EURUSD") == tick
    ask(folder, "cut", duration="off")
    assert mt5.terminal_info().connected is True
    assert [row.volume for row in mt5.positions_get()] == [0.5]
    assert len(magics(mt5)) == 3


def test_a_cut_by_script_ends_by_itself(mt5: ModuleType, folder: Path) -> None:
    """cut"""
    fault(folder, "cut=150ms*1")
    assert mt5.order_send(order()).retcode == 10031
    while not mt5.terminal_info().connected:
        time.sleep(0.01)
    assert mt5.order_send(order()).retcode == 10009


def test_history_and_positions_may_lag_behind_the_answer(mt5: ModuleType, folder: Path) -> None:
    """lag [R10]"""
    fault(folder, "*:lag=10m")
    sent = mt5.order_send(order(magic=8))
    assert sent.retcode == 10009
    assert mt5.history_deals_get(ticket=sent.deal) == ()
    assert (magics(mt5), mt5.positions_get(), mt5.history_orders_get(ticket=sent.order)) == ([], (), ())
    ask(folder, "fault", clear=True)
    assert magics(mt5) == [8]


def test_the_ticket_of_a_position_may_change_behind_the_answer(mt5: ModuleType, folder: Path) -> None:
    """reticket [R51]"""
    fault(folder, "reticket*1")
    sent = mt5.order_send(order())
    [row] = mt5.positions_get()
    assert row.identifier == sent.order != row.ticket
    assert mt5.positions_get(ticket=sent.order) == ()
    assert mt5.positions_get(ticket=row.ticket) == (row,)


def test_the_clock_may_jump_in_the_middle(mt5: ModuleType, folder: Path) -> None:
    """clock [R54]"""
    before = mt5.symbol_info_tick("EURUSD").time
    fault(folder, "clock=1h*1")
    mt5.order_send(order())
    assert 3590 < mt5.symbol_info_tick("EURUSD").time - before < 3630


def test_an_account_may_want_a_one_time_password(mt5: ModuleType, folder: Path) -> None:
    """otp [R13]"""
    fault(folder, "initialize:otp*1; login:otp*1")
    assert mt5.login(5_000_001) is False
    assert mt5.initialize() is False
    assert mt5.last_error() == (-6, "Unsupported authorization mode, OTP or certificate password needed")


def test_too_many_requests_and_the_switches_of_the_terminal(mt5: ModuleType, folder: Path) -> None:
    """TOO_MANY_REQUESTS, CLIENT_DISABLES_AT [R19]"""
    ask(folder, "rules", changes={"limit_requests": "3"})
    assert 10024 in {mt5.order_send(order()).retcode for _ in range(10)}
    ask(folder, "rules", changes={"limit_requests": "0", "algo_trading": "off"})
    assert mt5.terminal_info().trade_allowed is False
    assert mt5.order_send(order()).retcode == 10027
    ask(folder, "rules", changes={"algo_trading": "on", "python_api": "off"})
    assert mt5.terminal_info().tradeapi_disabled is True
    assert mt5.order_send(order()) is mt5.order_check(order()) is None
    assert mt5.last_error() == (-8, ERRORS[-8])


def test_faults_come_from_the_environment_once_and_not_again_after_a_crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIMULATED_FAULTS"""
    monkeypatch.setenv("SIMULATED_FAULTS", "kill_after*1; requote*1")
    mt5 = load(folder)
    assert mt5.initialize()
    assert mt5.order_send(order(magic=1)) is None
    assert mt5.initialize()
    assert [mt5.order_send(order(magic=2)).retcode for _ in range(2)] == [10004, 10009]
    assert magics(mt5) == [1, 2]
    mt5.shutdown()


def test_faults_of_the_settings_reach_the_broker_from_whatever_source_and_go_before_the_environment(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIMULATED_FAULTS"""
    monkeypatch.setenv("SIMULATED_FAULTS", "reject")
    (tmp_path / "config.toml").write_text('[service]\nsimulated_faults = "requote*1"\n')
    settings = layered({"data": str(tmp_path)}, {}, {}).settings
    mt5 = load_module(terminal_settings(settings, tmp_path))
    assert mt5.initialize()
    assert [mt5.order_send(order()).retcode for _ in range(2)] == [10004, 10009]
    mt5.shutdown()


def test_faults_of_the_environment_end_with_the_broker_and_are_left_alone_by_other_terminals(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIMULATED_FAULTS"""
    monkeypatch.setenv("SIMULATED_FAULTS", "requote")
    mt5 = load(folder)
    assert mt5.initialize()
    monkeypatch.delenv("SIMULATED_FAULTS")
    other = load(folder)
    assert other.initialize()
    assert mt5.order_send(order()).retcode == 10004
    stop_broker(folder)
    assert mt5.initialize()
    assert mt5.order_send(order()).retcode == 10009
    mt5.shutdown()
    other.shutdown()


def test_a_terminal_does_not_start_with_faults_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_FAULTS", "oops")
    mt5 = load(folder)
    assert mt5.initialize() is False
    assert mt5.last_error()[0] == -10003
    assert "no fault 'oops'" in mt5.last_error()[1]


def test_a_script_that_cannot_be_read_is_refused_and_the_old_one_stays(mt5: ModuleType, folder: Path) -> None:
    fault(folder, "requote")
    with pytest.raises(WindowRefused, match="no fault 'oops'"):
        fault(folder, "oops")
    assert ask(folder, "fault")["rules"] == ["order_send:retcode=10004"]


def test_the_window_of_a_folder_without_broker_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WindowRefused, match="order-ledger serve"):
        ask(tmp_path, "price", symbol="EURUSD")


def test_a_broker_killed_at_any_moment_has_forgotten_nothing_it_told(folder: Path) -> None:
    """[R58]"""
    told: list[int] = []
    mt5 = load(folder)
    for round_ in range(5):
        assert mt5.initialize()
        address = read_address(folder)
        assert address is not None
        killer = threading.Timer(0.02 * (round_ + 1), os.kill, (address.pid, signal.SIGKILL))
        killer.start()
        while (result := mt5.order_send(order())) is not None:
            told.append(result.deal)
        killer.join()
    assert mt5.initialize()
    deals = [deal for deal in mt5.history_deals_get(1, 2**31 - 1) if deal.symbol]
    assert set(told) <= {deal.ticket for deal in deals}
    assert len(deals) - len(told) <= 5  # done, and its reply lost
    account = mt5.account_info()
    assert account.balance == pytest.approx(1e7 + sum(deal.profit + deal.commission for deal in deals), abs=0.005)
    mt5.shutdown()
