"""`order-ledger bench …`: measures on this machine, on data of its own."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli_common import Commands, Failure, failures, json_option, print_json

if TYPE_CHECKING:
    from gateway.bench_ledger import Result, StoreResult
    from gateway.bench_terminal import TerminalResult

_POSTGRES = ("postgresql://", "postgres://")


@click.group(cls=Commands)
def bench() -> None:
    """Measure how fast this machine is, on data that is removed at the end."""


def _producers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """`1,32,128` as numbers."""
    try:
        numbers = tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        raise click.BadParameter(f"must be numbers like 1,32,128, not {text!r}") from None
    if not all(0 < one <= 10_000 for one in numbers):
        raise click.BadParameter("each must be from 1 to 10000")
    return numbers


@bench.command()
@click.option("--store", type=click.Choice(["sqlite", "postgresql", "both"]), default="sqlite", show_default=True)
@click.option(
    "--ledger-url",
    envvar="LEDGER_URL",
    metavar="URL",
    default="",
    help="The database for --store postgresql: it is written to and must hold no ledger (LEDGER_URL).",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 3600),
    default=3.0,
    show_default=True,
    help="Time for each number of producers.",
)
@click.option(
    "--producers", default="1,32,128", show_default=True, callback=_producers, help="How many write at the same time."
)
@click.option(
    "--events",
    type=click.IntRange(100, 100_000_000),
    default=1_000_000,
    show_default=True,
    help="Size of the ledger that is read, verified and started on.",
)
@click.option(
    "--ids",
    type=click.Choice(["scattered", "counting"]),
    default="scattered",
    show_default=True,
    help="Order ids in no order, as UUIDs, or counting up.",
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to work: the disk to measure (default: temporary files).",
)
@json_option
def ledger(
    store: str,
    ledger_url: str,
    seconds: float,
    producers: tuple[int, ...],
    events: int,
    ids: str,
    data: Path | None,
    as_json: bool,
) -> None:
    """How fast orders become durable, and how fast the ledger is read, verified and started.

    Never touches an existing ledger: a folder or database that holds one is refused.
    """
    from gateway.bench import Meter
    from gateway.bench_ledger import Plan, bench_ledger

    stores = ("sqlite", "postgresql") if store == "both" else (store,)
    if "postgresql" in stores and not ledger_url.startswith(_POSTGRES):
        raise Failure(f"--store {store} needs a database: LEDGER_URL=postgresql://user:password@host/database")
    plan = Plan(
        stores=stores,
        ledger_url=ledger_url,
        seconds=seconds,
        producers=producers,
        events=events,
        ids=ids,
        folder=data.absolute() if data else None,
    )
    with failures(), Meter(shown=not as_json) as meter:
        result = bench_ledger(plan, meter)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(result))
    else:
        _print(result)


def _print(result: "Result") -> None:
    from rich.markup import escape

    from gateway.bench import NO_DISK_MS
    from gateway.show import console

    out, on, sync = console(), result.machine, result.sync
    out.print(
        f"order-ledger {on.version}, Python {on.python}, {escape(on.system)}, CPUs: {on.cpus}, load before: {on.load}"
    )
    out.print(
        f"sync of 4 KiB in {escape(result.folder)}: p50 {sync.p50_ms:.3f} ms, p99 {sync.p99_ms:.3f} ms, "
        f"p99.9 {sync.p999_ms:.3f} ms ({sync.samples} times)"
    )
    if sync.p50_ms < NO_DISK_MS:
        out.print("[yellow]no disk is that fast: name a folder on the ledger's disk by --data[/]")
    for store in result.stores:
        out.print()
        _print_store(store)


def _print_store(store: "StoreResult") -> None:
    from rich.table import Table

    from gateway.show import console

    out = console()
    title = store.version
    if store.commit is not None:
        title += f", commit of one row: p50 {store.commit.p50_ms:.3f} ms, p99 {store.commit.p99_ms:.3f} ms"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("producers", "events/s", "p50 ms", "p99 ms", "p99.9 ms", "commits/s", "per commit", "CPU us"):
        table.add_column(name, justify="right")
    for one in store.writing:
        table.add_row(
            str(one.producers),
            f"{one.events_per_s:,.0f}",
            f"{one.wait.p50_ms:.2f}",
            f"{one.wait.p99_ms:.2f}",
            f"{one.wait.p999_ms:.2f}",
            f"{one.commits_per_s:,.0f}",
            f"{one.events_per_commit:.1f}",
            f"{one.cpu_us_per_event:.1f}",
        )
    out.print(table)
    for one in store.writing:
        if one.bound_ms is not None:
            out.print(f"one producer: {one.ratio} times 1.5 x the bare commit + 0.3 ms (= {one.bound_ms} ms)")
    reading, verifying, starting = store.reading, store.verifying, store.starting
    out.print(
        f"reading: {reading.events_per_s:,.0f} events/s decoded; verifying: {verifying.events_per_s:,.0f} events/s, "
        f"sound ({verifying.events:,} events)",
        soft_wrap=True,
    )
    out.print(
        f"start: {starting.empty_ms:.1f} ms without orders; with {starting.events:,} events "
        f"{starting.closed_ms:.1f} ms after a stop, {starting.lost_ms:.1f} ms after a loss "
        f"({starting.uncovered:,} events since the checkpoint, {starting.open_orders} open orders)",
        soft_wrap=True,
    )
    out.print(
        f"CPU us: of this process, by event; medians of {starting.rounds} rounds (verifying: {verifying.rounds}), "
        f"waits of all rounds; built in {starting.build_s:.1f} s",
        soft_wrap=True,
        style="dim",
    )


@bench.command()
@click.option(
    "--calls",
    type=click.IntRange(50, 1_000_000),
    default=5_000,
    show_default=True,
    help="For each figure, in each of three rounds.",
)
@click.option(
    "--paced",
    type=click.IntRange(0, 100_000),
    default=300,
    show_default=True,
    help="Sends at 100 a second, as a quiet service makes them; 0: none.",
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the simulated broker keeps its state meanwhile (default: temporary files).",
)
@json_option
def terminal(calls: int, paced: int, data: Path | None, as_json: bool) -> None:
    """What a call to the terminal costs: in process, through the child, and eight at once.

    The terminal is the simulated one, its broker a process of its own, so a call through the child passes two hops.
    """
    from gateway.bench import Meter
    from gateway.bench_terminal import Plan, bench_terminal

    plan = Plan(calls=calls, paced=paced, folder=data.absolute() if data else None)
    with failures(), Meter(shown=not as_json) as meter:
        result = bench_terminal(plan, meter)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(result))
    else:
        _print_terminal(result)


def _print_terminal(result: "TerminalResult") -> None:
    from rich.markup import escape
    from rich.table import Table

    from gateway.show import console

    out, on = console(), result.machine
    out.print(
        f"order-ledger {on.version}, Python {on.python}, {escape(on.system)}, CPUs: {on.cpus}, load before: {on.load}"
    )
    out.print(
        f"a bare hop to another process and back: p50 {result.hop.p50_ms * 1e3:.0f} us, "
        f"p99 {result.hop.p99_ms * 1e3:.0f} us"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("call", "", "at once", "p50 us", "p99 us", "p99.9 us", "requests/s"):
        table.add_column(name, justify="left" if name in ("call", "") else "right")
    for one in result.figures:
        waits = (one.wait.p50_ms, one.wait.p99_ms, one.wait.p999_ms)
        table.add_row(
            one.call,
            one.where,
            str(one.at_once),
            *(f"{wait * 1e3:,.0f}" for wait in waits),
            f"{one.requests_per_s:,.0f}",
        )
    out.print(table)
    out.print(
        f"medians of {result.rounds} rounds, waits of all rounds; order_send: judged, executed and kept by the broker "
        "process, with its deal",
        style="dim",
        soft_wrap=True,
    )


@bench.command()
@click.option(
    "--events",
    type=click.IntRange(1_000, 100_000_000),
    default=1_000_000,
    show_default=True,
    help="Size of the ledger that is projected.",
)
@click.option("--kafka", metavar="BROKERS", default="", help="Mirror it to these brokers too, into a topic that stays.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 100_000),
    default=1_000.0,
    show_default=True,
    help="Orders a second for the live lag; 0: none.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.5, 3600), default=20.0, show_default=True, help="Time for the live lag."
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to work: the disk to measure (default: temporary files).",
)
@json_option
def projections(events: int, kafka: str, rate: float, seconds: float, data: Path | None, as_json: bool) -> None:
    """How fast ClickHouse, audit files and Kafka are filled, and how late live events are in ClickHouse."""
    from gateway.bench import Meter
    from gateway.bench_projections import Plan, bench_projections

    plan = Plan(
        events=events, kafka=kafka, orders_per_s=rate, seconds=seconds, folder=data.absolute() if data else None
    )
    with failures(), Meter(shown=not as_json) as meter:
        found = bench_projections(plan, meter)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    for one in found.sinks:
        click.echo(
            f"{one.sink}: {one.events:,} events in {one.seconds:.1f} s, {one.events_per_s:,.0f} events/s, "
            f"{one.cpu_us_per_event} us CPU per event, peak memory {one.peak_mb:.0f} MB"
        )
    memory = found.rebuild_memory
    click.echo(
        f"memory of the rebuild: {memory.peak_mb:.0f} MB, of which {memory.ours_mb:.0f} MB are ours (a process that "
        f"makes the same rows without the engine) and {memory.engine_mb:.0f} MB the embedded engine's"
    )
    if found.live is not None:
        live = found.live
        click.echo(
            f"live at {found.orders_per_s:g} orders/s: {live.events:,} events, lag p50 {live.p50_ms} ms, "
            f"p99 {live.p99_ms} ms, most {live.most_ms} ms, {live.cpu_us_per_event} us CPU per event, "
            f"peak memory {live.peak_mb:.0f} MB"
        )


@bench.command()
@click.option("--rate", type=click.FloatRange(1, 100_000), default=100.0, show_default=True, help="Orders a second.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Time for each mood of the hub, in each round.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=10, show_default=True, help="How often each has its turn."
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to work: the disk to measure (default: temporary files).",
)
@json_option
def hub(rate: float, seconds: float, rounds: int, data: Path | None, as_json: bool) -> None:
    """What orders feel of a Central Hub that is killed, slow or lying: the whole service, from publication to fill."""
    from gateway.bench import Meter
    from gateway.bench_hub import Plan, bench_hub

    plan = Plan(orders_per_s=rate, seconds=seconds, rounds=rounds, folder=data.absolute() if data else None)
    with failures(), Meter(shown=not as_json) as meter:
        found = bench_hub(plan, meter)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found))
        return
    for one in found.figures:
        click.echo(
            f"hub {one.hub}: {one.orders:,} orders at {found.orders_per_s:g}/s, {one.lost} lost, p50 {one.wait.p50_ms} "
            f"ms, p99 {one.wait.p99_ms} ms ({one.p99_ratio} of the healthy one's)"
        )
