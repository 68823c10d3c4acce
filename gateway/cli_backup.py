"""`order-ledger backup` and `order-ledger restore`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli_common import data_option, failures, json_option, print_json, settings_of

if TYPE_CHECKING:
    from ledger.events import Recorded


@click.command()
@click.argument("folder", metavar="DIR")
@data_option
@json_option
def backup(folder: str, data: str | None, as_json: bool) -> None:
    """Copy the ledger to the new folder DIR, also while it is served, and verify the copy.

    One form for SQLite and PostgreSQL: either can be restored into either.
    """
    from datetime import UTC, datetime
    from importlib.metadata import version

    from msgspec import to_builtins

    from gateway.show import open_ledger
    from ledger.backup import back_up

    settings = settings_of({"data": data})
    path = _path(folder)
    with failures(), contextlib.closing(open_ledger(settings)) as store, _watched(shown=not as_json) as watch:
        manifest = back_up(store, path, at=datetime.now(UTC), version=version("order-ledger"), watch=watch)
    if as_json:
        print_json(to_builtins(manifest))
        return
    account = f"account {manifest.login} on {manifest.server}"
    _print(
        f"backup of {manifest.last_seq} events in {path}, verified",
        f"ledger {manifest.ledger_id}, {account}, head {manifest.digest}",
    )


def restore_command(read_audit: Callable[[Path], Iterable["Recorded"]]) -> click.Command:
    """`restore`. `read_audit`: the events that the audit files of a folder hold."""

    @click.command()
    @click.argument("folder", metavar="DIR")
    @data_option
    @click.option(
        "--audit", metavar="DIR", help="Add what came after the backup, from the audit files in DIR (DATA/audit)."
    )
    @json_option
    def restore(folder: str, data: str | None, audit: str | None, as_json: bool) -> None:
        """Put the backup DIR into an empty ledger: that of the data folder, or LEDGER_URL.

        Orders sent after the backup are then unknown to this ledger. What NATS, ClickHouse or the audit log hold of
        them stops the next start of the service on the same data folder, until you decide: restore with --audit,
        or into a new data folder, where everything is rebuilt from the ledger. Look at the broker before the second.
        """
        from ledger.backup import read_manifest
        from ledger.backup import restore as put_back
        from ledger.errors import BackupUnusable
        from ledger.store import open_store

        settings = settings_of({"data": data})
        path, log = _path(folder), _path(audit) if audit is not None else None
        with failures():
            read_manifest(path)  # before a new ledger is made for it
            if log is not None and not log.is_dir():
                raise BackupUnusable(f"there is no folder {log}: name the one with the audit files")
            with (
                contextlib.closing(open_store(settings.ledger_url.reveal())) as store,
                _watched(shown=not as_json) as watch,
            ):
                found = put_back(path, store, watch, None if log is None else lambda: read_audit(log))
                line = f"restored {found.last_seq} events into {store.name}, verified"
        if as_json:
            print_json({"ledger_id": found.ledger_id, "last_seq": found.last_seq, "digest": found.head})
        else:
            _print(line, f"head {found.head}")

    return restore


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


@contextlib.contextmanager
def _watched(*, shown: bool) -> Iterator[Callable[[str, int, Iterable["Recorded"]], Iterable["Recorded"]]]:
    """Shows one progress bar after the other on a terminal."""
    from gateway.show import progress_bar

    def watch(title: str, total: int, records: Iterable["Recorded"]) -> Iterator["Recorded"]:
        with progress_bar(title, total, shown=shown) as advance:
            yield from advance(records)

    yield watch


def _print(line: str, detail: str) -> None:
    from rich.markup import escape

    from gateway.show import console

    out = console()
    out.print(escape(line), soft_wrap=True)
    out.print(escape(detail), style="dim", soft_wrap=True)
