"""`order-ledger backup` and `order-ledger restore`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    from gateway.show import open_ledger
    from ledger.backup import back_up

    settings = settings_of({"data": data})
    path = Path(folder).expanduser().absolute()
    with failures(), contextlib.closing(open_ledger(settings)) as store, _watched(shown=not as_json) as watch:
        manifest = back_up(store, path, at=datetime.now(UTC), version=version("order-ledger"), watch=watch)
    _tell(manifest, as_json, f"backup of {manifest.last_seq} events in {path}, verified")


@click.command()
@click.argument("folder", metavar="DIR")
@data_option
@json_option
def restore(folder: str, data: str | None, as_json: bool) -> None:
    """Put the backup DIR into an empty ledger: that of the data folder, or LEDGER_URL.

    Orders sent after the backup are then unknown to this ledger. What ClickHouse, the audit log or NATS hold of them
    stops the next start of the service, until you decide.
    """
    from ledger.backup import read_manifest
    from ledger.backup import restore as put_back
    from ledger.store import open_store

    settings = settings_of({"data": data})
    path = Path(folder).expanduser().absolute()
    with failures():
        read_manifest(path)  # before a new ledger is made for it
        with (
            contextlib.closing(open_store(settings.ledger_url.reveal())) as store,
            _watched(shown=not as_json) as watch,
        ):
            manifest = put_back(path, store, watch)
            name = store.name
    _tell(manifest, as_json, f"restored {manifest.last_seq} events into {name}, verified")


@contextlib.contextmanager
def _watched(*, shown: bool) -> Iterator[Callable[[str, int, Iterable["Recorded"]], Iterable["Recorded"]]]:
    """Shows one progress bar after the other on a terminal."""
    from gateway.show import progress_bar

    def watch(title: str, total: int, records: Iterable["Recorded"]) -> Iterator["Recorded"]:
        with progress_bar(title, total, shown=shown) as advance:
            yield from advance(records)

    yield watch


def _tell(manifest: Any, as_json: bool, line: str) -> None:
    import msgspec

    if as_json:
        print_json(msgspec.to_builtins(manifest))
        return
    from gateway.show import console

    out = console()
    out.print(line, soft_wrap=True)
    out.print(
        f"ledger {manifest.ledger_id}, account {manifest.login} on {manifest.server}, head {manifest.digest}",
        style="dim",
        soft_wrap=True,
    )
