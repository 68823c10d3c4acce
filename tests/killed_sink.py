"""A process that fills a sink and kills itself, kill -9, at one step of its writing.

`python -m tests.killed_sink audit|clickhouse|kafka LEDGER PLACE STEP`: the ledger is a SQLite file; PLACE is a folder,
or brokers and two topics with commas between. Steps are counted from 1 over the whole run; exit code 0 means that there
were fewer. Without a step (0) it runs to the end. What it was about to do, or had done, is printed.
"""

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.producer.sender import EndTxnHandler, SendProduceReqHandler

from ledger.events import LedgerCreated, event_of
from ledger.store import EventStore, open_file
from projections import audit_files
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.follower import Pace, Sink
from projections.kafka import KafkaSink
from projections.measure import mirror

BATCH = Pace(max_events=40)
_steps = itertools.count(1)
_deadly = 0


def step(name: str) -> None:
    if next(_steps) == _deadly:
        print(name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, shown: str = "", *, behind: bool = True) -> None:
    """Makes a step before each call, and one behind it."""
    real, shown = getattr(owner, name), shown or name

    def called(*arguments: Any, **named: Any) -> Any:
        step(f"before {shown}")
        found = real(*arguments, **named)
        step(f"behind {shown}")
        return found

    async def awaited(*arguments: Any, **named: Any) -> Any:
        step(f"before {shown}")
        found = await real(*arguments, **named)
        if behind:
            step(f"behind {shown}")
        return found

    setattr(owner, name, awaited if asyncio.iscoroutinefunction(real) else called)


def tearing(real: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
    """Writes the half first: a crash in between leaves a torn line, or lines without their seal."""
    halves = itertools.cycle((2, 1))

    def write(descriptor: int, data: Any) -> int:
        step("before write")
        written = real(descriptor, data[: -(-len(data) // next(halves))])
        step("behind write")
        return written

    return write


def audit_sink(place: str) -> Sink:
    os.write = tearing(os.write)
    around(os, "open")
    around(audit_files, "_sync", "sync")
    return audit_files.AuditFilesSink(Path(place), file_bytes=20_000)


def kafka_sink(place: str, ledger_id: str) -> Sink:
    brokers, topic, seals_topic = place.split(",")
    around(AIOKafkaProducer, "send_batch", behind=False)
    for name in ("begin_transaction", "flush", "commit_transaction"):
        around(AIOKafkaProducer, name)
    # What the broker did is done, the answer is not yet known.
    around(SendProduceReqHandler, "handle_response", "answer to send")
    around(EndTxnHandler, "handle_response", "answer to commit")
    return KafkaSink(brokers, ledger_id, topic=topic, seals_topic=seals_topic)


class Stepping:
    """A client of ClickHouse whose inserts are steps."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def raw_insert(self, table: str, *arguments: Any, **named: Any) -> Any:
        shown = table.rpartition(".")[2]
        step(f"before {shown}")
        self._client.raw_insert(table, *arguments, **named)
        step(f"behind {shown}")


def clickhouse_sink(place: str, ledger_id: str, store: EventStore) -> Sink:
    target = Target(path=place)
    return ClickHouseSink(target, ledger_id, past=store.streams, client=lambda: Stepping(connect(target)))  # type: ignore[arg-type,return-value]  # all of a client is there


def sink_of(kind: str, place: str, ledger_id: str, store: EventStore) -> Sink:
    if kind == "audit":
        return audit_sink(place)
    return kafka_sink(place, ledger_id) if kind == "kafka" else clickhouse_sink(place, ledger_id, store)


def main(kind: str, ledger: str, place: str, deadly: str) -> None:
    global _deadly
    _deadly = int(deadly)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    store = open_file(Path(ledger))
    first = store.at(1)
    assert first is not None
    created = event_of(first)
    assert isinstance(created, LedgerCreated)
    asyncio.run(mirror(store, sink_of(kind, place, created.ledger_id, store), BATCH))


if __name__ == "__main__":
    main(*sys.argv[1:])
