"""Tasks whose unexpected end must stop the service: an order must not wait on a dead loop. And the end of any task."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def cancelled(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancels the tasks there are and returns when they have ended, whatever they end with."""
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


class Guard:
    """`failure` ends with the first error of a task."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def stop(self) -> None:
        await cancelled(*self._tasks)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            self.failure.set_result(error)
