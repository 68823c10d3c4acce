"""Runs a campaign: load, kills at seeded instants, a calm end, and the judgement."""

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gateway.chaos.clients import Clients, Requests
from gateway.chaos.judge import judge, news_have_ended
from gateway.chaos.watch import Watch
from gateway.chaos.world import World
from gateway.simulated.window import ask
from ledger.order import WORKING, Status

# What the broker does by itself meanwhile; rates are of calls.
FAULTS: Final = (
    "lost@0.02; lost=-10000@0.005; error=-10002@0.01; error=-10001@0.005; error=-10004@0.01; requote@0.04; "
    "price_off@0.02; market_closed@0.01; timeout@0.005; late=20ms@0.04; late_reject@0.005; partial=0.5@0.02; "
    "hang@0.002; hang_after@0.002; kill@0.002; kill_after@0.003; crash@0.002; crash_after@0.003; reticket@0.01; "
    "comment=changed@0.02; slow=15ms@0.15; delay=15ms@0.15; history_deals_get:lag=50ms@0.1; "
    "positions_get:lag=50ms@0.05; orders_get:error=-10002@0.002"
)
WITHIN_S: Final = 1.0  # for the event that a kill waits for
CALM_S: Final = 120.0  # for everything to end after the last kill
NEWS_PAUSE_S: Final = 5.0  # longer than the outbox waits between two attempts
NEWEST: Final = 500  # orders that later requests may act on
BURST: Final = (4, 14)
ANSWERS: Final = ("order.broker_answered", "order.outcome_resolved")
OUTCOMES: Final = ("order.filled", "order.partially_filled", "order.placed", "order.completed", "order.cancelled")


class Instant(NamedTuple):
    """When a kill falls: upon an event that is durable (none: at any time), and up to `spread_s` after it."""

    name: str
    topics: tuple[str, ...]
    spread_s: float


INSTANTS: Final = (
    Instant("before the intent", ("order.requested",), 0.0),
    Instant("between intent and send", ("order.send_started",), 0.0),
    Instant("during the send", ("order.send_started",), 0.018),
    Instant("between answer and news", ANSWERS, 0.0),
    Instant("between outcome and news", OUTCOMES, 0.001),
    Instant("at any time", (), 0.05),
)
TARGETS: Final = {"gateway": 60, "terminal": 20, "nats": 14, "gateway and nats": 3, "gateway at its start": 3}


class Report(msgspec.Struct, kw_only=True):
    """What a campaign did and found; `problems` is empty when every promise held."""

    seed: int
    kills: int = 0
    ok: bool = False
    seconds: float = 0.0
    problems: list[str] = []
    killed: dict[str, int] = {}
    requests: dict[str, int] = {}
    messages: int = 0
    orders: dict[str, int] = {}
    in_doubt: int = 0
    unknown: int = 0
    ended_by_itself: list[str] = []
    median_start_s: float = 0.0
    found: dict[str, Any] = {}


async def run(
    folder: Path, *, seed: int, kills: int, step: Callable[[], None] = lambda: None, faults: str = FAULTS
) -> Report:
    """Everything in `folder`, which is new. `step` is called after each kill. Raises StartFailed."""
    began = time.monotonic()
    world = World(folder, SIMULATED_FAULTS=f"seed={seed}; {faults}", SIMULATED_SEED=str(seed))
    try:
        await world.start()
        campaign = _Campaign(world, seed)
        await campaign.clients.connect(world.nats_url)
        try:
            for _ in range(kills):
                await campaign.kill()
                step()
            report = await campaign.end()
        finally:
            campaign.watch.close()
            await campaign.clients.close()
    finally:
        await world.stop()
    report.seconds = round(time.monotonic() - began, 1)
    return report


class _Campaign:
    def __init__(self, world: World, seed: int) -> None:
        self._world, self._seed = world, seed
        self._chance = random.Random(seed)
        self._requests = Requests(random.Random(f"{seed}/requests"), f"s{seed}")
        self.clients = Clients(random.Random(f"{seed}/clients"))
        self.watch = Watch(world.folder / "ledger.db")
        self._killed: Counter[str] = Counter()
        self._in_doubt = 0

    def _publish(self, number: int) -> None:
        self.watch.look()
        for _ in range(number):
            newest = list(islice(reversed(self.watch.orders.values()), NEWEST))
            self.clients.publish(self._requests.next(newest))

    async def kill(self) -> None:
        """A burst of requests, and a kill into the middle of what they cause."""
        chance, world = self._chance, self._world
        target = chance.choices(list(TARGETS), list(TARGETS.values()))[0]
        instant = chance.choice(INSTANTS)
        spread_s = chance.uniform(0, instant.spread_s)
        self._publish(chance.randint(*BURST))
        if instant.topics:
            await self.watch.until(instant.topics, WITHIN_S)
        await asyncio.sleep(spread_s)
        self._killed[f"{target}, {instant.name}"] += 1
        match target:
            case "terminal":
                world.kill_terminal(chance.random())
            case "nats":
                await world.kill_nats()
            case _:
                await self._kill_gateway(target)
        if world.note_if_ended():
            await world.start_gateway()

    async def _kill_gateway(self, target: str) -> None:
        chance, world = self._chance, self._world
        if target == "gateway and nats":
            await asyncio.gather(world.kill_gateway(), world.kill_nats())
        else:
            await world.kill_gateway()
        self._in_doubt += len(self.watch.in_doubt())
        if target == "gateway at its start":
            await world.launch_gateway()
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            await world.kill_gateway()
        await world.start_gateway()

    async def end(self) -> Report:
        """No more faults and kills; everything that was asked for comes to its end, and is judged."""
        world, watch = self._world, self.watch
        await asyncio.to_thread(ask, world.broker, "fault", clear=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALM_S):
                await self.clients.settled()
                await self._calm()
                await news_have_ended(world, NEWS_PAUSE_S)
        world.note_if_ended()
        await world.stop_gateway()
        problems, found = await judge(world, watch, self.clients.accepted)
        problems += [f"the gateway ended by itself {one}" for one in world.unasked if one.startswith("while")]
        orders = Counter(str(one.status) for one in watch.orders.values())
        return Report(
            seed=self._seed,
            kills=self._killed.total(),
            ok=not problems,
            problems=problems,
            killed=dict(sorted(self._killed.items())),
            requests=dict(sorted(self._requests.made.items())),
            messages=self.clients.messages,
            orders=dict(sorted(orders.items())),
            in_doubt=self._in_doubt,
            unknown=watch.topics["order.outcome_unknown"],
            ended_by_itself=world.unasked,
            median_start_s=round(statistics.median(world.start_times_s), 2),
            found=found,
        )

    async def _calm(self) -> None:
        """Returns when no order waits for anything but the market, and the ledger knows which do."""
        while True:
            self.watch.look()
            orders = self.watch.orders
            left = [one for one in orders.values() if one.is_open and one.status not in WORKING]
            alerted = all(one.status is Status.UNKNOWN and one.order_id in self.watch.alerted for one in left)
            if alerted and self.clients.accepted <= orders.keys():
                working = {row["ticket"] for row in await asyncio.to_thread(ask, self._world.broker, "orders")}
                if {one.order_ticket for one in orders.values() if one.status in WORKING} == working:
                    return
            await asyncio.sleep(0.05)
