"""`order-ledger chaos`: kills the whole service at seeded instants, and judges what it left."""

import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli_common import Failure, failures, json_option, print_json

if TYPE_CHECKING:
    from gateway.chaos.campaign import Report


@click.command()
@click.option("--seed", type=click.IntRange(0, 2**31), default=1, show_default=True, help="Of load, faults and kills.")
@click.option("--kills", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many.")
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="A new folder to work in and to keep; without it, it is kept only when something is wrong.",
)
@json_option
def chaos(seed: int, kills: int, keep: Path | None, as_json: bool) -> None:
    """Kill gateway, terminal and message bus (kill -9) while orders of every kind flow, and check every promise.

    About a second for each kill. Works on data of its own, with the simulated broker and its faults. Exit code
    0 when every promise held, else 3, and the data folder is named.
    """
    from gateway.chaos.campaign import run
    from gateway.show import progress_bar

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise Failure(f"{keep} is not empty: name a new folder for --keep")
    folder = keep or Path(tempfile.mkdtemp(prefix="order-ledger-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it started, as upon Ctrl-C
    with failures(), progress_bar(f"kills, seed {seed}", kills) as bar:
        report = asyncio.run(run(folder, seed=seed, kills=kills, step=bar.step))
    if keep is None and report.ok:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(report) | {"folder": None if report.ok and keep is None else str(folder)})
    else:
        _print(report, folder)
    sys.exit(0 if report.ok else 3)


def _print(report: "Report", folder: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from gateway.show import console

    out = console()
    table = Table(box=None, pad_edge=False, show_header=False)
    rows = {
        "seed": report.seed,
        "kills": report.kills,
        "seconds": report.seconds,
        "requests": sum(report.requests.values()),
        "messages published": report.messages,
        "intents in doubt when the gateway was killed": report.in_doubt,
        "outcomes that were unknown": report.unknown,
        "median start, s": report.median_start_s,
    }
    rows |= {name.replace("_", " "): value for name, value in report.found.items()}
    rows |= {f"orders {status}": number for status, number in report.orders.items()}
    for name, value in rows.items():
        table.add_row(name, str(value))
    out.print(table)
    for name, number in report.killed.items():
        out.print(f"  killed {number:4}  {name}")
    for problem in report.problems:
        out.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
    if report.ok:
        out.print("[green]every promise held[/]")
    else:
        out.print(f"[red]NOT every promise held[/]: see {escape(str(folder))}", soft_wrap=True)
