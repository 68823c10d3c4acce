"""Laws of the simulated broker over any sequence of calls, on hedging, netting and exchange accounts."""

from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.simulated import constants as c
from gateway.simulated.arguments import utf16_units
from gateway.simulated.market import UNIT, units
from gateway.simulated.plans import COMMENTS
from tests.simulated import Desk

SYMBOLS = ("EURUSD", "USDJPY", "XAUUSD", "US500", "ACME.US")
LOTS = {"ACME.US": 100.0, "US500": 1.0}
ACCOUNTS = (
    c.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING,
    c.ACCOUNT_MARGIN_MODE_RETAIL_NETTING,
    c.ACCOUNT_MARGIN_MODE_EXCHANGE,
)
FAULTS = ("", "", "", "late=2s", "late_reject=reject", "partial=0.5", "slip=3", "comment=other")

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["deal", "deal", "close", "pending", "modify", "remove", "stops", "by", "move", "wait", "hand"]
        ),
        st.sampled_from(SYMBOLS),
        st.integers(0, 7),
        st.integers(1, 30),
        st.integers(-300, 300),
        st.integers(0, 2),
        st.sampled_from(FAULTS),
    ),
    max_size=25,
)
laws = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def step(desk: Desk, what: str, symbol: str, pick: int, size: int, off: int, filling: int, fault: str) -> Any:
    """One call, whatever the broker thinks of it."""
    volume = size * LOTS.get(symbol, 0.1)
    volume = round(volume, 2)
    positions, working = desk.positions, desk.working
    stops = {"sl": desk.price(off, symbol), "tp": desk.price(-off, symbol)} if pick % 3 == 0 else {}
    match what:
        case "deal":
            return desk.send(fault, symbol=symbol, volume=volume, type=pick % 2, type_filling=filling, **stops)
        case "close" if positions:
            row = positions[pick % len(positions)]
            part = row.volume if size % 2 else volume
            return desk.send(
                fault, symbol=row.symbol, volume=part, type=1 - row.type, position=row.ticket, type_filling=filling
            )
        case "pending":
            kind = 2 + pick % 6
            return desk.send(
                fault if "partial" not in fault else "", action=5, symbol=symbol, volume=volume, type=kind,
                price=desk.price(off, symbol), stoplimit=desk.price(off // 2, symbol), type_filling=2,
                type_time=pick % 2, **stops,
            )  # fmt: skip
        case "modify" if working:
            row = working[pick % len(working)]
            return desk.send(action=7, order=row.ticket, price=desk.price(off, row.symbol), stoplimit=0.0)
        case "remove" if working:
            return desk.send(action=8, order=working[pick % len(working)].ticket)
        case "stops" if positions:
            row = positions[pick % len(positions)]
            return desk.send(action=6, symbol=row.symbol, position=row.ticket, sl=desk.price(off, row.symbol))
        case "by" if len(positions) > 1:
            one, other = positions[pick % len(positions)], positions[size % len(positions)]
            return desk.send(action=10, position=one.ticket, position_by=other.ticket)
        case "move":
            return desk.move(off * 5, symbol)
        case "hand":
            return desk.broker.control.do("transfer", {"amount": off * 1.01})
    desk.wait(size**4)  # up to a quarter of an hour
    return None


def cents(amount: float) -> Decimal:
    return Decimal(repr(amount)).quantize(Decimal("0.01"))


def check_the_sums(desk: Desk) -> None:
    state, now = desk.state, desk.clock()
    total = sum((cents(d.profit) + cents(d.commission) + cents(d.swap) + cents(d.fee)) for d in state.deals.values())
    assert state.balance_cents == total * 100
    net: dict[str, int] = defaultdict(int)
    by_order: dict[int, int] = defaultdict(int)
    for deal in desk.deals:
        net[deal.symbol] += units(deal.volume) * (1 if deal.type == c.DEAL_TYPE_BUY else -1)
        by_order[deal.order] += units(deal.volume)
    for row in desk.positions:
        net[row.symbol] -= units(row.volume) * (1 if row.type == c.POSITION_TYPE_BUY else -1)
    assert not any(net.values()), "what the deals bought and sold is what is open"
    for order in (*state.orders.values(), *desk.working):
        done = units(order.volume_initial) - units(order.volume_current)
        deals = 2 * done if order.type == c.ORDER_TYPE_CLOSE_BY else done
        assert by_order[order.ticket] == deals, f"order {order.ticket} is executed by its deals"
    if not state.is_hedging():
        assert len({row.symbol for row in desk.positions}) == len(desk.positions)
    assert desk.broker.money.margin(now) == pytest.approx(margin_of_the_positions(desk), abs=0.02)
    profits = sum(desk.broker.money.position_tuple(row, now)[15] for row in desk.positions)
    assert desk.broker.money.floating(now) == pytest.approx(profits, abs=0.01 * (len(desk.positions) + 1))
    assert desk.broker.money.swaps() == pytest.approx(sum(row.swap for row in desk.positions), abs=0.001)


def margin_of_the_positions(desk: Desk) -> float:
    """Position by position; of opposite ones the larger side."""
    sides: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    market, now = desk.broker.market, desk.clock()
    for row in desk.positions:
        spec = market.symbols[row.symbol]
        margin = market.margin(spec, row.volume, row.price_open, desk.state.world.leverage, now)
        sides[row.symbol, row.type][0] += row.volume
        sides[row.symbol, row.type][1] += margin
    symbols = {symbol for symbol, _ in sides}
    largest = [
        max(sides[name, 0], sides[name, 1], key=lambda side: (round(side[0] * UNIT), side[1])) for name in symbols
    ]
    return sum(margin for _, margin in largest)


@laws
@given(st.sampled_from(ACCOUNTS), steps)
def test_no_sequence_of_calls_breaks_the_sums_or_raises(
    tmp_path_factory: pytest.TempPathFactory, account: int, calls: list[tuple[Any, ...]]
) -> None:
    """[R48] [R49] [R52]"""
    desk = Desk(tmp_path_factory.mktemp("desk"), margin_mode=account, balance=200_000.0)
    desk.clock.ms += 4 * 3_600_000  # the stock's session has begun
    for call in calls:
        step(desk, *call)
        check_the_sums(desk)
    desk.close()


numbers = st.floats() | st.sampled_from([0.0, 0.01, 1.0, 1.08, 1.0799, 150.0, 1e-9, 1e15, 1e305])
tickets = st.integers(0, 2**64 - 1) | st.integers(50_000_000, 50_000_010)
requests = st.fixed_dictionaries(
    {"action": st.sampled_from([0, 1, 5, 6, 7, 8, 9, 10]) | st.integers(0, 2**32 - 1)},
    optional={
        "symbol": st.sampled_from((*SYMBOLS, "")) | st.text(max_size=29).filter(lambda text: utf16_units(text) <= 29),
        "type": st.integers(0, 9) | st.integers(0, 2**32 - 1),
        "type_filling": st.integers(0, 4),
        "type_time": st.integers(0, 4),
        "expiration": st.integers(-(2**63), 2**63 - 1) | st.just(1_700_700_000),
        **dict.fromkeys(("volume", "price", "stoplimit", "sl", "tp"), numbers),
        **dict.fromkeys(("order", "position", "position_by"), tickets),
        "deviation": st.integers(0, 2**64 - 1),
        "magic": st.integers(0, 2**64 - 1),
        "comment": st.just("any"),
    },
)


@settings(laws, max_examples=300)
@given(st.sampled_from(ACCOUNTS), requests, st.sampled_from([c.SYMBOL_TRADE_EXECUTION_INSTANT, 2]))
def test_whatever_the_binding_lets_through_has_an_answer(
    tmp_path_factory: pytest.TempPathFactory, account: int, request: dict[str, Any], execution: int
) -> None:
    desk = Desk(tmp_path_factory.mktemp("desk"), margin_mode=account)
    desk.done()
    desk.define(exemode=execution)
    assert desk.check(**request) in {0, *COMMENTS}
    assert desk.send(**request).retcode in COMMENTS
    check_the_sums(desk)
    desk.restart().close()


@laws
@given(st.sampled_from(ACCOUNTS), steps, st.integers(1, 4))
def test_a_broker_restarted_between_calls_goes_on_as_if_it_had_not_been(
    tmp_path_factory: pytest.TempPathFactory, account: int, calls: list[tuple[Any, ...]], every: int
) -> None:
    """[R58]"""
    place: Path = tmp_path_factory.mktemp("desks")
    ends = []
    for restarts in (False, True):
        desk = Desk(place / str(restarts), margin_mode=account, balance=200_000.0)
        desk.clock.ms += 4 * 3_600_000
        for number, call in enumerate(calls):
            step(desk, *call)
            if restarts and number % every == 0:
                desk = desk.restart()
        desk.wait(0)
        ends.append((list(desk.state.as_effects()), desk.broker.money.account_tuple(desk.clock())))
        desk.close()
    assert ends[0] == ends[1]


@laws
@given(st.sampled_from(ACCOUNTS), steps)
def test_check_says_what_send_then_does(
    tmp_path_factory: pytest.TempPathFactory, account: int, calls: list[tuple[Any, ...]]
) -> None:
    """[R30]"""
    desk = Desk(tmp_path_factory.mktemp("desk"), margin_mode=account, balance=200_000.0)
    desk.clock.ms += 4 * 3_600_000
    plain = desk.send

    def checked(fault: str = "", **fields: Any) -> Any:
        said, result = desk.check(**fields), plain(**fields)
        assert (said == 0) == (result.retcode in (10008, 10009, 10010))
        assert said in (0, result.retcode)
        return result

    desk.send = checked  # type: ignore[method-assign]
    for call in calls:
        step(desk, *call)
    desk.close()
