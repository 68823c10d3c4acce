"""What a stretch of the ledger gives for every table but `order_events`: folded here, or by a process of its own.

Folding many events is bound by Python, so a rebuild gives it a processor of its own: `python -m projections.folding`.
In on its stdin: a `Stretch`, then for each `Wanted` the folds of those positions. Out on its stdout: `Part`s in the
order of the ledger, `Wanted` when the fold needs positions from before it, at last `Done` or `Failed`. Each is msgpack
behind its length. It ends with its pipes, and takes no signal that a terminal sends to a whole group.
"""

import contextlib
import gc
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, Final

import msgspec

from ledger.errors import LedgerError, LedgerUnavailable
from ledger.events import Recorded
from ledger.store import EventStore, open_store
from projections.digest import batches_of
from projections.feed import Feed, Folds
from projections.measure import peak_mb
from projections.tables import TABLES, Row, block

_LENGTH: Final = struct.Struct("<Q")
_BY_NAME: Final = {table.name: table for table in TABLES}


class Sizes(msgspec.Struct, frozen=True):
    """Events at a time, at least. Few are `folded`, so that what they become stays in the processor's cache (a quarter
    of the time); more are `packed` as a block and many inserted as a `part`, which costs the database least."""

    folded: int = 128
    packed: int = 4_096
    part: int = 16_384


class Stretch(msgspec.Struct, frozen=True):
    """The events after `after` up to the last seal that is not behind `until`."""

    ledger_url: str
    after: int
    until: int
    sizes: Sizes


class Part(msgspec.Struct, frozen=True, tag=True):
    """The blocks that the events up to `seq`, since the part before, give each table."""

    seq: int
    blocks: dict[str, list[bytes]]


class Wanted(msgspec.Struct, frozen=True, tag=True):
    """Asks for the folds of these positions before a seq. Every part given so far is to be in the tables."""

    account: str
    ids: list[int]
    seq: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The stretch is folded; the most memory that took, MB."""

    peak_mb: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The ledger cannot be folded, or (`unavailable`) not be read now."""

    text: str
    unavailable: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Part | Wanted | Done | Failed).decode


def stretch_of(store: EventStore, after: int, until: int) -> Iterator[Recorded]:
    for one in store.scan(after):
        if one.seq > until:
            return
        yield one


class _Folding:
    """Gives parts as they fill up; before it asks for folds, also one that is not full."""

    def __init__(self, store: EventStore, folds: Folds, give: Callable[[Part], None], sizes: Sizes) -> None:
        self._store, self._give, self._sizes = store, give, sizes
        self._rows: dict[str, list[Row]] = {}
        self._unpacked = self._waiting = self._seq = 0
        self._blocks: dict[str, list[bytes]] = {}

        def asked(account: str, ids: Sequence[int], seq: int) -> Iterable[str]:
            self._flush()
            return folds(account, ids, seq)

        self._feed = Feed(store.streams, asked)

    def run(self, after: int, until: int) -> None:
        for batch in batches_of(stretch_of(self._store, after, until), self._sizes.folded):
            for name, rows in self._feed.derived(batch).items():
                self._rows.setdefault(name, []).extend(rows)
            self._seq = batch.position.seq
            self._unpacked += len(batch)
            self._waiting += len(batch)
            if self._unpacked >= self._sizes.packed:
                self._pack()
            if self._waiting >= self._sizes.part:
                self._flush()
        self._flush()

    def _pack(self) -> None:
        for name, rows in self._rows.items():
            self._blocks.setdefault(name, []).append(block(_BY_NAME[name], rows))
        self._rows, self._unpacked = {}, 0

    def _flush(self) -> None:
        if self._waiting:
            self._pack()
            part, self._blocks, self._waiting = Part(self._seq, self._blocks), {}, 0
            self._give(part)


def fold_here(
    store: EventStore, after: int, until: int, folds: Folds, give: Callable[[Part], None], sizes: Sizes
) -> None:
    """Raises LedgerError, msgspec.MsgspecError for bytes that are no event, and what `folds` and `give` raise."""
    _Folding(store, folds, give, sizes).run(after, until)


def fold_beside(url: str, after: int, until: int, folds: Folds, give: Callable[[Part], None], sizes: Sizes) -> float:
    """The same by a process of its own, of the ledger at this URL; the most memory that process had, MB.

    Raises LedgerUnavailable also when that process ends before its work, LedgerError for bytes that are no event.
    """
    command = [sys.executable, "-m", "projections.folding"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # then the read tells
                _send(child.stdin, Stretch(url, after, until, sizes))
            while True:
                match _decode(_receive(child.stdout)):
                    case Part() as part:
                        give(part)
                    case Wanted() as wanted:
                        _send(child.stdin, list(folds(wanted.account, wanted.ids, wanted.seq)))
                    case Done() as done:
                        return done.peak_mb
                    case Failed() as failed:
                        raise (LedgerUnavailable if failed.unavailable else LedgerError)(failed.text)
        except (EOFError, BrokenPipeError):
            raise LedgerUnavailable("the process that folds the ledger ended: run the rebuild again") from None
        finally:
            child.kill()


def _send(pipe: IO[bytes], message: Any) -> None:
    encoded = _encode(message)
    pipe.write(_LENGTH.pack(len(encoded)))
    pipe.write(encoded)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Raises EOFError."""
    head = pipe.read(_LENGTH.size)
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    found = pipe.read(size)
    if not size or len(found) < size:
        raise EOFError
    return found


def main() -> int:
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # The frames have a descriptor of their own: what a library prints must not end up between them.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        pipe = sys.stdin.buffer
        stretch = msgspec.msgpack.decode(_receive(pipe), type=Stretch)

        def folds(account: str, ids: Sequence[int], seq: int) -> list[str]:
            _send(out, Wanted(account, list(ids), seq))
            return msgspec.msgpack.decode(_receive(pipe), type=list[str])

        gc.disable()  # as in a rebuild
        try:
            store = open_store(stretch.ledger_url, readonly=True)
            fold_here(store, stretch.after, stretch.until, folds, lambda part: _send(out, part), stretch.sizes)
            _send(out, Done(peak_mb()))
        except (LedgerError, msgspec.MsgspecError) as error:
            _send(out, Failed(str(error), isinstance(error, LedgerUnavailable)))
    return 0


if __name__ == "__main__":
    try:
        exit_code = main()
    except (EOFError, BrokenPipeError):  # whoever asked is gone
        exit_code = 1
    os._exit(exit_code)
