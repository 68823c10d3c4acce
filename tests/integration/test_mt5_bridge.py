"""The Linux bridge against a real rpyc server that serves the simulated module, as mt5linux's serves the real one."""

import asyncio
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

import numpy as np
import orjson
import pytest

from gateway.broker import Answered, NotSent, TerminalError, Unknown
from gateway.mt5 import Mt5Session
from gateway.mt5_bridge import Bridge
from gateway.processes import child_environment
from gateway.simulated.terminal import load
from gateway.simulated.window import ask
from gateway.terminal import TerminalProcess
from gateway.terminal_child import TerminalSettings
from tests.mt5linux_server import BridgeServer, bridge_server
from tests.servers import free_port
from tests.service import Service, market_order
from tests.simulated import LOGIN, SERVER, broker_in, buy, send
from tests.wheel import download

ROOT = Path(__file__).parents[2]
RUN = """
import runpy, sys
from gateway.mt5_bridge import Bridge
sys.modules["MetaTrader5"] = Bridge("127.0.0.1", int(sys.argv[1]))
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with broker_in(tmp_path / "broker") as folder:
        yield folder


@pytest.fixture
def server(folder: Path) -> Iterator[BridgeServer]:
    with bridge_server(folder) as server:
        yield server


@contextmanager
def session_over(server: BridgeServer, timeout_s: float | None = 10.0, password: str = "") -> Iterator[Mt5Session]:
    module = Bridge("127.0.0.1", server.port, timeout_s=timeout_s)
    session = Mt5Session(module, login=LOGIN, server=SERVER, password=password)
    session.connect()
    try:
        yield session
    finally:
        session.close()


@contextmanager
def hanging(server: BridgeServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.go_on()


@pytest.mark.parametrize(("program", "end"), [("adviser.py", "result"), ("watcher.py", "done")])
def test_a_program_written_for_the_package_runs_over_the_bridge(server: BridgeServer, program: str, end: str) -> None:
    command = [sys.executable, "-c", RUN, str(server.port), str(ROOT / "tests" / "programs" / program)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert end in done.stdout.splitlines()[-1]


def test_what_mt5linux_serves_is_the_server_of_these_tests(folder: Path) -> None:
    """Its wheel as a file: which server it starts, of which rpyc, and which functions its own client offers."""
    with zipfile.ZipFile(download("mt5linux")) as wheel:
        started = wheel.read("mt5linux/__main__.py").decode()
        client = wheel.read("mt5linux/metatrader5.py").decode()
        requires = wheel.read("mt5linux-1.1.1.dist-info/METADATA").decode()
    assert "from rpyc.cli.rpyc_classic import ClassicServer" in started
    assert "ClassicServer.run()" in started
    assert "Requires-Dist: rpyc<7,>=6.0.0" in requires
    assert version("rpyc").startswith("6.")
    functions = set(re.findall(r"mt5\.(\w+)\(", client))
    assert len(functions) == 32
    assert functions <= set(vars(load(folder)))


def test_results_are_those_of_the_module_itself(server: BridgeServer, folder: Path) -> None:
    there, here = Bridge("127.0.0.1", server.port), load(folder)
    assert there.initialize()
    assert here.initialize()
    ask(folder, "trade", type="buy", symbol="EURUSD", volume=0.1)
    calls = [
        ("terminal_info", (), {}),
        ("history_deals_get", (1, 2**31 - 1), {}),
        ("history_orders_get", (), {"ticket": 1}),
        ("positions_total", (), {}),
        ("orders_get", (), {"symbol": "EURUSD"}),
        ("order_calc_margin", (0, "EURUSD", 1.0, 1.08), {}),
        ("symbol_select", ("NOPE", True), {}),
        ("symbol_info", ("NOPE",), {}),
        ("orders_get", ("EURUSD",), {}),
        ("order_send", ({"action": 1, "volume": 1},), {}),
        ("order_send", ({"action": 1, "comment": b"x"},), {}),
    ]
    for name, arguments, keywords in calls:
        one, other = getattr(there, name)(*arguments, **keywords), getattr(here, name)(*arguments, **keywords)
        assert one == other, name
        assert type(one).__name__ == type(other).__name__
        assert there.last_error() == here.last_error()
    deal = there.history_deals_get(1, 2**31 - 1)[-1]
    assert (deal.symbol, deal._asdict()["volume"], deal.n_fields) == ("EURUSD", 0.1, 18)
    rates = there.copy_rates_from_pos("EURUSD", there.TIMEFRAME_H1, 1, 10)
    np.testing.assert_array_equal(rates, here.copy_rates_from_pos("EURUSD", here.TIMEFRAME_H1, 1, 10))
    with pytest.raises(TypeError):
        there.symbol_info(symbol="EURUSD")
    with pytest.raises(AttributeError):
        there.positions_close()
    here.shutdown()
    there.shutdown()
    assert there.account_info() is None
    assert there.last_error()[0] == -10004


def test_a_timeout_after_the_request_went_out_is_unknown_and_nothing_is_sent_after_it(server: BridgeServer) -> None:
    with session_over(server, timeout_s=0.3) as session:
        with hanging(server):
            outcome = session.send(send(buy(1)))
            assert isinstance(outcome, Unknown)
            assert outcome.code == -10002
            assert isinstance(session.send(send(buy(2))), NotSent)
        session.connect()
        found = session.find([1, 2], [], 60)
        assert found.complete
        assert {deal.magic for deal in found.deals} <= {1}


def test_a_request_that_reaches_the_terminal_after_its_time_is_not_sent(server: BridgeServer) -> None:
    """Handed over in time; the server takes it up too late, and says so."""
    with session_over(server) as session:
        server.stop()
        wake = threading.Timer(0.5, server.go_on)
        wake.start()
        outcome = session.send(send(buy(1), within_s=0.2))
        wake.join()
        assert outcome == NotSent(0, "not_after passed")
        assert session.find([1], [], 60).deals == ()
        assert isinstance(session.send(send(buy(2))), Answered)


def test_a_server_that_dies_leaves_the_order_unknown(server: BridgeServer, folder: Path) -> None:
    with session_over(server) as session:
        ask(folder, "fault", add="slow=1s*1")
        killer = threading.Timer(0.2, server.process.kill)
        killer.start()
        outcome = session.send(send(buy(1)))
        killer.join()
        assert isinstance(outcome, Unknown)
        assert session.link_broken
        assert isinstance(session.send(send(buy(2))), NotSent)


def test_two_clients_of_one_server_do_not_take_each_others_errors(server: BridgeServer) -> None:
    """The package has one `last_error` for all its process's clients."""
    one, other = Bridge("127.0.0.1", server.port), Bridge("127.0.0.1", server.port)
    assert one.initialize()
    assert other.initialize()
    assert one.symbol_info("NOPE") is None
    assert other.symbol_info("EURUSD") is not None
    assert (one.last_error()[0], other.last_error()) == (-4, (1, "Success"))
    one.shutdown()
    other.shutdown()


def test_without_a_server_the_address_is_named(tmp_path: Path) -> None:
    port = free_port()
    session = Mt5Session(Bridge("127.0.0.1", port), login=LOGIN, password="hunter2")
    with pytest.raises(TerminalError, match=f"mt5linux at 127.0.0.1:{port}") as caught:
        session.connect()
    assert caught.value.code == -10003


def test_the_password_is_in_no_log_and_the_server_has_no_hold_of_this_process(
    server: BridgeServer, folder: Path
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "password").write_text("hunter2")
    with session_over(server, password="hunter2") as session:
        connection = session._mt5._connection
        assert connection._local_root.exposed_eval is None
        assert not connection._config["allow_pickle"]
    assert "hunter2" not in server.log()


async def test_past_the_deadline_an_order_over_the_bridge_is_unknown_and_the_child_is_replaced(
    server: BridgeServer, tmp_path: Path
) -> None:
    settings = TerminalSettings(
        folder=str(tmp_path), kind="mt5linux", bridge_port=server.port, login=LOGIN, server=SERVER, call_deadline_s=0.5
    )
    back = asyncio.Event()
    terminal = TerminalProcess(settings, on_change=lambda status: status.state == "connected" and back.set())
    await terminal.connect()
    back.clear()
    with hanging(server):
        outcomes = await terminal.send([send(buy(1)), send(buy(2))])
    assert [type(outcome) for outcome in outcomes] == [Unknown, NotSent]
    await asyncio.wait_for(back.wait(), 15)
    found = await terminal.find([1, 2], [], 60)
    assert found.complete
    assert {deal.magic for deal in found.deals} <= {1}
    await terminal.close()


def test_the_service_trades_over_the_bridge(server: BridgeServer, folder: Path, tmp_path: Path) -> None:
    service = Service(
        tmp_path / "d",
        TERMINAL="mt5linux",
        MT5LINUX_PORT=str(server.port),
        MT5_LOGIN=str(LOGIN),
        MT5_SERVER=SERVER,
        CLICKHOUSE_URL="off",
    )
    order = tmp_path / "order.json"
    order.write_bytes(orjson.dumps(market_order("over-the-bridge")))
    try:
        service.start()
        assert "mt5linux, account 5000001" in service.output
        outcome = orjson.loads(service.cli("submit", str(order), "--json").stdout)
        [deal] = [row for row in ask(folder, "deals", last=5) if row["symbol"]]
        assert (outcome["retcode"], outcome["deal"]) == (10009, deal["ticket"])
        assert Decimal(str(deal["volume"])) == Decimal("0.01")
    finally:
        service.end()
