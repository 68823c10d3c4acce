"""How fast a sink takes a whole ledger: what `order-ledger bench projections` shows of Kafka and the audit files."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ledger.errors import LedgerUnavailable
from ledger.store import EventStore
from projections.follower import Follower, Pace, Progress, Sink
from projections.source import StoreSource


class Mirrored(msgspec.Struct, frozen=True, kw_only=True):
    """One sink filled from nothing by the follower that the service uses. `cpu_us_per_event` is of this process
    alone, `peak_mb` the most memory this process ever had: measure each sink in a process of its own."""

    sink: str
    events: int
    batches: int
    seconds: float
    events_per_s: float
    cpu_us_per_event: float
    peak_mb: float


async def mirror(store: EventStore, sink: Sink, pace: Pace, watch: Callable[[int], None] = lambda _: None) -> Mirrored:
    """Takes an empty sink to the end of the ledger, which nobody writes meanwhile; closes both. `watch` is told how
    many events each batch had.

    Raises what `Follower.start` raises, LedgerUnavailable when the sink stopped on its way.
    """
    source = StoreSource(store)
    head = await source.head()
    ended = asyncio.Event()
    done = 0

    def changed(now: Progress) -> None:
        nonlocal done
        watch(now.events - done)
        done = now.events
        if now.position >= head or now.state == "failed":
            ended.set()

    follower = Follower(source, sink, pace, on_change=changed)
    try:
        await follower.start(10.0)
        began, cpu = time.perf_counter(), time.process_time()
        run = asyncio.create_task(follower.run())
        await ended.wait()
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        follower.stop()
        await run
    finally:
        await sink.close()
        source.close()
    found = follower.progress
    if found.position < head:
        raise LedgerUnavailable(f"{found.sink} stopped at event {found.position}: {found.error}")
    return Mirrored(
        sink=found.sink,
        events=found.events,
        batches=found.batches,
        seconds=round(took_s, 3),
        events_per_s=round(found.events / took_s),
        cpu_us_per_event=round(cpu_s / max(found.events, 1) * 1e6, 1),
        peak_mb=round(peak_mb(), 1),
    )


def peak_mb() -> float:
    """0 where the system does not tell (Windows)."""
    with contextlib.suppress(OSError, StopIteration):
        # What getrusage says counts from the process that started this one, before it became this program.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(one for one in lines if one.startswith("VmHWM:")).split()[1]) / 1024
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return 0.0
