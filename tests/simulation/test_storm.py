"""A storm of repetitions: what is sent many times, by many, while the gateway is killed, reaches the broker once."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nats
import nats.errors
import orjson
import pytest

from gateway.chaos.watch import Watch
from gateway.simulated.window import ask
from ledger.order import Status
from tests.nats_server import nats_server
from tests.service import Service, market_order

ORDERS, TIMES, PUBLISHERS, RESTARTS = 1_000, 20, 50, 5
SEED = 5


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "nats").mkdir()
    with nats_server(tmp_path / "nats") as server:
        running = Service(
            tmp_path / "d",
            NATS_URL=server.url,
            CLICKHOUSE_URL="off",
            KAFKA_BROKERS="off",
            CALL_DEADLINE_S="1",
            SERVER_TIMEOUT_S="0.2",
            NOT_AFTER_S="0.5",
            MAX_ORDER_AGE_S="0",
            RESEND_AFTER_PROVEN_ABSENCE="true",  # so that an order whose send a kill prevented has its deal, too
            LOG_LEVEL="warning",
        )
        try:
            yield running.start()
        finally:
            running.end()


async def publish_all(url: str) -> None:
    """Each order so many times in all, its copies spread over the publishers."""
    copies = [number for number in range(ORDERS) for _ in range(TIMES)]
    random.Random(SEED).shuffle(copies)

    async def publisher(mine: list[int]) -> None:
        connection = await nats.connect(url)
        try:
            js = connection.jetstream()
            for number in mine:
                await js.publish("orders.submitted.EURUSD", orjson.dumps(market_order(f"storm-{number}")), timeout=10)
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(PUBLISHERS):
            group.create_task(publisher(copies[number::PUBLISHERS]))


async def test_1000_orders_sent_20_times_by_50_publishers_during_5_restarts_are_1000_orders(service: Service) -> None:
    """Invariants I1 and I3."""
    watch = Watch(service.folder / "ledger.db")
    storm = asyncio.create_task(publish_all(service.environment["NATS_URL"]))
    try:
        for number in range(1, RESTARTS + 1):
            async with asyncio.timeout(60):
                while len(watch.orders) < number * ORDERS // (RESTARTS + 1):
                    await watch.until(("order.requested",), within_s=1)
            service.kill()
            await asyncio.to_thread(service.start)
        await storm
        async with asyncio.timeout(120):
            while sum(one.status is Status.FILLED for one in watch.orders.values()) < ORDERS:
                await watch.until(("order.filled",), within_s=1)
            received = lambda: sum(1 + one.duplicates for one in watch.orders.values())  # noqa: E731
            while received() < ORDERS * TIMES:
                await watch.until(("order.duplicate_received",), within_s=1)
    finally:
        storm.cancel()
        watch.close()
    orders = Counter(row["magic"] >> 8 for row in ask(service.folder / "terminal" / "broker", "orders", history=True))
    assert len(orders) == ORDERS
    assert set(orders.values()) == {1}
    assert len([deal for deal in ask(service.folder / "terminal" / "broker", "deals") if deal["symbol"]]) == ORDERS
    assert orjson.loads(service.cli("verify", "--json").stdout)["ok"]
