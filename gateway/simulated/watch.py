"""Which prices wake what: the levels of pending orders, stop losses and take profits, sorted, per symbol."""

from bisect import bisect_left, insort
from typing import Final, NamedTuple

from gateway.simulated import constants as c
from gateway.simulated.market import units
from gateway.simulated.rows import OrderRow, PositionRow

SL: Final = 0
TP: Final = 1
ORDER: Final = 2

BID_FALLS: Final = 0  # bid <= level
BID_RISES: Final = 1  # bid >= level
ASK_FALLS: Final = 2
ASK_RISES: Final = 3
ANY_TICK: Final = 4  # what is left of a market order

_BY_ORDER_TYPE: Final = {
    c.ORDER_TYPE_BUY: ANY_TICK,
    c.ORDER_TYPE_SELL: ANY_TICK,
    c.ORDER_TYPE_BUY_LIMIT: ASK_FALLS,
    c.ORDER_TYPE_SELL_LIMIT: BID_RISES,
    c.ORDER_TYPE_BUY_STOP: ASK_RISES,
    c.ORDER_TYPE_SELL_STOP: BID_FALLS,
    c.ORDER_TYPE_BUY_STOP_LIMIT: ASK_RISES,
    c.ORDER_TYPE_SELL_STOP_LIMIT: BID_FALLS,
}


class Trigger(NamedTuple):
    """`level` is in units of 1e-8; `id` the ticket of an order or the identifier of a position."""

    kind: int
    level: int
    what: int
    id: int


def position_triggers(position: PositionRow) -> tuple[Trigger, ...]:
    if not (position.sl or position.tp):
        return ()
    buy = position.type == c.POSITION_TYPE_BUY
    found = []
    if position.sl:
        found.append(Trigger(BID_FALLS if buy else ASK_RISES, units(position.sl), SL, position.identifier))
    if position.tp:
        found.append(Trigger(BID_RISES if buy else ASK_FALLS, units(position.tp), TP, position.identifier))
    return tuple(found)


def order_triggers(order: OrderRow) -> tuple[Trigger, ...]:
    kind = _BY_ORDER_TYPE.get(order.type)
    if kind is None or (kind == ANY_TICK and order.state != c.ORDER_STATE_PARTIAL):
        return ()
    return (Trigger(kind, units(order.price_open), ORDER, order.ticket),)


class Watch:
    """Adding and removing costs a search; asking costs as much as there is to be woken."""

    def __init__(self) -> None:
        self._levels: dict[str, tuple[list[Trigger], ...]] = {}
        self.symbols: dict[str, int] = {}  # how many triggers each watched symbol has

    def add(self, symbol: str, triggers: tuple[Trigger, ...]) -> None:
        for trigger in triggers:
            levels = self._levels.get(symbol)
            if levels is None:
                levels = self._levels[symbol] = ([], [], [], [], [])
            insort(levels[trigger.kind], trigger)
            self.symbols[symbol] = self.symbols.get(symbol, 0) + 1

    def remove(self, symbol: str, triggers: tuple[Trigger, ...]) -> None:
        for trigger in triggers:
            levels = self._levels[symbol][trigger.kind]
            position = bisect_left(levels, trigger)
            assert levels[position] == trigger
            del levels[position]
            self.symbols[symbol] -= 1
            if not self.symbols[symbol]:
                del self.symbols[symbol]

    def woken(self, symbol: str, bid: int, ask: int) -> list[Trigger]:
        """What these prices (units) wake, older orders and positions first."""
        found: list[Trigger] = []
        falls_bid, rises_bid, falls_ask, rises_ask, any_tick = self._levels[symbol]
        for levels, price in ((falls_bid, bid), (falls_ask, ask)):
            if levels and levels[-1].level >= price:
                found += levels[bisect_left(levels, price, key=lambda trigger: trigger.level) :]
        for levels, price in ((rises_bid, bid), (rises_ask, ask)):
            if levels and levels[0].level <= price:
                found += levels[: bisect_left(levels, price + 1, key=lambda trigger: trigger.level)]
        found += any_tick
        found.sort(key=lambda trigger: (trigger.id, trigger.what))
        return found
