"""What the commands of `order-ledger` share: common options, errors as one line, JSON output."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import click
import orjson

from gateway.config import DEFAULT_DATA, ConfigurationError, Settings, load
from ledger.errors import LedgerError


class Failure(click.ClickException):
    """One line with the remedy, exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"order-ledger: {self.format_message()}", err=True)


class Commands(click.Group):
    """Lists its commands with their whole first sentence; click cuts it at the width of the terminal."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        whole = 1_000
        rows = [(name, self.commands[name].get_short_help_str(whole)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--data",
        metavar="DIR",
        default=None,
        help=f"Data folder (default {DEFAULT_DATA}, or ORDER_LEDGER_DATA).",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@contextlib.contextmanager
def failures() -> Any:
    """Turns what is expected to go wrong into one line."""
    from gateway.broker import TerminalError
    from gateway.bus import BusRefused
    from gateway.client import NoAnswer
    from gateway.embedded import StartFailed

    try:
        yield
    except (StartFailed, LedgerError, BusRefused, TerminalError, ConfigurationError, NoAnswer) as error:
        raise Failure(" ".join(str(error).split())) from None
    except PermissionError as error:
        raise Failure(
            f"this user may not read or write {error.filename or 'a file'}: run it as the user of the service"
        ) from None
    except KeyboardInterrupt:
        raise Failure("interrupted") from None


def settings_of(flags: dict[str, str | None]) -> Settings:
    try:
        return load(flags)
    except ConfigurationError as error:
        raise Failure("; ".join(str(error).splitlines())) from None


def print_json(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str))
