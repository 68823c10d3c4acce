"""Follows the ledger inside the gateway, for what reacts to events as they become durable: alerts and halts."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from ledger.errors import LedgerError
from ledger.events import Envelope, Recorded, decode
from ledger.tail import Tail

log = structlog.get_logger()

AT_ONCE: Final = 512
IDLE_S: Final = 5.0
CALM_S: Final = 0.02  # no order waits for what happens here: several commits are looked at together

Handler = Callable[[Recorded, Envelope], None]


class Watch:
    """Hands every event that is committed from the start on to the handlers of its topic, in order. A handler
    returns at once; what it appends is handed on in turn. It is no projection: what was committed before is not
    looked at, so a handler also looks at the state when it is made."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._handlers: dict[str, list[Handler]] = {}
        self._task: asyncio.Task[None] | None = None

    def on(self, topic: str, handler: Handler) -> None:
        self._handlers.setdefault(topic, []).append(handler)

    async def start(self) -> "asyncio.Task[None]":
        after = await self._tail.head()
        self._task = asyncio.create_task(self._run(after), name="watch")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, after: int) -> None:
        while True:
            records = await self._tail.read(after, AT_ONCE)
            if not records:
                await self._tail.wait(after, IDLE_S)
                continue
            for recorded in records:
                handlers = self._handlers.get(recorded.topic)
                if handlers is None:
                    continue
                envelope = decode(recorded)
                for handler in handlers:
                    try:
                        handler(recorded, envelope)
                    except LedgerError as error:  # the writer has stopped, and the service with it
                        log.warning("not noted any more", topic=recorded.topic, error=str(error))
                        return
            after = records[-1].seq
            if len(records) < AT_ONCE:
                await asyncio.sleep(CALM_S)
