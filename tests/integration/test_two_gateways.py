"""Two gateways of one account and one ledger: one works, the other waits, or displaces it."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.chaos.watch import Watch
from gateway.chaos.world import children
from gateway.simulated.window import ask
from ledger.store import open_file
from tests.nats_server import nats_server
from tests.service import Listener, Service, market_order

QUICK = {"CLICKHOUSE_URL": "off", "KAFKA_BROKERS": "off", "CALL_DEADLINE_S": "1", "SERVER_TIMEOUT_S": "0.2"}


class Pair:
    """Machines: each its own data folder and terminal, one broker, one ledger, one message bus."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "one" / "terminal" / "broker").mkdir(parents=True)
        for other in ("two", "three"):
            (folder / other / "terminal").mkdir(parents=True)
            (folder / other / "terminal" / "broker").symlink_to(folder / "one" / "terminal" / "broker")
        shared = QUICK | {"NATS_URL": url, "LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}"}
        self.url, self.ledger, self.broker = url, folder / "ledger.db", folder / "one" / "terminal" / "broker"
        self.first = Service(folder / "one", **shared, NOT_AFTER_S="0.5")
        self.standby = Service(folder / "two", "--standby", **shared)
        self.another = Service(folder / "three", "--standby", **shared)
        self.rival = Service(folder / "two", "--take-over", **shared)

    def topics(self, order_id: str) -> list[str]:
        store = open_file(self.ledger)
        try:
            return [one.topic for one in store.stream(f"order/{order_id}")]
        finally:
            store.close()

    def deals(self) -> list[dict]:
        return [deal for deal in ask(self.broker, "deals") if deal["symbol"]]


def children_named(pid: int, name: bytes) -> list[int]:
    return [one for one in children(pid) if name in Path(f"/proc/{one}/cmdline").read_bytes()]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    (tmp_path / "nats").mkdir()
    with nats_server(tmp_path / "nats") as server:
        made = Pair(tmp_path, server.url)
        try:
            yield made
        finally:
            for one in (made.first, made.standby, made.another, made.rival):
                one.end()


async def test_a_second_gateway_waits_and_works_within_5_s_after_the_first_was_killed(pair: Pair) -> None:
    pair.first.start()
    pair.standby.launch()
    await asyncio.to_thread(pair.standby.read_until, b"STANDBY")
    async with Listener(pair.url) as upstream:
        await upstream.send(market_order("o-1"))
        await upstream.final("o-1")
        pair.first.kill()
        killed = time.monotonic()
        await upstream.send(market_order("o-2"))
        await upstream.final("o-2", timeout_s=5)
        assert time.monotonic() - killed < 5
    assert len(pair.deals()) == 2
    await asyncio.to_thread(pair.standby.read_until, b"READY")


async def test_of_two_that_wait_one_works_and_the_other_waits_on(pair: Pair) -> None:
    pair.first.start()
    both = (pair.standby, pair.another)
    for one in both:
        one.launch()
    for one in both:
        await asyncio.to_thread(one.read_until, b"STANDBY")
    async with Listener(pair.url) as upstream:
        pair.first.kill()
        await upstream.send(market_order("o-1"))
        await upstream.final("o-1")
        [works] = [one for one in both if (one.folder / "run.json").exists()]
        [waits] = [one for one in both if one is not works]
        works.kill()
        await upstream.send(market_order("o-2"))
        await upstream.final("o-2")
    assert waits.info["pid"] == waits.pid
    assert len(pair.deals()) == 2


async def test_a_gateway_stopped_between_intent_and_call_sends_nothing_after_another_took_over(pair: Pair) -> None:
    """The whole machine freezes, as a paused virtual machine does, and goes on when it has been displaced."""
    pair.first.start()
    terminals = children_named(pair.first.pid, b"terminal_child")
    async with Listener(pair.url) as upstream:
        await upstream.send(market_order("before"))
        await upstream.final("before")
        watch = Watch(pair.ledger)
        watch.look()
        # The trading terminal is the one that was started first; it takes the call out of its socket, and no further.
        os.kill(terminals[0], signal.SIGSTOP)
        await upstream.send(market_order("o-1"))
        assert await watch.until(("order.send_started",), within_s=10)
        os.kill(pair.first.pid, signal.SIGSTOP)
        try:
            await asyncio.to_thread(pair.rival.start)
            _, body = await upstream.final("o-1")
            assert (body["event"], body["status"]) == ("order.failed", "FAILED")
        finally:
            for pid in (*terminals, pair.first.pid):
                os.kill(pid, signal.SIGCONT)
        assert pair.first.process is not None
        assert await asyncio.to_thread(pair.first.process.wait, 10) != 0  # it was displaced, and says so
        assert len(pair.deals()) == 1
        await upstream.send(market_order("o-2"))
        await upstream.final("o-2")
    assert len(pair.deals()) == 2
    assert pair.topics("o-1").count("order.send_started") == 1
