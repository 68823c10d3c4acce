"""Charts are the same prices as the quotes, many at a time."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulated import constants as c
from gateway.simulated.charts import RATES_TYPE, TICKS_TYPE, Chart
from gateway.simulated.market import Market
from gateway.simulated.symbols import DAY_MS, DEFAULT_SYMBOLS
from tests.simulated import WEDNESDAY_NOON_MS

OFFSET_S = 7200
NOON_S = WEDNESDAY_NOON_MS // 1000 + OFFSET_S  # 14:00 at the server
symbols = st.sampled_from(sorted(DEFAULT_SYMBOLS))


def chart(symbol: str = "EURUSD", now_ms: int = WEDNESDAY_NOON_MS, moves: Any = (), seed: int = 1) -> Chart:
    return Chart(seed, OFFSET_S * 1000, now_ms, DEFAULT_SYMBOLS[symbol], list(moves))


def market(moves: Any = (), symbol: str = "EURUSD") -> Market:
    made = Market(1, DEFAULT_SYMBOLS, OFFSET_S, "USD")
    for from_ms, points in moves:
        made.move(symbol, from_ms, points)
    return made


@settings(max_examples=30)
@given(
    symbols, st.integers(0, 86_400), st.lists(st.tuples(st.integers(-7200, 7200), st.integers(-500, 500)), max_size=3)
)
def test_ticks_are_the_quotes_to_the_bit(symbol: str, back_s: int, offsets: list[tuple[int, int]]) -> None:
    """[R17] [R18]"""
    moves = sorted((WEDNESDAY_NOON_MS - (back_s + off) * 1000, points) for off, points in offsets)
    ticks = chart(symbol, moves=moves).ticks_range(NOON_S - back_s, NOON_S - back_s + 30, c.COPY_TICKS_ALL)
    quoted = market(moves, symbol)
    for tick in ticks[::7]:
        shown = quoted.tick(symbol, int(tick["time_msc"]) - OFFSET_S * 1000)
        assert tuple(tick.tolist()) == shown


def test_arrays_have_the_packages_fields() -> None:
    """[R16] [R17]"""
    assert chart().rates_from_pos(c.TIMEFRAME_M1, 0, 3).dtype == RATES_TYPE
    assert RATES_TYPE.names == ("time", "open", "high", "low", "close", "tick_volume", "spread", "real_volume")
    assert chart().ticks_from(NOON_S - 10, 3, c.COPY_TICKS_ALL).dtype == TICKS_TYPE
    assert TICKS_TYPE.names == ("time", "bid", "ask", "last", "volume", "time_msc", "flags", "volume_real")


def test_a_bar_is_made_of_its_ticks() -> None:
    """[R18]"""
    [bar] = chart().rates_range(c.TIMEFRAME_M5, NOON_S - 600, NOON_S - 600, 10)
    ticks = chart().ticks_range(NOON_S - 600, NOON_S - 301, c.COPY_TICKS_INFO)
    bids = ticks["bid"]
    assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (bids[0], bids.max(), bids.min(), bids[-1])
    assert bar["tick_volume"] == len(ticks) == 600


@pytest.mark.parametrize(
    ("long", "short", "count"), [("M5", "M1", 5), ("M30", "M5", 6), ("H4", "H1", 4), ("W1", "D1", 7)]
)
def test_a_long_bar_is_made_of_short_ones(long: str, short: str, count: int) -> None:
    """[R18]"""
    frames = {name: getattr(c, f"TIMEFRAME_{name}") for name in (long, short)}
    bar, following = chart().rates_from_pos(frames[long], 0, 2)
    parts = chart().rates_range(frames[short], int(bar["time"]), int(following["time"]) - 1, 100)
    assert len(parts) == count
    assert (bar["open"], bar["close"]) == (parts["open"][0], parts["close"][-1])
    assert (bar["high"], bar["low"]) == (parts["high"].max(), parts["low"].min())
    assert bar["tick_volume"] == parts["tick_volume"].sum()


def test_position_0_is_the_bar_that_is_still_open_and_count_goes_back_from_it() -> None:
    """[R16]"""
    bars = chart(now_ms=WEDNESDAY_NOON_MS + 90_000).rates_from_pos(c.TIMEFRAME_M1, 0, 4)
    assert bars["time"].tolist() == [NOON_S - 120, NOON_S - 60, NOON_S, NOON_S + 60]
    assert bars["tick_volume"].tolist() == [120, 120, 120, 61]
    later = chart(now_ms=WEDNESDAY_NOON_MS + 90_000).rates_from_pos(c.TIMEFRAME_M1, 2, 2)
    assert later["time"].tolist() == [NOON_S - 120, NOON_S - 60]


def test_bars_from_a_date_end_with_the_one_that_is_open_then() -> None:
    """[R16]"""
    bars = chart().rates_from(c.TIMEFRAME_H1, NOON_S - 1800, 2)
    assert bars["time"].tolist() == [NOON_S - 7200, NOON_S - 3600]
    both = chart().rates_range(c.TIMEFRAME_H1, NOON_S - 7200, NOON_S - 3600, 100)
    assert both["time"].tolist() == bars["time"].tolist()


@pytest.mark.parametrize("name", ["M1", "M20", "H1", "H12", "D1", "W1", "MN1"])
def test_bars_begin_on_the_servers_calendar(name: str) -> None:
    """[R16]"""
    bars = chart().rates_from_pos(getattr(c, f"TIMEFRAME_{name}"), 0, 30)
    times = [datetime.fromtimestamp(int(time), UTC) for time in bars["time"]]
    assert len(bars) == 30
    assert times == sorted(set(times))
    if name == "MN1":
        assert {(time.day, time.hour) for time in times} == {(1, 0)}
    if name == "W1":
        assert {(time.weekday(), time.hour) for time in times} == {(6, 0)}


def test_a_stock_has_bars_and_ticks_in_its_session_only() -> None:
    """[R16] [R17]"""
    bars = chart("ACME.US").rates_from_pos(c.TIMEFRAME_M30, 0, 14)
    clock = [datetime.fromtimestamp(int(time), UTC).strftime("%H:%M") for time in bars["time"]]
    assert (clock[0], clock[1], clock[-1]) == ("22:30", "16:30", "22:30")
    night = (WEDNESDAY_NOON_MS - WEDNESDAY_NOON_MS % DAY_MS) // 1000
    assert len(chart("ACME.US").ticks_range(night, night + 3600, c.COPY_TICKS_ALL)) == 0


def test_trades_are_recorded_at_an_exchange_only() -> None:
    """[R17]"""
    assert len(chart().ticks_from(NOON_S - 60, 10, c.COPY_TICKS_TRADE)) == 0
    ticks = chart("ACME.US").ticks_from(NOON_S - DAY_MS // 1000, 10, c.COPY_TICKS_TRADE)
    assert (ticks["last"] > 0).all()
    assert (ticks["flags"] & c.TICK_FLAG_LAST > 0).all()


def test_ticks_are_counted_from_the_date_on_and_end_now() -> None:
    """[R17]"""
    ticks = chart().ticks_from(NOON_S - 2, 100, c.COPY_TICKS_ALL)
    assert ticks["time_msc"].tolist() == [(NOON_S - 2) * 1000 + 500 * n for n in range(5)]
    assert np.all(np.diff(chart().ticks_from(NOON_S - 86_400, 1000, -1)["time_msc"]) == 500)
