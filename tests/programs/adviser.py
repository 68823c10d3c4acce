"""An expert adviser as one is written for the real terminal: nothing here knows of a simulation.

Quotes → pending orders → a change → market orders → a partial close → close-by → everything closed. Prints its deals.
"""

import sys
from datetime import datetime, timedelta

import MetaTrader5 as mt5

SYMBOL, MAGIC, LOTS = "EURUSD", 20261122, 0.1


def fail(what):
    print(what, "failed:", mt5.last_error())
    mt5.shutdown()
    sys.exit(1)


def send(**request):
    request.setdefault("symbol", SYMBOL)
    request.setdefault("magic", MAGIC)
    check = mt5.order_check(request)
    if check is None:
        fail("order_check")
    if check.retcode != 0:
        fail(f"order_check: {check.retcode} {check.comment}")
    result = mt5.order_send(request)
    if result is None:
        fail("order_send")
    if result.retcode not in (mt5.TRADE_RETCODE_DONE, mt5.TRADE_RETCODE_PLACED):
        fail(f"order_send: {result.retcode} {result.comment} {result._asdict()['request']._asdict()}")
    return result


if not mt5.initialize():
    fail("initialize")
account = mt5.account_info()._asdict()
assert account["margin_mode"] == mt5.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING
if not mt5.symbol_select(SYMBOL, True):
    fail("symbol_select")
info, tick = mt5.symbol_info(SYMBOL), mt5.symbol_info_tick(SYMBOL)
print(f"{account['login']} {account['currency']}: {SYMBOL} {tick.bid}/{tick.ask}, spread {info.spread}")
distance = max(info.trade_stops_level, 50) * info.point

# Two pending orders, one of them changed, both taken away.
tickets = []
for type_, price in (
    (mt5.ORDER_TYPE_BUY_LIMIT, tick.bid - 20 * distance),
    (mt5.ORDER_TYPE_SELL_STOP, tick.bid - 30 * distance),
):
    result = send(
        action=mt5.TRADE_ACTION_PENDING,
        type=type_,
        volume=LOTS,
        price=round(price, info.digits),
        type_filling=mt5.ORDER_FILLING_RETURN,
        type_time=mt5.ORDER_TIME_GTC,
        comment="grid",
    )
    tickets.append(result.order)
assert {order.ticket for order in mt5.orders_get(symbol=SYMBOL)} == set(tickets)
change = round(tick.bid - 25 * distance, info.digits)
send(action=mt5.TRADE_ACTION_MODIFY, order=tickets[0], price=change, sl=round(change - distance, info.digits))
assert mt5.orders_get(ticket=tickets[0])[0].price_open == change
for ticket in tickets:
    send(action=mt5.TRADE_ACTION_REMOVE, order=ticket)
assert mt5.orders_get() == ()

# A position with stops, reduced, its stops moved.
filling = mt5.ORDER_FILLING_FOK if info.filling_mode & 1 else mt5.ORDER_FILLING_IOC
market = {"action": mt5.TRADE_ACTION_DEAL, "volume": LOTS, "deviation": 20, "type_filling": filling}
tick = mt5.symbol_info_tick(SYMBOL)
opened = send(
    **market,
    type=mt5.ORDER_TYPE_BUY,
    price=tick.ask,
    sl=round(tick.bid - 10 * distance, info.digits),
    tp=round(tick.ask + 10 * distance, info.digits),
    comment="open",
)
(position,) = mt5.positions_get(ticket=opened.order)
send(action=mt5.TRADE_ACTION_SLTP, position=position.ticket, sl=position.sl, tp=0.0)
send(**market | {"volume": 0.04}, type=mt5.ORDER_TYPE_SELL, position=position.ticket, price=tick.bid)
(position,) = mt5.positions_get(ticket=opened.order)
assert position.volume == 0.06
assert position.tp == 0.0

# An opposite one; the two closed by each other; the rest by the package's helper.
opposite = send(**market | {"volume": 0.02}, type=mt5.ORDER_TYPE_SELL, price=tick.bid)
send(action=mt5.TRADE_ACTION_CLOSE_BY, position=position.ticket, position_by=opposite.order)
assert [row.volume for row in mt5.positions_get(symbol=SYMBOL)] == [0.04]
assert mt5.Close(SYMBOL) is True
assert mt5.positions_total() == 0
assert mt5.Buy(SYMBOL, 0.01).retcode == mt5.TRADE_RETCODE_DONE
assert mt5.Sell(SYMBOL, 0.01, ticket=mt5.positions_get()[0].ticket).retcode == mt5.TRADE_RETCODE_DONE
assert mt5.Close(SYMBOL) is False

# What came of it: server time may be ahead of ours, so the question reaches into tomorrow.
deals = mt5.history_deals_get(datetime.now() - timedelta(days=1), datetime.now() + timedelta(days=1))
if deals is None:
    fail("history_deals_get")
trades = [deal for deal in deals if deal.symbol == SYMBOL]
for deal in trades:
    print(deal.ticket, deal.order, deal.position_id, deal.type, deal.entry, deal.volume, deal.price, deal.profit)
result = sum(deal.profit + deal.commission + deal.swap + deal.fee for deal in trades)
assert abs(mt5.account_info().balance - account["balance"] - result) < 0.005
print(f"{len(trades)} deals, result {result:.2f}")
mt5.shutdown()
