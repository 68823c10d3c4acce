"""`order-ledger history`: what compliance asks the ledger. It only reads, also while `serve` runs."""

import sys

import click

from gateway.cli_common import Failure, data_option, failures, json_option, print_json, settings_of

_TIME = "ISO 8601, UTC without a zone"


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
            return
        found = history_of(settings, order_id, moment)
    if as_json:
        print_json(found.as_json())
    else:
        print_history(found)
