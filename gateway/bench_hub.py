"""`order-ledger bench hub`: what orders feel of a Central Hub that is gone, slow or lying.

The whole service takes orders at a steady rate, over NATS, from the publication to the fill, while its hub, asked far
more often than in earnest, is well or is not. The moods take turns, so that what else happens on the machine meets all;
the healthy hub has two of them, and how far these two are apart is what chance alone makes.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import nats
import orjson
from aiohttp import web
from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway.bench import Machine, Meter, Spread, machine, spread, work_folder
from gateway.chaos.world import World
from gateway.config import SERVICE

MOODS: Final = ("healthy", "killed", "slow", "lying", "healthy again")
POLL_S: Final = 0.2
SETTLE_S: Final = 0.5  # after a change of the hub, until the service has met it
OUTCOME_S: Final = 15.0
WARM_UP: Final = 50
GOOD: Final = orjson.dumps({"config": {"operational": {"limits": {"max_volume": 1}}}, "version": "good"})
LIES: Final = (
    b"\xff{",
    b"[]",
    b'{"config": "{oops"}',
    b'{"config": {"operational": {"limits": {"max_volume": "many"}}}}',
    b'{"config": {"operational": {"limits": {"maximum": 1}}}}',
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds`: of orders under each mood, in each round."""

    orders_per_s: float = 100.0
    seconds: float = 2.0
    rounds: int = 10  # a multiple of the moods: each is at each place in turn
    folder: Path | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """`lost`: orders without an outcome. `p99_ratio`: p99 by that with a healthy hub."""

    hub: str
    orders: int
    lost: int
    wait: Spread
    p99_ratio: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    machine: Machine
    orders_per_s: float
    figures: tuple[Figure, ...]


def bench_hub(plan: Plan, meter: Meter) -> Result:
    """Raises BenchRefused, StartFailed."""
    with work_folder(plan.folder) as folder:
        found = machine()
        waits = asyncio.run(_measure(plan, folder, meter))
    spreads = {mood: spread([one for one in waits[mood] if one is not None]) for mood in MOODS}
    figures = tuple(
        Figure(
            hub=mood,
            orders=len(waits[mood]),
            lost=waits[mood].count(None),
            wait=spreads[mood],
            p99_ratio=round(spreads[mood].p99_ms / spreads["healthy"].p99_ms, 3),
        )
        for mood in MOODS
    )
    return Result(machine=found, orders_per_s=plan.orders_per_s, figures=figures)


async def _measure(plan: Plan, folder: Path, meter: Meter) -> dict[str, list[float | None]]:
    """By mood, how long each order took in seconds, None for one that was lost."""
    waits: dict[str, list[float | None]] = {mood: [] for mood in MOODS}
    async with _Hub().running() as hub:
        settings = {"CENTRAL_HUB_URL": hub.url, "CENTRAL_HUB_POLL_S": str(POLL_S), "CENTRAL_HUB_TIMEOUT_S": "1"}
        world = World(folder, **settings, LOG_LEVEL="error", POLL_INTERVAL_S="1")
        try:
            await world.start()
            connection = await nats.connect(world.nats_url)
            orders = _Orders(connection)
            await orders.listen()
            await orders.drive(plan.orders_per_s, WARM_UP)
            for number in range(plan.rounds):
                for mood in (*MOODS[number % len(MOODS) :], *MOODS[: number % len(MOODS)]):
                    count = round(plan.orders_per_s * plan.seconds)
                    meter.begin(f"the hub is {mood}", 1)
                    await hub.be(mood)
                    await asyncio.sleep(SETTLE_S)
                    waits[mood] += await orders.drive(plan.orders_per_s, count)
                    meter.step()
            await connection.close()
        finally:
            await world.stop()
    return waits


class _Orders:
    """Opens a position with each order and closes it when it is open, so that the account stays small."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._number = itertools.count()
        self._waiting: dict[str, tuple[float, asyncio.Future[float]]] = {}
        self._closing: set[asyncio.Task[Any]] = set()

    async def listen(self) -> None:
        for kind in ("fill", "error"):
            await self._connection.subscribe(f"broker.{kind}.>", cb=self._heard)
        await self._connection.flush()

    async def _heard(self, message: Msg) -> None:
        now, news = time.perf_counter(), orjson.loads(message.data)
        began, done = self._waiting.pop(news.get("order_id"), (0.0, None))
        if done is not None and not done.done():
            done.set_result(now - began)
            close = {"order_id": f"{news['order_id']}-c", "action": "close", "target_order_id": news["order_id"]}
            task = asyncio.create_task(self._publish(close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _publish(self, order: dict[str, Any]) -> None:
        await self._connection.jetstream().publish("orders.submitted.EURUSD", orjson.dumps(order))

    async def drive(self, orders_per_s: float, count: int) -> list[float | None]:
        """How long each took, in seconds; None for one without an outcome."""
        began, sent = time.perf_counter(), []
        for number in range(count):
            await asyncio.sleep(max(began + number / orders_per_s - time.perf_counter(), 0))
            order_id = f"bench-{next(self._number)}"
            done = asyncio.get_running_loop().create_future()
            self._waiting[order_id] = (time.perf_counter(), done)
            order = {"order_id": order_id, "symbol": "EURUSD", "order_type": "buy", "volume": 0.01}
            sent.append((asyncio.create_task(self._publish(order)), done))
        await asyncio.wait([done for _, done in sent], timeout=OUTCOME_S)
        await asyncio.gather(*(task for task, _ in sent))
        return [done.result() if done.done() else None for _, done in sent]


class _Hub:
    """Answers as its mood is; killed, nothing listens on its port."""

    def __init__(self) -> None:
        self._mood, self._port = "healthy", 0
        self._runner: web.AppRunner | None = None
        self._lies = itertools.cycle(LIES)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["_Hub"]:
        await self._listen()
        try:
            yield self
        finally:
            await self._end()

    async def be(self, mood: str) -> None:
        self._mood = mood
        await self._end()
        if mood != "killed":
            await self._listen()

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_get(f"/api/v1/config/{SERVICE}", self._answer)
        runner = self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        self._port = runner.addresses[0][1]

    async def _end(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        if self._mood == "slow":
            await asyncio.sleep(OUTCOME_S)  # longer than anybody waits
        return web.Response(body=next(self._lies) if self._mood == "lying" else GOOD)
