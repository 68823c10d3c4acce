"""What a program can see of the terminal module without trading: names, kinds of values, what any argument leads to."""

import inspect
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulated.terminal import load
from gateway.simulated.window import ask
from tests.simulated import broker_in

# One letter for each field: b bool, i int, f float, s str, T the request.
REQUEST = "iiis" + "f" * 5 + "i" * 5 + "sii"
KINDS = {
    "TradeRequest": REQUEST,
    "OrderSendResult": "iii" + "f" * 4 + "siiT",
    "OrderCheckResult": "i" + "f" * 6 + "sT",
    "TradePosition": "i" * 9 + "f" * 7 + "sss",
    "TradeOrder": "i" * 14 + "f" * 7 + "sss",
    "TradeDeal": "i" * 9 + "f" * 6 + "sss",
    "AccountInfo": "i" * 5 + "bbiib" + "f" * 14 + "s" * 4,
    "TerminalInfo": "b" * 10 + "i" * 4 + "ff" + "s" * 6,
    "SymbolInfo": "bibb" + "i" * 9 + "b" + "i" * 10 + "b" + "i" * 6 + "f" * 52 + "s" * 13,
    "Tick": "ifffiiif",
    "BookInfo": "ifif",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with broker_in(tmp_path_factory.mktemp("terminal") / "broker") as folder:
        yield folder


@pytest.fixture(scope="module")
def mt5(folder: Path) -> Iterator[ModuleType]:
    module = load(folder)
    assert module.initialize()
    yield module
    module.shutdown()


def kinds(struct: Any) -> str:
    return "".join(type(value).__name__[0] for value in struct)


def formats(array: Any) -> str:
    return " ".join(array.dtype[name].str for name in array.dtype.names)


def test_every_field_of_every_struct_has_its_kind_and_none_is_a_number_of_another(
    mt5: ModuleType, folder: Path
) -> None:
    """[R11]"""
    ask(folder, "market", symbol="EURUSD", changes={"swap_long": "-3", "volume_limit": "50", "freeze_level": "0"})
    ask(folder, "rules", changes={"stopout": "20"})
    order = {"action": 1, "symbol": "EURUSD", "volume": 1.0}
    pending = order | {"action": 5, "type": 2, "type_filling": 2, "price": 1.0}
    sent = mt5.order_send(order)
    mt5.order_send(pending)
    mt5.market_book_add("ACME.US")
    shown = [
        sent, sent.request, mt5.order_send({}), mt5.order_check(pending), mt5.order_check(pending).request,
        *mt5.positions_get(), *mt5.orders_get(), *mt5.history_orders_get(1, 2**31 - 1),
        *mt5.history_deals_get(1, 2**31 - 1), *mt5.history_deals_get(ticket=sent.deal), mt5.account_info(),
        mt5.terminal_info(), *mt5.symbols_get(), *map(mt5.symbol_info_tick, ("EURUSD", "ACME.US")),
        *mt5.market_book_get("ACME.US"),
    ]  # fmt: skip
    assert {type(struct).__name__ for struct in shown} == KINDS.keys()
    for struct in shown:
        assert kinds(struct) == KINDS[type(struct).__name__], struct


def test_a_struct_cannot_be_changed(mt5: ModuleType) -> None:
    """[R11]"""
    tick = mt5.symbol_info_tick("EURUSD")
    with pytest.raises(AttributeError):
        tick.bid = 1.0
    with pytest.raises(TypeError):
        tick[1] = 1.0


def test_arrays_have_the_kinds_of_the_package(mt5: ModuleType) -> None:
    """[R16] [R17]"""
    rates = mt5.copy_rates_from_pos("EURUSD", mt5.TIMEFRAME_M1, 0, 1)
    ticks = mt5.copy_ticks_from("EURUSD", 1_700_000_000, 1, mt5.COPY_TICKS_ALL)
    assert [rates.dtype[name].str for name in rates.dtype.names] == [
        "<i8",
        "<f8",
        "<f8",
        "<f8",
        "<f8",
        "<u8",
        "<i4",
        "<u8",
    ]
    assert [ticks.dtype[name].str for name in ticks.dtype.names] == [
        "<i8",
        "<f8",
        "<f8",
        "<f8",
        "<u8",
        "<i8",
        "<u4",
        "<f8",
    ]


@pytest.mark.parametrize("function", ["market_book_add", "market_book_release"])
def test_a_subscription_is_false_for_an_unknown_symbol_and_none_for_a_bad_argument(
    mt5: ModuleType, function: str
) -> None:
    """[R1]"""
    assert (getattr(mt5, function)("NOPE"), mt5.last_error()[0]) == (False, -4)
    assert (getattr(mt5, function)(5), mt5.last_error()[0]) == (None, -2)
    assert getattr(mt5, function)("EURUSD") is True


def test_requests_are_counted_from_one_in_each_session(mt5: ModuleType) -> None:
    """[R21]"""
    mt5.order_send({})
    assert mt5.initialize()
    assert [mt5.order_send({}).request_id for _ in range(2)] == [1, 2]


def test_there_are_no_bars_beyond_those_the_terminal_keeps(mt5: ModuleType) -> None:
    """[R16]"""
    assert len(mt5.copy_rates_from_pos("EURUSD", mt5.TIMEFRAME_M1, 99_990, 100)) == 10
    assert mt5.copy_rates_from_pos("EURUSD", mt5.TIMEFRAME_M1, mt5.terminal_info().maxbars, 1) is None


def test_what_the_terminal_does_not_find_of_deals_is_an_empty_tuple(mt5: ModuleType, folder: Path) -> None:
    """[R10]"""
    ask(folder, "fault", add="history_deals_get:error=-4*1; history_orders_get:error=-4*1", clear=True)
    assert mt5.history_deals_get(position=4711) == ()
    assert mt5.history_orders_get(position=4711) is None


@pytest.mark.parametrize(
    ("one", "price"), [(1, 2), (Decimal("1"), Decimal(2)), (np.float32(1), np.int64(2)), (True, 2.0)]
)
def test_a_calculation_takes_anything_that_has_a_float(mt5: ModuleType, one: Any, price: Any) -> None:
    """[R4]"""
    assert mt5.order_calc_margin(0, "EURUSD", one, price) == mt5.order_calc_margin(0, "EURUSD", 1.0, 2.0)
    assert mt5.order_calc_profit(0, "EURUSD", one, 1.0, price) == pytest.approx(100_000.0)


@pytest.mark.parametrize(
    "arguments", [(0.0, "EURUSD", 1.0, 1.0), (0, "EURUSD", "1", 1.0), (0, "EURUSD", None, 1.0), (0, 5, 1.0, 1.0), (0,)]
)
def test_a_calculation_with_a_wrong_argument_is_an_error(mt5: ModuleType, arguments: tuple[Any, ...]) -> None:
    """[R4]"""
    assert mt5.order_calc_margin(*arguments) is None
    assert mt5.last_error()[0] == -2


@pytest.mark.parametrize(
    ("function", "arguments", "keywords"),
    [
        ("positions_get", (), {"symbol": "\ud800"}),
        ("symbols_get", ("x" * 70_000,), {}),
        ("login", (1, "\ud800"), {}),
        ("history_deals_get", (datetime(1, 1, 1), datetime.max), {}),
    ],
)
def test_what_cannot_be_sent_is_a_wrong_argument(
    mt5: ModuleType, function: str, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    """[R1]"""
    assert not getattr(mt5, function)(*arguments, **keywords)
    assert mt5.last_error()[0] == -2
    assert mt5.symbol_info("EURUSD").name == "EURUSD"


def test_dates_beyond_all_time_and_counts_beyond_all_bars_give_what_there_is(mt5: ModuleType) -> None:
    """[R16] [R17]"""
    far = 2**52
    assert len(mt5.copy_rates_range("EURUSD", mt5.TIMEFRAME_MN1, -far, 1 - far)) == 0
    assert len(mt5.copy_rates_from("EURUSD", mt5.TIMEFRAME_MN1, -far, 3)) == 0
    assert len(mt5.copy_rates_from("EURUSD", mt5.TIMEFRAME_D1, far, 3)) == 3
    now = mt5.symbol_info_tick("EURUSD").time
    assert 0 < len(mt5.copy_ticks_from("EURUSD", now - 10, 2**31 - 1, mt5.COPY_TICKS_ALL)) < 200
    assert len(mt5.copy_ticks_from("EURUSD", 1_500_000_000, 2**31 - 1, mt5.COPY_TICKS_ALL)) == 2_000_000


@pytest.mark.parametrize("fault", ["hang", "slow=30s", "delay=30s"])
def test_a_login_that_takes_longer_than_its_timeout_ends_with_an_error(
    mt5: ModuleType, folder: Path, fault: str
) -> None:
    """[R22]"""
    ask(folder, "fault", add=f"login:{fault}*1; initialize:{fault}*1", clear=True)
    other, began = load(folder), time.monotonic()
    assert other.initialize(timeout=50) is False
    assert other.last_error() == (-10005, "IPC timeout")
    assert (other.account_info(), other.last_error()[0]) == (None, -10004)
    assert mt5.login(5_000_001, timeout=50) is False
    assert mt5.last_error() == (-10005, "IPC timeout")
    assert time.monotonic() - began < 25
    assert mt5.account_info().login == 5_000_001
    assert mt5.symbol_info_tick("EURUSD") is not None
    other.shutdown()


values = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-2, 3) | st.floats() | st.text(max_size=35)
    | st.sampled_from(["EURUSD", "\ud800", 1, -1, 2**31, -(2**52)])
    | st.sampled_from(["EURUSD", "ACME.US", "\ud800", b"EURUSD", Decimal("0.01"), np.float64(0.01), np.int64(1)])
    | st.sampled_from([datetime(2026, 11, 25, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC), (), [], {}])
)  # fmt: skip
names = st.sampled_from(
    ["symbol", "ticket", "group", "position", "login", "password", "server", "timeout", "action", "volume", "nonsense"]
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_argument_makes_a_call_raise_or_breaks_the_connection(mt5: ModuleType, data: st.DataObject) -> None:
    """[R1] [R2]"""
    calls = sorted(name for name, value in vars(mt5).items() if inspect.isfunction(value) and name[0].islower())
    function = data.draw(
        st.sampled_from([name for name in calls if name not in ("shutdown", "initialize", "last_error")])
    )
    arguments = data.draw(st.lists(values, max_size=5))
    keywords = data.draw(st.dictionaries(names, values, max_size=2))
    try:
        getattr(mt5, function)(*arguments, **keywords)
    except TypeError as error:
        assert "argument" in str(error)  # Python's own: a keyword, or any argument, where there is none
    assert mt5.last_error()[0] in (1, -1, -2, -4, -6)
    assert mt5.terminal_info() is not None
