"""Which commits the outbox is told of at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.linger import LINGER_S, Lingering
from ledger.events import Recorded
from ledger.store import open_store
from ledger.tail import Tail

STREAM = "order/o-1"


def recorded(seq: int, topic: str) -> Recorded:
    return Recorded(seq=seq, stream=STREAM, version=seq, topic=topic, state=b"{}")


@contextlib.asynccontextmanager
async def tail_of(folder: Path) -> AsyncIterator[Tail]:
    store = open_store(f"sqlite:///{folder / 'ledger.db'}")
    try:
        yield Tail(store, 0)
    finally:
        store.close()


async def heard_after(tail: Tail) -> "asyncio.Task[None]":
    waiting = asyncio.create_task(Lingering(tail).wait(0, 5.0))
    await asyncio.sleep(0)
    return waiting


async def turns(waiting: "asyncio.Task[None]", many: int = 20) -> bool:
    """Whether it ends by itself, without any time passing."""
    for _ in range(many):
        await asyncio.sleep(0)
    return waiting.done()


@pytest.mark.parametrize("topic", ["order.filled", "order.refused", "order.outcome_unknown", "account.halted"])
async def test_an_outcome_is_told_at_once(tmp_path: Path, topic: str) -> None:
    async with tail_of(tmp_path) as tail:
        waiting = await heard_after(tail)
        tail.extend([recorded(1, topic), recorded(2, "writer.batch_sealed")])
        assert await turns(waiting)


async def test_a_beginning_waits_for_the_outcome_that_follows(tmp_path: Path) -> None:
    async with tail_of(tmp_path) as tail:
        waiting = await heard_after(tail)
        tail.extend([recorded(1, "order.requested"), recorded(2, "order.send_started")])
        assert not await turns(waiting)
        tail.extend([recorded(3, "order.filled")])
        assert await turns(waiting)


async def test_a_beginning_that_nothing_follows_is_told_a_moment_later(tmp_path: Path) -> None:
    async with tail_of(tmp_path) as tail:
        waiting = await heard_after(tail)
        began = asyncio.get_running_loop().time()
        tail.extend([recorded(1, "order.requested")])
        await asyncio.wait_for(waiting, 5)
        assert asyncio.get_running_loop().time() - began >= LINGER_S
