"""kill -9 of the service at seeded instants: nothing is lost, nothing is sent twice, the ledger stays sound."""

import asyncio
import os
import random

import nats
import orjson
import pytest

from gateway.simulated.terminal import load
from ledger.store import open_store
from ledger.values import order_hash
from tests.service import Service, market_order

ORDERS = 20
KILLS = 10
SEED = int(os.environ.get("KILL_SEED", "20261122"))
ENDED = {"order.filled", "order.rejected", "order.failed", "order.stale", "order.refused"}


@pytest.fixture
def service(tmp_path):
    # Short deadlines, so that an absence is proven within seconds.
    running = Service(tmp_path / "d", CALL_DEADLINE_S="2", SERVER_TIMEOUT_S="0.5", NOT_AFTER_S="1", MAX_ORDER_AGE_S="0")
    try:
        yield running.start()
    finally:
        running.end()


async def publish(service: Service, order: dict) -> None:
    """Publishes until the bus has it, as a client does; a repetition is harmless."""
    while True:
        try:
            connection = await nats.connect(service.info["nats_url"], allow_reconnect=False)
            try:
                await connection.jetstream().publish("orders.submitted.EURUSD", orjson.dumps(order), timeout=2)
                return
            finally:
                await connection.close()
        except (OSError, TimeoutError, nats.errors.Error):
            await asyncio.sleep(0.05)


def ends_of(service: Service) -> dict[str, list[str]]:
    """Topics by order, as the ledger holds them."""
    store = open_store(f"sqlite:///{service.folder / 'ledger.db'}", readonly=True)
    try:
        found: dict[str, list[str]] = {}
        for one in store.scan():
            if one.stream.startswith("order/"):
                found.setdefault(one.stream.removeprefix("order/"), []).append(one.topic)
        return found
    finally:
        store.close()


async def test_ten_kills_during_twenty_orders_lose_and_double_nothing(service):
    print(f"seed {SEED}: KILL_SEED={SEED} repeats this run")
    chance = random.Random(SEED)
    # Each kill falls a few milliseconds behind an order that was just sent, into one of its stages.
    killed_behind = dict.fromkeys(sorted(chance.sample(range(ORDERS), KILLS)))
    published = [f"kill-{number:02}" for number in range(ORDERS)]
    for number, order_id in enumerate(published):
        await publish(service, market_order(order_id))
        if number in killed_behind:
            await asyncio.sleep(chance.uniform(0, 0.012))
            service.kill()
            service.start()

    async with asyncio.timeout(60):
        while True:
            topics = ends_of(service)
            if all(ENDED & set(topics.get(order_id, ())) for order_id in published):
                break
            await asyncio.sleep(0.1)

    deals = deals_by_magic(service)
    for order_id in published:
        mine = [magic for magic in deals if magic >> 8 == order_hash(order_id)]
        assert len(mine) <= 1, f"{order_id} was sent more than once: {mine}"
        assert sum(deals[magic] for magic in mine) <= 1
        assert ("order.filled" in topics[order_id]) == bool(mine), f"{order_id}: {topics[order_id]}"
    assert orjson.loads(service.cli("verify", "--json").stdout)["ok"]


def deals_by_magic(service: Service) -> dict[int, int]:
    """What the broker itself holds, asked past the service."""
    mt5 = load(service.folder / "terminal" / "broker")
    assert mt5.initialize(), mt5.last_error()
    try:
        found: dict[int, int] = {}
        for deal in mt5.history_deals_get(0, 2**31 - 1):
            if deal.magic:
                found[deal.magic] = found.get(deal.magic, 0) + 1
        return found
    finally:
        mt5.shutdown()
