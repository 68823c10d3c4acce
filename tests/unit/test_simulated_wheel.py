"""The simulated module beside the package's Windows wheel: nothing missing, nothing extra, nothing of another kind."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gateway.simulated import constants, structs
from gateway.simulated.terminal import load
from tests.simulated import broker_in
from tests.wheel import Wheel, download

NOARGS, KEYWORDS = 4, 2


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    return Wheel(download())


@pytest.fixture
def mt5(tmp_path: Path) -> Iterator[ModuleType]:
    with broker_in(tmp_path / "broker") as folder:
        yield load(folder)


def test_the_constants_are_the_wheels(wheel: Wheel) -> None:
    assert {name: value for name, value in vars(constants).items() if name.isupper()} == wheel.constants


def test_it_says_of_itself_what_the_wheel_says(wheel: Wheel, mt5: ModuleType) -> None:
    assert wheel.about.keys() == {"__version__", "__author__"}
    assert {name: getattr(mt5, name) for name in wheel.about} == wheel.about


def test_the_functions_are_those_of_the_wheels_binary_and_of_its_source(wheel: Wheel, mt5: ModuleType) -> None:
    functions = {name for name, value in vars(mt5).items() if inspect.isroutine(value) and not name.startswith("_")}
    assert functions == {*wheel.functions, *(name for name in wheel.helpers if not name.startswith("_"))}


def test_the_structs_have_the_fields_of_the_wheels_binary_in_their_order(wheel: Wheel, mt5: ModuleType) -> None:
    ours = {name: value for name, value in vars(mt5).items() if inspect.isclass(value)}
    assert {name: value.__match_args__ for name, value in ours.items()} == wheel.structs
    assert all(issubclass(value, structs.StructSequence) for value in ours.values())


def test_a_function_takes_keywords_where_the_binary_says_so(wheel: Wheel, mt5: ModuleType) -> None:
    for name, flags in wheel.functions.items():
        function = getattr(mt5, name)
        if flags & KEYWORDS:
            function(nonsense=1)
        else:
            with pytest.raises(TypeError):
                function(nonsense=1)
        if flags & NOARGS:
            with pytest.raises(TypeError):
                function(1)


def test_the_packages_own_helpers_run_on_the_simulated_functions_as_ours_do(wheel: Wheel, mt5: ModuleType) -> None:
    """[R20]"""
    theirs = wheel.run_over(mt5)
    assert mt5.initialize()
    for package in (theirs, vars(mt5)):
        assert package["Buy"]("EURUSD", 0.02, comment="b").retcode == package["TRADE_RETCODE_DONE"]
        assert package["Sell"]("EURUSD", 0.01, 1.0).retcode == package["TRADE_RETCODE_DONE"]
        assert package["Close"]("EURUSD") is True
        assert package["Close"]("EURUSD") is False
    deals = mt5.history_deals_get(1, 2**31 - 1)[1:]
    assert len(deals) == 8
    assert [(deal.type, deal.entry, deal.volume, deal.comment) for deal in deals[:4]] == [
        (deal.type, deal.entry, deal.volume, deal.comment) for deal in deals[4:]
    ]
    mt5.Buy("EURUSD", 0.01)
    positions = mt5.positions_get()
    mt5.shutdown()
    for package in (theirs, vars(mt5)):
        with pytest.raises(TypeError):
            package["Close"]("EURUSD")
        with pytest.raises(AttributeError):
            package["Buy"]("EURUSD", 0.01)
    mt5.__dict__["positions_get"] = theirs["positions_get"] = lambda **_: positions
    assert theirs["Close"]("EURUSD") is None
    assert mt5.Close("EURUSD") is None
