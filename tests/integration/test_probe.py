"""When absence is believed: not by a look that was begun too early, and not by one that did not go back far enough."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from gateway.broker import Evidence
from gateway.probe import Prober
from ledger.order import Status
from ledger.plan import Policy
from ledger.values import magic_of
from tests.broker_fake import FakeBroker
from tests.decider import NOW, check, deal, start, unknown
from tests.desk import Desk, desk


class Slow(FakeBroker):
    """Answers its second look only after `answers` is set, with what it saw when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Evidence(complete=True)
        self.since_s: list[float] = []
        self.answers = asyncio.Event()

    async def find(self, magics: Sequence[int], comments: Sequence[str], since_s: float) -> Evidence:
        self.since_s.append(since_s)
        seen = self.found
        if len(self.since_s) == 2:
            await self.answers.wait()
        return seen


def prober(d: Desk, broker: FakeBroker, settle_s: float, resolved: asyncio.Event) -> Prober:
    def done(_: str) -> None:
        resolved.set()

    return Prober(
        d.ledger, broker, d.clock, policy_of=lambda _: Policy(), settle_s=settle_s, offset_s=lambda: 0, resolved=done
    )


async def looked_for(d: Desk, probing: Prober, resolved: asyncio.Event) -> Status:
    order = d.ledger.order("o-1")
    assert order is not None
    probing.add(order)
    task = asyncio.create_task(probing.run())
    async with asyncio.timeout(10):
        await resolved.wait()
    task.cancel()
    order = d.ledger.order("o-1")
    assert order is not None
    return order.status


async def test_a_look_that_was_begun_before_the_delay_was_over_proves_no_absence_however_late_its_answer(tmp_path):
    """The order arrives while the answer is on its way."""
    async with desk(tmp_path) as d:
        await d.order("o-1", check(), start(1), unknown())
        broker, resolved, settle_s = Slow(), asyncio.Event(), 0.5
        probing = prober(d, broker, settle_s, resolved)

        async def arrives() -> None:
            while len(broker.since_s) < 2:  # noqa: ASYNC110  # what is waited for has no event of its own
                await asyncio.sleep(0.005)
            broker.found = Evidence(complete=True, deals=(deal(magic=magic_of("o-1", 1)),))
            await asyncio.sleep(settle_s)
            broker.answers.set()

        arrival = asyncio.create_task(arrives())
        assert await looked_for(d, probing, resolved) is Status.FILLED
        await arrival


async def test_an_order_taken_under_a_clock_that_was_hours_ahead_is_looked_for_when_it_was_really_sent(tmp_path):
    async with desk(tmp_path) as d:
        await d.order("o-1", check(), start(1), unknown())  # it was requested at NOW, it says
        d.now = NOW - timedelta(hours=5)  # the clock was 7 hours ahead, and was set right; the gateway was down for 2
        broker, resolved = Slow(), asyncio.Event()
        broker.answers.set()
        assert await looked_for(d, prober(d, broker, 0.0, resolved), resolved) is Status.FAILED
        assert min(broker.since_s) > 2 * 3600
