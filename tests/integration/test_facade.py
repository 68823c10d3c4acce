"""The classes that programs of the surrounding system use, on the whole service."""

import ast
import re
import types
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.client import NoAnswer
from gateway.config import load
from gateway.facade import (
    FillHandler,
    NotHeld,
    OrderSubmitter,
    extract_order_id,
    publish_broker_error,
    publish_fill_confirmation,
)
from gateway.hub_server import hub_server
from gateway.simulated import constants as mt5
from tests.service import serving

EXAMPLES = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
# What the hub holds in the examples.
CONFIG = {
    "operational": {
        "mt5_connection": {
            "terminal_path": "/path/to/terminal64.exe",
            "server": "OrderLedger-Sim",
            "login": 5000001,
            "timeout_seconds": 60,
        },
        "order_settings": {"validate_before_send": True, "max_retries": 3, "retry_delay_seconds": 5},
        "error_handling": {"auto_reconnect": True, "reconnect_interval_seconds": 30},
    }
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("facade")) as running:
        yield running


@pytest.fixture
def settings(service):
    return load({"data": str(service.folder)}, {})


def fill_data(result, **changes) -> dict:
    """As the surrounding system builds it from a trade result."""
    return {
        "order_id": extract_order_id(result.comment),
        "ticket": result.order,
        "symbol": result.symbol,
        "volume": result.volume,
        "price": result.price,
        "timestamp": result.time,
        "commission": result.commission,
        "swap": result.swap,
    } | changes


async def buy(settings, order_id: str, **changes):
    wish = {"symbol": "EURUSD", "order_type": mt5.ORDER_TYPE_BUY, "volume": 0.01} | changes
    return await OrderSubmitter(settings).send_order(**wish, comment=f"order_id:{order_id}")


async def test_an_order_ends_in_a_result_with_metatraders_fields(settings):
    result = await buy(settings, "f-1", price=1.08125, sl=1.05, tp=1.11)
    assert (result.retcode, result.symbol, result.volume) == (mt5.TRADE_RETCODE_DONE, "EURUSD", 0.01)
    assert result.order
    assert result.deal
    assert result.price > 1
    assert extract_order_id(result.comment) == "f-1"


async def test_the_same_order_id_twice_returns_the_standing_result_and_sends_nothing(settings, service):
    first = await buy(settings, "f-2", volume=Decimal("0.02"))
    again = await buy(settings, "f-2", volume="0.020")
    assert (again.duplicate, again.deal, again.order) == (True, first.deal, first.order)
    assert service.cli("history", "f-2").stdout.count("send_started") == 1


@pytest.mark.parametrize(
    ("changes", "retcode", "category"),
    [
        ({"symbol": "EUR/USD"}, mt5.TRADE_RETCODE_INVALID, "refused"),
        ({"volume": 0.015}, mt5.TRADE_RETCODE_INVALID, "refused"),
        ({"symbol": "XAUUSD", "volume": 1000}, mt5.TRADE_RETCODE_NO_MONEY, "fatal"),
    ],
)
async def test_an_order_that_ended_otherwise_says_why(settings, changes, retcode, category):
    result = await buy(settings, f"f-{retcode}-{len(str(changes))}", **changes)
    assert (result.retcode, result.category, result.deal) == (retcode, category, 0)
    assert result.description
    assert await publish_broker_error(result, settings) == result.event_id
    with pytest.raises(ValueError, match="is an error"):
        await publish_fill_confirmation(result, settings)


@pytest.mark.parametrize(
    ("wish", "problem"),
    [
        ({"comment": ""}, "names no order"),
        ({"comment": "my trade"}, "names no order"),
        ({"order_id": "a/b"}, "must be 1 to 64 characters"),
        ({"order_id": "x", "order_type": 9}, "order_type 9 is none of"),
        ({"order_id": "x", "order_type": "long"}, "order_type 'long' is none of"),
    ],
)
async def test_without_an_order_id_or_a_type_nothing_is_sent(settings, wish, problem):
    with pytest.raises(ValueError, match=problem):
        await OrderSubmitter(settings).send_order(**({"symbol": "EURUSD", "order_type": 0, "volume": 0.01} | wish))


async def test_a_fill_is_confirmed_by_ledger_and_projection(settings):
    result = await buy(settings, "f-3")
    handler = FillHandler(settings)
    data = fill_data(result)
    assert await handler.save_execution(data) == result.event_id
    assert await handler.publish_fill(subject=f"broker.fill.{data['symbol']}", data=data) == result.event_id
    assert await handler.archive_to_kafka(data) == result.event_id
    assert await publish_fill_confirmation(result, settings) == result.event_id


@pytest.mark.parametrize("changes", [{"order_id": "nobody"}, {"ticket": 7}, {"volume": 0.02}, {"price": 1.5}])
async def test_a_fill_that_no_deal_of_the_broker_stands_behind_is_never_written(settings, changes):
    result = await buy(settings, "f-4")
    with pytest.raises(NotHeld, match="fills are recorded from the broker's deals"):
        await FillHandler(settings, timeout_s=0.2).save_execution(fill_data(result, **changes))


async def test_a_fill_goes_out_on_its_own_subject_alone(settings):
    result = await buy(settings, "f-5")
    with pytest.raises(ValueError, match=r"goes out on broker\.fill\.EURUSD"):
        await FillHandler(settings).publish_fill("broker.fill.GBPUSD", fill_data(result))


async def test_without_a_gateway_there_is_a_clear_error(tmp_path):
    with pytest.raises(NoAnswer, match="no service runs on"):
        await buy(load({"data": str(tmp_path)}, {}), "f-6")


# --- the page that shows them -----------------------------------------------------------------------------------


@pytest.fixture
async def _around(service, tmp_path, monkeypatch) -> AsyncIterator[None]:
    """What a program finds around it: the service's data folder, a hub, the password; and a price like the order's."""
    async with hub_server(tmp_path / "hub.json", "127.0.0.1", 0) as (url, hub):
        hub.put("mt5-connector", CONFIG, "v1", "me")
        monkeypatch.setenv("CENTRAL_HUB_URL", url)
        monkeypatch.setenv("ORDER_LEDGER_DATA", str(service.folder))
        monkeypatch.setenv("MT5_PASSWORD", "any")
        monkeypatch.delenv("NATS_URL", raising=False)
        assert service.cli("sim", "price", "EURUSD", "1.08115").returncode == 0
        yield


@pytest.mark.usefixtures("_around")
async def test_the_examples_of_the_page_run_one_after_the_other_as_they_stand(service, capsys):
    program: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", EXAMPLES, re.MULTILINE | re.DOTALL)):
        code = compile(block, f"example {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waiting = types.FunctionType(code, program)()
        if waiting is not None:
            await waiting
    program["manager"].shutdown()
    told = capsys.readouterr().out
    for expected in (
        "MT5 timeout: 60s, Max retries: 3",
        "Connected to MT5: ",
        r"Balance: \$\d+\.\d\d",
        r"Equity: \$\d+\.\d\d",
        "Symbol: EURUSD\nType: BUY\nVolume: 0.01\n",
    ):
        assert re.search(expected, told), told
    result = program["result"]
    assert (result.retcode, result.order_id, result.subject) == (10009, "ord_12345", "broker.fill.EURUSD")
    assert f"Ticket: {result.order}\n" in told
    events = orjson.loads(service.cli("history", "ord_12345", "--json").stdout)
    assert [one["topic"] for one in events][-1] == "order.filled"


def test_the_page_gives_the_hub_all_that_its_examples_read():
    given = re.search(r"-d '(.*?)'\n", EXAMPLES, re.DOTALL)
    assert given is not None
    connection = orjson.loads(given[1])["operational"]["mt5_connection"]
    assert connection == CONFIG["operational"]["mt5_connection"]
