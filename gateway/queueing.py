"""The queue to the terminal: what reduces risk goes first, and no more requests a second than the broker takes."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 1.0


class TwoLanes:
    """First in, first out, in two lanes: urgent entries are taken before the others."""

    def __init__(self) -> None:
        self._urgent: deque[str] = deque()
        self._others: deque[str] = deque()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    def put(self, entry: str, *, urgent: bool) -> None:
        (self._urgent if urgent else self._others).append(entry)
        self._wake.set()

    async def ready(self) -> None:
        """Waits until there is something to take."""
        while not self._urgent and not self._others:
            self._wake.clear()
            await self._wake.wait()

    def take(self, most: int) -> list[str]:
        """What waits now, at most `most`."""
        found = [self._urgent.popleft() for _ in range(min(most, len(self._urgent)))]
        found += [self._others.popleft() for _ in range(min(most - len(found), len(self._others)))]
        return found


class Pace:
    """At most `per_s` requests in any second, counted exactly (0: no limit)."""

    def __init__(self, per_s: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._monotonic = per_s, monotonic
        self._until: deque[float] = deque()  # when each of those that went makes room again

    def room(self, wanted: int) -> int:
        """How many of `wanted` may go now."""
        if not self._per_s:
            return wanted
        now = self._monotonic()
        while self._until and self._until[0] <= now:
            self._until.popleft()
        return min(wanted, self._per_s - len(self._until))

    def count(self, number: int) -> None:
        """So many go now."""
        if self._per_s:
            self._until.extend([self._monotonic() + WINDOW_S] * number)

    def give_back(self, number: int) -> None:
        """So many of those that were counted last did not go after all."""
        if self._per_s:
            for _ in range(number):
                self._until.pop()

    def wait_s(self) -> float:
        """Until one may go."""
        return max(self._until[0] - self._monotonic(), 0.0) if self._until else 0.0


class Timers:
    """One timer for each entry; `due` is called with the entry, in the event loop."""

    def __init__(self, due: Callable[[str], None]) -> None:
        self._due = due
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def later(self, entry: str, delay_s: float) -> None:
        """In the place of an earlier one of the entry."""
        self.cancel(entry)
        self._timers[entry] = asyncio.get_running_loop().call_later(delay_s, self._fire, entry)

    def cancel(self, entry: str) -> None:
        if self._timers and (timer := self._timers.pop(entry, None)) is not None:
            timer.cancel()

    def waiting(self) -> list[str]:
        """In the order in which they began to wait."""
        return list(self._timers)

    def stop(self) -> None:
        for entry in self.waiting():
            self.cancel(entry)

    def _fire(self, entry: str) -> None:
        self._timers.pop(entry, None)
        self._due(entry)
