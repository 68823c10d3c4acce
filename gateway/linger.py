"""The ledger's tail for the outbox: what senders wait for goes out at once, what only says that a send begins may wait.

A commit of an intent is followed by the broker's answer within a millisecond or two. Told in between, the news would
take the time in which the answer is already there; told together, they cost one look at the ledger.
"""

import asyncio
from typing import Final

from ledger.events import BatchSealed, Recorded
from ledger.order_events import OrderChecked, OrderRequested, SendStarted
from ledger.tail import Tail

LINGER_S: Final = 0.002
_LOOK: Final = 512
_BEGINNINGS: Final = frozenset(one.topic() for one in (OrderRequested, OrderChecked, SendStarted, BatchSealed))


class Lingering:
    """An `EventSource`: the tail, whose `wait` ends up to `LINGER_S` later when all that is new is a beginning."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail

    async def head(self) -> int:
        return await self._tail.head()

    async def at(self, seq: int) -> Recorded | None:
        return await self._tail.at(seq)

    async def read(self, after: int, limit: int) -> list[Recorded]:
        return await self._tail.read(after, limit)

    async def wait(self, after: int, timeout_s: float) -> None:
        await self._tail.wait(after, timeout_s)
        clock = asyncio.get_running_loop().time
        until = clock() + LINGER_S
        while True:
            new = await self._tail.read(after, _LOOK)
            left_s = until - clock()
            if not new or left_s <= 0 or any(one.topic not in _BEGINNINGS for one in new):
                return
            after = new[-1].seq
            await self._tail.wait(after, left_s)
