"""`order-ledger sim …`: the simulated terminal's window and its dealer's desk, while the service runs."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import click

from gateway.cli_common import Commands, Failure, data_option, failures, json_option, print_json, settings_of

_SIGNED: Final = {"ignore_unknown_options": True}  # -100 is a value
_POSITION: Final = ("ticket", "symbol", "type", "volume", "price_open", "sl", "tp", "price_current", "swap", "profit",
                    "magic", "comment")  # fmt: skip
_ORDER: Final = ("ticket", "symbol", "type", "state", "volume_initial", "volume_current", "price_open",
                 "price_stoplimit", "sl", "tp", "magic", "comment")  # fmt: skip
_DEAL: Final = ("ticket", "order", "position_id", "symbol", "type", "entry", "reason", "volume", "price", "commission",
                "swap", "profit", "fee", "magic", "comment")  # fmt: skip


@click.group(cls=Commands)
def sim() -> None:
    """The simulated MetaTrader 5: prices, trades by hand, faults. Only with TERMINAL=simulated."""


def _ask(data: str | None, verb: str, **arguments: Any) -> Any:
    settings = settings_of({"data": data})
    if settings.terminal != "simulated":
        raise Failure(f"TERMINAL is {settings.terminal}: `order-ledger sim` is for the simulated terminal only")
    from gateway.simulated.window import ask

    with failures():
        return ask(settings.data / "terminal" / "broker", verb, **arguments)


def _show(found: Any, as_json: bool, columns: Iterable[str] = ()) -> None:
    """A table: of the columns of many records, or of the names and values of one."""
    if as_json:
        print_json(found)
        return
    from rich.markup import escape
    from rich.table import Column, Table

    from gateway.show_table import print_table

    if isinstance(found, dict):
        table = Table(box=None, show_header=False)
        for name, value in found.items():
            table.add_row(name, escape(_text(value)))
    else:
        table = Table(*(Column(name, no_wrap=True) for name in columns), box=None, pad_edge=False)
        words = _words(columns)
        for row in found:
            table.add_row(*(escape(words.get((name, row[name]), _text(row[name]))) for name in columns))
    print_table(table)


def _words(columns: Iterable[str]) -> dict[tuple[str, Any], str]:
    """What the numbers of these columns are called."""
    from gateway.simulated import constants

    kind = "DEAL" if "entry" in columns else "ORDER" if "state" in columns else "POSITION"
    found = {}
    for column in ("type", "state", "entry", "reason"):
        prefix = f"{kind}_{column.upper()}_"
        for name, value in vars(constants).items():
            if name.startswith(prefix) and not name.startswith(("ORDER_TYPE_FILLING", "ORDER_TYPE_TIME")):
                found[column, value] = name.removeprefix(prefix).lower().replace("_", " ")
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value)) or "-"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _changes(pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise Failure(f"{pair!r}: write NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _command(name: str, **settings: Any) -> Callable[..., Any]:
    """A command of the group, with --data and --json."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return sim.command(name, **settings)(data_option(json_option(function)))

    return decorate


@_command("price")
@click.argument("symbol")
@click.argument("bid", type=float, required=False)
@click.option("--by", "points", type=int, help="Move it by so many points.")
def price(symbol: str, bid: float | None, points: int | None, data: str | None, as_json: bool) -> None:
    """Show the price of SYMBOL, or set its BID from now on."""
    _show(_ask(data, "price", symbol=symbol, bid=bid, points=points), as_json)


@_command("trade")
@click.argument("type_", metavar="TYPE")
@click.argument("symbol")
@click.argument("volume", type=float)
@click.option("--price", type=float, default=0.0, help="Of a pending order.")
@click.option("--stoplimit", type=float, default=0.0, help="Limit of a stop-limit order.")
@click.option("--sl", type=float, default=0.0)
@click.option("--tp", type=float, default=0.0)
@click.option("--comment", default="")
@click.option("--position", type=int, default=0, help="Ticket of the position to close.")
@click.option("--magic", type=click.IntRange(0, 2**63 - 1), default=0, help="As another program of this number does.")
def trade(type_: str, data: str | None, as_json: bool, **fields: Any) -> None:
    """Trade by hand. TYPE is buy, sell, buy-limit, sell-limit, buy-stop, sell-stop, buy-stop-limit, sell-stop-limit."""
    _show(_ask(data, "trade", type=type_, **fields), as_json)


@_command("close")
@click.argument("ticket", type=int)
@click.option("--volume", type=float, help="Only so much of a position.")
def close(ticket: int, volume: float | None, data: str | None, as_json: bool) -> None:
    """Close the position, or delete the pending order, TICKET."""
    _show(_ask(data, "close", ticket=ticket, volume=volume), as_json)


@_command("modify")
@click.argument("ticket", type=int)
@click.option("--sl", type=float, default=0.0, help="Stop loss; without it there is none.")
@click.option("--tp", type=float, default=0.0, help="Take profit; without it there is none.")
@click.option("--price", type=float, default=0.0, help="New price of a pending order.")
def modify(ticket: int, data: str | None, as_json: bool, **fields: Any) -> None:
    """Change the stops of the position, or stops and price of the pending order, TICKET."""
    _show(_ask(data, "modify", ticket=ticket, **fields), as_json)


@_command("fill")
@click.argument("ticket", type=int)
@click.option("--volume", type=float, help="Only so much of it.")
@click.option("--price", type=float, help="At this price instead of the order's own.")
def fill(ticket: int, volume: float | None, price: float | None, data: str | None, as_json: bool) -> None:
    """Execute the working order TICKET now, whatever the market."""
    _show(_ask(data, "fill", ticket=ticket, volume=volume, price=price), as_json)


@_command("market")
@click.argument("symbol")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
def market(symbol: str, changes: tuple[str, ...], data: str | None, as_json: bool) -> None:
    """Show what the broker defines of SYMBOL, or change it: trade_mode=closeonly, quoting=off, stops_level=50 …"""
    _show(_ask(data, "market", symbol=symbol, changes=_changes(changes)), as_json)


@_command("rules")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
def rules(changes: tuple[str, ...], data: str | None, as_json: bool) -> None:
    """Show what account and terminal allow, or change it: algo_trading=off, limit_orders=5, fifo_close=on …"""
    _show(_ask(data, "rules", changes=_changes(changes)), as_json)


@_command("cut")
@click.argument("duration", default="", metavar="[DURATION|off]")
def cut(duration: str, data: str | None, as_json: bool) -> None:
    """Cut the terminal's connection to the trade server: for 500ms, 2s, 5m; until `off` without a DURATION."""
    _show(_ask(data, "cut", duration=duration), as_json)


@_command("clock")
@click.option("--ahead", metavar="DURATION", help="Set it so much ahead: 500ms, 2s, 5m, 1h.")
@click.option("--behind", metavar="DURATION", help="Set it so much behind.")
@click.option("--right", is_flag=True, help="Set it right.")
def clock(ahead: str | None, behind: str | None, right: bool, data: str | None, as_json: bool) -> None:
    """Show how far the server's clock is off, or set it."""
    shift = "0" if right else ahead if ahead else f"-{behind}" if behind else ""
    _show(_ask(data, "clock", shift=shift), as_json)


@_command("fault")
@click.argument("added", nargs=-1, metavar="[RULE]...")
@click.option("--clear", is_flag=True, help="Take all rules out of force first.")
def fault(added: tuple[str, ...], clear: bool, data: str | None, as_json: bool) -> None:
    """Show the faults in force, or add some: [call:]fault[=value][*count|@rate|#number].

    Such as: order_send:lost*1   requote*3   order_send:late=2s@0.1   '*:delay=200ms'
    """
    _show(_ask(data, "fault", add="; ".join(added), clear=clear), as_json)


@_command("transfer", context_settings=_SIGNED)
@click.argument("amount", type=float)
@click.option("--comment", default="")
def transfer(amount: float, comment: str, data: str | None, as_json: bool) -> None:
    """Put AMOUNT into the account, or take it out (below 0)."""
    _show(_ask(data, "transfer", amount=amount, comment=comment), as_json)


@_command("reopen")
@click.argument("ticket", type=int)
def reopen(ticket: int, data: str | None, as_json: bool) -> None:
    """Close the position TICKET and open it again, as brokers do over night: it gets a new ticket."""
    _show(_ask(data, "reopen", ticket=ticket), as_json)


@_command("amend")
@click.argument("ticket", type=int)
@click.option("--side", type=click.Choice(["buy", "sell"]))
@click.option("--volume", type=float)
@click.option("--price", type=float, help="Its open price.")
def amend(ticket: int, data: str | None, as_json: bool, **fields: Any) -> None:
    """Give the position TICKET another side, volume or open price without a deal, as a broker's staff may."""
    given = {name: value for name, value in fields.items() if value is not None}
    _show(_ask(data, "amend", ticket=ticket, **given), as_json)


@_command("book")
@click.argument("deal", type=int)
@click.option("--commission", type=float)
@click.option("--swap", type=float)
@click.option("--fee", type=float)
@click.option("--profit", type=float)
def book(deal: int, data: str | None, as_json: bool, **amounts: float | None) -> None:
    """Book costs or profit of the deal DEAL anew, as brokers do hours after it."""
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    _show(_ask(data, "book", deal=deal, **given), as_json)


@_command("orders")
@click.option("--history", is_flag=True, help="Those that have ended.")
def orders(history: bool, data: str | None, as_json: bool) -> None:
    """The working orders."""
    _show(_ask(data, "orders", history=history), as_json, _ORDER)


@_command("deals")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many of the newest.")
def deals(last: int, data: str | None, as_json: bool) -> None:
    """The newest deals."""
    _show(_ask(data, "deals", last=last), as_json, _DEAL)


@_command("positions")
def positions(data: str | None, as_json: bool) -> None:
    """The open positions."""
    _show(_ask(data, "positions"), as_json, _POSITION)


@_command("account")
def account(data: str | None, as_json: bool) -> None:
    """The account."""
    _show(_ask(data, "account"), as_json)
