"""What of the embedded tables is on the disk, without an fsync for every insert.

An fsync per part and table, many times a second, holds up the ledger, whose own fsync waits for the same disk. So the
embedded tables are written without, the whole file system is synced now and then, and a mark beside the engine's
folder tells up to which event that was done, and in which run of the machine. A killed process loses nothing, since
the system writes on. After a power cut (another run of the machine) the events behind the mark are taken out of
`order_events`, so that they are taken again from the ledger, with all the rows they make.
"""

import ctypes
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from projections.follower import SinkUnavailable

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
SYNC_EVERY_S: Final = 60.0


def boot_id() -> str:
    """Of this run of the machine; empty where the system does not tell: then every insert has its fsync."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class _Held(msgspec.Struct, frozen=True):
    boot: str
    seq: int


class Mark:
    """The mark of one engine's folder and database. Not thread-safe."""

    def __init__(self, folder: Path, database: str, boot: str | None = None) -> None:
        self._folder = folder
        self._file = folder.parent / f"{folder.name}.{database}.synced"
        self._boot = boot_id() if boot is None else boot
        self._synced_at = time.monotonic()

    def lost_behind(self) -> int | None:
        """The last event that is surely on the disk, where a power cut may have taken later ones; None: all is there.

        Without a mark nothing is sure: the tables are new, or somebody removed it."""
        if not self._boot:
            return None
        try:
            held = msgspec.json.decode(self._file.read_bytes(), type=_Held)
        except (OSError, msgspec.MsgspecError):
            return 0
        return None if held.boot == self._boot else held.seq

    def set(self, seq: int) -> None:
        """Brings everything to the disk, then says so. Raises SinkUnavailable when the disk refuses."""
        if not self._boot:
            return
        try:
            _sync(self._folder)
            new = self._file.with_suffix(".new")
            with new.open("wb") as file:
                file.write(msgspec.json.encode(_Held(self._boot, seq)))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._file)
        except OSError as error:
            raise SinkUnavailable(f"the ClickHouse folder cannot be synced: {error}") from error
        self._synced_at = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._synced_at >= SYNC_EVERY_S


def _sync(folder: Path) -> None:
    """All that was written to the file system of this folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
