"""`order-ledger bench ledger`: how fast the ledger writes, reads, verifies and starts on this machine.

Measured is what the service does: whole lives of orders through the one writer, each step waited for until it is
durable. Nothing here knows how the writer works inside.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from gateway.bench import (
    BenchRefused,
    Machine,
    Meter,
    Place,
    PostgresPlace,
    Spread,
    SqlitePlace,
    machine,
    median,
    spread,
    sync_cost,
    work_folder,
)
from gateway.bench_lives import LIFE_EVENTS, execute, fill, live, numbers_of, open_ledger, order_id_of, received, steps
from ledger.errors import LedgerDamaged, LedgerFenced
from ledger.events import Recorded, decode
from ledger.seal import verify
from ledger.store import PAGE, EventStore
from ledger.writer import CHECKPOINT_EVERY, Ledger

ROUNDS: Final = 3
MIN_EVENTS: Final = 100
_LOADED_TOGETHER: Final = 16  # as the service loads the orders of one delivery
_OPEN_AT_MOST: Final = 100
_READ_AT_MOST: Final = 200_000  # events of one round; the verification reads all there are
_UNCOVERED_AT_MOST: Final = CHECKPOINT_EVERY - 1_000  # room for the seals


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. `seconds` are spent on each number of producers; `events` is the size of the ledger that is
    read, verified and started on; `folder` None means: among the temporary files."""

    stores: tuple[str, ...] = ("sqlite",)
    ledger_url: str = ""
    seconds: float = 3.0
    producers: tuple[int, ...] = (1, 32, 128)
    events: int = 1_000_000
    folder: Path | None = None
    ids: str = "scattered"


class Writing(msgspec.Struct, frozen=True, kw_only=True):
    """One number of producers: medians of the rounds, waits of all of them. Seals are not counted as events.
    For one producer, `bound_ms` is 1.5 x the bare commit + 0.3 ms, `ratio` the middle wait to it."""

    producers: int
    rounds: int
    events: int
    events_per_s: float
    commits_per_s: float
    events_per_commit: float
    cpu_us_per_event: float
    wait: Spread
    bound_ms: float | None = None
    ratio: float | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the rounds over so many events, seals included."""

    events: int
    rounds: int
    events_per_s: float
    cpu_us_per_event: float


class Starting(msgspec.Struct, frozen=True, kw_only=True):
    """The time of `Ledger.open`, its files in the system's cache: on a ledger without orders, on one of `events`
    that was closed, and on that one after its process was lost with `uncovered` events since the last checkpoint
    and `open_orders`."""

    events: int
    uncovered: int
    open_orders: int
    rounds: int
    build_s: float
    empty_ms: float
    closed_ms: float
    lost_ms: float


class StoreResult(msgspec.Struct, frozen=True, kw_only=True):
    """`commit`: a transaction of one row without the ledger, None where the sync of a file says it. `verified`: the
    last seal's digest of the ledger that was measured, all of which holds."""

    store: str
    version: str
    commit: Spread | None
    writing: tuple[Writing, ...]
    reading: Reading
    verifying: Reading
    starting: Starting
    verified: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    machine: Machine
    folder: str
    sync: Spread
    stores: tuple[StoreResult, ...]


def bench_ledger(plan: Plan, meter: Meter) -> Result:
    """Runs it, one measurement after the other, and removes everything it made.

    Raises BenchRefused (a ledger is in the way, or the plan measures nothing), LedgerUnavailable, LedgerDamaged
    (the ledger that was measured does not verify).
    """
    if plan.events < MIN_EVENTS or plan.seconds <= 0 or min(plan.producers, default=0) < 1:
        raise BenchRefused(f"nothing to measure: take at least 1 producer, {MIN_EVENTS} events and some seconds")
    with work_folder(plan.folder) as folder:
        found = machine()
        places: list[Place] = []
        try:
            # What is to be refused is refused before anything takes time.
            for store in plan.stores:
                places.append(PostgresPlace(plan.ledger_url) if store == "postgresql" else SqlitePlace(folder))
            meter.begin("the disk", 1)
            sync = sync_cost(folder)
            stores = [_measure(place, plan, sync, meter) for place in places]
        finally:
            for place in places:
                place.close()
        return Result(at=datetime.now(UTC), machine=found, folder=str(folder.parent), sync=sync, stores=tuple(stores))


def _measure(place: Place, plan: Plan, sync: Spread, meter: Meter) -> StoreResult:
    meter.begin(f"{place.name}: one commit", 1)
    commit = place.commit_cost()
    writing = []
    for producers in plan.producers:
        meter.begin(f"{place.name}: writing, producers: {producers}", ROUNDS + 1)
        found = asyncio.run(_write(place.fresh(), producers, plan.seconds / ROUNDS, plan.ids, meter))
        writing.append(_bounded(found, commit or sync) if producers == 1 else found)

    asyncio.run(fill(place.fresh(), 0, meter))
    empty_ms = _open_ms(place, meter, "empty")
    meter.begin(f"{place.name}: building a ledger", plan.events)
    build_s = asyncio.run(fill(place.fresh(), plan.events, meter))
    reading = _read(place, min(plan.events, _READ_AT_MOST), meter)
    verifying, head = _verify(place, plan.events, meter)
    closed_ms = _open_ms(place, meter, "after a stop")
    uncovered, left_open = min(plan.events, _UNCOVERED_AT_MOST), min(plan.events // 10, _OPEN_AT_MOST)
    meter.begin(f"{place.name}: losing a writer", uncovered)
    asyncio.run(_lose(place.again(), uncovered - left_open, left_open, meter))
    starting = Starting(
        events=plan.events,
        uncovered=uncovered,
        open_orders=left_open,
        rounds=ROUNDS,
        build_s=round(build_s, 3),
        empty_ms=empty_ms,
        closed_ms=closed_ms,
        lost_ms=_open_ms(place, meter, "after a loss"),
    )
    return StoreResult(
        store=place.name,
        version=place.version,
        commit=commit,
        writing=tuple(writing),
        reading=reading,
        verifying=verifying,
        starting=starting,
        verified=head,
    )


# --- writing ----------------------------------------------------------------------------------------------------


class _Round:
    """What one round of writing came to."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.events = self.commits = 0
        self.took_s = self.cpu_s = 0.0


class _Commits:
    """Counts the commits of a writer."""

    def __init__(self, ledger: Ledger) -> None:
        self.count = 0
        ledger.tail.on_commit(self._committed)

    def _committed(self) -> None:
        self.count += 1


async def _write(store: EventStore, producers: int, round_s: float, ids: str, meter: Meter) -> Writing:
    ledger = await open_ledger(store)
    numbers, commits = numbers_of(ids), _Commits(ledger)
    rounds = []
    try:
        for _ in range(ROUNDS + 1):
            rounds.append(await _round(ledger, commits, producers, round_s, numbers))
            meter.step()
    finally:
        await ledger.close()
    measured = rounds[1:]  # the first one warms up
    return Writing(
        producers=producers,
        rounds=len(measured),
        events=sum(one.events for one in measured),
        events_per_s=median([one.events / one.took_s for one in measured], 1),
        commits_per_s=median([one.commits / one.took_s for one in measured], 1),
        events_per_commit=median([one.events / one.commits for one in measured], 2),
        cpu_us_per_event=median([one.cpu_s / one.events * 1e6 for one in measured], 2),
        wait=spread([wait for one in measured for wait in one.waits]),
    )


async def _round(ledger: Ledger, commits: _Commits, producers: int, seconds: float, numbers: Iterator[int]) -> _Round:
    found, before = _Round(), commits.count
    began, cpu = time.perf_counter(), time.process_time()
    until = began + seconds
    await asyncio.gather(*[_produce(ledger, until, numbers, found, 1 + n % _LOADED_TOGETHER) for n in range(producers)])
    found.took_s, found.cpu_s = time.perf_counter() - began, time.process_time() - cpu
    found.commits = commits.count - before
    return found


async def _produce(ledger: Ledger, until: float, numbers: Iterator[int], found: _Round, first: int) -> None:
    """One life after the other, at least one; every step waits until it is durable. `first`: how many are loaded
    first, so that the producers do not all load at the same moment for ever, as deliveries do not."""
    together = first
    while True:
        lives = {order_id_of(ledger, number): number for number in itertools.islice(numbers, together)}
        together = _LOADED_TOGETHER
        await ledger.load(lives)
        for order_id, number in lives.items():
            for commands in steps(order_id, number):
                began = time.perf_counter()
                await execute(ledger, order_id, commands).durable
                found.waits.append(time.perf_counter() - began)
            found.events += LIFE_EVENTS
            if time.perf_counter() >= until:
                return


def _bounded(found: Writing, base: Spread) -> Writing:
    bound_ms = 1.5 * base.p50_ms + 0.3
    return msgspec.structs.replace(found, bound_ms=round(bound_ms, 3), ratio=round(found.wait.p50_ms / bound_ms, 2))


# --- a ledger of some size --------------------------------------------------------------------------------------


class _Severable:
    """A store whose writer can be lost as by a power cut: from `sever` on nothing is stored any more."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._severed = False

    def sever(self) -> None:
        self._severed = True

    def insert(self, batch: Sequence[Recorded]) -> None:
        if self._severed:
            raise LedgerFenced("the writer was cut off")  # what is not known to be stored would be tried again
        self._store.insert(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def _lose(store: EventStore, events: int, left_open: int, meter: Meter) -> None:
    """Adds whole lives and orders that have not ended; then the writer is lost, without a last checkpoint."""
    severable = _Severable(store)
    ledger = await open_ledger(cast(EventStore, severable))
    try:
        await live(ledger, events // LIFE_EVENTS, meter)
        orders = [order_id_of(ledger, -number) for number in range(1, left_open + 1)]
        await asyncio.gather(*[execute(ledger, one, (received(one),)).durable for one in orders])
    finally:
        severable.sever()
        await ledger.close()


async def _opened(store: EventStore) -> float:
    """The seconds of one start, after which nothing is changed."""
    severable = _Severable(store)
    began = time.perf_counter()
    ledger = await open_ledger(cast(EventStore, severable))
    took_s = time.perf_counter() - began
    severable.sever()
    await ledger.close()
    return took_s


def _open_ms(place: Place, meter: Meter, what: str) -> float:
    meter.begin(f"{place.name}: starting {what}", ROUNDS)
    times = []
    for _ in range(ROUNDS):
        times.append(asyncio.run(_opened(place.again())))
        meter.step()
    return median([one * 1e3 for one in times])


# --- reading ----------------------------------------------------------------------------------------------------


def _read(place: Place, events: int, meter: Meter) -> Reading:
    """Pages of the store, every event decoded."""

    def read(store: EventStore) -> int:
        after = 0
        while after < events and (page := store.read(after, PAGE)):
            for recorded in page:
                decode(recorded)
            after = page[-1].seq
            meter.step(len(page))
        return after

    meter.begin(f"{place.name}: reading", events * ROUNDS)
    return _rounds(place, read, ROUNDS)


def _verify(place: Place, events: int, meter: Meter) -> tuple[Reading, str]:
    """All events; and the digest of the last seal. Raises LedgerDamaged when anything does not hold."""
    head = ""

    def check(store: EventStore) -> int:
        nonlocal head
        found = verify(meter.over(store.scan()))
        if found.first_bad_seq is not None:
            raise LedgerDamaged(f"the benchmark's ledger does not hold: {found.problem}", found.first_bad_seq)
        head = found.head
        return found.events

    rounds = ROUNDS if events <= _READ_AT_MOST else 1
    meter.begin(f"{place.name}: verifying", events * rounds)
    return _rounds(place, check, rounds), head


def _rounds(place: Place, work: Callable[[EventStore], int], rounds: int) -> Reading:
    """Medians of reading the ledger so many times; `work` says how many events it read."""
    speeds, costs, events = [], [], 0
    store = place.again()
    try:
        for _ in range(rounds):
            began, cpu = time.perf_counter(), time.process_time()
            events = work(store)
            speeds.append(events / (time.perf_counter() - began))
            costs.append((time.process_time() - cpu) / events * 1e6)
    finally:
        store.close()
    return Reading(events=events, rounds=rounds, events_per_s=median(speeds, 1), cpu_us_per_event=median(costs, 2))
