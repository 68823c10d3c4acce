"""The broker's rules, in process, under a clock the test owns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.simulated import constants as c
from gateway.simulated.money import Money
from gateway.simulated.rows import World
from gateway.simulated.service import Broker
from gateway.simulated.state import State
from gateway.simulated.symbols import DEFAULT_SYMBOLS, SymbolSpec
from tests.simulated import Clock, mt5_request


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(tmp_path: Path, clock: Clock) -> Iterator[Broker]:
    broker = Broker(tmp_path, World(), clock)
    yield broker
    broker.journal.close()


def check(broker: Broker, **fields: Any) -> int:
    return int(broker.trading.check(mt5_request(**fields))[0])


def send(broker: Broker, **fields: Any) -> tuple[Any, ...]:
    return broker.trading.send(mt5_request(**fields))[0]


def redefine(broker: Broker, symbol: str, **changes: Any) -> SymbolSpec:
    return broker.set_symbol(symbol, changes)


def bid(broker: Broker, symbol: str = "EURUSD") -> float:
    return DEFAULT_SYMBOLS[symbol].price(broker.market.quote(symbol, broker.clock()).bid)


def test_a_market_buy_makes_an_order_a_deal_and_a_position_that_name_each_other(broker: Broker) -> None:
    retcode, deal_ticket, order_ticket, volume, price, _, ask, comment = send(broker, magic=9, comment="mine")
    order, deal = broker.state.orders[order_ticket], broker.state.deals[deal_ticket]
    position = broker.state.positions[order_ticket]
    assert (retcode, comment) == (10009, "Request executed")
    assert volume == 0.01
    assert price == ask == deal.price == position.price_open
    assert (order.state, order.position_id, deal.order, deal.position_id) == (
        4,
        order_ticket,
        order_ticket,
        order_ticket,
    )
    assert {(row.magic, row.comment) for row in (order, deal, position)} == {(9, "mine")}
    assert (deal.entry, deal.commission) == (c.DEAL_ENTRY_IN, -0.04)


def test_closing_takes_profit_and_commission_into_the_balance(broker: Broker, clock: Clock) -> None:
    opened = send(broker, volume=1.0)
    broker.control.do("price", {"symbol": "EURUSD", "points": 1000})
    closed = send(broker, volume=1.0, type=1, position=opened[2])
    deal = broker.state.deals[closed[1]]
    assert (deal.entry, deal.position_id) == (c.DEAL_ENTRY_OUT, opened[2])
    assert deal.profit == pytest.approx((closed[4] - opened[4]) * 100_000, abs=0.005)
    assert broker.state.balance_cents == round((10_000_000 + deal.profit - 7.0) * 100)
    assert broker.state.positions == {}


def test_a_partial_close_leaves_the_rest_under_the_same_ticket(broker: Broker) -> None:
    ticket = send(broker, volume=0.5)[2]
    assert send(broker, volume=0.2, type=1, position=ticket)[0] == 10009
    assert broker.state.positions[ticket].volume == 0.3


def test_on_a_hedging_account_an_opposite_order_opens_its_own_position(broker: Broker) -> None:
    buy, sell = send(broker)[2], send(broker, type=1)[2]
    assert set(broker.state.positions) == {buy, sell}


@pytest.mark.parametrize(
    ("fields", "retcode"),
    [
        ({"symbol": "NOPE"}, 10013),
        ({"symbol": ""}, 10013),
        ({"action": 4711}, 10013),
        ({"volume": float("nan")}, 10013),
        ({"sl": float("inf")}, 10013),
        ({"volume": 100.01}, 10014),
        ({"volume": 0.005}, 10014),
        ({"volume": 0.015}, 10014),
        ({"volume": 0.0}, 10014),
        ({"volume": -1.0}, 10014),
        ({"price": -1.0}, 10015),
        ({"sl": 2.0}, 10016),
        ({"tp": 0.5}, 10016),
        ({"type": 1, "sl": 0.5}, 10016),
        ({"sl": -1.0}, 10016),
        ({"symbol": "ACME.US", "volume": 1.0}, 10018),
        ({"symbol": "XAUUSD", "volume": 1000.0}, 10019),
        ({"type_time": 4}, 10022),
        ({"type_filling": 2}, 10030),
        ({"type_filling": 3}, 10030),
        ({"symbol": "US500", "volume": 1.0, "type_filling": 1}, 10030),
        ({"type": 2}, 10035),
        ({"position": 4711, "type": 1}, 10036),
    ],
)
def test_check_and_send_refuse_with_the_same_code_and_nothing_changes(
    broker: Broker, clock: Clock, fields: dict[str, Any], retcode: int
) -> None:
    if fields.get("symbol") == "ACME.US":
        clock.ms += 12 * 3_600_000  # past the session
    before = list(broker.state.as_effects())
    assert check(broker, **fields) == retcode
    assert send(broker, **fields)[:3] == (retcode, 0, 0)
    assert list(broker.state.as_effects()) == before


@pytest.mark.parametrize(
    ("mode", "type_", "retcode"),
    [
        (c.SYMBOL_TRADE_MODE_DISABLED, 0, 10017),
        (c.SYMBOL_TRADE_MODE_LONGONLY, 0, 10009),
        (c.SYMBOL_TRADE_MODE_LONGONLY, 1, 10042),
        (c.SYMBOL_TRADE_MODE_SHORTONLY, 0, 10043),
        (c.SYMBOL_TRADE_MODE_SHORTONLY, 1, 10009),
        (c.SYMBOL_TRADE_MODE_CLOSEONLY, 0, 10044),
    ],
)
def test_the_trade_mode_of_a_symbol_is_respected(broker: Broker, mode: int, type_: int, retcode: int) -> None:
    redefine(broker, "EURUSD", trade_mode=mode)
    assert send(broker, type=type_)[0] == retcode


def test_closing_passes_where_opening_is_forbidden(broker: Broker) -> None:
    ticket = send(broker)[2]
    redefine(broker, "EURUSD", trade_mode=c.SYMBOL_TRADE_MODE_CLOSEONLY)
    assert send(broker, type=1, position=ticket)[0] == 10009


def test_a_close_of_the_same_side_or_of_more_than_there_is_is_refused(broker: Broker) -> None:
    ticket = send(broker)[2]
    assert send(broker, type=0, position=ticket)[0] == 10013
    assert send(broker, type=1, position=ticket, volume=0.02)[0] == 10038
    assert send(broker, symbol="GBPUSD", type=1, position=ticket)[0] == 10013


def test_stops_must_keep_the_stops_level(broker: Broker) -> None:
    price = bid(broker)
    assert check(broker, sl=round(price - 0.00010, 5)) == 0
    assert check(broker, sl=round(price - 0.00009, 5)) == 10016


def test_an_instant_execution_symbol_wants_a_price_and_requotes_one_that_is_too_far(broker: Broker) -> None:
    redefine(broker, "EURUSD", exemode=c.SYMBOL_TRADE_EXECUTION_INSTANT)
    ask = check(broker, price=0.0)
    quote = broker.market.quote("EURUSD", broker.clock())
    ask_price = quote.ask / 100_000
    assert ask == 10015
    assert check(broker, price=ask_price + 0.0002, deviation=10) == 10004
    assert send(broker, price=ask_price + 0.0002, deviation=20)[0] == 10009


def test_a_volume_limit_counts_what_is_open_on_that_side(broker: Broker) -> None:
    redefine(broker, "EURUSD", volume_limit=1.0)
    assert send(broker, volume=0.6)[0] == 10009
    assert send(broker, volume=0.5)[0] == 10034
    assert send(broker, volume=0.5, type=1)[0] == 10009


def test_sl_and_tp_can_be_changed_and_the_same_values_are_no_change(broker: Broker) -> None:
    ticket = send(broker)[2]
    change = {"action": c.TRADE_ACTION_SLTP, "position": ticket, "sl": 1.0, "tp": 1.2}
    assert send(broker, **change)[0] == 10009
    assert (broker.state.positions[ticket].sl, broker.state.positions[ticket].tp) == (1.0, 1.2)
    assert send(broker, **change)[0] == 10025


def test_a_check_shows_the_account_as_it_would_be(broker: Broker) -> None:
    _, balance, equity, _, margin, free, level, comment = broker.trading.check(mt5_request(volume=1.0))
    price = broker.market.quote("EURUSD", broker.clock()).ask / 100_000
    assert margin == pytest.approx(price * 100_000 / 500, abs=0.01)
    assert free == pytest.approx(equity - margin)
    assert level == pytest.approx(equity / margin * 100)
    assert (balance, comment) == (10_000_000.0, "Done")


def test_opposite_positions_are_charged_margin_once(broker: Broker) -> None:
    send(broker, volume=1.0)
    one_side = broker.money.margin(broker.clock())
    send(broker, volume=1.0, type=1)
    assert broker.money.margin(broker.clock()) == pytest.approx(one_side, rel=0.001)


def test_server_time_is_the_servers_wall_clock_and_never_runs_backwards(broker: Broker, clock: Clock) -> None:
    first = broker.state.deals[send(broker)[1]]
    clock.ms -= 5000
    second = broker.state.deals[send(broker)[1]]
    assert first.time_msc == Clock().ms + 7_200_000
    assert second.time_msc == first.time_msc


actions = st.tuples(
    st.sampled_from(["EURUSD", "GBPUSD", "USDJPY", "XAUUSD", "US500"]),
    st.sampled_from([0.01, 0.02, 0.5, 1.0, 7.3, 1000.0]),
    st.sampled_from([0, 1]),
    st.integers(min_value=0, max_value=5),  # 0: open; otherwise close the n-th position
    st.integers(min_value=0, max_value=100_000),  # time that passes
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(actions, max_size=20))
def test_after_any_trades_check_agrees_with_send_the_sums_are_exact_and_a_replay_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, trades: list[tuple[str, float, int, int, int]]
) -> None:
    clock = Clock()
    folder = tmp_path_factory.mktemp("broker")
    broker = Broker(folder, World(), clock)
    for symbol, volume, type_, target, passes in trades:
        clock.ms += passes
        tickets = list(broker.state.positions)
        position = tickets[target % len(tickets)] if target and tickets else 0
        fields = {"symbol": symbol, "volume": volume, "type": type_, "position": position}
        checked, sent = check(broker, **fields), send(broker, **fields)[0]
        assert sent == (checked or 10009)
    broker.journal.close()

    fresh = State()
    fresh.apply(broker.state.as_effects())
    again = Money(fresh, broker.market)
    assert again.floating(clock.ms) == broker.money.floating(clock.ms)
    assert again.margin(clock.ms) == broker.money.margin(clock.ms)
    profits = sum(broker.money.position_tuple(row, clock.ms)[15] for row in broker.state.positions.values())
    assert broker.money.floating(clock.ms) == pytest.approx(profits, abs=0.01 * (len(trades) + 1))

    replayed = Broker(folder, World(seed=99), clock)
    assert list(replayed.state.as_effects()) == list(broker.state.as_effects())
    assert replayed.money.account_tuple(clock.ms) == broker.money.account_tuple(clock.ms)
    replayed.journal.close()
