"""Backup and restore: a ledger as one SQLite file and a manifest, from either database into either.

The file holds every event up to a seal, byte for byte, in the library's table. It is taken while the writer runs,
because what is committed never changes. A backup exists only when it was verified from the disk; a restore commits
in one step, and only into an empty ledger.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Final

import msgspec

from ledger.errors import BackupUnusable, LedgerDamaged, LedgerUnavailable
from ledger.events import LedgerCreated, Recorded, event_of
from ledger.seal import Verification, batches, verify
from ledger.store import EventStore, create_file, last_seal, open_file

EVENTS: Final = "events.db"
MANIFEST: Final = "manifest.json"
FORMAT: Final = 1

Watch = Callable[[str, int, Iterable[Recorded]], Iterable[Recorded]]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds: all events of this ledger up to the seal `last_seq`, whose digest is `digest`."""

    format: int = FORMAT
    ledger_id: str
    login: int
    server: str
    last_seq: int
    digest: str
    taken_at: datetime
    version: str


def _unwatched(_: str, __: int, records: Iterable[Recorded]) -> Iterable[Recorded]:
    return records


def back_up(store: EventStore, folder: Path, *, at: datetime, version: str, watch: Watch = _unwatched) -> Manifest:
    """Writes the ledger to the new folder, up to its last seal, and returns the manifest that stands there.

    `watch` gets a title, the number of events and the events, and returns them: for a progress bar.
    Raises BackupUnusable when something stands at `folder` or the ledger is empty, LedgerDamaged when it is not
    sound, LedgerUnavailable when it cannot be read or the folder cannot be written. Then there is no backup.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BackupUnusable(f"{folder} exists already and is left as it is: name a new folder")
    found = last_seal(store)
    first = store.at(1)
    created = event_of(first) if first is not None else None
    if found is None:
        raise BackupUnusable(f"the ledger {store.name} is empty: there is nothing to back up")
    if not isinstance(created, LedgerCreated):
        raise LedgerDamaged(f"ledger {store.name} does not begin with its creation: run verify", 1)
    head, seal = found
    manifest = Manifest(
        ledger_id=created.ledger_id,
        login=created.login,
        server=created.server,
        last_seq=head.seq,
        digest=seal.digest,
        taken_at=at,
        version=version,
    )
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    with _writing(folder):
        try:
            scratch.mkdir(parents=True, mode=0o700)
            _copy(takewhile(lambda one: one.seq <= head.seq, store.scan()), scratch / EVENTS, head.seq, watch)
            _confirm(scratch, manifest, watch, f"the ledger {store.name}")
            (scratch / EVENTS).chmod(0o400)
            (scratch / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
            for path in (scratch / EVENTS, scratch / MANIFEST, scratch):
                _sync(path)
            scratch.rename(folder)
            _sync(folder.parent)
        finally:
            if scratch.exists():
                shutil.rmtree(scratch)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What the backup says of itself. Raises BackupUnusable when there is none that can be read."""
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise BackupUnusable(f"no backup at {folder}: {path.name}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise BackupUnusable(f"no backup at {folder}: {path.name} cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise BackupUnusable(f"the backup {folder} has format {manifest.format}, known is {FORMAT}: upgrade")
    return manifest


def restore(
    folder: Path, store: EventStore, watch: Watch = _unwatched, later: Callable[[], Iterable[Recorded]] | None = None
) -> Verification:
    """Stores the events of a backup in an empty ledger, byte for byte, in one step, and returns what is there then.

    `later` gives, each time it is called, the same events of the same ledger from a log kept elsewhere: those behind
    the backup are restored too, up to the last whole commit. Everything is verified before anything is written, and
    the ledger afterwards. Raises BackupUnusable or LedgerDamaged when the backup is not what its manifest says, or
    the log does not continue it, LedgerLocked when a writer is at work, LedgerUnavailable when the ledger is not
    empty or cannot be written: then it is as it was.
    """
    manifest = read_manifest(folder)
    whole = _confirm(folder, manifest, watch, f"the backup {folder}")
    with contextlib.closing(_open(folder)) as source:

        def records() -> Iterator[Recorded]:
            yield from source.scan()
            if later is not None:
                behind = (one for one in later() if one.seq > manifest.last_seq)
                for batch in batches(behind):
                    yield from batch

        if later is not None:
            whole = verify(watch("verifying what came later", manifest.last_seq, records()))
            _must_be_sound(whole, f"what the log adds to the backup {folder}")
        return _filled(store, records(), whole, watch)


def restore_log(
    log: Callable[[], Iterable[Recorded]], store: EventStore, what: str, watch: Watch = _unwatched, total: int = 0
) -> Verification:
    """Stores a whole ledger that was kept elsewhere, byte for byte, in an empty one, and returns what is there then.

    `log` gives, each time it is called, the same events from the first on, in order; what stands behind the last
    whole commit is left out. `what` names it for a person, `total` is how many events it has, if known. Everything is
    verified before anything is written, and the ledger afterwards. Raises BackupUnusable when the log is empty,
    LedgerDamaged when it is not sound, LedgerLocked when a writer is at work, LedgerUnavailable when the ledger is not
    empty or cannot be written: then it is as it was.
    """

    def records() -> Iterator[Recorded]:
        for batch in batches(log()):
            yield from batch

    whole = verify(watch(f"verifying {what}", total, records()))
    _must_be_sound(whole, what)
    if not whole.events:
        raise BackupUnusable(f"{what} holds no whole commit: there is nothing to restore")
    return _filled(store, records(), whole, watch)


def _filled(store: EventStore, records: Iterable[Recorded], whole: Verification, watch: Watch) -> Verification:
    verified = takewhile(lambda one: one.seq <= whole.last_seq, records)  # a log may have grown meanwhile
    lock = store.lock()
    try:
        store.fill(watch("restoring", whole.last_seq, verified))
        found = verify(watch("verifying the ledger", whole.last_seq, store.scan()))
    finally:
        lock.release()
    _must_be_sound(found, f"the ledger {store.name}")
    _must_end(found, whole.ledger_id, whole.last_seq, whole.head, f"the ledger {store.name}")
    return found


def _copy(records: Iterable[Recorded], path: Path, total: int, watch: Watch) -> None:
    with contextlib.closing(create_file(path)) as target:
        target.fill(watch("copying", total, records))


def _confirm(folder: Path, manifest: Manifest, watch: Watch, what: str) -> Verification:
    with contextlib.closing(_open(folder)) as source:
        found = verify(watch("verifying the backup", manifest.last_seq, source.scan()))
    _must_be_sound(found, what)
    _must_end(found, manifest.ledger_id, manifest.last_seq, manifest.digest, what)
    return found


def _must_be_sound(found: Verification, what: str) -> None:
    if not found.ok:
        raise LedgerDamaged(f"{what} is not sound: {found.problem}: run verify", found.first_bad_seq or 0)


def _must_end(found: Verification, ledger_id: str, last_seq: int, digest: str, what: str) -> None:
    if (found.ledger_id, found.last_seq, found.head) != (ledger_id, last_seq, digest):
        raise LedgerDamaged(
            f"{what} ends at event {found.last_seq} ({found.head[:12]}…), not at {last_seq} ({digest[:12]}…)",
            min(found.last_seq, last_seq) + 1,
        )


def _open(folder: Path) -> EventStore:
    path = folder / EVENTS
    if not path.is_file():
        raise BackupUnusable(f"the backup {folder} has no {EVENTS}")
    return open_file(path.absolute())


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerUnavailable(f"cannot write the backup {folder}: {error.strerror}") from error


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable; not every platform opens folders for that."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
