"""kill -9 of Apache Kafka in the middle of transactions, again and again, under load: nothing lost, nothing twice."""

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from random import Random

import pytest

from ledger.backup import restore_log
from ledger.seal import verify
from ledger.store import open_store
from projections.agree_kafka import agree_kafka
from projections.follower import Follower, Pace, Progress
from projections.kafka import KafkaSink
from projections.kafka_log import KafkaLog
from tests.engine import fresh_database
from tests.history import ListSource
from tests.kafka_server import KafkaServer, kafka_server
from tests.kafka_topic import read_topic
from tests.signing import sign, signed_history

KILLS = 20
SEED = int(os.environ.get("SEED", "20"))
LOAD = Pace(max_events=400, retry_first_s=0.05, retry_most_s=0.2)


class Load:
    """A ledger that grows all the time, and the mirror of it. The next batch waits before one is committed."""

    def __init__(self, server: KafkaServer, topic: str, seals_topic: str) -> None:
        self.history = signed_history(1)
        self.grows = True
        self.moved = asyncio.Event()
        self.position = 0
        self.source = ListSource(self.history.records)
        self.sink = KafkaSink(server.brokers, self.history.ledger_id, topic=topic, seals_topic=seals_topic, call_s=5.0)
        self.follower = Follower(self.source, self.sink, LOAD, on_change=self._changed, seed=SEED)

    def _changed(self, now: Progress) -> None:
        if now.position > self.position:
            self.position = now.position
            self.moved.set()
        while self.grows and len(self.history.records) < now.position + 2 * LOAD.max_events:
            sign(self.history.orders(100))

    async def batch_committed(self) -> None:
        self.moved.clear()
        async with asyncio.timeout(60):
            await self.moved.wait()


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


async def test_twenty_kills_in_the_middle_of_transactions_lose_and_double_nothing(tmp_path: Path) -> None:
    random, server, name = Random(SEED), kafka_server(), fresh_database()
    topic, seals_topic = f"kill-{name}", f"kill-seals-{name}"
    load = Load(server, topic, seals_topic)
    run = asyncio.create_task(load.follower.run())
    for number in range(KILLS):
        await load.batch_committed()
        await asyncio.sleep(random.random() * 0.1)  # some moment of a transaction, by the seed
        server.kill()
        await asyncio.to_thread(server.start)
        print(f"SEED={SEED} kill {number + 1} at event {load.position}")
    await load.batch_committed()
    load.grows = False
    load.follower.stop()
    await run
    await load.sink.close()
    records = load.history.records
    assert load.follower.progress.error == ""
    assert sorted(await read_topic(server.brokers, topic), key=lambda one: one.seq) == records

    with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'ledger.db'}")) as store:
        store.fill(records)
        log = KafkaLog(server.brokers, topic=topic, seals_topic=seals_topic)
        for found in await asyncio.to_thread(agree_kafka, store, log, load.history.ledger_id):
            assert (found.ok, found.difference) == (True, "")
        with contextlib.closing(open_store(f"sqlite:///{tmp_path / 'restored.db'}")) as restored:
            await asyncio.to_thread(restore_log, lambda: log.read(load.history.ledger_id), restored, "the log")
            assert list(restored.scan()) == records == list(store.scan())
            assert verify(restored.scan()).ok
