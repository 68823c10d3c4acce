import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulated.market import Market
from gateway.simulated.symbols import DAY_MS, DEFAULT_SYMBOLS
from tests.simulated import WEDNESDAY_NOON_MS

times = st.integers(min_value=1_500_000_000_000, max_value=2_000_000_000_000)
symbols = st.sampled_from(sorted(DEFAULT_SYMBOLS))


def market(seed: int = 1) -> Market:
    return Market(seed, DEFAULT_SYMBOLS, 7200, "USD")


@given(symbols, st.lists(times, min_size=1, max_size=5))
def test_a_price_depends_on_seed_symbol_and_time_only(symbol: str, moments: list[int]) -> None:
    asked_in_order = market()
    quotes = [asked_in_order.quote(symbol, ms) for ms in moments]
    asked_backwards = market()
    assert [asked_backwards.quote(symbol, ms) for ms in reversed(moments)] == quotes[::-1]


@given(symbols, times, st.integers(min_value=0, max_value=2**31))
def test_a_price_stays_near_its_base_and_has_a_spread(symbol: str, ms: int, seed: int) -> None:
    spec, quote = DEFAULT_SYMBOLS[symbol], market(seed).quote(symbol, ms)
    assert quote.bid < quote.ask
    assert abs(spec.price(quote.bid) / spec.base_price - 1) < 0.003
    assert quote.time_msc <= ms


def test_another_seed_is_another_market() -> None:
    moments = range(WEDNESDAY_NOON_MS, WEDNESDAY_NOON_MS + 3_600_000, 60_000)
    one, other = ([market(seed).quote("EURUSD", ms) for ms in moments] for seed in (1, 2))
    assert one != other


def test_prices_move() -> None:
    moments = range(WEDNESDAY_NOON_MS, WEDNESDAY_NOON_MS + 60_000, 1000)
    assert len({market().quote("EURUSD", ms).bid for ms in moments}) > 10


def test_the_spread_of_eurusd_is_about_one_pip() -> None:
    moments = range(WEDNESDAY_NOON_MS, WEDNESDAY_NOON_MS + 60_000, 1000)
    quotes = [market().quote("EURUSD", ms) for ms in moments]
    assert all(8 <= quote.ask - quote.bid <= 12 for quote in quotes)


def test_a_moved_price_changes_from_then_on_and_not_before() -> None:
    plain, moved = market(), market()
    moved.move("EURUSD", WEDNESDAY_NOON_MS, 500)
    before, after = WEDNESDAY_NOON_MS - 1000, WEDNESDAY_NOON_MS + 1000
    assert moved.quote("EURUSD", before) == plain.quote("EURUSD", before)
    assert moved.quote("EURUSD", after).bid == plain.quote("EURUSD", after).bid + 500


def test_a_stock_trades_in_its_session_only_and_keeps_its_last_tick_after_it() -> None:
    stock = DEFAULT_SYMBOLS["ACME.US"]
    wednesday = WEDNESDAY_NOON_MS - WEDNESDAY_NOON_MS % DAY_MS  # server midnight
    minutes = {minute: stock.is_open(wednesday + minute * 60_000) for minute in (989, 990, 1379, 1380)}
    assert minutes == {989: False, 990: True, 1379: True, 1380: False}
    close_utc = wednesday + 1380 * 60_000 - 7_200_000
    night = market().quote("ACME.US", close_utc + 3_600_000)
    assert close_utc - stock.tick_ms <= night.time_msc < close_utc


def test_a_stock_is_closed_at_the_weekend_and_quoted_as_on_friday_evening() -> None:
    sunday = WEDNESDAY_NOON_MS + 4 * DAY_MS
    assert not DEFAULT_SYMBOLS["ACME.US"].is_open(sunday)
    assert sunday - market().quote("ACME.US", sunday).time_msc > DAY_MS


def test_margin_of_a_currency_pair_follows_leverage_and_of_gold_its_own_rate() -> None:
    subject, now = market(), WEDNESDAY_NOON_MS
    eurusd, xauusd, usdjpy = (DEFAULT_SYMBOLS[name] for name in ("EURUSD", "XAUUSD", "USDJPY"))
    assert subject.margin(eurusd, 1.0, 1.08, 500, now) == pytest.approx(216.0)
    assert subject.margin(usdjpy, 1.0, 150.0, 500, now) == pytest.approx(200.0)
    assert subject.margin(xauusd, 1.0, 2650.0, 500, now) == pytest.approx(13_250.0)


def test_yen_are_converted_at_the_price_of_the_pair() -> None:
    rate = market().rate("JPY", WEDNESDAY_NOON_MS)
    assert math.isclose(1 / rate, 150, rel_tol=0.003)


def test_a_currency_without_a_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match="CHF"):
        market().rate("CHF", WEDNESDAY_NOON_MS)
