"""What an accepted request does: orders, deals and positions, as effects."""

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from gateway.simulated import constants as c
from gateway.simulated.market import UNIT, Market, units
from gateway.simulated.money import Money, costs
from gateway.simulated.plans import CloseByPlan, Fill
from gateway.simulated.rows import (
    DealRow,
    Dealt,
    Effect,
    OrderDone,
    OrderRow,
    PositionGone,
    PositionRow,
    PositionSet,
    Request,
)
from gateway.simulated.state import State
from gateway.simulated.symbols import SymbolSpec

_DEAL_REASONS: Final = {
    c.ORDER_REASON_SL: c.DEAL_REASON_SL,
    c.ORDER_REASON_TP: c.DEAL_REASON_TP,
    c.ORDER_REASON_SO: c.DEAL_REASON_SO,
}
_FORCED: Final = {c.ORDER_REASON_SL: "sl", c.ORDER_REASON_TP: "tp", c.ORDER_REASON_SO: "so"}

Put = Callable[[Effect], None]


class Execution:
    """`put` applies an effect at once and keeps it for the journal."""

    def __init__(self, state: State, market: Market, money: Money, put: Put) -> None:
        self.state = state
        self.market = market
        self.money = money
        self.put = put

    def server_ms(self, now: int) -> int:
        return max(now + self.market.offset_ms, self.state.last_ms)

    def new_order(self, request: Request, now: int, *, reason: int, comment: str, price: float) -> OrderRow:
        """An order as it comes in, not yet anywhere."""
        ms = self.server_ms(now)
        return OrderRow(
            ticket=self.state.next_order, time_setup=ms // 1000, time_setup_msc=ms, time_done=0, time_done_msc=0,
            time_expiration=0, type=request.type, type_time=request.type_time, type_filling=request.type_filling,
            state=c.ORDER_STATE_PLACED, magic=request.magic, position_id=0, position_by_id=0, reason=reason,
            volume_initial=units(request.volume) / UNIT, volume_current=units(request.volume) / UNIT,
            price_open=price, sl=request.sl, tp=request.tp, price_current=price, price_stoplimit=request.stoplimit,
            symbol=request.symbol, comment=comment, external_id="",
        )  # fmt: skip

    def end(self, order: OrderRow, state: int, now: int, *, left: int = 0, position_id: int = 0) -> OrderRow:
        """The order becomes history."""
        ms = self.server_ms(now)
        done = replace(
            order, state=state, time_done=ms // 1000, time_done_msc=ms, volume_current=left / UNIT,
            position_id=position_id or order.position_id,
        )  # fmt: skip
        self.put(OrderDone(done))
        return done

    # ---- deals

    def fill(self, order: OrderRow, fills: list[Fill], target: PositionRow | None, now: int) -> list[DealRow]:
        """One deal for each fill. On a hedging account `target` is the position to be closed, or None to open one;
        on a netting account it is the symbol's."""
        spec = self.market.symbols[order.symbol]
        deals = []
        for points, volume in fills:
            if self.state.is_hedging():
                known = self.state.positions.get(order.ticket if target is None else target.identifier)
            else:
                known = self.state.position_of_symbol(order.symbol)
            deals.append(self._deal(spec, order, volume, spec.price(points), known, now))
        return deals

    def _deal(
        self, spec: SymbolSpec, order: OrderRow, volume: int, price: float, target: PositionRow | None, now: int
    ) -> DealRow:
        state, ms, type_ = self.state, self.server_ms(now), order.type % 2
        entry, profit, swap = c.DEAL_ENTRY_IN, 0.0, 0.0
        if target is None:
            self.put(PositionSet(self._opened(order, order.ticket, volume, price, ms)))
        elif target.type == type_:
            self.put(PositionSet(_added(target, order, volume, price, ms)))
        else:
            closing = min(volume, units(target.volume))
            entry = c.DEAL_ENTRY_OUT if closing == volume else c.DEAL_ENTRY_INOUT
            profit = self.money.closing_profit(target, closing, price, now)
            swap = self._take_out(target, closing, ms)
            if closing < volume:
                self.put(PositionSet(self._opened(order, target.identifier, volume - closing, price, ms)))
        commission, fee = costs(spec, volume)
        deal = DealRow(
            ticket=state.next_deal, order=order.ticket, time=ms // 1000, time_msc=ms, type=type_, entry=entry,
            magic=order.magic, position_id=order.ticket if target is None else target.identifier,
            reason=_DEAL_REASONS.get(order.reason, order.reason), volume=volume / UNIT, price=price,
            commission=commission, swap=swap, profit=profit, fee=fee, symbol=order.symbol, comment=order.comment,
            external_id="",
        )  # fmt: skip
        self.put(Dealt(deal))
        return deal

    def _opened(self, order: OrderRow, identifier: int, volume: int, price: float, ms: int) -> PositionRow:
        """A new position; with the identifier of an older one, its reversal: the ticket is the order's all the same."""
        reason = order.reason if order.reason <= c.POSITION_REASON_EXPERT else c.POSITION_REASON_CLIENT
        return PositionRow(
            ticket=order.ticket, identifier=identifier, time_msc=ms, time_update_msc=ms, type=order.type % 2,
            magic=order.magic, reason=reason, volume=volume / UNIT, price_open=price, sl=order.sl, tp=order.tp,
            swap=0.0, symbol=order.symbol, comment=order.comment,
        )  # fmt: skip

    def _take_out(self, target: PositionRow, volume: int, ms: int) -> float:
        """Reduces or ends the position; the swap that goes with that part."""
        had = units(target.volume)
        if volume == had:
            self.put(PositionGone(target.identifier))
            return target.swap
        swap = round(target.swap * volume / had, 2)
        rest = replace(
            target, volume=(had - volume) / UNIT, swap=round(target.swap - swap, 2), time_update_msc=ms
        )  # fmt: skip
        self.put(PositionSet(rest))
        return swap

    def close(self, row: PositionRow, reason: int, points: int, now: int, note: str = "") -> DealRow:
        """Closes all of a position for the server's own reason: an order of its own, with the position's magic."""
        spec = self.market.symbols[row.symbol]
        request = Request(
            c.TRADE_ACTION_DEAL, row.magic, 0, row.symbol, row.volume, 0.0, 0.0, 0.0, 0.0, 0, 1 - row.type,
            c.ORDER_FILLING_FOK, c.ORDER_TIME_GTC, 0, "", row.ticket, 0,
        )  # fmt: skip
        price = spec.price(points)
        level = row.sl if reason == c.ORDER_REASON_SL else row.tp if reason == c.ORDER_REASON_TP else 0.0
        text = f"[{_FORCED[reason]} {note or f'{level:.{spec.digits}f}'}]" if reason in _FORCED else row.comment
        order = self.new_order(request, now, reason=reason, comment=text, price=price)
        [deal] = self.fill(order, [(points, units(row.volume))], row, now)
        self.end(order, c.ORDER_STATE_FILLED, now, position_id=row.identifier)
        return deal

    def close_by(self, request: Request, plan: CloseByPlan, comment: str, reason: int, now: int) -> list[DealRow]:
        """Two deals over the smaller volume, each at the other position's open price; the first carries the profit."""
        one, other, ms = plan.position, plan.by, self.server_ms(now)
        volume = min(units(one.volume), units(other.volume))
        order = replace(
            self.new_order(request, now, reason=reason, comment=comment, price=other.price_open),
            type=c.ORDER_TYPE_CLOSE_BY, symbol=one.symbol, volume_initial=volume / UNIT, position_id=one.identifier,
            position_by_id=other.identifier,
        )  # fmt: skip
        deals = []
        profit = self.money.closing_profit(one, volume, other.price_open, now)
        for row, against, gained in ((one, other, profit), (other, one, 0.0)):
            deal = DealRow(
                ticket=self.state.next_deal, order=order.ticket, time=ms // 1000, time_msc=ms, type=1 - row.type,
                entry=c.DEAL_ENTRY_OUT_BY, magic=request.magic, position_id=row.identifier, reason=reason,
                volume=volume / UNIT, price=against.price_open, commission=0.0, swap=self._take_out(row, volume, ms),
                profit=gained, fee=0.0, symbol=row.symbol, comment=comment, external_id="",
            )  # fmt: skip
            self.put(Dealt(deal))
            deals.append(deal)
        self.end(order, c.ORDER_STATE_FILLED, now)
        return deals

    def reopen(self, row: PositionRow, points: int, shift: float, now: int) -> PositionRow:
        """Closes the position at `points` and opens it again `shift` off that price: same identifier, new ticket."""
        spec = self.market.symbols[row.symbol]
        ms, price = self.server_ms(now), spec.price(points)
        request = Request(
            c.TRADE_ACTION_DEAL, row.magic, 0, row.symbol, row.volume, 0.0, 0.0, row.sl, row.tp, 0, row.type,
            c.ORDER_FILLING_FOK, c.ORDER_TIME_GTC, 0, "", row.ticket, 0,
        )  # fmt: skip
        order = self.new_order(request, now, reason=c.ORDER_REASON_CLIENT, comment=row.comment, price=price)
        opened_at = round(price + shift, spec.digits)
        profit = self.money.closing_profit(row, units(row.volume), price, now)
        for type_, entry, at, gained, swap in (
            (1 - row.type, c.DEAL_ENTRY_OUT, price, profit, row.swap),
            (row.type, c.DEAL_ENTRY_IN, opened_at, 0.0, 0.0),
        ):
            deal = DealRow(
                ticket=self.state.next_deal, order=order.ticket, time=ms // 1000, time_msc=ms, type=type_, entry=entry,
                magic=row.magic, position_id=row.identifier, reason=c.DEAL_REASON_ROLLOVER, volume=row.volume,
                price=at, commission=0.0, swap=swap, profit=gained, fee=0.0, symbol=row.symbol, comment=row.comment,
                external_id="",
            )  # fmt: skip
            self.put(Dealt(deal))
        again = replace(row, ticket=order.ticket, price_open=opened_at, swap=0.0, time_update_msc=ms)
        self.put(PositionSet(again))
        self.end(order, c.ORDER_STATE_FILLED, now, position_id=row.identifier)
        return again

    def transfer(self, amount: float, comment: str, now: int) -> DealRow:
        """Money into the account, or out of it."""
        ms = self.server_ms(now)
        deal = DealRow(
            ticket=self.state.next_deal, order=0, time=ms // 1000, time_msc=ms, type=c.DEAL_TYPE_BALANCE,
            entry=c.DEAL_ENTRY_IN, magic=0, position_id=0, reason=c.DEAL_REASON_CLIENT, volume=0.0, price=0.0,
            commission=0.0, swap=0.0, profit=round(amount, 2), fee=0.0, symbol="", comment=comment, external_id="",
        )  # fmt: skip
        self.put(Dealt(deal))
        return deal


def _added(target: PositionRow, order: OrderRow, volume: int, price: float, ms: int) -> PositionRow:
    """More of the same side: the open price is the average, and the order's stops, where given, replace the old."""
    had = units(target.volume)
    total = had + volume
    steps, rest = divmod(units(target.price_open) * had + units(price) * volume, total)
    steps += 2 * rest > total or (2 * rest == total and steps % 2)  # half to even, of the exact quotient
    return replace(
        target, volume=total / UNIT, price_open=steps / UNIT, time_update_msc=ms,
        sl=order.sl or target.sl, tp=order.tp or target.tp,
    )  # fmt: skip
