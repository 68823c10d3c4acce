"""The audit log without Kafka: append-only files, one line per record, in the form the record has in Kafka.

Files are named by their first event and its day and change with the day and at a size; both are judged at each
commit, by the ledger alone, so that a rebuild writes the same files. A batch is on the disk when `write` returns.
Whatever stands behind the last complete seal is a torn write and is cut off before anything is added.

Signed heads stand in `seals.jsonl` besides, as stored, one a line. They are written before their batch, so that none
is missing, and what a repeated batch finds there already is not written again. Nothing is ever cut off from that
file but a torn line: it is a witness against the ledger.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ledger.events import HeadSigned, Recorded, seq_of
from ledger.seal import batches
from projections.follower import SEALED, Batch, Position, SinkRefused
from projections.records import AuditRecord, audit_record, position_of, recorded_from

T = TypeVar("T")
HEADS_FILE: Final = "seals.jsonl"
FILE_BYTES: Final = 64 * 1024 * 1024
_TAIL: Final = 256 * 1024
_PIECE: Final = 1024 * 1024
_SIGNED: Final = HeadSigned.topic()
_SEAL_MARK: Final = f'"topic":"{SEALED}"'.encode()
# The length of the file is made durable with its bytes; only its times are not.
_sync: Final = getattr(os, "fdatasync", os.fsync)
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_decoder = msgspec.json.Decoder(AuditRecord)
_encoder = msgspec.json.Encoder()


class AuditFilesSink:
    """Writes to `folder`; `file_bytes` is the size at which a file is followed by the next."""

    name = "audit"

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._folder, self._limit = folder, file_bytes
        self._file: Path | None = None
        self._size = 0
        self._heads: set[bytes] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")

    async def open(self) -> None:
        await self._call(lambda: self._folder.mkdir(parents=True, exist_ok=True, mode=0o700))

    async def position(self) -> Position | None:
        return await self._call(self._recover_all)

    async def write(self, batch: Batch) -> None:
        await self._call(lambda: self._append_all(batch.records))

    async def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _recover_all(self) -> Position | None:
        held = self._recover()
        self._heads = _heads_behind(self._folder / HEADS_FILE, held.seq if held else 0)
        return held

    def _append_all(self, records: Sequence[Recorded]) -> None:
        heads = [one.state for one in records if one.topic == _SIGNED]
        self._flush(self._folder / HEADS_FILE, [one for one in heads if one not in self._heads])
        self._append(records)
        self._heads.difference_update(heads)

    def _recover(self) -> Position | None:
        """Cuts off what is torn and finds the last seal, from the end of the last file. Raises SinkRefused when
        something is missing before it, which no power cut does: each file is on the disk before the next begins."""
        self._file = None
        for path in reversed(files(self._folder)):
            found = _last_seal(path)
            if found is None:
                # Nothing in it was ever complete; its events are written again under the same name.
                path.unlink()
                _sync_folder(self._folder)
                continue
            end, seal = found
            _refuse_holes(self._folder, path, end, seal)
            with path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) != end:
                    file.truncate(end)
                    os.fsync(file.fileno())
            self._file, self._size = path, end
            return position_of(seal)
        return None

    def _append(self, records: Iterable[Recorded]) -> None:
        """Writes commit by commit; one fsync per file touched, mostly one per batch."""
        lines: list[bytes] = []
        path, size = self._file, self._size
        for commit in batches(records):
            made = [audit_record(one) for one in commit]
            day = made[-1].headers["recorded_at"][:10]
            if path is None or size >= self._limit or day_of(path) != day:
                if path is not None:
                    self._flush(path, lines)
                lines, size = [], 0
                path = self._folder / f"{commit[0].seq:016d}-{day}.jsonl"
            for one in made:
                lines.append(_encoder.encode(one))
                size += len(lines[-1]) + 1
        if path is not None:
            self._flush(path, lines)
        self._file, self._size = path, size

    def _flush(self, path: Path, lines: list[bytes]) -> None:
        if not lines:
            return
        is_new = not path.exists()
        data = memoryview(b"\n".join(lines) + b"\n")
        descriptor = os.open(path, _APPEND, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            _sync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(self._folder)


def files(folder: Path) -> list[Path]:
    """The audit files, oldest first."""
    return sorted(folder.glob("[0-9]*-*.jsonl"))


def day_of(path: Path) -> str:
    """The day (UTC) in the name of an audit file."""
    return path.stem.partition("-")[2]


def read_audit(folder: Path) -> Iterator[Recorded]:
    """Every event in the files, in order, up to the last complete line.

    Raises SinkRefused at a line that is no record, unless it is the torn end of the last file.
    """
    found = files(folder)
    for path in found:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n") and path == found[-1]:
                    return
                try:
                    yield recorded_from(_decoder.decode(line))
                except (msgspec.MsgspecError, ValueError, KeyError) as error:
                    raise SinkRefused(f"{path.name} line {number} is no audit record: {error}") from None


def _heads_behind(path: Path, seq: int) -> set[bytes]:
    """The heads in the file that stand behind this seq in the ledger. Cuts off a torn line."""
    found: set[bytes] = set()
    whole = 0
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                os.fsync(file.fileno())
                break
            whole += len(line)
            with contextlib.suppress(msgspec.MsgspecError, ValueError):  # verification tells of a line that is no head
                if seq_of(line) > seq:
                    found.add(line.rstrip(b"\n"))
    return found


def _last_seal(path: Path) -> tuple[int, Recorded] | None:
    """The last complete seal line: where it ends, and the seal. Reads from the end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = _TAIL
        while True:
            start = max(0, size - length)
            file.seek(start)
            data = file.read(size - start)
            end = data.rfind(b"\n") + 1
            while end > 0:
                begin = data.rfind(b"\n", 0, end - 1) + 1
                if begin == 0 and start > 0:
                    break  # this line begins before what was read
                line = data[begin:end]
                if _SEAL_MARK in line and (seal := _as_seal(line)) is not None:
                    return start + end, seal
                end = begin
            if start == 0:
                return None
            length *= 4


def _refuse_holes(folder: Path, last: Path, end: int, seal: Recorded) -> None:
    """Raises SinkRefused unless each file goes on where the one before it ends, and the last has a line per event.
    What is changed inside of an older file, verification finds."""
    for path, following in pairwise(files(folder)):
        found, wanted = _last_seal(path), _first_of(following) - 1
        if found is None or found[1].seq != wanted:
            raise _hole(f"{path.name} ends at event {found[1].seq if found else 0}, not at {wanted}")
    with last.open("rb") as file:
        lines = sum(file.read(min(_PIECE, end - begin)).count(b"\n") for begin in range(0, end, _PIECE))
    if (wanted := seal.seq - _first_of(last) + 1) != lines:
        raise _hole(f"{last.name} has {lines} lines for {wanted} events")


def _hole(what: str) -> SinkRefused:
    return SinkRefused(
        f"the audit files have a hole: {what}",
        "put back the file as it was, or move all of them away: they are written anew from the ledger",
    )


def _first_of(path: Path) -> int:
    """The first event in an audit file, by its name."""
    return int(path.stem.partition("-")[0])


def _as_seal(line: bytes) -> Recorded | None:
    try:
        recorded = recorded_from(_decoder.decode(line))
    except (msgspec.MsgspecError, ValueError, KeyError):
        return None
    return recorded if recorded.topic == SEALED else None


def _sync_folder(folder: Path) -> None:
    """Makes a new or removed name durable, where folders can be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
