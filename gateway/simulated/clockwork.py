"""What happens at the broker without a request: activations, stop losses, expirations, late executions, swap, stop-out.

Nothing runs by itself: before each request, and a few times a second, `advance` does all that was due, moment by
moment, so that the result does not depend on when it was called.
"""

from typing import Final

from msgspec.structs import replace

from gateway.simulated import constants as c
from gateway.simulated.execution import Execution
from gateway.simulated.judge import Judge
from gateway.simulated.market import UNIT, Market, units
from gateway.simulated.money import Change, Money, level
from gateway.simulated.plans import Fill
from gateway.simulated.rows import OrderRow, OrderSet, PositionRow, Queued, RolledOver
from gateway.simulated.state import State
from gateway.simulated.symbols import DAY_MS, SymbolSpec, weekday
from gateway.simulated.watch import ORDER as WAKES_ORDER
from gateway.simulated.watch import SL, Trigger

LOOK_MS: Final = 500  # the symbols' tick
MAX_LOOKS: Final = 20_000  # after a long sleep not every tick is looked at
_STOP_LIMITS: Final = {
    c.ORDER_TYPE_BUY_STOP_LIMIT: c.ORDER_TYPE_BUY_LIMIT,
    c.ORDER_TYPE_SELL_STOP_LIMIT: c.ORDER_TYPE_SELL_LIMIT,
}
_LIMITS: Final = (c.ORDER_TYPE_BUY_LIMIT, c.ORDER_TYPE_SELL_LIMIT)
_REOPENS: Final = (c.SYMBOL_SWAP_MODE_REOPEN_CURRENT, c.SYMBOL_SWAP_MODE_REOPEN_BID)


class Clockwork:
    def __init__(self, state: State, market: Market, money: Money, execution: Execution, judge: Judge) -> None:
        self.state = state
        self.market = market
        self.money = money
        self.execution = execution
        self.judge = judge
        self.looked_ms = max(state.last_ms - market.offset_ms, state.seen_ms) if state.last_ms else 0
        self._rolled = max(state.rolled_day, state.last_ms // DAY_MS)
        self._margin_tick = 0

    def advance(self, now: int) -> None:
        self.looked_ms = self.looked_ms or now
        self._rolled = self._rolled or (now + self.market.offset_ms) // DAY_MS
        while (due := self._due()) <= now:
            self._look_until(due)
            self._run(due)
        self._look_until(now)
        self._stop_out(now)

    def look_again(self) -> None:
        """The price of the present tick has been changed by hand."""
        self._margin_tick = -1

    # ---- what is due at a time

    def _due(self) -> int:
        """UTC ms of the earliest thing that happens by itself."""
        due = (self._rolled + 1) * DAY_MS - self.market.offset_ms
        if self.state.expiries:
            due = min(due, self.state.expiries[0][0] * 1000 - self.market.offset_ms)
        if self.state.queued:
            due = min(due, *(queued.due_ms for queued in self.state.queued.values()), due)
        return due

    def _run(self, due: int) -> None:
        server_ms = due + self.market.offset_ms
        state = self.state
        for queued in [one for one in state.queued.values() if one.due_ms <= due]:
            self.process(queued, due)
        while state.expiries and state.expiries[0][0] * 1000 <= server_ms:
            order = state.working[state.expiries[0][1]]
            self.execution.end(order, c.ORDER_STATE_EXPIRED, due, left=units(order.volume_current))
        while (self._rolled + 1) * DAY_MS <= server_ms:
            self._rolled += 1
            self._roll_over(self._rolled, due)

    def process(self, queued: Queued, now: int) -> None:
        """The late end of what was accepted: placed, executed, or rejected after all."""
        order = self.state.working[queued.ticket]
        left = units(order.volume_current)
        target = self.state.positions.get(queued.position) if queued.position else None
        gone = queued.position and target is None
        closed = not self.market.is_open(order.symbol, now)
        if queued.retcode or gone or (closed and order.state != c.ORDER_STATE_REQUEST_ADD):
            self.execution.end(order, c.ORDER_STATE_REJECTED, now, left=left)
        elif order.state == c.ORDER_STATE_REQUEST_ADD:
            self.execution.put(OrderSet(replace(order, state=c.ORDER_STATE_PLACED)))
        else:
            self.activate(order, now)

    def _roll_over(self, day: int, now: int) -> None:
        """Swap for the night before server day `day`: none for Saturday and Sunday, three times on the triple day."""
        traded = weekday((day - 1) * DAY_MS)
        if traded in (c.DAY_OF_WEEK_SATURDAY, c.DAY_OF_WEEK_SUNDAY):
            return
        for name, sides in list(self.state.sides.items()):
            spec = self.market.symbols[name]
            if not any(side.count for side in sides) or spec.swap_mode == c.SYMBOL_SWAP_MODE_DISABLED:
                continue
            days = 3 if traded == spec.swap_rollover3days else 1
            if spec.swap_mode in _REOPENS:
                self._reopen_all(spec, days, now)
                self.execution.put(RolledOver(day))
                continue
            long, short = (days * self._swap(spec, side, now) for side in (0, 1))
            by_open = spec.swap_mode == c.SYMBOL_SWAP_MODE_INTEREST_OPEN
            self.execution.put(RolledOver(day, name, long, short, by_open))

    def _swap(self, spec: SymbolSpec, side: int, now: int) -> float:
        """Account currency for one lot and one night."""
        rate = self.market.rate
        points = spec.swap_long if side == 0 else spec.swap_short
        if spec.swap_mode == c.SYMBOL_SWAP_MODE_POINTS:
            return points * spec.point * spec.contract_size * rate(spec.currency_profit, now)
        if spec.swap_mode == c.SYMBOL_SWAP_MODE_CURRENCY_SYMBOL:
            return points * rate(spec.currency_base, now)
        if spec.swap_mode == c.SYMBOL_SWAP_MODE_CURRENCY_MARGIN:
            return points * rate(spec.currency_margin, now)
        if spec.swap_mode == c.SYMBOL_SWAP_MODE_CURRENCY_DEPOSIT:
            return points
        yearly = points / 100 * spec.contract_size * rate(spec.currency_profit, now)
        if spec.swap_mode == c.SYMBOL_SWAP_MODE_INTEREST_OPEN:
            return yearly / 360
        quote = self.market.quote(spec.name, now)
        return yearly / 360 * spec.price(quote.bid if side == 0 else quote.ask)

    def _reopen_all(self, spec: SymbolSpec, days: int, now: int) -> None:
        quote = self.market.quote(spec.name, now)
        for row in [row for row in self.state.positions.values() if row.symbol == spec.name]:
            buy = row.type == c.POSITION_TYPE_BUY
            at_bid = buy or spec.swap_mode == c.SYMBOL_SWAP_MODE_REOPEN_BID
            points = days * (spec.swap_long if buy else spec.swap_short) * spec.point
            self.execution.reopen(row, quote.bid if at_bid else quote.ask, -points if buy else points, now)

    # ---- what prices wake

    def _look_until(self, until: int) -> None:
        if self.state.watch.symbols:
            steps = max(until - self.looked_ms, 0) // LOOK_MS
            stride = LOOK_MS * max(1, -(-steps // MAX_LOOKS))
            moment = (self.looked_ms // LOOK_MS + 1) * LOOK_MS
            while moment < until and self.state.watch.symbols:
                self._look(moment)
                moment += stride
            self._look(until)
        self.looked_ms = max(self.looked_ms, until)

    def _look(self, now: int) -> None:
        for symbol in list(self.state.watch.symbols):
            spec = self.market.symbols[symbol]
            if not spec.quoting or not self.market.is_open(symbol, now):
                continue
            quote = self.market.quote(symbol, now)
            unit = UNIT // spec.scale
            for trigger in self.state.watch.woken(symbol, quote.bid * unit, quote.ask * unit):
                self._wake(trigger, now)

    def _wake(self, trigger: Trigger, now: int) -> None:
        """Something woken before may have taken this one along."""
        if trigger.what == WAKES_ORDER:
            order = self.state.working.get(trigger.id)
            if order is not None and order.ticket not in self.state.queued:
                self.activate(order, now)
            return
        row = self.state.positions.get(trigger.id)
        price = 0.0 if row is None else row.sl if trigger.what == SL else row.tp
        if row is not None and units(price) == trigger.level:
            reason = c.ORDER_REASON_SL if trigger.what == SL else c.ORDER_REASON_TP
            self.execution.close(row, reason, self._closing_points(row, now), now)

    def _closing_points(self, row: PositionRow, now: int) -> int:
        quote = self.market.quote(row.symbol, now)
        return quote.bid if row.type == c.POSITION_TYPE_BUY else quote.ask

    def activate(self, order: OrderRow, now: int) -> None:
        """The order's price is there: it is executed as far as there is a counterpart, or rejected."""
        if order.type in _STOP_LIMITS:
            activated = replace(
                order, type=_STOP_LIMITS[order.type], price_open=order.price_stoplimit, price_stoplimit=0.0
            )  # fmt: skip
            self.execution.put(OrderSet(activated))
            return
        spec, buy = self.market.symbols[order.symbol], order.type % 2 == 0
        left = units(order.volume_current)
        target, refused = self._target(order)
        quote = self.market.quote(order.symbol, now)
        if not refused:
            refused = self._activation_refusal(spec, order, target, now)
        if refused:
            self.execution.end(order, c.ORDER_STATE_REJECTED, now, left=left)
            return
        limit = round(order.price_open * spec.scale) if order.type in _LIMITS else None
        if target is not None and self.state.is_hedging():
            left = min(left, units(target.volume))
        fills = self.judge.fills(spec, quote, buy, left, limit)
        if sum(volume for _, volume in fills) < left and order.type_filling == c.ORDER_FILLING_FOK:
            self.execution.end(order, c.ORDER_STATE_CANCELED, now, left=left)
        else:
            self.settle(order, fills, target, now)

    def settle(self, order: OrderRow, fills: list[Fill], target: PositionRow | None, now: int) -> None:
        """Executes the fills; what is left waits on, or is cancelled where the filling says so."""
        deals = self.execution.fill(order, fills, target, now)
        left = units(order.volume_current) - sum(units(deal.volume) for deal in deals)
        position_id = deals[0].position_id if deals else order.position_id
        waits = order.type_filling in (c.ORDER_FILLING_RETURN, c.ORDER_FILLING_BOC)
        if left and waits:
            if deals or order.ticket in self.state.queued:
                self.execution.put(
                    OrderSet(replace(order, state=c.ORDER_STATE_PARTIAL, volume_current=left / UNIT,
                                     position_id=position_id))
                )  # fmt: skip
            return
        state = c.ORDER_STATE_CANCELED if left else c.ORDER_STATE_FILLED
        self.execution.end(order, state, now, left=left, position_id=position_id)

    def _target(self, order: OrderRow) -> tuple[PositionRow | None, int]:
        if not self.state.is_hedging():
            return self.state.position_of_symbol(order.symbol), 0
        known = self.state.positions.get(order.position_id)
        if known is None or known.identifier == order.ticket:
            lost = order.position_id not in (0, order.ticket)
            return None, c.TRADE_RETCODE_POSITION_CLOSED if lost else 0
        return known, 0

    def _activation_refusal(self, spec: SymbolSpec, order: OrderRow, target: PositionRow | None, now: int) -> int:
        side, volume = order.type % 2, units(order.volume_current)
        closing = min(volume, units(target.volume)) if target is not None and target.type != side else 0
        opening = volume - closing
        if refused := self.judge.mode_refusal(spec, side == 0, opening=opening > 0):
            return refused
        if not opening:
            return 0
        quote = self.market.quote(spec.name, now)
        changes: list[Change] = [(side, opening, spec.price(quote.ask if side == 0 else quote.bid))]
        if closing and target is not None:
            changes.append((target.type, -closing, target.price_open))
        rules = self.state.rules
        if target is None and rules.limit_positions and len(self.state.positions) >= rules.limit_positions:
            return c.TRADE_RETCODE_LIMIT_POSITIONS
        return self.judge.money_refusal(spec, volume, changes, now)

    # ---- stop-out

    def _stop_out(self, now: int) -> None:
        """Below the stop-out level the position that loses most is closed, until the rest is covered."""
        tick = now // LOOK_MS
        if tick == self._margin_tick or not self.state.positions:
            return
        self._margin_tick = tick
        stopout = self.state.rules.stopout
        margin, equity = self.money.margin(now), self.money.equity(now)
        if not margin or level(equity, margin) >= stopout:
            return

        def loss(row: PositionRow) -> float:
            spec = self.market.symbols[row.symbol]
            price = spec.price(self._closing_points(row, now))
            return self.money.closing_profit(row, units(row.volume), price, now) + row.swap

        for row in sorted(self.state.positions.values(), key=loss):
            margin, equity = self.money.margin(now), self.money.equity(now)
            if not margin or level(equity, margin) >= stopout:
                return
            if not self.market.is_open(row.symbol, now):
                continue
            note = f"{level(equity, margin):.2f}%"
            self.execution.close(row, c.ORDER_REASON_SO, self._closing_points(row, now), now, note)
