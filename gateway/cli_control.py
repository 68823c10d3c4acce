"""An operator's commands: `order-ledger halt | resume | close-all | reconcile | reconnect | resolve | query`."""

import asyncio
from collections.abc import Callable
from typing import Any

import click

from gateway.cli_common import Failure, data_option, failures, json_option, print_json, settings_of


def _who_and_why(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--by", metavar="NAME", help="Who orders this (default: the user's name).")(command)
    return click.option("--reason", required=True, metavar="TEXT", help="Why; it is recorded.")(command)


def _do(command: str, data: str | None, as_json: bool, by: str | None, **fields: Any) -> None:
    for name, given in (("reason", fields["reason"]), ("by", by)):
        if given == "":
            raise Failure(f"--{name} is empty: it is recorded, so write who or why")
    from gateway.operations import caller, control
    from gateway.queries import Declined

    settings = settings_of({"data": data})
    wanted = {name: value for name, value in fields.items() if value is not None} | {"by": by or caller()}
    with failures():
        try:
            answer = asyncio.run(control(settings, command, wanted))
        except Declined as declined:
            raise Failure(str(declined)) from None
    if as_json:
        print_json(answer)
    else:
        _print_done(answer)


def _print_done(answer: dict[str, Any]) -> None:
    click.echo(answer["description"])
    for order in answer.get("orders", ()):
        reasons = "; ".join(order.get("reasons", ()))
        click.echo(f"  {order['order_id']}: {order['status']}" + (f" ({reasons})" if reasons else ""))
    if answer.get("reconciled"):
        _print_differences(answer["reconciled"])
    for halt in answer.get("halts", ()):
        by = f" by {halt['by']}" if halt.get("by") else ""
        click.echo(f"  halted: {halt['source']}{by}: {halt['reason']}")


def _print_differences(found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from gateway.show_table import print_table

    rows = [*found.get("differences", ()), *(one | {"policy": "stands"} for one in found.get("standing", ()))]
    if not rows:
        return
    table = Table("difference", "policy", "symbol", "position", "order", "ours", "broker's", box=None, pad_edge=False)
    for row in rows:
        number, order = row.get("position_id", ""), row.get("order_id") or row.get("order_ticket", "")
        cells = (row["kind"], row["policy"], row.get("symbol", ""), number, order, row["ours"], row["brokers"])
        table.add_row(*(escape(str(cell)) for cell in cells))
    print_table(table)


@click.command()
@_who_and_why
@click.option(
    "--cancel-orders/--keep-orders", default=None, help="What becomes of our working orders (default: as configured)."
)
@data_option
@json_option
def halt(reason: str, by: str | None, cancel_orders: bool | None, data: str | None, as_json: bool) -> None:
    """Let nothing open or add to a position from now on. Closes, cancels and changes of SL/TP pass."""
    _do("halt", data, as_json, by, reason=reason, cancel_orders=cancel_orders)


@click.command()
@_who_and_why
@data_option
@json_option
def resume(reason: str, by: str | None, data: str | None, as_json: bool) -> None:
    """Lift the operator's halt, and no other."""
    _do("resume", data, as_json, by, reason=reason)


@click.command("close-all")
@_who_and_why
@click.option("--symbol", metavar="X", help="Only positions of this symbol.")
@click.option("--cancel-orders", is_flag=True, help="Cancel the working orders too, and opening ones not sent yet.")
@click.option("--request-id", metavar="ID", help="The same id again closes nothing twice.")
@data_option
@json_option
def close_all(
    reason: str,
    by: str | None,
    symbol: str | None,
    cancel_orders: bool,
    request_id: str | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Close every open position by an ordinary order of its own. Halt first, or new ones may open behind it."""
    _do(
        "close_all", data, as_json, by, reason=reason, symbol=symbol, cancel_orders=cancel_orders, request_id=request_id
    )


@click.command()
@click.option("--by", metavar="NAME", help="Who asks (default: the user's name).")
@click.option("--reason", default="asked for", metavar="TEXT", help="Why; it is recorded.")
@data_option
@json_option
def reconcile(reason: str, by: str | None, data: str | None, as_json: bool) -> None:
    """Compare the ledger's view with the broker's, now."""
    _do("reconcile", data, as_json, by, reason=reason)


@click.command()
@_who_and_why
@data_option
@json_option
def reconnect(reason: str, by: str | None, data: str | None, as_json: bool) -> None:
    """Connect to the broker again: where AUTO_RECONNECT is off, or a login was refused."""
    _do("reconnect", data, as_json, by, reason=reason)


@click.command()
@click.argument("order_id")
@click.option(
    "--as",
    "resolution",
    required=True,
    type=click.Choice(["found", "absent", "abandoned"]),
    help="It is at the broker; it is not; nobody will ever know.",
)
@click.option("--ticket", type=click.IntRange(1, 2**64 - 1), help="The broker's order ticket of a found order.")
@_who_and_why
@data_option
@json_option
def resolve(
    order_id: str, resolution: str, ticket: int | None, reason: str, by: str | None, data: str | None, as_json: bool
) -> None:
    """Settle an order whose outcome is unknown by your word, where evidence cannot. It is recorded with who and why."""
    _do("resolve", data, as_json, by, reason=reason, order_id=order_id, resolution=resolution, order_ticket=ticket)


@click.command()
@click.argument("what", type=click.Choice(["account", "positions", "orders", "symbol", "tick", "history"]))
@click.argument("name", required=False)
@click.option("--symbol", metavar="X", help="Only of this symbol.")
@click.option("--since", metavar="TIME", help="history: from then on (ISO 8601, UTC without a zone; default a day).")
@click.option("--limit", type=click.IntRange(1, 10_000), help="history: the newest N.")
@data_option
@json_option
def query(
    what: str,
    name: str | None,
    symbol: str | None,
    since: str | None,
    limit: int | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Ask the broker through the running gateway. NAME: of the symbol, or for `history` the id of an order."""
    from gateway.operations import query as ask
    from gateway.queries import Declined
    from gateway.show_query import print_answer
    from gateway.times import iso, parse_span

    if name is not None and what in ("symbol", "tick"):
        symbol = name
    elif name is not None and what != "history":
        raise Failure(f"{what} takes no name: use --symbol to narrow it")
    elif what in ("symbol", "tick") and symbol is None:
        raise Failure(f"{what} needs the name of a symbol: order-ledger query {what} EURUSD")
    settings = settings_of({"data": data})
    with failures():
        start = parse_span(since, None).since if since is not None else None
        fields = {
            "symbol": symbol,
            "order_id": name if what == "history" else None,
            "since": iso(start) if start is not None else None,
            "limit": limit,
        }
        try:
            answer = asyncio.run(
                ask(settings, what, {key: value for key, value in fields.items() if value is not None})
            )
        except Declined as declined:
            raise Failure(str(declined)) from None
    if as_json:
        print_json(answer)
    else:
        print_answer(what, answer)
