"""Verifies the whole ledger beside the service, on demand or at intervals, and remembers how that ended."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal

import structlog

from gateway.guarded import cancelled
from gateway.reader import Verify
from gateway.reading import Reader, ReaderBusy, ReaderFailed

BETWEEN_S: Final = 10.0  # from the end of one to the next that is asked for
log = structlog.get_logger()


class TooSoon(Exception):
    """One is running, or has just ended."""


class Verification:
    """`reader` is asked for nothing else: a verification takes its time."""

    def __init__(self, reader: Reader, clock: Callable[[], datetime]) -> None:
        self._reader, self._clock = reader, clock
        self._task: asyncio.Task[None] | None = None
        self._ended_at = float("-inf")
        self.state: Literal["never", "running", "sound", "not_sound", "failed"] = "never"
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None
        self.problem = ""
        self.result: dict[str, Any] | None = None
        self.sound_to = 0
        self.sound_at_s = 0.0
        self.on_unsound: Callable[[int, str], None] = lambda _first_bad_seq, _problem: None

    def begin(self) -> None:
        """Raises TooSoon."""
        if self.state == "running":
            raise TooSoon("a verification is running: ask for its result")
        since_s = asyncio.get_running_loop().time() - self._ended_at
        if since_s < BETWEEN_S:
            raise TooSoon(f"the last verification ended {since_s:.0f} s ago: wait {BETWEEN_S - since_s:.0f} s")
        self.state, self.started_at, self.finished_at, self.problem = "running", self._clock(), None, ""
        self._task = asyncio.create_task(self._run(), name="verification")

    async def every(self, interval_s: float) -> None:
        """Verifies for ever, one interval after the other."""
        while True:
            await asyncio.sleep(interval_s)
            if self.state != "running":
                self._ended_at = float("-inf")
                self.begin()

    async def close(self) -> None:
        await cancelled(self._task)
        await self._reader.close()

    async def _run(self) -> None:
        try:
            reply = await self._reader.ask(Verify())
            if reply.status == 200:
                self._note(reply.body)
            else:
                self.state, self.problem = "failed", str(reply.body)
        except (ReaderBusy, ReaderFailed) as error:
            self.state, self.problem = "failed", str(error)
        finally:
            self.finished_at, self._ended_at = self._clock(), asyncio.get_running_loop().time()
            if self.state == "running":
                self.state, self.problem = "failed", "the service stopped"
            await self._reader.close()  # it is needed rarely: nothing waits for the next time
        if self.state == "failed":
            log.error("the ledger could not be verified", problem=self.problem)

    def _note(self, result: dict[str, Any]) -> None:
        self.result = result
        if result["ok"]:
            self.state, self.sound_to, self.sound_at_s = "sound", result["last_seq"], self._clock().timestamp()
            return
        self.state = "not_sound"
        bad, problem = result["first_bad_seq"], result["problem"]
        log.error("the ledger is not sound", first_bad_seq=bad, problem=problem)
        self.on_unsound(bad, problem)
