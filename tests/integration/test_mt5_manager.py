"""MT5Manager: the package's read calls over a terminal child, and a close through the running service."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import orjson
import pytest

from gateway.mt5_manager import MT5Manager, mt5
from gateway.simulated.link import read_address
from gateway.simulated.terminal import load
from tests.service import market_order, serving
from tests.simulated import LOGIN, SERVER, broker_in


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("TERMINAL", "MT5_LOGIN", "MT5_SERVER", "MT5_PATH", "NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    with broker_in(tmp_path / "terminal" / "broker"):
        yield tmp_path


@pytest.fixture
async def manager(data: Path) -> AsyncIterator[MT5Manager]:
    manager = MT5Manager(str(data))
    assert await manager.initialize(server=SERVER, login=LOGIN, password="any")
    yield manager
    manager.shutdown()


async def test_the_calls_of_the_package_return_its_own_structs(manager: MT5Manager, data: Path) -> None:
    here = load(data / "terminal" / "broker")
    assert here.initialize()
    opened = here.Buy("EURUSD", 0.03, comment="mine")
    [position] = manager.positions_get(symbol="EURUSD")
    assert (position.ticket, position.volume, position.comment) == (opened.order, 0.03, "mine")
    assert position.type == manager.mt5.POSITION_TYPE_BUY == mt5.POSITION_TYPE_BUY
    tomorrow = datetime.now() + timedelta(days=1)
    assert mt5.history_deals_get(1, tomorrow) == here.history_deals_get(1, tomorrow)
    assert mt5.terminal_info()._asdict() == here.terminal_info()._asdict()
    assert type(mt5.symbol_info("EURUSD")).__name__ == "SymbolInfo"
    rates = mt5.copy_rates_from_pos("EURUSD", mt5.TIMEFRAME_H1, 1, 5)
    assert rates.tolist() == here.copy_rates_from_pos("EURUSD", here.TIMEFRAME_H1, 1, 5).tolist()
    check = {"action": mt5.TRADE_ACTION_DEAL, "symbol": "EURUSD", "volume": 0.01}
    assert mt5.order_check(check).retcode == 0
    here.shutdown()


async def test_it_tells_the_currency_and_the_leverage_of_the_account(manager: MT5Manager) -> None:
    assert (manager.account_currency(), manager.account_leverage()) == ("USD", 500)


async def test_a_failed_call_returns_none_and_tells_why(manager: MT5Manager) -> None:
    assert manager.symbol_info("NOPE") is None
    assert manager.last_error() == (-4, "Terminal: Not found")
    assert manager.positions_get(ticket="1") is None
    assert manager.last_error()[0] == -2
    assert manager.positions_get() == ()
    assert manager.last_error() == (1, "Success")
    with pytest.raises(TypeError):
        manager.symbol_info(symbol="EURUSD")


@pytest.mark.parametrize("name", ["order_send", "Buy", "Sell", "Close"])
async def test_what_trades_is_not_offered(manager: MT5Manager, name: str) -> None:
    with pytest.raises(AttributeError, match="through the ledger"):
        getattr(manager, name)
    with pytest.raises(AttributeError):
        getattr(mt5, name)


@pytest.mark.parametrize("wrong", [{"login": 42}, {"server": "Elsewhere"}])
async def test_another_account_is_no_success(data: Path, wrong: dict[str, object]) -> None:
    manager = MT5Manager(str(data))
    assert not await manager.initialize(**wrong)  # type: ignore[arg-type]
    assert manager.last_error()[0] == -6
    assert manager.account_info() is None
    assert manager.last_error()[0] == -10004


async def test_a_terminal_that_hangs_costs_the_deadline_and_no_more(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALL_DEADLINE_S", "0.3")
    manager = MT5Manager(str(data))
    assert await manager.initialize()
    address = read_address(data / "terminal" / "broker")
    assert address is not None
    os.kill(address.pid, signal.SIGSTOP)
    assert manager.account_info() is None
    assert manager.last_error()[0] == -10005
    assert manager.account_info() is None
    os.kill(address.pid, signal.SIGCONT)
    assert await manager.initialize()
    assert manager.account_info().login == LOGIN
    manager.shutdown()


async def test_a_position_is_closed_by_a_request_to_the_service(tmp_path: Path) -> None:
    """Through the ledger: the request has a stream of its own, and the same order_id again is the same request."""
    with serving(tmp_path / "d", CLICKHOUSE_URL="off") as service:
        order = tmp_path / "order.json"
        order.write_bytes(orjson.dumps(market_order("to-close")))
        opened = orjson.loads((await asyncio.to_thread(service.cli, "submit", str(order), "--json")).stdout)
        manager = MT5Manager(str(service.folder))
        assert await manager.initialize()
        [position] = manager.positions_get()
        assert position.identifier == opened["position_id"]
        outcome = await manager.positions_close(position.ticket, order_id="close-it")
        again = await manager.positions_close(position.ticket, order_id="close-it")
        assert (outcome["order_id"], again["order_id"], again["duplicate"]) == ("close-it", "close-it", True)
        told = orjson.loads((await asyncio.to_thread(service.cli, "history", "close-it", "--json")).stdout)
        assert str(position.identifier) in orjson.dumps(told).decode()
        with pytest.raises(ValueError, match="order_id"):
            await manager.positions_close(position.ticket, volume=0.01)
        manager.shutdown()
