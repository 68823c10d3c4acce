"""Who halts trading and who lifts it; what a halt does to working orders; the dead-man's switch."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gateway import halts
from gateway.config import load
from gateway.halts import HEARTBEAT, LIMIT, OPERATOR, DeadMansSwitch, next_midnight
from gateway.watch import Watch
from ledger.account_events import TradingHalted, TradingResumed
from ledger.commands import CompleteCancel, ExpireOrder, ResolveOutcome
from ledger.plan import Policy, Refuse, Send, next_step
from ledger.writer import Cause
from tests.decider import answer, check, deal, start, unknown
from tests.desk import desk, until

CAUSE = Cause(actor="test")


async def test_a_halt_and_its_end_are_events_with_who_and_why(tmp_path):
    async with desk(tmp_path) as d:
        d.halts.halt(OPERATOR, "news at 14:30", CAUSE, by="ann")
        d.halts.resume(OPERATOR, "over", CAUSE, by="bob")
        assert await d.account_events() == [
            TradingHalted(source="operator", reason="news at 14:30", by="ann"),
            TradingResumed(source="operator", reason="over", by="bob"),
        ]


async def test_the_same_halt_again_and_the_end_of_none_are_no_events(tmp_path):
    async with desk(tmp_path) as d:
        assert d.halts.resume(OPERATOR, "why not", CAUSE) is None
        assert d.halts.halt(OPERATOR, "news", CAUSE) is not None
        assert d.halts.halt(OPERATOR, "news", CAUSE) is None
        assert len(await d.account_events()) == 1


async def test_a_halt_survives_a_restart_and_nothing_that_opens_is_sent(tmp_path):
    async with desk(tmp_path) as d:
        await d.order("o-1", check())
        d.halts.halt(OPERATOR, "news", CAUSE)
    async with desk(tmp_path) as d:
        order, now, policy = d.ledger.order("o-1"), d.clock(), Policy(max_order_age_s=0, max_order_life_s=0)
        assert next_step(order, now, policy, halted=d.ledger.account.halted) == Refuse(
            ("trading is halted: operator: news",)
        )
        d.halts.resume(OPERATOR, "over", CAUSE)
        assert next_step(order, now, policy, halted=d.ledger.account.halted) == Send(1)


async def test_the_configuration_halts_while_it_says_so_and_lifts_no_other(tmp_path):
    async with desk(tmp_path, HALT="end of quarter", LIMIT_DAILY_LOSS="5", HEARTBEAT_TIMEOUT_S="60") as d:
        for source in (OPERATOR, LIMIT, HEARTBEAT):
            d.halts.halt(source, "stop", CAUSE)
        d.halts.apply_configuration(d.settings)
        assert [halt.source for halt in d.ledger.account.halts] == ["operator", "limit", "heartbeat", "configuration"]
        lifted = {"LIMIT_DAILY_LOSS": "5", "HEARTBEAT_TIMEOUT_S": "60"}
        d.halts.apply_configuration(load({"data": str(tmp_path)}, lifted))
        assert [halt.source for halt in d.ledger.account.halts] == ["operator", "limit", "heartbeat"]


async def test_a_source_that_is_switched_off_lifts_its_own_halt(tmp_path):
    async with desk(tmp_path) as d:
        for source in (OPERATOR, LIMIT, HEARTBEAT):
            d.halts.halt(source, "stop", CAUSE)
        d.halts.apply_configuration(d.settings)
        assert [halt.source for halt in d.ledger.account.halts] == ["operator"]


def found(ticket: int) -> ResolveOutcome:
    return ResolveOutcome(resolution="found", reason="it is there", order_ticket=ticket)


@pytest.mark.parametrize("policy", ["on", "off"])
async def test_working_orders_stay_or_are_cancelled_as_the_halt_says(tmp_path, policy):
    async with desk(tmp_path, HALT_CANCEL_ORDERS=policy) as d:
        pending = {"order_type": "buy_limit", "price": "1.05"}
        await d.order("o-1", check(), start(1, action=5), answer("success", order=901), **pending)
        await d.order("o-2", check(), start(1), answer("success", deal(7, "0.3")))
        await d.order("o-3", check(), start(1, action=5), unknown(), **pending)
        watch = Watch(d.ledger.tail)
        d.halts.start(watch)
        await watch.start()
        d.halts.halt(OPERATOR, "news", CAUSE)
        if policy == "on":
            await until(lambda: tickets(d) == {"901"})
            # One that gets to the broker in spite of the halt is cancelled, too.
            await d.ledger.execute("o-3", found(902), CAUSE).durable
            await until(lambda: tickets(d) == {"901", "902"})
        else:
            await d.account_events()
            assert tickets(d) == set()
        await d.halts.stop()
        await watch.stop()


def given(d) -> list[str]:
    """The order ids of the cancels, whatever the gateway can do of them yet."""
    streams = {one.stream for one in d.store.read(0, 10_000)}
    return sorted(one.removeprefix("order/") for one in streams if one.startswith("order/halt."))


def tickets(d) -> set[str]:
    return {one.rpartition(".")[2] for one in given(d)}


async def test_the_same_halt_cancels_the_same_order_once_also_after_a_restart(tmp_path):
    for _ in range(2):
        async with desk(tmp_path, HALT_CANCEL_ORDERS="on") as d:
            if d.ledger.order("o-1") is None:
                await d.order(
                    "o-1", check(), start(1, action=5), answer("success", order=901), order_type="buy_limit", price="1"
                )
                d.halts.halt(OPERATOR, "news", CAUSE)
            watch = Watch(d.ledger.tail)
            d.halts.start(watch)
            await until(lambda d=d: given(d))
            await d.account_events()
            await d.halts.stop()
            assert tickets(d) == {"901"}
            events = await d.order_events(given(d)[0])
            assert [type(one).__name__ for one in events].count("OrderRequested") == 1


async def test_a_working_order_whose_cancel_came_to_nothing_is_cancelled_again_while_the_halt_stands(
    tmp_path, monkeypatch
):
    """In a closed market no cancel succeeds, and each is only tried for so long."""
    monkeypatch.setattr(halts, "AGAIN_S", 0.02)
    async with desk(tmp_path, HALT_CANCEL_ORDERS="on") as d:
        pending = {"order_type": "buy_limit", "price": "1.05"}
        await d.order("o-1", check(), start(1, action=5), answer("success", order=901), **pending)
        d.halts.halt(OPERATOR, "news", CAUSE)
        watch = Watch(d.ledger.tail)
        d.halts.start(watch)
        stale = ExpireOrder(age_s=Decimal(301), limit_s=Decimal(300), cause="life")
        for number in range(1, 3):
            await until(lambda number=number: len(given(d)) == number)
            [working] = [one for one in given(d) if d.ledger.order(one).is_open]
            await d.ledger.execute(working, stale, CAUSE).durable
        await until(lambda: len(given(d)) == 3)
        assert tickets(d) == {"901"}
        # One that has succeeded is enough: the order's own end shows a moment later.
        [working] = [one for one in given(d) if d.ledger.order(one).is_open]
        await d.ledger.execute(working, CompleteCancel(), CAUSE).durable
        await asyncio.sleep(0.1)
        assert len(given(d)) == 3
        await d.halts.stop()


class Silence:
    """Upstream, as the switch hears it."""

    def __init__(self, d, timeout_s: float) -> None:
        self.now = 0.0
        self.switch = DeadMansSwitch(d.halts, timeout_s, "orders.heartbeat", lambda: self.now)
        self.task = asyncio.create_task(self.switch._run())

    async def beat(self):
        await self.switch._hear(None)


async def test_a_silent_upstream_halts_and_its_next_sign_of_life_lifts_that_halt_alone(tmp_path):
    async with desk(tmp_path) as d:
        d.halts.halt(OPERATOR, "news", CAUSE)
        upstream = Silence(d, 0.05)
        await asyncio.sleep(0)
        upstream.now = 0.06
        await until(lambda: d.ledger.account.halt(HEARTBEAT) is not None)
        assert d.ledger.account.halt(HEARTBEAT).reason == "no heartbeat on orders.heartbeat for 0.05 s"
        await upstream.beat()
        await until(lambda: d.ledger.account.halt(HEARTBEAT) is None)
        assert d.ledger.account.halt(OPERATOR) is not None
        upstream.task.cancel()


def test_the_day_of_the_server_ends_by_its_own_clock():
    noon = datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert next_midnight(noon, 7200) == datetime(2026, 3, 2, 22, tzinfo=UTC)
    assert next_midnight(datetime(2026, 3, 2, 22, tzinfo=UTC), 7200) == datetime(2026, 3, 3, 22, tzinfo=UTC)
    assert next_midnight(noon, -18_000) == datetime(2026, 3, 3, 5, tzinfo=UTC)
