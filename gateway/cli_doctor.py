"""`order-ledger doctor`: what is wrong, why, and what to do about it."""

import asyncio
import sys
from typing import Any

import click
import msgspec

from gateway.cli_common import data_option, json_option, print_json, settings_of

_STYLES = {"ok": "green", "warning": "yellow", "failed": "red", "unproven": "yellow"}


@click.command()
@click.option("--checklist", is_flag=True, help="The ten items a running service must fulfil, tried out.")
@click.option("--all", "show_all", is_flag=True, help="Show what is well, too.")
@data_option
@json_option
def doctor(checklist: bool, show_all: bool, data: str | None, as_json: bool) -> None:
    """Check every dependency and the five known troubles, with reason and remedy; exit code 1 when something failed.

    --checklist sends a malformed message, and on the simulated terminal an order, too.
    """
    from gateway.doctor import FAILED, diagnose
    from gateway.doctor_checklist import go_through
    from gateway.doctor_facts import gather

    settings = settings_of({"data": data})
    rows: list[Any]
    if checklist:
        rows, show_all = asyncio.run(go_through(settings)), True
    else:
        rows = diagnose(settings, asyncio.run(gather(settings)))
    failed = [one for one in rows if one.status == FAILED]
    if as_json:
        print_json({"healthy": not failed, "checks": msgspec.to_builtins(rows)})
    else:
        _print(rows, show_all=show_all)
    sys.exit(1 if failed else 0)


def _print(rows: list[Any], *, show_all: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from gateway.show_table import print_table

    table = Table("", "trouble", "check", "found", "remedy", box=None, pad_edge=False)
    shown = [one for one in rows if show_all or one.status != "ok"]
    for one in shown:
        mark = f"[{_STYLES[one.status]}]{one.status}[/]"
        table.add_row(mark, escape(one.trouble), escape(one.name), escape(one.found), escape(one.remedy))
    if shown:
        print_table(table)
    well = sum(one.status == "ok" for one in rows)
    click.echo(f"{well} of {len(rows)} checks are well")
