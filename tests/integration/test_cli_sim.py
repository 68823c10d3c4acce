"""`order-ledger sim`: the simulated terminal's window, over a real broker process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli as order_ledger
from gateway.simulated.terminal import load
from tests.simulated import broker_in


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    with broker_in(tmp_path / "terminal" / "broker") as folder:
        mt5 = load(folder)
        assert mt5.initialize()
        mt5.shutdown()
        yield tmp_path


def cli(data: Path, *arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(order_ledger, ["sim", *arguments, "--data", str(data)], env=environment)


def shown(data: Path, *arguments: str) -> Any:
    done = cli(data, *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return orjson.loads(done.stdout)


def test_a_price_can_be_set_and_stays(data: Path) -> None:
    assert shown(data, "price", "EURUSD", "1.09")["bid"] == 1.09
    assert shown(data, "price", "EURUSD", "--by", "-100")["bid"] < 1.0895


def test_an_order_is_placed_filled_in_part_and_deleted(data: Path) -> None:
    """[R57]"""
    ticket = str(shown(data, "trade", "buy-limit", "EURUSD", "0.5", "--price", "1.05", "--sl", "1.04")["order"])
    assert shown(data, "fill", ticket, "--volume", "0.2") == {"order": int(ticket), "filled": 0.2, "left": 0.3}
    [row] = shown(data, "orders")
    assert (row["state"], row["volume_current"]) == (3, 0.3)
    shown(data, "close", ticket)
    [position] = shown(data, "positions")
    assert (position["volume"], position["price_open"], position["magic"]) == (0.2, 1.05, 0)
    assert [order["state"] for order in shown(data, "orders", "--history")] == [2]
    shown(data, "close", str(position["ticket"]), "--volume", "0.1")
    assert [deal["volume"] for deal in shown(data, "deals")][1:] == [0.2, 0.1]


def test_symbols_rules_clock_and_link_can_be_changed(data: Path) -> None:
    assert shown(data, "market", "EURUSD", "trade_mode=closeonly", "stops_level=50")["trade_mode"] == 3
    assert shown(data, "rules", "algo_trading=off", "limit_orders=5")["limit_orders"] == 5
    assert shown(data, "clock", "--behind", "1h")["shift_ms"] == -3_600_000
    assert shown(data, "clock", "--right")["shift_ms"] == 0
    assert shown(data, "cut", "5m")["connected"] is False
    assert shown(data, "cut", "off")["connected"] is True
    assert shown(data, "transfer", "-100")["balance"] == 9_999_900.0
    assert shown(data, "account")["balance"] == 9_999_900.0


def test_faults_are_added_shown_and_cleared(data: Path) -> None:
    assert shown(data, "fault", "lost*1", "requote@0.5")["rules"] == [
        "order_send:lost=-10002*1",
        "order_send:retcode=10004@0.5",
    ]
    assert shown(data, "fault", "--clear")["rules"] == []


def test_a_reopened_position_has_a_new_ticket(data: Path) -> None:
    """[R51]"""
    ticket = shown(data, "trade", "buy", "EURUSD", "0.1")["order"]
    again = shown(data, "reopen", str(ticket))
    assert again["identifier"] == ticket != again["ticket"]


def test_another_program_trades_under_its_own_number(data: Path) -> None:
    ticket = shown(data, "trade", "sell", "EURUSD", "0.1", "--magic", "777")["order"]
    [position] = shown(data, "positions")
    assert (position["identifier"], position["magic"], position["reason"]) == (ticket, 777, 3)


def test_staff_may_amend_a_position_without_a_deal(data: Path) -> None:
    ticket = shown(data, "trade", "buy", "EURUSD", "0.1")["order"]
    deals = shown(data, "deals")
    shown(data, "amend", str(ticket), "--side", "sell", "--volume", "0.25", "--price", "1.05")
    [position] = shown(data, "positions")
    assert (position["type"], position["volume"], position["price_open"]) == (1, 0.25, 1.05)
    assert shown(data, "deals") == deals


def test_costs_of_a_deal_may_be_booked_later_and_move_the_balance_once(data: Path) -> None:
    deal = shown(data, "trade", "buy", "EURUSD", "0.1")["deal"]
    before = shown(data, "account")["balance"]
    for _ in range(2):
        booked = shown(data, "book", str(deal), "--swap", "-1.25", "--fee", "-0.5")
        assert (booked["swap"], booked["fee"]) == (-1.25, -0.5)
    assert shown(data, "account")["balance"] == pytest.approx(before - 1.75)
    assert [(one["ticket"], one["swap"]) for one in shown(data, "deals")][1:] == [(deal, -1.25)]


def test_tables_name_what_the_numbers_mean(data: Path) -> None:
    shown(data, "trade", "sell-stop", "EURUSD", "0.5", "--price", "1.05")
    assert "sell stop" in cli(data, "orders").stdout
    assert "9999900" in cli(data, "transfer", "-100").stdout
    assert "balance" in cli(data, "deals").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("price", "NOPE"), "no symbol 'NOPE'"),
        (("price", "EURUSD", "--by", "-1000000"), "above 0"),
        (("trade", "hold", "EURUSD", "1"), "no order type 'hold'"),
        (("trade", "buy", "EURUSD", "0.001"), "10014 Invalid volume"),
        (("close", "1"), "no position and no pending order 1"),
        (("fill", "1"), "no working order 1"),
        (("market", "EURUSD", "digits=3"), "cannot be changed"),
        (("market", "EURUSD", "trade_mode=maybe"), "trade_mode must be"),
        (("market", "EURUSD", "sessions=lunch"), "sessions are"),
        (("market", "EURUSD", "volume_step=0"), "volume_step <= volume_min"),
        (("market", "EURUSD", "book_levels=3"), "book_volume"),
        (("transfer", "nan"), "an amount is below"),
        (("cut", "99999999h"), "the longest is 1000h"),
        (("rules", "colour=red"), "no rule 'colour'"),
        (("rules", "algo_trading=maybe"), "write on or off"),
        (("rules", "algo_trading"), "NAME=VALUE"),
        (("cut", "soon"), "no duration 'soon'"),
        (("fault", "oops"), "no fault 'oops'"),
        (("reopen", "1"), "no position 1"),
        (("amend", "1", "--volume", "0.1"), "no position 1"),
        (("book", "1", "--swap", "1"), "no deal 1"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_failure(data: Path, arguments: tuple[str, ...], says: str) -> None:
    done = cli(data, *arguments)
    assert done.exit_code != 0
    assert says in done.stderr
    assert done.stderr.startswith("order-ledger: ")
    assert done.stderr.count("\n") == 1


def test_it_needs_a_simulated_broker(tmp_path: Path) -> None:
    assert "order-ledger serve" in cli(tmp_path, "account").stderr
    native = cli(tmp_path, "account", TERMINAL="native", MT5_LOGIN="1", MT5_SERVER="s", MT5_PATH="t")
    assert "TERMINAL is native" in native.stderr
