"""The firm's limits at work: what is let through is counted, and the daily loss halts until the next day."""

from decimal import Decimal as D

import pytest

from gateway import admission as module
from gateway.admission import Admission
from gateway.broker import Activity, Tick
from gateway.config import load
from gateway.halts import LIMIT, OPERATOR
from gateway.risk import RiskWatch, daily_loss
from ledger.order import Status
from ledger.trade import Deal, TradeRequest
from tests.broker_fake import EURUSD
from tests.decider import answer, check, deal, position, start
from tests.desk import CAUSE, desk
from tests.gateway_desk import desk_in

MARKET = TradeRequest(action=1, symbol="EURUSD", volume=D("0.1"))


def watch(d) -> RiskWatch:
    return RiskWatch(d.broker, d.ledger, d.halts, d.settings.limits, d.clock, lambda: 7200)


async def admission(d, *, risk: RiskWatch | None = None) -> Admission:
    if risk is not None:
        await risk._look()
    return Admission(d.broker, d.settings.limits, d.clock, margin_mode=2, server_utc_offset_s=lambda: 7200, risk=risk)


async def test_orders_of_the_last_minute_count_each_once(tmp_path):
    async with desk(tmp_path, LIMIT_ORDERS_PER_MINUTE="2") as d:
        judge = await admission(d)
        for order_id in ("o-1", "o-1", "o-2", "o-1"):  # a retry is no new order
            assert await judge.objections(order_id, MARKET, EURUSD) == ()
        assert await judge.objections("o-3", MARKET, EURUSD) == ("limit: 2 orders within a minute, 2 allowed",)
        assert (
            await judge.objections("o-3", TradeRequest(action=1, symbol="EURUSD", volume=D(1), position=9), EURUSD)
            == ()
        )


async def test_a_recent_price_may_let_through_but_only_a_new_one_may_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TICK_FRESH_S", 60)
    async with desk(tmp_path) as d:
        judge = await admission(d)
        low, high = (TradeRequest(action=1, symbol="EURUSD", volume=D("0.1"), sl=D(sl)) for sl in ("1.07", "1.085"))
        for _ in range(3):
            assert await judge.objections("o-1", low, EURUSD) == ()
        assert d.broker.asked == {"tick": 1}
        d.broker.prices = Tick(time_msc=0, bid=D("1.09"), ask=D("1.0901"))
        assert await judge.objections("o-1", high, EURUSD) == ()
        assert d.broker.asked == {"tick": 2}
        d.broker.prices = Tick(time_msc=0, bid=D("1.08"), ask=D("1.0801"))
        assert await judge.objections("o-1", high, EURUSD) == ()  # by the price of a moment ago
        assert d.broker.asked == {"tick": 2}


async def test_without_stops_and_limits_no_price_is_asked_for(tmp_path):
    async with desk(tmp_path) as d:
        judge = await admission(d)
        assert await judge.objections("o-1", MARKET, EURUSD) == ()
        assert d.broker.asked == {}


async def test_open_positions_and_those_under_way_count_together(tmp_path):
    async with desk(tmp_path, LIMIT_OPEN_POSITIONS="2") as d:
        d.broker.show(positions=[position(900)])
        risk = watch(d)
        judge = await admission(d, risk=risk)
        await d.order("o-1", check())
        assert await judge.objections("o-1", MARKET, EURUSD) == ()
        assert await judge.objections("o-2", MARKET, EURUSD) == ("limit: 2 positions are open or under way, 2 allowed",)
        # It ended without a position: there is room again once that is seen.
        await d.order("o-1", start(1), answer("fatal"))
        await risk._look()
        assert await judge.objections("o-2", MARKET, EURUSD) == ()


async def test_a_fill_counts_once_between_answer_and_position(tmp_path):
    async with desk(tmp_path, LIMIT_OPEN_POSITIONS="9") as d:
        risk = watch(d)
        judge = await admission(d, risk=risk)
        await d.order("o-1", check(), start(1))
        await judge.objections("o-1", MARKET, EURUSD)
        await risk._look()
        assert risk.open_positions("") == 1
        await d.ledger.execute("o-1", answer("success", deal(7)), CAUSE).durable
        d.broker.show(positions=[position(900)])
        await risk._look()
        assert risk.open_positions("") == 1


async def test_what_is_not_known_any_more_refuses_what_opens(tmp_path):
    async with desk(tmp_path, LIMIT_OPEN_POSITIONS="9") as d:
        d.broker.gone = True
        judge = await admission(d, risk=watch(d))
        assert await judge.objections("o-1", MARKET, EURUSD) == ("limit: how many positions are open is not known now",)


def dealt(time_msc: int, profit: str, **fields) -> Deal:
    return Deal(**({"ticket": 1, "type": 1, "time_msc": time_msc, "profit": D(profit)} | fields))


@pytest.mark.parametrize(
    ("deals", "floating", "loss"),
    [
        ([], "0", "0"),
        ([dealt(100, "-30", commission=D("-1"), swap=D("-0.5"), fee=D("-0.5"))], "0", "32"),
        ([dealt(99, "-30")], "0", "0"),  # before midnight
        ([dealt(100, "-30", type=2)], "0", "0"),  # money taken out is no loss
        ([dealt(100, "-30"), dealt(101, "50")], "-40", "20"),
        ([], "25", "0"),
    ],
)
def test_the_loss_of_a_day_is_what_was_dealt_and_what_is_open(deals, floating, loss):
    activity = Activity(positions=(position(1, profit=D(floating)),), orders=(), history=(), deals=tuple(deals))
    assert daily_loss(activity, 100) == D(loss)


async def test_the_daily_loss_halts_until_the_next_day_of_the_server_and_lifts_only_that(tmp_path):
    async with desk(tmp_path, LIMIT_DAILY_LOSS="100") as d:
        risk = watch(d)
        d.halts.halt(OPERATOR, "news", CAUSE)
        d.broker.show(positions=[position(1, profit=D("-100"))])
        await risk._look()
        halt = d.ledger.account.halt(LIMIT)
        assert (halt.reason, str(halt.until)) == ("today's loss 100 has reached 100", "2026-03-02 22:00:00+00:00")
        d.broker.show()  # recovered, but the day is not over
        d.wait(hours=9)
        await risk._look()
        assert d.ledger.account.halt(LIMIT) == halt
        d.wait(hours=1)
        await risk._look()
        assert [one.source for one in d.ledger.account.halts] == ["operator"]


async def test_limits_that_change_hold_for_an_order_that_waits_for_its_turn_at_the_broker(tmp_path):
    order = {"symbol": "EURUSD", "order_type": "buy", "volume": 0.1}
    async with desk_in(tmp_path, MAX_REQUESTS_PER_S="1") as d:
        judge = Admission(
            d.query,
            d.settings.limits,
            d.clock,
            margin_mode=2,
            server_utc_offset_s=lambda: d.connection.account.server_utc_offset_s,
        )
        d.submitter.judge_by(judge.objections)
        await d.open("o-1")
        await d.submit("o-2", **order)
        await d.until("o-2", Status.READY)
        lower = load({"data": str(tmp_path)}, {"LIMIT_MAX_VOLUME": "0.05"})
        d.submitter.use(lower)
        judge.use(lower.limits)
        assert (await d.ended("o-2")).status is Status.REFUSED
        assert len(d.deals()) == 1
