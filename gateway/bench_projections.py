"""`order-ledger bench projections`: how fast the projections of a whole ledger are made, and how late live ones are."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.bench import BenchRefused, Machine, Meter, SqlitePlace, machine, work_folder
from gateway.bench_lives import fill, live_at
from projections.bench_child import Live
from projections.measure import Mirrored

LIMIT_S = 1800.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`kafka`: brokers, a comma list; empty = none. `orders_per_s` 0 leaves the live measurement out."""

    events: int
    kafka: str = ""
    orders_per_s: float = 1000.0
    seconds: float = 20.0
    folder: Path | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Of a rebuild, MB. `ours_mb`: the peak of a process that does all of it but the engine's work, with its Python;
    `engine_mb`: what the peak of the whole, `peak_mb`, is above that, so the embedded engine with its program."""

    peak_mb: float
    ours_mb: float
    engine_mb: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    machine: Machine
    events: int
    sinks: tuple[Mirrored, ...]
    rebuild_memory: Memory
    orders_per_s: float
    live: Live | None


def bench_projections(plan: Plan, meter: Meter) -> Result:
    """Runs it on a ledger of its own; everything made is removed, but for the topic in Kafka.

    Raises BenchRefused, LedgerError.
    """
    with work_folder(plan.folder) as folder:
        found, place = machine(), SqlitePlace(folder)
        meter.begin("building a ledger", plan.events)
        asyncio.run(fill(place.fresh(), plan.events, meter))
        measured = {}
        for kind in ("rebuild", "rows", "audit", *(("kafka",) if plan.kafka else ())):
            meter.begin(kind, 1)
            with _child(kind, place, folder, plan.kafka) as child:
                measured[kind] = msgspec.json.decode(child.communicate(timeout=LIMIT_S)[0], type=Mirrored)
            meter.step()
        live = _live(plan, place, folder, meter) if plan.orders_per_s else None
    whole, ours = measured["rebuild"].peak_mb, measured.pop("rows").peak_mb
    return Result(
        machine=found,
        events=measured["rebuild"].events,
        sinks=tuple(measured.values()),
        rebuild_memory=Memory(peak_mb=whole, ours_mb=ours, engine_mb=round(whole - ours, 1)),
        orders_per_s=plan.orders_per_s,
        live=live,
    )


def _live(plan: Plan, place: SqlitePlace, folder: Path, meter: Meter) -> Live:
    asyncio.run(fill(place.fresh(), 0, meter))
    meter.begin(f"live, {plan.orders_per_s:g} orders/s", plan.orders_per_s * plan.seconds)
    with _child("live", place, folder, "") as child:
        stdin, stdout = child.stdin, child.stdout
        if stdin is None or stdout is None or stdout.readline() != b"ready\n":
            raise BenchRefused("the live projection did not start")

        def wake() -> None:
            stdin.write(b".")
            stdin.flush()

        asyncio.run(live_at(place.again(), plan.orders_per_s, plan.seconds, wake, meter))
        return msgspec.json.decode(child.communicate(timeout=LIMIT_S)[0], type=Live)


@contextmanager
def _child(kind: str, place: SqlitePlace, folder: Path, brokers: str) -> "Iterator[subprocess.Popen[bytes]]":
    command = [sys.executable, "-m", "projections.bench_child", kind, place.url, str(folder), brokers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()
