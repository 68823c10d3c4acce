"""Lets requests through to the broker, or says everything that speaks against them: `validate` with fresh facts."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final

from gateway.broker import Broker, Symbol, Tick
from gateway.elapsed import elapsed_s
from gateway.risk import RiskWatch
from gateway.validate import Limits, View, opened_volume, validate
from ledger.trade import ACTION_DEAL, ACTION_REMOVE, TargetImage, TradeRequest

TICK_FRESH_S: Final = 0.25
MAX_TICKS: Final = 2_000
MINUTE_S: Final = 60.0


class Admission:
    """Judges what is about to be sent. `server_utc_offset_s` tells the server's wall clock minus UTC, which changes
    with summer time and may not be known. A price of the last quarter second is good enough to let a request through;
    only a price asked for just now may refuse one."""

    def __init__(
        self,
        query: Broker,
        limits: Limits,
        clock: Callable[[], datetime],
        *,
        margin_mode: int,
        server_utc_offset_s: Callable[[], int | None],
        risk: RiskWatch | None = None,
    ) -> None:
        self._query, self._limits, self._clock, self._risk = query, limits, clock, risk
        self._margin_mode, self._offset_s = margin_mode, server_utc_offset_s
        self._ticks: dict[str, tuple[Tick, float]] = {}
        self._let_through: OrderedDict[str, float] = OrderedDict()  # orders of the last minute that open

    def use(self, limits: Limits) -> None:
        """Limits hold for every order at once, also for one that waits."""
        self._limits = limits

    async def objections(
        self, order_id: str, request: TradeRequest, symbol: Symbol, target: TargetImage | None = None
    ) -> tuple[str, ...]:
        """Every reason against the request of an order's next attempt; empty lets it through. Raises TerminalError."""
        view = self._view(order_id, target)
        tick, fresh = None, True
        if self._needs_price(request):
            tick, fresh = await self._tick(symbol.name, TICK_FRESH_S)
        reasons = validate(request, symbol, tick, view, self._limits, self._clock())
        if reasons and not fresh:
            tick, _ = await self._tick(symbol.name, 0.0)
            reasons = validate(request, symbol, tick, view, self._limits, self._clock())
        if not reasons and opened_volume(request, view) != 0:
            self._let_through.setdefault(order_id, elapsed_s())
            if self._risk is not None:
                self._risk.let_through(order_id)
        return reasons

    def _view(self, order_id: str, target: TargetImage | None) -> View:
        minute_ago = elapsed_s() - MINUTE_S
        while self._let_through and next(iter(self._let_through.values())) < minute_ago:
            self._let_through.popitem(last=False)
        return View(
            margin_mode=self._margin_mode,
            server_utc_offset_s=self._offset_s(),
            target=target,
            open_positions=self._risk.open_positions(order_id) if self._risk is not None else None,
            orders_last_minute=len(self._let_through) - (order_id in self._let_through),
            daily_loss=self._risk.daily_loss() if self._risk is not None else None,
        )

    def _needs_price(self, request: TradeRequest) -> bool:
        """Whether any rule asks for the market's price: of a plain market order none does."""
        if self._limits.max_quote_age_s or self._limits.price_collar_percent:
            return True
        return request.action not in (ACTION_DEAL, ACTION_REMOVE) or bool(request.sl or request.tp)

    async def _tick(self, name: str, within_s: float) -> tuple[Tick | None, bool]:
        """The symbol's price, and whether it was asked for just now."""
        now = elapsed_s()
        known = self._ticks.get(name)
        if known is not None and now - known[1] < within_s:
            return known[0], False
        tick = await self._query.tick(name)
        if tick is None:
            self._ticks.pop(name, None)
        else:
            if len(self._ticks) >= MAX_TICKS:
                self._ticks.clear()
            self._ticks[name] = (tick, now)
        return tick, True
