"""`order_check` and `order_send` of the broker: judged by `judge`, carried out by `execution`."""

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from gateway.simulated import constants as c
from gateway.simulated.clockwork import Clockwork
from gateway.simulated.execution import Execution
from gateway.simulated.judge import Judge
from gateway.simulated.market import UNIT, Market, units
from gateway.simulated.money import Money, level
from gateway.simulated.plans import (
    COMMENTS,
    NONE,
    CloseByPlan,
    DealPlan,
    ModifyPlan,
    PlacePlan,
    Plan,
    Refusal,
    RemovePlan,
    StopsPlan,
    Tampering,
)
from gateway.simulated.rows import DealRow, OrderSet, PositionSet, Queued, Request
from gateway.simulated.state import State
from gateway.simulated.symbols import SymbolSpec

Result = tuple[tuple[Any, ...], list[DealRow]]
_REQUOTES: Final = (c.TRADE_RETCODE_REQUOTE, c.TRADE_RETCODE_PRICE_CHANGED)


class Trading:
    """`clock` is UTC milliseconds; `flush` makes the effects of a call durable."""

    def __init__(
        self,
        state: State,
        market: Market,
        money: Money,
        execution: Execution,
        flush: Callable[[], None],
        clock: Callable[[], int],
    ) -> None:
        self.state = state
        self.market = market
        self.money = money
        self.execution = execution
        self.flush = flush
        self.clock = clock
        self.judge = Judge(state, market, money)
        self.clockwork = Clockwork(state, market, money, execution, self.judge)

    def advance(self) -> int:
        """Lets everything happen that was due until now; the UTC milliseconds of now."""
        now = self.clock()
        self.clockwork.advance(now)
        self.flush()
        return now

    def check(self, request: Request, tampering: Tampering = NONE, *, now: int | None = None) -> tuple[Any, ...]:
        """The fields of OrderCheckResult without the request: the account as it would be after the operation. `now`:
        when it is advanced to that already."""
        now = self.advance() if now is None else now
        judged = self.judge.judge(request, now, tampering=tampering)
        retcode = judged.retcode if isinstance(judged, Refusal) else 0
        changes = judged.changes if isinstance(judged, DealPlan) else ()
        balance, profit = self.money.balance(), round(self.money.floating(now) + self.money.swaps(), 2)
        margin = self.money.margin(now, request.symbol if changes else "", changes)
        equity = round(balance + profit, 2)
        free = round(equity - margin, 2)
        return retcode, balance, equity, profit, margin, free, level(equity, margin), COMMENTS[retcode]

    def send(
        self, request: Request, *, expert: bool = True, tampering: Tampering = NONE, now: int | None = None
    ) -> Result:
        """The fields of OrderSendResult up to `comment`, and the deals made. `now` as in `check`."""
        now = self.advance() if now is None else now
        judged = self.judge.judge(request, now, expert=expert, tampering=tampering)
        if self.state.rules.limit_requests:
            self.judge.recent.append(now)
        if isinstance(judged, Refusal):
            return self._refused(request, judged.retcode, now), []
        comment = request.comment if tampering.comment is None else tampering.comment
        reason = c.ORDER_REASON_EXPERT if expert else c.ORDER_REASON_CLIENT
        if tampering.late_ms and isinstance(judged, DealPlan | PlacePlan):
            result: Result = self._queue(request, judged, comment, reason, tampering, now), []
        else:
            result = self._carry_out(request, judged, comment, reason, now)
        self.flush()
        return result

    def _refused(self, request: Request, retcode: int, now: int) -> tuple[Any, ...]:
        """A requote names the new prices."""
        bid = ask = 0.0
        if retcode in _REQUOTES:
            bid, ask = self._prices(self.market.symbols.get(request.symbol), now)
        return retcode, 0, 0, 0.0, 0.0, bid, ask, COMMENTS.get(retcode, "Unknown return code")

    def _prices(self, spec: SymbolSpec | None, now: int) -> tuple[float, float]:
        if spec is None:
            return 0.0, 0.0
        quote = self.market.quote(spec.name, now)
        return spec.price(quote.bid), spec.price(quote.ask)

    def _answer(
        self, retcode: int, spec: SymbolSpec, now: int, *, order: int = 0, volume: float = 0.0
    ) -> tuple[Any, ...]:
        return retcode, 0, order, volume, 0.0, *self._prices(spec, now), COMMENTS[retcode]

    def _carry_out(self, request: Request, plan: Plan, comment: str, reason: int, now: int) -> Result:
        done = c.TRADE_RETCODE_DONE
        put, execution = self.execution.put, self.execution
        match plan:
            case DealPlan():
                return self._deal(request, plan, comment, reason, now)
            case PlacePlan(spec, expires):
                order = execution.new_order(request, now, reason=reason, comment=comment, price=request.price)
                put(OrderSet(replace(order, time_expiration=expires)))
                placed = c.TRADE_RETCODE_PLACED if spec.is_exchange() else done
                return self._answer(placed, spec, now, order=order.ticket, volume=order.volume_initial), []
            case ModifyPlan(spec, order, expires):
                changed = replace(
                    order, price_open=request.price, price_stoplimit=request.stoplimit, sl=request.sl, tp=request.tp,
                    type_time=request.type_time, time_expiration=expires,
                )  # fmt: skip
                put(OrderSet(changed))
                return self._answer(done, spec, now, order=order.ticket), []
            case RemovePlan(spec, order):
                execution.end(order, c.ORDER_STATE_CANCELED, now, left=units(order.volume_current))
                return self._answer(done, spec, now, order=order.ticket), []
            case StopsPlan(spec, row):
                ms = execution.server_ms(now)
                put(PositionSet(replace(row, sl=request.sl, tp=request.tp, time_update_msc=ms)))
                return self._answer(done, spec, now), []
            case CloseByPlan(spec):
                deals = execution.close_by(request, plan, comment, reason, now)
                bid, ask = self._prices(spec, now)
                first = deals[0]
                return (done, first.ticket, first.order, first.volume, first.price, bid, ask, COMMENTS[done]), deals

    def _deal(self, request: Request, plan: DealPlan, comment: str, reason: int, now: int) -> Result:
        spec, execution = plan.spec, self.execution
        price = spec.price(plan.quote.ask if request.type == c.ORDER_TYPE_BUY else plan.quote.bid)
        order = execution.new_order(request, now, reason=reason, comment=comment, price=price)
        deals = execution.fill(order, plan.fills, plan.target, now)
        position_id = deals[0].position_id if deals else 0
        rests = plan.left and request.type_filling == c.ORDER_FILLING_RETURN
        if rests:
            execution.put(
                OrderSet(replace(order, state=c.ORDER_STATE_PARTIAL, volume_current=plan.left / UNIT,
                                 position_id=position_id))
            )  # fmt: skip
        else:
            state = c.ORDER_STATE_CANCELED if plan.left else c.ORDER_STATE_FILLED
            execution.end(order, state, now, left=plan.left, position_id=position_id)
        retcode = c.TRADE_RETCODE_DONE_PARTIAL if plan.left else c.TRADE_RETCODE_DONE
        if not deals:
            return self._answer(c.TRADE_RETCODE_PLACED, spec, now, order=order.ticket), []
        bid, ask = spec.price(plan.quote.bid), spec.price(plan.quote.ask)
        volume, price = deals[0].volume, deals[0].price
        if len(deals) > 1:
            filled = sum(units(deal.volume) for deal in deals)
            average = sum(deal.price * units(deal.volume) for deal in deals) / filled
            volume, price = filled / UNIT, round(average, spec.digits)
        return (retcode, deals[-1].ticket, order.ticket, volume, price, bid, ask, COMMENTS[retcode]), deals

    def _queue(
        self, request: Request, plan: DealPlan | PlacePlan, comment: str, reason: int, tampering: Tampering, now: int
    ) -> tuple[Any, ...]:
        """Accepted, and processed later."""
        spec = plan.spec
        order = self.execution.new_order(request, now, reason=reason, comment=comment, price=request.price)
        position = 0
        if isinstance(plan, PlacePlan):
            order = replace(order, state=c.ORDER_STATE_REQUEST_ADD, time_expiration=plan.expires_s)
        elif plan.target is not None:
            position = plan.target.identifier
            order = replace(order, position_id=position)
        self.execution.put(OrderSet(order))
        self.execution.put(Queued(order.ticket, now + tampering.late_ms, tampering.late_retcode, position))
        return self._answer(c.TRADE_RETCODE_PLACED, spec, now, order=order.ticket, volume=order.volume_initial)
