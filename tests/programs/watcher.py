"""A program that only looks at the market, as one is written for the real terminal."""

from datetime import UTC, datetime, timedelta

import MetaTrader5 as mt5
import numpy as np

print(mt5.__author__, mt5.__version__)
if not mt5.initialize():
    print("initialize failed", mt5.last_error())
    raise SystemExit(1)

for info in mt5.symbols_get(group="*USD*,!XAU*"):
    print(info.name, info.bid, info.ask, info.path)

rates = mt5.copy_rates_from_pos("EURUSD", mt5.TIMEFRAME_H1, 0, 100)
assert len(rates) == 100
assert rates["time"].dtype == np.int64
assert (rates["low"] <= rates["close"]).all()
assert (rates["close"] <= rates["high"]).all()
fast, slow = rates["close"][-10:].mean(), rates["close"][-50:].mean()
print(f"moving averages {fast:.5f} {slow:.5f}")

server = datetime.fromtimestamp(mt5.symbol_info_tick("EURUSD").time, UTC)
day = mt5.copy_rates_range("EURUSD", mt5.TIMEFRAME_M15, server - timedelta(hours=6), server)
assert 24 <= len(day) <= 25
assert len(mt5.copy_rates_from("EURUSD", mt5.TIMEFRAME_D1, server, 20)) == 20

ticks = mt5.copy_ticks_from("EURUSD", server - timedelta(minutes=10), 500, mt5.COPY_TICKS_ALL)
assert len(ticks) == 500
assert (np.diff(ticks["time_msc"]) > 0).all()
more = mt5.copy_ticks_range("EURUSD", server - timedelta(minutes=10), server, mt5.COPY_TICKS_INFO)
assert (more["ask"] > more["bid"]).all()

assert mt5.market_book_get("ACME.US") is None
assert mt5.market_book_add("ACME.US")
book = mt5.market_book_get("ACME.US")
asks = [level.price for level in book if level.type == mt5.BOOK_TYPE_SELL]
bids = [level.price for level in book if level.type == mt5.BOOK_TYPE_BUY]
assert min(asks) > max(bids)
assert all(level.volume_dbl > 0 for level in book)
assert mt5.market_book_release("ACME.US")

assert mt5.copy_rates_from_pos("NOPE", mt5.TIMEFRAME_M1, 0, 1) is None
assert mt5.last_error()[0] == -4
print(mt5.order_calc_margin(mt5.ORDER_TYPE_BUY, "EURUSD", 1.0, 1.08))
print(mt5.order_calc_profit(mt5.ORDER_TYPE_BUY, "EURUSD", 1.0, 1.08, 1.09))
mt5.shutdown()
print("done")
