"""Every return code, gotten from order_send; what order_check can know of it, it says with the same code."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.simulated import constants as c
from gateway.simulated.plans import COMMENTS
from tests.simulated import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def position(desk: Desk, **fields: Any) -> int:
    return int(desk.done(**fields).order)


def pending(desk: Desk, off: int = -100, **fields: Any) -> int:
    return int(desk.done(**limit(desk, off), **fields).order)


def limit(desk: Desk, off: int = -100) -> dict[str, Any]:
    return {"action": 5, "type": 2, "type_filling": 2, "price": desk.price(off, side="ask")}


def instant(desk: Desk, mode: int, off: int) -> dict[str, Any]:
    desk.define(exemode=mode)
    return {"price": desk.price(off, side="ask"), "deviation": 10}


def frozen(desk: Desk) -> dict[str, Any]:
    order = pending(desk, -20)
    desk.define(freeze_level=50)
    return {"action": 8, "order": order}


def filled(desk: Desk) -> dict[str, Any]:
    order = pending(desk)
    desk.move(-200)
    return {"action": 8, "order": order}


def twice(desk: Desk) -> dict[str, Any]:
    desk.rules(limit_requests=2)
    desk.send(), desk.send()
    return {}


def locked(desk: Desk) -> dict[str, Any]:
    order = desk.send(fault="late=1m", **limit(desk)).order
    return {"action": 8, "order": order}


def closing(desk: Desk) -> dict[str, Any]:
    ticket = position(desk)
    desk.send(fault="late=1m", type=1, position=ticket)
    return {"type": 1, "position": ticket}


def same_stops(desk: Desk) -> dict[str, Any]:
    return {"action": 6, "position": position(desk, sl=1.0, tp=1.2), "sl": 1.0, "tp": 1.2}


def fifo(desk: Desk) -> dict[str, Any]:
    desk.rules(fifo_close="on")
    position(desk)
    return {"type": 1, "position": position(desk)}


def mode(number: int, **fields: Any) -> "Case":
    return lambda desk: desk.define(trade_mode=number) and fields


def rule(request: dict[str, Any] | None = None, **changes: Any) -> "Case":
    def arrange(desk: Desk) -> dict[str, Any]:
        desk.rules(**changes)
        return request or {}

    return arrange


def hedge_prohibited(desk: Desk) -> dict[str, Any]:
    desk.rules(hedge_prohibited="on")
    position(desk)
    return {"type": 1}


def one_position(desk: Desk) -> dict[str, Any]:
    desk.rules(limit_positions=1)
    position(desk)
    return {}


def one_order(desk: Desk) -> dict[str, Any]:
    desk.rules(limit_orders=1)
    pending(desk)
    return limit(desk)


def cut(desk: Desk) -> dict[str, Any]:
    desk.broker.cut(1000)
    return {}


def closed(desk: Desk) -> dict[str, Any]:
    desk.define(sessions=((0, 0, 1),))
    return {}


Case = Callable[[Desk], dict[str, Any]]

# Name → what leads to it: the request that then gets it.
REFUSALS: dict[str, Case] = {
    "REQUOTE": lambda desk: instant(desk, c.SYMBOL_TRADE_EXECUTION_INSTANT, 20),
    "INVALID": lambda desk: {"symbol": "NOPE"},
    "INVALID_VOLUME": lambda desk: {"volume": 0.015},
    "INVALID_PRICE": lambda desk: limit(desk, 5),
    "INVALID_STOPS": lambda desk: {"sl": 2.0},
    "TRADE_DISABLED": mode(c.SYMBOL_TRADE_MODE_DISABLED),
    "MARKET_CLOSED": closed,
    "NO_MONEY": lambda desk: {"symbol": "XAUUSD", "volume": 1000.0},
    "PRICE_CHANGED": lambda desk: instant(desk, c.SYMBOL_TRADE_EXECUTION_REQUEST, 20),
    "PRICE_OFF": lambda desk: desk.define(quoting=False) and {},
    "INVALID_EXPIRATION": lambda desk: limit(desk) | {"type_time": 2, "expiration": 1},
    "ORDER_CHANGED": filled,
    "TOO_MANY_REQUESTS": twice,
    "NO_CHANGES": same_stops,
    "SERVER_DISABLES_AT": rule(trade_expert="off"),
    "CLIENT_DISABLES_AT": rule(algo_trading="off"),
    "LOCKED": locked,
    "FROZEN": frozen,
    "INVALID_FILL": lambda desk: {"type_filling": 2},
    "CONNECTION": cut,
    "ONLY_REAL": lambda desk: desk.define(real_only=True) and {},
    "LIMIT_ORDERS": one_order,
    "LIMIT_VOLUME": lambda desk: desk.define(volume_limit=0.5) and {"volume": 0.6},
    "INVALID_ORDER": lambda desk: {"action": 8, "order": 4711},
    "POSITION_CLOSED": lambda desk: {"type": 1, "position": 4711},
    "INVALID_CLOSE_VOLUME": lambda desk: {"type": 1, "position": position(desk), "volume": 0.02},
    "CLOSE_ORDER_EXIST": closing,
    "LIMIT_POSITIONS": one_position,
    "LONG_ONLY": mode(c.SYMBOL_TRADE_MODE_LONGONLY, type=1),
    "SHORT_ONLY": mode(c.SYMBOL_TRADE_MODE_SHORTONLY),
    "CLOSE_ONLY": mode(c.SYMBOL_TRADE_MODE_CLOSEONLY),
    "FIFO_CLOSE": fifo,
    "HEDGE_PROHIBITED": hedge_prohibited,
}
# Those that only a dealer or a failing server gives: by script.
SCRIPTED = ("REJECT", "CANCEL", "ERROR", "TIMEOUT", "REJECT_CANCEL")


def code(name: str) -> int:
    return int(getattr(c, f"TRADE_RETCODE_{name}", 10046))


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_the_same_from_check_and_send_and_changes_nothing(desk: Desk, name: str) -> None:
    """[R30] [R46] [R47] [R56] [R60]"""
    request = REFUSALS[name](desk)
    before = list(desk.state.as_effects())
    assert desk.check(**request) == code(name)
    result = desk.send(**request)
    assert (result.retcode, result.deal, result.order, result.comment) == (code(name), 0, 0, COMMENTS[code(name)])
    assert list(desk.state.as_effects()) == before


@pytest.mark.parametrize("name", SCRIPTED)
def test_a_scripted_refusal_changes_nothing(desk: Desk, name: str) -> None:
    before = list(desk.state.as_effects())
    assert desk.send(fault=name.lower()).retcode == code(name)
    assert list(desk.state.as_effects()) == before


def test_done_partly_done_and_placed(desk: Desk) -> None:
    """DONE, DONE_PARTIAL, PLACED. [R55]"""
    assert desk.send().retcode == code("DONE")
    desk.define(book_levels=1, book_volume=0.05)
    desk.wait(500)
    assert desk.send(volume=0.5, type_filling=1).retcode == code("DONE_PARTIAL")
    desk.wait(500)
    assert desk.send(fault="late=1s", volume=0.01).retcode == code("PLACED")


def test_no_return_code_of_the_package_is_left_out(desk: Desk) -> None:
    names = {name.removeprefix("TRADE_RETCODE_") for name in vars(c) if name.startswith("TRADE_RETCODE_")}
    tested = {*REFUSALS, *SCRIPTED, "DONE", "DONE_PARTIAL", "PLACED"}
    assert tested == names | {"HEDGE_PROHIBITED"}
