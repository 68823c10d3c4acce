"""`order-ledger history | orders | export`: what compliance asks the ledger. All of them only read, also while
`serve` runs."""

import sys
from pathlib import Path

import click
import orjson

from gateway.cli_common import Failure, data_option, failures, json_option, print_json, settings_of
from gateway.config import Settings

_TIME = "ISO 8601, UTC without a zone"


def _end_unless_sound(settings: Settings, order_id: str) -> None:
    """What was printed is what is stored: ends with 2, as `verify` does, where its seals say that it is not what was
    recorded."""
    from gateway.history import unsound

    if problem := unsound(settings, order_id):
        sys.stdout.flush()
        click.echo(f"order-ledger: NOT SOUND: {problem}: run `order-ledger verify`", err=True)
        sys.exit(2)


@click.command()
@click.argument("order_id")
@click.option(
    "--as-of",
    "as_of",
    metavar="TIME",
    help=f"What was recorded until then, and the state it had ({_TIME}; a date is the end of that day).",
)
@click.option("--raw", is_flag=True, help="The stored bytes of each event, one line each.")
@data_option
@json_option
def history(order_id: str, as_of: str | None, raw: bool, data: str | None, as_json: bool) -> None:
    """Every event of one order, as the ledger holds it, and the state after each."""
    from gateway.history import history_of, print_history, raw_history
    from gateway.times import parse_as_of

    if raw and as_json:
        raise Failure("--raw prints what is stored, --json what it says: name one of them")
    settings = settings_of({"data": data})
    with failures():
        moment = parse_as_of(as_of) if as_of is not None else None
        if raw:
            for state in raw_history(settings, order_id, moment):
                sys.stdout.buffer.write(state + b"\n")
        else:
            found = history_of(settings, order_id, moment)
            if as_json:
                print_json(found.as_json())
            else:
                print_history(found)
        _end_unless_sound(settings, order_id)


@click.command()
@click.option("--open", "open_only", is_flag=True, help="Only orders that have not ended.")
@click.option("--state", "states", metavar="S[,S…]", multiple=True, help="Only orders in one of these states.")
@click.option("--since", metavar="TIME", help=f"Only orders created from then on ({_TIME}).")
@click.option("--until", metavar="TIME", help="Only orders created before then (a date includes that day).")
@click.option("--symbol", metavar="X", default="", help="Only orders of this symbol.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help="The newest N (0 for all; default 100 in a table, all with --json).",
)
@data_option
@json_option
def orders(
    open_only: bool,
    states: tuple[str, ...],
    since: str | None,
    until: str | None,
    symbol: str,
    limit: int | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Which orders there are and where they stand, oldest first. --json prints one line for each."""
    from gateway.orders import TABLE_ROWS, Query, list_orders, parse_statuses, print_orders, row_json
    from gateway.times import parse_span

    settings = settings_of({"data": data})
    with failures():
        query = Query(
            created=parse_span(since, until),
            statuses=parse_statuses(states),
            open_only=open_only,
            symbol=symbol,
            limit=limit if limit is not None else 0 if as_json else TABLE_ROWS,
        )
        rows, total = list_orders(settings, query, progress=not as_json)
    if as_json:
        for row in rows:
            sys.stdout.buffer.write(orjson.dumps(row_json(row), option=orjson.OPT_APPEND_NEWLINE))
    else:
        print_orders(rows, total)


@click.command()
@click.option("--since", metavar="TIME", help=f"Events recorded from then on ({_TIME}).")
@click.option("--until", metavar="TIME", help="Events recorded before then (a date includes that day).")
@click.option("--format", "format", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
@click.option("--output", metavar="FILE", default="-", help="The file to write; - is standard output (jsonl only).")
@click.option("--order", "order_id", metavar="ORDER_ID", default="", help="Only events of this order.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option(
    "--quick",
    is_flag=True,
    help="Search for the span instead of reading the whole ledger: right as long as the clock of the service never "
    "went back by more than a day.",
)
@data_option
@json_option
def export(
    since: str | None,
    until: str | None,
    format: str,
    output: str,
    order_id: str,
    force: bool,
    quick: bool,
    data: str | None,
    as_json: bool,
) -> None:
    """Write all events of a span of time to a file, in the order of the ledger.

    Spans that meet (--until of one is --since of the next) leave no event out and hold none twice. With --json the
    summary is JSON; it goes to standard error when the events go to standard output. What is stored is written as it
    is: `verify` tells whether it is sound. Of one order the seals over its events are checked.
    """
    from gateway.export import Wanted, print_exported
    from gateway.export import export as run
    from gateway.times import parse_span

    path = None if output == "-" else Path(output).expanduser()
    if format == "parquet" and path is None:
        raise Failure("Parquet is no text for standard output: name a file by --output")
    settings = settings_of({"data": data})
    with failures():
        wanted = Wanted(
            span=parse_span(since, until), order_id=order_id, format=format, output=path, force=force, quick=quick
        )
        done = run(settings, wanted, progress=not as_json and (path is not None or not sys.stdout.isatty()))
    print_exported(done, as_json=as_json)
    if order_id:
        with failures():
            _end_unless_sound(settings, order_id)
