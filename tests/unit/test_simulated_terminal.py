"""The terminal module over a real broker process: argument rules, errors and results as the package has them."""

import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.simulated import link, structs
from gateway.simulated.terminal import load
from tests.simulated import LOGIN, SERVER, broker_in


@pytest.fixture(scope="module")
def mt5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with broker_in(tmp_path_factory.mktemp("terminal") / "broker") as folder:
        module = load(folder)
        assert module.initialize(login=LOGIN, password="any", server=SERVER)
        yield module
        module.shutdown()


def order(**fields: Any) -> dict[str, Any]:
    return {"action": 1, "symbol": "EURUSD", "volume": 0.01} | fields


class Text(str):
    pass


class Fraction(float):
    pass


def test_the_module_offers_functions_constants_and_structs_and_nothing_else(mt5: ModuleType) -> None:
    public = {name for name in vars(mt5) if not name.startswith("_")}
    functions = {name for name in public if inspect.isroutine(getattr(mt5, name))}
    classes = {name for name in public if inspect.isclass(getattr(mt5, name))}
    numbers = public - functions - classes
    assert (len(functions), len(classes), len(numbers)) == (35, 11, 223)
    assert all(isinstance(getattr(mt5, name), int) for name in numbers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", 1.0),
        ("action", "1"),
        ("action", -1),
        ("action", 2**32),
        ("magic", -1),
        ("magic", 2**64),
        ("magic", 1.0),
        ("order", "7"),
        ("symbol", None),
        ("symbol", "S" * 30),
        ("volume", 1),
        ("volume", "0.01"),
        ("volume", None),
        ("price", 0),
        ("stoplimit", 0),
        ("sl", 0),
        ("tp", 0),
        ("deviation", 10.0),
        ("type", "buy"),
        ("type_filling", 1.0),
        ("type_time", None),
        ("expiration", datetime(2026, 1, 1, tzinfo=UTC)),
        ("expiration", 1.0),
        ("comment", "c" * 30),
        ("comment", "\U0001d11e" * 15),
        ("comment", b"bytes"),
        ("comment", None),
        ("position", "1"),
        ("position_by", 1.5),
    ],
)
def test_a_wrong_field_ends_the_call_locally_and_is_named(mt5: ModuleType, field: str, value: object) -> None:
    """[R3] [R4] [R5]"""
    for function in (mt5.order_send, mt5.order_check):
        assert function(order(**{field: value})) is None
        assert mt5.last_error() == (-2, f'Invalid "{field}" argument')
    assert mt5.order_check(**order(**{field: value})) is None


def test_the_first_wrong_field_in_the_bindings_order_is_the_one_named(mt5: ModuleType) -> None:
    """[R3]"""
    assert mt5.order_check({"comment": None, "volume": 1, "symbol": None}) is None
    assert mt5.last_error() == (-2, 'Invalid "symbol" argument')


@pytest.mark.parametrize(
    "fields",
    [
        {"comment": "c" * 29},
        {"volume": Fraction(0.01)},
        {"comment": Text("text")},
        {"magic": 2**64 - 1},
        {"type": False},
        {"nobody knows": object()},
    ],
)
def test_what_the_binding_accepts_is_accepted(mt5: ModuleType, fields: dict[str, Any]) -> None:
    """[R4] [R5] [R6]"""
    result = mt5.order_check(order(**fields))
    assert result is not None, mt5.last_error()
    assert (result.retcode, result.comment) == (0, "Done")


def test_a_request_is_one_dict_or_keywords_and_never_both(mt5: ModuleType) -> None:
    """[R6]"""
    assert mt5.order_check(**order()).retcode == 0
    assert mt5.order_check([order()]) is None
    assert mt5.last_error() == (-2, "Unnamed arguments not allowed")
    assert mt5.order_check(order(), volume=0.02) is None
    assert mt5.last_error()[0] == -2


def test_every_field_is_optional_and_an_empty_request_is_refused_by_the_server(mt5: ModuleType) -> None:
    assert mt5.order_send({}).retcode == mt5.TRADE_RETCODE_INVALID


def test_a_sent_order_echoes_its_request_and_counts_in_this_session(mt5: ModuleType) -> None:
    """[R21]"""
    first, second = mt5.order_send(order(magic=5)), mt5.order_send(order(magic=5))
    assert isinstance(first, structs.OrderSendResult)
    assert first.request.magic == 5
    assert first.request.volume == 0.01
    assert second.request_id == first.request_id + 1
    assert first.retcode_external == 0


def test_last_error_is_success_after_a_call_that_worked(mt5: ModuleType) -> None:
    """[R1]"""
    assert mt5.symbol_info("NOPE") is None
    assert mt5.last_error() == (-4, "Terminal: Not found")
    assert mt5.symbol_info("EURUSD").name == "EURUSD"
    assert mt5.last_error() == (1, "Success")


def test_functions_without_keywords_raise_for_one(mt5: ModuleType) -> None:
    """[R2]"""
    for function in (mt5.symbol_info, mt5.symbol_info_tick, mt5.symbol_select):
        with pytest.raises(TypeError):
            function(symbol="EURUSD")
    for function in (mt5.account_info, mt5.terminal_info, mt5.version, mt5.shutdown, mt5.positions_total):
        with pytest.raises(TypeError):
            function(1)


def test_functions_with_keywords_only_refuse_unnamed_arguments(mt5: ModuleType) -> None:
    """[R7]"""
    for function in (mt5.positions_get, mt5.orders_get):
        assert function("EURUSD") is None
        assert mt5.last_error() == (-2, "Unnamed arguments not allowed")


@pytest.mark.parametrize("arguments", [(5,), (), ("EURUSD", 1), ("S" * 30,)])
def test_a_wrong_symbol_argument_is_an_error_and_no_exception(mt5: ModuleType, arguments: tuple[Any, ...]) -> None:
    assert mt5.symbol_info(*arguments) is None
    assert mt5.last_error()[0] == -2


def test_positions_are_found_by_ticket_before_symbol_before_group(mt5: ModuleType) -> None:
    """[R7] [R8]"""
    euro, pound = mt5.order_send(order()).order, mt5.order_send(order(symbol="GBPUSD")).order
    assert [row.ticket for row in mt5.positions_get(ticket=euro, symbol="GBPUSD")] == [euro]
    assert pound in {row.ticket for row in mt5.positions_get(symbol="GBPUSD", group="EUR*")}
    assert {row.symbol for row in mt5.positions_get(group="*USD,!EUR*")} == {"GBPUSD"}
    assert mt5.positions_get(ticket=4711) == ()
    assert len(mt5.positions_get()) == mt5.positions_total()


def test_there_are_no_working_orders(mt5: ModuleType) -> None:
    assert (mt5.orders_get(), mt5.orders_total()) == ((), 0)


def test_history_is_asked_for_in_server_time(mt5: ModuleType) -> None:
    """[R9] [R54]"""
    sent = mt5.order_send(order())
    utc = int(datetime.now(UTC).timestamp())
    assert sent.deal not in {deal.ticket for deal in mt5.history_deals_get(utc - 60, utc + 60)}
    assert sent.deal in {deal.ticket for deal in mt5.history_deals_get(utc - 60, utc + 86_400)}
    server_day = datetime.fromtimestamp(utc + 7200, UTC)
    assert mt5.history_orders_total(server_day.replace(hour=0, minute=0), server_day) >= 1


def test_history_by_ticket_is_one_record_and_by_position_all_of_it(mt5: ModuleType) -> None:
    """[R10]"""
    opened = mt5.order_send(order())
    closed = mt5.order_send(order(type=1, position=opened.order))
    assert [deal.ticket for deal in mt5.history_deals_get(ticket=closed.deal)] == [closed.deal]
    assert [deal.ticket for deal in mt5.history_deals_get(position=opened.order)] == [opened.deal, closed.deal]
    assert [row.ticket for row in mt5.history_orders_get(position=opened.order)] == [opened.order, closed.order]
    assert mt5.history_deals_get(ticket=4711) == ()


@pytest.mark.parametrize("arguments", [(), (0, 0), (1,), ("2026-01-01", "2026-01-02"), (float("nan"), 1)])
def test_a_history_query_without_a_usable_range_is_an_error(mt5: ModuleType, arguments: tuple[Any, ...]) -> None:
    assert mt5.history_deals_get(*arguments) is None
    assert mt5.last_error() == (-2, "Invalid arguments")


def test_a_symbol_with_positions_cannot_be_hidden_and_another_can(mt5: ModuleType) -> None:
    """[R14]"""
    mt5.order_send(order())
    assert mt5.symbol_select("EURUSD", False) is False
    assert mt5.symbol_select("USDJPY", False) is True
    assert mt5.symbol_info("USDJPY").select is False
    assert mt5.symbol_select("USDJPY") is True
    assert mt5.symbol_info("USDJPY").visible is True
    assert mt5.symbol_select("NOPE") is False


def test_symbols_are_listed_by_group(mt5: ModuleType) -> None:
    assert {info.name for info in mt5.symbols_get("*USD,!XAU*")} == {"EURUSD", "GBPUSD"}
    assert len(mt5.symbols_get()) == mt5.symbols_total()


def test_margin_and_profit_can_be_calculated(mt5: ModuleType) -> None:
    assert mt5.order_calc_margin(mt5.ORDER_TYPE_BUY, "EURUSD", 1, 1.08) == pytest.approx(216.0)
    assert mt5.order_calc_profit(mt5.ORDER_TYPE_SELL, "EURUSD", 0.1, 1.09, 1.08) == pytest.approx(100.0)
    assert mt5.order_calc_margin(0, "NOPE", 1.0, 1.0) is None
    assert mt5.order_calc_profit(0, "EURUSD", "1", 1.0, 1.0) is None


def test_the_account_and_the_terminal_describe_themselves(mt5: ModuleType) -> None:
    account, terminal = mt5.account_info(), mt5.terminal_info()
    assert (account.login, account.server, account.margin_mode) == (LOGIN, SERVER, 2)
    assert terminal.connected
    assert terminal.trade_allowed
    assert mt5.version()[0] == 500


def test_before_initialize_there_is_no_connection(tmp_path: Path) -> None:
    module = load(tmp_path / "broker")
    assert module.order_send(order()) is None
    assert module.last_error() == (-10004, "No IPC connection")
    assert module.shutdown() is True


@pytest.mark.parametrize(
    "arguments",
    [{"login": LOGIN + 1}, {"login": LOGIN, "server": "Elsewhere"}],
)
def test_a_wrong_account_or_server_is_refused(mt5: ModuleType, arguments: dict[str, Any]) -> None:
    """[R13]"""
    module = load(Path(mt5.terminal_info().path))
    assert module.initialize(**arguments) is False
    assert module.last_error() == (-6, "Terminal: Authorization failed")
    assert module.account_info() is None


def test_a_configured_password_is_asked_for(tmp_path: Path) -> None:
    """[R13]"""
    with broker_in(tmp_path / "broker") as folder:
        folder.mkdir()
        (folder / "password").write_text("right\n")
        module = load(folder)
        assert module.initialize(login=LOGIN, password="wrong") is False
        assert module.initialize(login=LOGIN, password="right") is True
        assert module.login(LOGIN, "wrong") is False
        module.shutdown()


def test_initialize_takes_one_unnamed_path_and_checks_the_rest(mt5: ModuleType) -> None:
    module = load(Path(mt5.terminal_info().path))
    assert module.initialize("a", "b") is False
    assert module.initialize(5) is False
    assert module.initialize(login="5000001") is False
    assert module.last_error() == (-2, 'Invalid "login" argument')
    assert module.initialize(r"C:\terminal64.exe", timeout=1000, portable=True) is True
    module.shutdown()


def test_after_a_broken_connection_every_call_fails_until_initialize(tmp_path: Path) -> None:
    """[R12]"""
    with broker_in(tmp_path / "broker") as folder:
        module = load(folder)
        assert module.initialize()
        sent = module.order_send(order())
        link.stop_broker(folder)
        assert module.order_send(order()) is None
        assert module.last_error() in ((-10001, "IPC send failed"), (-10002, "IPC recv failed"))
        assert module.order_send(order()) is None
        assert module.last_error() == (-10001, "IPC send failed")
        assert module.initialize()
        assert [row.ticket for row in module.positions_get()] == [sent.order]
        module.shutdown()
