"""What the broker says of symbols, asked once in a while: names, steps and modes hardly ever change, prices do."""

from decimal import Decimal
from typing import Final

from gateway.broker import Broker, Symbol
from gateway.elapsed import elapsed_s
from gateway.requests import EXECUTION_MARKET

TTL_S: Final = 60.0
UNKNOWN_TTL_S: Final = 5.0
MAX_SYMBOLS: Final = 2_000


class Symbols:
    def __init__(self, query: Broker) -> None:
        self._query = query
        self._known: dict[str, tuple[Symbol, float]] = {}  # as many as the broker has
        self._unknown: dict[str, float] = {}

    async def get(self, name: str) -> Symbol | None:
        """The symbol, at most a minute old; None when the broker does not know it. Raises TerminalError."""
        now = elapsed_s()
        known = self._known.get(name)
        if known is not None and now < known[1]:
            return known[0]
        if now < self._unknown.get(name, 0.0):
            return None
        symbol = await self._query.symbol(name)
        if symbol is None:
            # Names that nobody knows have a place of their own, so that they cannot push out those that trade.
            if len(self._unknown) >= MAX_SYMBOLS:
                self._unknown.clear()
            self._unknown[name] = now + UNKNOWN_TTL_S
            self._known.pop(name, None)
            return None
        self._known[name] = (symbol, now + TTL_S)
        return symbol

    async def prices(self, symbol: Symbol, *, fresh: bool) -> tuple[Decimal, Decimal]:
        """Bid and ask: of now where the server looks at the price of a request, or `fresh` is asked for. Raises
        TerminalError."""
        if fresh or symbol.trade_exemode < EXECUTION_MARKET:
            tick = await self._query.tick(symbol.name)
            if tick is not None:
                return tick.bid, tick.ask
        return symbol.bid, symbol.ask
