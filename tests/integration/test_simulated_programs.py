"""Programs written for MetaTrader5 run unchanged when the simulated terminal stands in its place."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gateway.processes import child_environment
from gateway.simulated.terminal import load
from gateway.simulated.window import ask
from tests.simulated import broker_in

ROOT = Path(__file__).parents[2]
RUN = """
import runpy, sys
from pathlib import Path
from gateway.simulated.terminal import load
sys.modules["MetaTrader5"] = load(Path(sys.argv[1]))
runpy.run_path(sys.argv[2], run_name="__main__")
"""


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


def run(folder: Path, program: str) -> str:
    command = [sys.executable, "-c", RUN, str(folder), str(ROOT / "tests" / "programs" / program)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_expert_adviser_runs_from_quotes_to_close_by(folder: Path) -> None:
    """[R20] [R33] [R43] [R45]"""
    assert "8 deals" in run(folder, "adviser.py")


def test_a_program_that_only_watches_the_market_runs(folder: Path) -> None:
    """[R8] [R15] [R16] [R17]"""
    assert run(folder, "watcher.py").endswith("done\n")


def test_the_helpers_try_again_after_a_requote_and_give_up_after_ten(mt5: ModuleType, folder: Path) -> None:
    """[R20]"""
    ask(folder, "fault", add="requote*9")
    assert mt5.Buy("EURUSD", 0.01, comment="b").retcode == 10009
    ask(folder, "fault", add="price_off*10")
    assert mt5.Sell("EURUSD", 0.01).retcode == 10021
    ask(folder, "fault", clear=True)
    mt5.Buy("EURUSD", 0.02)
    ask(folder, "fault", add="reject#2")
    assert mt5.Close("EURUSD") == "Partially"
    assert mt5.Close("EURUSD", ticket=mt5.positions_get()[0].ticket) is True
    with pytest.raises(AttributeError):
        mt5.Buy("NOPE", 0.01)


def test_the_depth_is_shown_to_those_who_asked_for_it(mt5: ModuleType) -> None:
    """[R15]"""
    assert mt5.market_book_add("NOPE") is False
    assert mt5.market_book_get("ACME.US") is None
    assert mt5.market_book_add("ACME.US") is True
    book = mt5.market_book_get("ACME.US")
    assert [level.type for level in book] == [1] * 5 + [2] * 5
    assert [level.price for level in book] == sorted((level.price for level in book), reverse=True)
    assert mt5.market_book_release("ACME.US") is True
    assert mt5.market_book_get("ACME.US") is None
    assert mt5.market_book_add("EURUSD")
    assert mt5.market_book_get("EURUSD") == ()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("copy_rates_from_pos", ("EURUSD", 7, 0, 1)),
        ("copy_rates_from_pos", ("EURUSD", 1, -1, 1)),
        ("copy_rates_from_pos", ("EURUSD", 1, 0, 0)),
        ("copy_rates_from_pos", ("EURUSD", 1, 0, 1.0)),
        ("copy_rates_from_pos", ("EURUSD", 1, 0)),
        ("copy_rates_from", ("EURUSD", 1, "2026-01-01", 1)),
        ("copy_rates_range", ("EURUSD", "M1", 1, 2)),
        ("copy_ticks_from", ("EURUSD", 1, 1, "all")),
        ("copy_ticks_range", (5, 1, 2, -1)),
    ],
)
def test_a_wrong_chart_argument_is_an_error_and_no_exception(
    mt5: ModuleType, function: str, arguments: tuple[Any, ...]
) -> None:
    """[R1]"""
    assert getattr(mt5, function)(*arguments) is None
    assert mt5.last_error()[0] == -2
    with pytest.raises(TypeError):
        getattr(mt5, function)(symbol="EURUSD")


def test_numbers_of_numpy_are_taken_where_they_are_floats_and_refused_where_they_are_not_ints(mt5: ModuleType) -> None:
    """[R4]"""
    order = {"action": 1, "symbol": "EURUSD", "volume": np.float64(0.01)}
    assert mt5.order_check(order).retcode == 0
    assert mt5.order_check(order | {"volume": np.float32(0.01)}) is None
    assert mt5.order_check(order | {"magic": np.int64(5)}) is None
    assert mt5.last_error() == (-2, 'Invalid "magic" argument')
