"""`order-ledger backup` and `order-ledger restore`."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from gateway.cli_common import Failure, data_option, failures, json_option, print_json, settings_of
from gateway.config import Settings

if TYPE_CHECKING:
    from ledger.backup import Watch
    from ledger.events import Recorded
    from ledger.seal import Verification
    from ledger.store import EventStore

    PutBack = Callable[[EventStore], Verification]


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


class Log(Protocol):
    """What Kafka holds, as `restore` and `verify` ask it."""

    brokers: str

    def ledgers(self) -> list[str]: ...
    def last_seq(self, ledger_id: str) -> int: ...
    def read(self, ledger_id: str) -> Iterable["Recorded"]: ...
    def heads(self, ledger_id: str) -> Iterable["Recorded"]: ...


def restore_command(
    read_audit: Callable[[Path], Iterable["Recorded"]], open_kafka: Callable[[Settings], Log]
) -> click.Command:
    """`restore`. `read_audit`: the events that the audit files of a folder hold; `open_kafka`: what Kafka holds."""

    @click.command()
    @click.argument("folder", metavar="[DIR]", required=False)
    @data_option
    @click.option(
        "--audit", metavar="DIR", help="Add what came after the backup, from the audit files in DIR (DATA/audit)."
    )
    @click.option("--from-kafka", is_flag=True, help="Instead of a backup: all that KAFKA_BROKERS hold of a ledger.")
    @click.option("--ledger", "ledger_id", metavar="ID", help="Which ledger, where Kafka holds more than one.")
    @click.option(
        "--from-audit-files", metavar="DIR", help="Instead of a backup: all that the audit files in DIR hold."
    )
    @json_option
    def restore(
        folder: str | None,
        data: str | None,
        audit: str | None,
        from_kafka: bool,
        ledger_id: str | None,
        from_audit_files: str | None,
        as_json: bool,
    ) -> None:
        """Put the backup DIR into an empty ledger: that of the data folder, or LEDGER_URL. Or build it from the audit
        log, byte for byte: from Kafka, or from audit files.

        Orders sent after the backup, or after the end of the log, are then unknown to this ledger. What NATS,
        ClickHouse or the audit log hold of them stops the next start of the service on the same data folder, until
        you decide: restore with --audit, or into a new data folder, where everything is rebuilt from the ledger. Look
        at the broker before the second.
        """
        from ledger.errors import BackupUnusable

        settings = settings_of({"data": data})
        if (folder is not None) + from_kafka + (from_audit_files is not None) != 1:
            raise Failure("restore from one thing: the folder of a backup, --from-kafka or --from-audit-files DIR")
        if audit is not None and folder is None:
            raise Failure("--audit adds to a backup: name its folder")
        if ledger_id is not None and not from_kafka:
            raise Failure("--ledger chooses among those that Kafka holds: give --from-kafka")
        with failures(), _watched(shown=not as_json) as watch:
            logs = [_path(one) for one in (audit, from_audit_files) if one is not None]
            for one in logs:
                if not one.is_dir():
                    raise BackupUnusable(f"there is no folder {one}: name the one with the audit files")
            if from_kafka:
                put_back = _from_kafka(open_kafka(settings), ledger_id, watch)
            elif from_audit_files is not None:
                put_back = _from_files(logs[0], read_audit, watch)
            else:
                put_back = _from_backup(_path(str(folder)), logs, read_audit, watch)
            with _to_be_filled(settings.ledger_url.reveal()) as store:
                found = put_back(store)
                line = f"restored {found.last_seq} events into {store.name}, verified"
        if as_json:
            print_json({"ledger_id": found.ledger_id, "last_seq": found.last_seq, "digest": found.head})
        else:
            _print(line, f"head {found.head}")

    return restore


@contextlib.contextmanager
def _to_be_filled(url: str) -> Iterator["EventStore"]:
    """The ledger to restore into. A file made for it is taken away again when nothing came of it: a later start
    would find an emptied ledger there."""
    from ledger.errors import LedgerError
    from ledger.store import open_store, sqlite_path

    path = sqlite_path(url)
    made = path if path is not None and not path.exists() else None
    store = open_store(url)
    try:
        yield store
    except BaseException:
        with contextlib.suppress(LedgerError):
            if made is not None:
                _remove_empty(store, made)
        raise
    finally:
        store.close()


def _remove_empty(store: "EventStore", path: Path) -> None:
    """Unless somebody else is at work on it or has been."""
    lock = store.lock()
    try:
        if store.head() is None:
            store.close()
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
    finally:
        lock.release()


def _from_backup(
    folder: Path, logs: list[Path], read_audit: Callable[[Path], Iterable["Recorded"]], watch: "Watch"
) -> "PutBack":
    from ledger.backup import read_manifest, restore

    read_manifest(folder)  # before a new ledger is made for it
    later = (lambda: read_audit(logs[0])) if logs else None
    return lambda store: restore(folder, store, watch, later)


def _from_files(folder: Path, read_audit: Callable[[Path], Iterable["Recorded"]], watch: "Watch") -> "PutBack":
    from ledger.backup import restore_log

    return lambda store: restore_log(lambda: read_audit(folder), store, f"the audit log {folder}", watch)


def _from_kafka(log: Log, ledger_id: str | None, watch: "Watch") -> "PutBack":
    from ledger.backup import restore_log
    from ledger.errors import BackupUnusable

    found = [ledger_id] if ledger_id is not None else log.ledgers()
    if len(found) != 1:
        which = (
            f"the ledgers {', '.join(found)}: choose one by --ledger" if found else "no ledger from its beginning on"
        )
        raise BackupUnusable(f"Kafka at {log.brokers} holds {which}")
    (chosen,) = found
    last = log.last_seq(chosen)
    if not last:
        raise BackupUnusable(f"Kafka at {log.brokers} holds nothing of ledger {chosen}")
    what = f"the log of ledger {chosen} at {log.brokers}"
    return lambda store: restore_log(lambda: log.read(chosen), store, what, watch, last)


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
