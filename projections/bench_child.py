"""One measurement of `order-ledger bench projections`, in a process of its own, so that its memory is its own.

`python -m projections.bench_child rebuild|rows|audit|kafka|live LEDGER_URL FOLDER [BROKERS]` prints one line of JSON.
`rows` is a rebuild whose blocks are dropped instead of inserted, in a process that never loads the engine: its peak
is our part of the memory of `rebuild`. The engine's own accounting would not tell the rest: it leaves out its program,
what its allocator keeps, and its threads. `live` follows as the service does, until its stdin ends; each byte there
says that there may be more.
"""

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from ledger.events import LedgerCreated, event_of
from ledger.store import EventStore, open_store
from projections.audit_files import AuditFilesSink
from projections.clickhouse import ClickHouseSink, Target
from projections.follower import Batch, Follower, Pace, Position, Sink
from projections.measure import Mirrored, mirror, peak_mb
from projections.rebuild import Inserts, Rebuild, take_stretch
from projections.settings import ProjectionSettings
from projections.source import StoreSource

DATABASE: Final = "bench"


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """How old events were when ClickHouse had them, ms. `cpu_us_per_event` is of the whole process with its engine."""

    events: int
    batches: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    cpu_us_per_event: float
    peak_mb: float


class _Timed(ClickHouseSink):
    """Notes how old each event is when its batch is there."""

    def __init__(self, target: Target, ledger_id: str, store: EventStore) -> None:
        super().__init__(target, ledger_id, database=DATABASE, past=store.streams)
        self.ages: list[float] = []

    async def write(self, batch: Batch) -> None:
        await super().write(batch)
        now = datetime.now(UTC)
        self.ages += [(now - one.recorded_at).total_seconds() * 1e3 for one in batch.envelopes]

    async def position(self) -> Position | None:
        self.ages.clear()
        return await super().position()


def _tell(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def rebuilt(store: EventStore, url: str, folder: Path, ledger_id: str) -> Mirrored:
    target = Target(path=str(folder / "clickhouse"))
    asyncio.run(_prepare(ClickHouseSink(target, ledger_id, database=DATABASE)))
    rebuild = Rebuild(store, target, ledger_id, database=DATABASE, url=url, hold=lambda work: work())
    began, cpu = time.perf_counter(), _cpu_s()
    found = rebuild.run()
    return _mirrored("clickhouse", found.seq, began, cpu, rebuild.beside_mb)


def _cpu_s() -> float:
    """Of this process and of those that it started and that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _mirrored(sink: str, events: int, began: float, cpu: float, beside_mb: float) -> Mirrored:
    took_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu
    return Mirrored(
        sink=sink,
        events=events,
        batches=0,
        seconds=round(took_s, 3),
        events_per_s=round(events / took_s),
        cpu_us_per_event=round(cpu_s / events * 1e6, 1),
        peak_mb=round(peak_mb() + beside_mb, 1),
    )


class _Dropped(ClickHouseSink):
    """Keeps each insert until the next one, as long as a slow engine would."""

    def __init__(self, folder: Path, ledger_id: str) -> None:
        super().__init__(Target(path=str(folder / "none")), ledger_id)
        self._kept: list[bytes] = []

    def insert_blocks(self, blocks: dict[str, list[bytes]]) -> None:
        self._kept = [b"".join(one) for one in blocks.values()]


def _no_folds(account: str, ids: Sequence[int], seq: int) -> Iterable[str]:
    raise SystemExit(f"positions {ids} are older than event {seq}: only the tables could tell them")


def made(store: EventStore, url: str, folder: Path, ledger_id: str) -> Mirrored:
    """As `Rebuild` reads, folds and packs a ledger in which no position is older than the orders at hand."""
    import clickhouse_connect  # noqa: F401  # the client is ours, the engine is not

    inserts, head = Inserts(_Dropped(folder, ledger_id)), store.head()
    last = head.seq if head else 0
    began, cpu = time.perf_counter(), _cpu_s()
    gc.disable()
    beside_mb = take_stretch(store, url, 0, last, _no_folds, inserts, lambda _: None)
    gc.enable()
    inserts.close()
    if "chdb" in sys.modules:
        raise SystemExit("the engine was loaded where it is left out")
    return _mirrored("rows", last, began, cpu, beside_mb)


async def _prepare(sink: Sink) -> None:
    await sink.open()
    await sink.close()


async def followed(store: EventStore, folder: Path, ledger_id: str) -> Live:
    settings = ProjectionSettings(ledger_url="", data_dir="")
    pace = Pace(
        min_interval_s=settings.clickhouse_interval_s,
        most_lag_s=settings.clickhouse_lag_s,
        calm_s=settings.clickhouse_calm_s,
        few_events=settings.clickhouse_few_events,
    )
    source, sink = StoreSource(store), _Timed(Target(path=str(folder / "live")), ledger_id, store)
    follower = Follower(source, sink, pace)
    await follower.start(10)
    _tell(b"ready\n")
    loop, cpu = asyncio.get_running_loop(), time.process_time()

    def listen() -> None:
        while os.read(0, 65536):
            loop.call_soon_threadsafe(source.wake)
        loop.call_soon_threadsafe(follower.stop)

    threading.Thread(target=listen, daemon=True).start()
    await follower.run()
    cpu_s = time.process_time() - cpu
    await sink.close()
    source.close()
    ages = sorted(sink.ages)
    return Live(
        events=len(ages),
        batches=follower.progress.batches,
        p50_ms=round(ages[len(ages) // 2], 1),
        p99_ms=round(ages[int(len(ages) * 0.99)], 1),
        most_ms=round(ages[-1], 1),
        cpu_us_per_event=round(cpu_s / len(ages) * 1e6, 1),
        peak_mb=round(peak_mb(), 1),
    )


def measured(kind: str, url: str, folder: Path, brokers: str) -> Mirrored | Live:
    store = open_store(url, readonly=True)
    first = store.at(1)
    created = event_of(first) if first is not None else None
    if not isinstance(created, LedgerCreated):
        raise SystemExit(f"no ledger in {url}")
    if kind == "rebuild":
        return rebuilt(store, url, folder, created.ledger_id)
    if kind == "rows":
        return made(store, url, folder, created.ledger_id)
    if kind == "live":
        return asyncio.run(followed(store, folder, created.ledger_id))
    if kind == "audit":
        return asyncio.run(mirror(store, AuditFilesSink(folder / "audit"), Pace()))
    from projections.kafka import KafkaSink

    return asyncio.run(mirror(store, KafkaSink(brokers, created.ledger_id, topic=folder.name), Pace()))


if __name__ == "__main__":
    for unused in ("pandas", "pyarrow", "numpy"):  # as in the service
        sys.modules.setdefault(unused, None)  # type: ignore[arg-type]  # None makes the import fail, as documented
    result = measured(sys.argv[1], sys.argv[2], Path(sys.argv[3]), "".join(sys.argv[4:5]))
    _tell(msgspec.json.encode(result) + b"\n")
