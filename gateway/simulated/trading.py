"""The rules of the broker: what it accepts, and what an accepted request does.

`order_check` and `order_send` share one judgement, so they can not disagree: `_judge` returns a refusal, or the plan
of a deal that `send` carries out. Rules follow MetaQuotes' documentation of MqlTradeRequest and the return codes.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from gateway.simulated import constants as c
from gateway.simulated.market import FILLING_FOK_FLAG, FILLING_IOC_FLAG, UNIT, Market, Quote, SymbolSpec
from gateway.simulated.state import (
    DealRow,
    Dealt,
    Effect,
    OrderDone,
    OrderRow,
    PositionGone,
    PositionRow,
    PositionSet,
    State,
    units,
)

COMMENTS: Final = {
    0: "Done",
    c.TRADE_RETCODE_DONE: "Request executed",
    c.TRADE_RETCODE_REQUOTE: "Requote",
    c.TRADE_RETCODE_INVALID: "Invalid request",
    c.TRADE_RETCODE_INVALID_VOLUME: "Invalid volume",
    c.TRADE_RETCODE_INVALID_PRICE: "Invalid price",
    c.TRADE_RETCODE_INVALID_STOPS: "Invalid stops",
    c.TRADE_RETCODE_TRADE_DISABLED: "Trade disabled",
    c.TRADE_RETCODE_MARKET_CLOSED: "Market closed",
    c.TRADE_RETCODE_NO_MONEY: "No money",
    c.TRADE_RETCODE_NO_CHANGES: "No changes",
    c.TRADE_RETCODE_INVALID_FILL: "Unsupported filling mode",
    c.TRADE_RETCODE_LIMIT_VOLUME: "Limit volume",
    c.TRADE_RETCODE_INVALID_ORDER: "Invalid order",
    c.TRADE_RETCODE_INVALID_EXPIRATION: "Invalid expiration",
    c.TRADE_RETCODE_POSITION_CLOSED: "Position doesn't exist",
    c.TRADE_RETCODE_INVALID_CLOSE_VOLUME: "Invalid close volume",
    c.TRADE_RETCODE_LONG_ONLY: "Only long positions allowed",
    c.TRADE_RETCODE_SHORT_ONLY: "Only short positions allowed",
    c.TRADE_RETCODE_CLOSE_ONLY: "Only position closing allowed",
}
_MARKET_TYPES: Final = (c.ORDER_TYPE_BUY, c.ORDER_TYPE_SELL)
_PRICED_MODES: Final = (c.SYMBOL_TRADE_EXECUTION_REQUEST, c.SYMBOL_TRADE_EXECUTION_INSTANT)


class Request(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """MqlTradeRequest, in the field order of the package's TradeRequest."""

    action: int
    magic: int
    order: int
    symbol: str
    volume: float
    price: float
    stoplimit: float
    sl: float
    tp: float
    deviation: int
    type: int
    type_filling: int
    type_time: int
    expiration: int
    comment: str
    position: int
    position_by: int


class Refusal(msgspec.Struct, frozen=True, gc=False):
    retcode: int


class DealPlan(msgspec.Struct, frozen=True, gc=False):
    """A market deal at `price`: opens a position, or takes `volume` out of `closes`."""

    spec: SymbolSpec
    quote: Quote
    price: float
    closes: PositionRow | None


class StopsPlan(msgspec.Struct, frozen=True, gc=False):
    position: PositionRow
    quote: Quote
    spec: SymbolSpec


Plan = DealPlan | StopsPlan


class Trading:
    """Judges and executes. `commit` makes effects durable and applies them; `clock` is UTC milliseconds."""

    def __init__(
        self, state: State, market: Market, commit: Callable[[list[Effect]], None], clock: Callable[[], int]
    ) -> None:
        self.state = state
        self.market = market
        self.commit = commit
        self.clock = clock

    def check(self, request: Request) -> tuple[Any, ...]:
        """The fields of OrderCheckResult without the request: the account as it would be after the operation."""
        now = self.clock()
        judged = self._judge(request, now)
        retcode = judged.retcode if isinstance(judged, Refusal) else 0
        extra = _margin_change(judged, request) if isinstance(judged, DealPlan) else None
        balance, profit = self.state.balance_cents / 100, self.state.floating(self.market, now)
        margin = self.state.margin(self.market, now, extra)
        equity = round(balance + profit, 2)
        level = equity / margin * 100 if margin else 0.0
        free = round(equity - margin, 2)
        return retcode, balance, equity, profit, margin, free, level, COMMENTS[retcode]

    def send(self, request: Request) -> tuple[tuple[Any, ...], list[DealRow]]:
        """The fields of OrderSendResult up to `comment`, and the deals made."""
        now = self.clock()
        judged = self._judge(request, now)
        if isinstance(judged, Refusal):
            return (judged.retcode, 0, 0, 0.0, 0.0, 0.0, 0.0, COMMENTS[judged.retcode]), []
        spec, quote = judged.spec, judged.quote
        bid, ask = spec.price(quote.bid), spec.price(quote.ask)
        done = c.TRADE_RETCODE_DONE
        if isinstance(judged, StopsPlan):
            row = judged.position
            changed = msgspec.structs.replace(row, sl=request.sl, tp=request.tp, time_update_msc=self._server_ms(now))
            self.commit([PositionSet(changed)])
            return (done, 0, 0, 0.0, 0.0, bid, ask, COMMENTS[done]), []
        order, deal, effects = self._execute(request, judged, now)
        self.commit(effects)
        return (done, deal.ticket, order.ticket, deal.volume, deal.price, bid, ask, COMMENTS[done]), [deal]

    # ---- judging

    def _judge(self, request: Request, now: int) -> Refusal | Plan:
        spec = self.market.symbols.get(request.symbol)
        if spec is None:
            return Refusal(c.TRADE_RETCODE_INVALID)
        if not all(map(math.isfinite, (request.volume, request.price, request.stoplimit, request.sl, request.tp))):
            return Refusal(c.TRADE_RETCODE_INVALID)
        match request.action:
            case c.TRADE_ACTION_DEAL:
                return self._judge_deal(request, spec, now)
            case c.TRADE_ACTION_SLTP:
                return self._judge_stops_change(request, spec, now)
            case _:
                return Refusal(c.TRADE_RETCODE_INVALID)

    def _judge_deal(self, request: Request, spec: SymbolSpec, now: int) -> Refusal | DealPlan:
        if request.type not in _MARKET_TYPES:
            return Refusal(c.TRADE_RETCODE_INVALID_ORDER)
        buy = request.type == c.ORDER_TYPE_BUY
        closes: PositionRow | None = None
        if request.position:
            closes = self.state.positions.get(request.position)
            if closes is None:
                return Refusal(c.TRADE_RETCODE_POSITION_CLOSED)
            if closes.symbol != spec.name or closes.type == request.type:
                return Refusal(c.TRADE_RETCODE_INVALID)
        if refused := _mode_refusal(spec, buy, opening=closes is None):
            return Refusal(refused)
        if not _volume_fits(spec, request.volume):
            return Refusal(c.TRADE_RETCODE_INVALID_VOLUME)
        if closes is not None and units(request.volume) > units(closes.volume):
            return Refusal(c.TRADE_RETCODE_INVALID_CLOSE_VOLUME)
        if not _filling_allowed(spec, request.type_filling):
            return Refusal(c.TRADE_RETCODE_INVALID_FILL)
        if request.type_time > c.ORDER_TIME_SPECIFIED_DAY:
            return Refusal(c.TRADE_RETCODE_INVALID_EXPIRATION)
        if not spec.is_open(now + self.market.offset_ms):
            return Refusal(c.TRADE_RETCODE_MARKET_CLOSED)
        quote = self.market.quote(spec.name, now)
        price = spec.price(quote.ask if buy else quote.bid)
        if request.price < 0 or (spec.exemode in _PRICED_MODES and request.price == 0):
            return Refusal(c.TRADE_RETCODE_INVALID_PRICE)
        if spec.exemode in _PRICED_MODES and abs(request.price - price) > (request.deviation + 0.5) * spec.point:
            return Refusal(c.TRADE_RETCODE_REQUOTE)
        if closes is None and not _stops_fit(spec, quote, buy, request.sl, request.tp):
            return Refusal(c.TRADE_RETCODE_INVALID_STOPS)
        plan = DealPlan(spec, quote, price, closes)
        if closes is None and (refused := self._money_refusal(request, plan, now)):
            return Refusal(refused)
        return plan

    def _money_refusal(self, request: Request, plan: DealPlan, now: int) -> int:
        spec = plan.spec
        sides = self.state.sides.get(spec.name)
        if spec.volume_limit and sides is not None:
            open_volume = sides[request.type].volume
            if open_volume + units(request.volume) > units(spec.volume_limit):
                return c.TRADE_RETCODE_LIMIT_VOLUME
        equity = self.state.balance_cents / 100 + self.state.floating(self.market, now)
        commission = spec.commission_per_lot * request.volume
        after = self.state.margin(self.market, now, _margin_change(plan, request))
        return 0 if equity - commission >= after else c.TRADE_RETCODE_NO_MONEY

    def _judge_stops_change(self, request: Request, spec: SymbolSpec, now: int) -> Refusal | StopsPlan:
        row = self.state.positions.get(request.position)
        if row is None:
            return Refusal(c.TRADE_RETCODE_POSITION_CLOSED)
        if row.symbol != spec.name:
            return Refusal(c.TRADE_RETCODE_INVALID)
        if spec.trade_mode == c.SYMBOL_TRADE_MODE_DISABLED:
            return Refusal(c.TRADE_RETCODE_TRADE_DISABLED)
        if not spec.is_open(now + self.market.offset_ms):
            return Refusal(c.TRADE_RETCODE_MARKET_CLOSED)
        quote = self.market.quote(spec.name, now)
        if not _stops_fit(spec, quote, row.type == c.POSITION_TYPE_BUY, request.sl, request.tp):
            return Refusal(c.TRADE_RETCODE_INVALID_STOPS)
        if (row.sl, row.tp) == (request.sl, request.tp):
            return Refusal(c.TRADE_RETCODE_NO_CHANGES)
        return StopsPlan(row, quote, spec)

    # ---- executing

    def _server_ms(self, now: int) -> int:
        return max(now + self.market.offset_ms, self.state.last_ms)

    def _execute(self, request: Request, plan: DealPlan, now: int) -> tuple[OrderRow, DealRow, list[Effect]]:
        state, closes, price = self.state, plan.closes, plan.price
        volume = units(request.volume) / UNIT
        ms = self._server_ms(now)
        ticket = state.next_order
        position_id = ticket if closes is None else closes.identifier
        order = OrderRow(
            ticket=ticket, time_setup=ms // 1000, time_setup_msc=ms, time_done=ms // 1000, time_done_msc=ms,
            time_expiration=0, type=request.type, type_time=request.type_time, type_filling=request.type_filling,
            state=c.ORDER_STATE_FILLED, magic=request.magic, position_id=position_id, position_by_id=0,
            reason=c.ORDER_REASON_EXPERT, volume_initial=volume, volume_current=0.0, price_open=price, sl=request.sl,
            tp=request.tp, price_current=price, price_stoplimit=0.0, symbol=request.symbol, comment=request.comment,
            external_id="",
        )  # fmt: skip
        profit = 0.0 if closes is None else state.closing_profit(closes, volume, price, self.market, now)
        deal = DealRow(
            ticket=state.next_deal, order=ticket, time=ms // 1000, time_msc=ms, type=request.type,
            entry=c.DEAL_ENTRY_IN if closes is None else c.DEAL_ENTRY_OUT, magic=request.magic,
            position_id=position_id, reason=c.DEAL_REASON_EXPERT, volume=volume, price=price,
            commission=-round(plan.spec.commission_per_lot * volume, 2), swap=0.0, profit=profit, fee=0.0,
            symbol=request.symbol, comment=request.comment, external_id="",
        )  # fmt: skip
        return order, deal, [OrderDone(order), Dealt(deal), self._position_effect(request, plan, ticket, ms)]

    def _position_effect(self, request: Request, plan: DealPlan, ticket: int, ms: int) -> Effect:
        closes = plan.closes
        if closes is None:
            return PositionSet(
                PositionRow(
                    ticket=ticket, identifier=ticket, time_msc=ms, time_update_msc=ms, type=request.type,
                    magic=request.magic, reason=c.POSITION_REASON_EXPERT, volume=units(request.volume) / UNIT,
                    price_open=plan.price, sl=request.sl, tp=request.tp, swap=0.0, symbol=request.symbol,
                    comment=request.comment,
                )
            )  # fmt: skip
        left = units(closes.volume) - units(request.volume)
        if left == 0:
            return PositionGone(closes.identifier)
        return PositionSet(msgspec.structs.replace(closes, volume=left / UNIT, time_update_msc=ms))


def _margin_change(plan: DealPlan, request: Request) -> tuple[str, int, int, float]:
    closes = plan.closes
    if closes is not None:
        return plan.spec.name, closes.type, -units(request.volume), closes.price_open
    return plan.spec.name, request.type, units(request.volume), plan.price


def _mode_refusal(spec: SymbolSpec, buy: bool, *, opening: bool) -> int:
    mode = spec.trade_mode
    if mode == c.SYMBOL_TRADE_MODE_DISABLED:
        return c.TRADE_RETCODE_TRADE_DISABLED
    if not opening or mode == c.SYMBOL_TRADE_MODE_FULL:
        return 0
    if mode == c.SYMBOL_TRADE_MODE_CLOSEONLY:
        return c.TRADE_RETCODE_CLOSE_ONLY
    if mode == c.SYMBOL_TRADE_MODE_LONGONLY:
        return 0 if buy else c.TRADE_RETCODE_LONG_ONLY
    return c.TRADE_RETCODE_SHORT_ONLY if buy else 0


def _volume_fits(spec: SymbolSpec, volume: float) -> bool:
    if not spec.volume_min <= volume <= spec.volume_max:
        return False
    return units(volume) % units(spec.volume_step) == 0


def _filling_allowed(spec: SymbolSpec, filling: int) -> bool:
    if filling == c.ORDER_FILLING_RETURN:
        return spec.return_filling
    if filling not in (c.ORDER_FILLING_FOK, c.ORDER_FILLING_IOC):
        return False  # BOC places a passive order, which a market deal is not
    if spec.exemode in _PRICED_MODES:
        return True
    flag = FILLING_FOK_FLAG if filling == c.ORDER_FILLING_FOK else FILLING_IOC_FLAG
    return bool(spec.filling_mode & flag)


def _stops_fit(spec: SymbolSpec, quote: Quote, buy: bool, sl: float, tp: float) -> bool:
    """Stops lie on their side of the price the position closes at, at least the stops level away."""
    if sl < 0 or tp < 0:
        return False
    closing = quote.bid if buy else quote.ask
    sign = 1 if buy else -1
    level = max(spec.stops_level, 1)
    sl_points, tp_points = sl * spec.scale, tp * spec.scale
    tolerance = 1e-6  # a price on the level, written as a double, may miss it by an ulp
    if sl and (closing - sl_points) * sign < level - tolerance:
        return False
    return not (tp and (tp_points - closing) * sign < level - tolerance)
