"""`Buy`, `Sell` and `Close`: the package's own helpers, in Python over its other functions, as it has them."""

import types
from typing import Any, Final

from gateway.simulated import constants as c

_DEVIATION: Final = 10
_TRIES: Final = 10
_AGAIN: Final = (c.TRADE_RETCODE_REQUOTE, c.TRADE_RETCODE_PRICE_OFF)


def install(module: types.ModuleType) -> None:
    """Adds the helpers to the module, over whatever functions it has then."""

    def send(
        type_: int, symbol: str, volume: float, price: float | None, comment: str | None, ticket: int | None
    ) -> Any:
        order: dict[str, Any] = {
            "action": c.TRADE_ACTION_DEAL, "symbol": symbol, "volume": volume, "type": type_, "deviation": _DEVIATION,
        }  # fmt: skip
        if comment is not None:
            order["comment"] = comment
        if ticket is not None:
            order["position"] = ticket
        if price is not None:
            order["price"] = price
            return module.order_send(order)
        result = None
        for _ in range(_TRIES):
            tick = module.symbol_info_tick(symbol)
            order["price"] = tick.ask if type_ == c.ORDER_TYPE_BUY else tick.bid
            result = module.order_send(order)
            if result is None or result.retcode not in _AGAIN:
                break
        return result

    def Buy(
        symbol: str,
        volume: float,
        price: float | None = None,
        *,
        comment: str | None = None,
        ticket: int | None = None,
    ) -> Any:
        """Buys at the market, or at `price`: an OrderSendResult, or None."""
        return send(c.ORDER_TYPE_BUY, symbol, volume, price, comment, ticket)

    def Sell(
        symbol: str,
        volume: float,
        price: float | None = None,
        *,
        comment: str | None = None,
        ticket: int | None = None,
    ) -> Any:
        """Sells at the market, or at `price`: an OrderSendResult, or None."""
        return send(c.ORDER_TYPE_SELL, symbol, volume, price, comment, ticket)

    def Close(symbol: str, *, comment: str | None = None, ticket: int | None = None) -> bool | str | None:
        """Closes the symbol's positions, or that of `ticket`: True, "Partially", False (none), None (no answer)."""
        positions = module.positions_get(symbol=symbol) if ticket is None else module.positions_get(ticket=ticket)
        tried = done = 0
        for position in positions:
            tried += 1
            type_ = c.ORDER_TYPE_SELL if position.type == c.POSITION_TYPE_BUY else c.ORDER_TYPE_BUY
            if module.symbol_info_tick(symbol) is None:
                return None
            result = send(type_, symbol, position.volume, None, comment, position.ticket)
            if result is None:
                return None
            done += result.retcode == c.TRADE_RETCODE_DONE
        if not done:
            return False
        return True if done == tried else "Partially"

    for function in (Buy, Sell, Close):
        setattr(module, function.__name__, function)
