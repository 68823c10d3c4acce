"""The events of a span of time as a file for auditors: JSON lines or Parquet, in `seq` order.

Nothing is decoded that could change: `data` of a JSON line and `state` of a Parquet row are the stored bytes. The
span goes by `recorded_at`. That is the clock of the service, which may have been set back, so every event is looked
at: one that bears a time of the span is never left out, wherever it stands. `quick` looks the span up by
binary search instead, which is right as long as the clock never went back by more than `TOLERANCE`.
"""

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, Final, Protocol

import msgspec

from gateway.config import Settings
from gateway.show import open_ledger, progress_bar
from gateway.times import Span, iso
from ledger.errors import LedgerDamaged, LedgerError
from ledger.events import Recorded, order_stream
from ledger.store import EventStore
from ledger.values import Refused, parse_order_id

TOLERANCE: Final = timedelta(days=1)
GROUP_ROWS: Final = 50_000
GROUP_BYTES: Final = 64 * 1024 * 1024  # of stored bytes: large events make smaller row groups
LINES: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 12, 31, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

# The columns of a Parquet file and their Arrow types. `state` is the stored event, byte for byte.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "seq": ("uint64",),
    "recorded_at": ("timestamp", "us", "UTC"),
    "stream": ("string",),
    "stream_version": ("uint64",),
    "event": ("string",),
    "order_id": ("string",),
    "event_id": ("string",),
    "schema_version": ("uint16",),
    "account": ("string",),
    "actor": ("string",),
    "correlation_id": ("string",),
    "causation_id": ("string",),
    "config_version": ("string",),
    "build": ("string",),
    "state": ("binary",),
}
REPEATED: Final = ("stream", "event", "order_id", "account", "actor", "config_version", "build")


class CannotExport(LedgerError):
    """The file cannot be written, or not in this format."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported, and where to; `output` None is standard output. `force` replaces an existing file."""

    span: Span = Span()
    order_id: str = ""
    format: str = "jsonl"
    output: Path | None = None
    force: bool = False
    quick: bool = False


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. `first_seq` and `last_seq` are 0 when nothing was; times as ISO 8601."""

    events: int
    first_seq: int
    last_seq: int
    since: str | None
    until: str | None
    format: str
    output: str
    seconds: float
    events_per_s: int


class Stored(msgspec.Struct, gc=False):
    """The envelope of any event, whatever its topic and version; `source` and `data` as they stand there."""

    event_id: str
    schema_version: int
    recorded_at: datetime
    account: str = ""
    actor: str = ""
    source: msgspec.Raw = msgspec.Raw(b"null")
    correlation_id: str = ""
    causation_id: str = ""
    config_version: str = ""
    build: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class Line(msgspec.Struct, gc=False):
    """One line of JSON."""

    seq: int
    stream: str
    version: int
    event: str
    recorded_at: str
    order_id: str
    event_id: str
    schema_version: int
    account: str
    actor: str
    source: msgspec.Raw
    correlation_id: str
    causation_id: str
    config_version: str
    build: str
    data: msgspec.Raw


_stored_decoder: Final = msgspec.json.Decoder(Stored)
_encoder: Final = msgspec.json.Encoder()


def export(settings: Settings, wanted: Wanted, *, progress: bool) -> Exported:
    """Writes the events and says what was written. A file stands under its name when it is complete, or not at all.

    Raises CannotExport, LedgerError for an unknown order, LedgerDamaged for an event whose envelope cannot be read.
    """
    began = time.perf_counter()
    if wanted.format == "parquet":
        _pyarrow()  # before anything is read
    store = open_ledger(settings)
    events = first = last = 0
    try:
        selected = _selected(store, wanted, progress=progress)
        with _output(store, wanted) as file, _writing(wanted.format, file) as writer:
            for recorded, stored in selected:
                writer.add(recorded, stored)
                events += 1
                first, last = first or recorded.seq, recorded.seq
    finally:
        store.close()
    took_s = max(time.perf_counter() - began, 1e-9)
    span = wanted.span
    return Exported(
        events=events,
        first_seq=first,
        last_seq=last,
        since=iso(span.since) if span.since else None,
        until=iso(span.until) if span.until else None,
        format=wanted.format,
        output=str(wanted.output or "-"),
        seconds=round(took_s, 3),
        events_per_s=round(events / took_s),
    )


# --- what is read -----------------------------------------------------------------------------------------------


def _selected(store: EventStore, wanted: Wanted, *, progress: bool) -> Iterator[tuple[Recorded, Stored]]:
    """The events of the span that a seal covers now. What is unknown is found out at once, not at the first event."""
    head = store.head()
    last = head.seq if head else 0
    if wanted.order_id:
        return _of_span(_stream_of(store, wanted.order_id, last), wanted.span)
    first, after = 1, last
    if wanted.quick:
        first, after = _searched(store, wanted.span, last)
    scanned = takewhile(lambda one: one.seq <= after, store.scan(first - 1))
    return _of_span(_shown(scanned, after - first + 1, shown=progress), wanted.span, strict=wanted.quick)


def _stream_of(store: EventStore, order_id: str, last: int) -> list[Recorded]:
    try:
        stream = order_stream(parse_order_id(order_id))
    except Refused as refused:
        raise LedgerError(str(refused)) from None
    found = [one for one in store.stream(stream) if one.seq <= last]
    if not found:
        raise LedgerError(f"no order {order_id!r} in this ledger: check the id, or name its data folder by --data")
    return found


def _shown(records: Iterable[Recorded], total: int, *, shown: bool) -> Iterator[Recorded]:
    with progress_bar("exporting", max(total, 0), shown=shown) as advance:
        yield from advance(records)


def _of_span(records: Iterable[Recorded], span: Span, *, strict: bool = False) -> Iterator[tuple[Recorded, Stored]]:
    latest = _EPOCH
    for recorded in records:
        stored = _stored(recorded)
        moment = stored.recorded_at
        latest = max(latest, moment)
        if strict and latest - moment > TOLERANCE:
            raise CannotExport(
                f"the clock was set back by more than a day before event {recorded.seq}: leave --quick out"
            )
        if span.holds(moment):
            yield recorded, stored


def _stored(recorded: Recorded) -> Stored:
    try:
        return _stored_decoder.decode(recorded.state)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LedgerDamaged(
            f"event {recorded.seq} cannot be read ({error}): run `order-ledger verify`", recorded.seq
        ) from None


def _searched(store: EventStore, span: Span, last: int) -> tuple[int, int]:
    """The seqs between which all events of the span lie.

    A probe tells the time of one event. No event before it is later, and none behind it earlier, by more than
    TOLERANCE: so every event before one of `since - TOLERANCE` is too early, every event behind one of
    `until + TOLERANCE` too late.
    """

    def first_at(moment: datetime) -> int:
        low, high = 1, last + 1
        while low < high:
            middle = (low + high) // 2
            found = store.at(middle)
            if found is None:
                raise LedgerDamaged(f"event {middle} is missing: run `order-ledger verify`", middle)
            if _stored(found).recorded_at < moment:
                low = middle + 1
            else:
                high = middle
        return low

    first = first_at(span.since - TOLERANCE) if span.since and span.since - _EPOCH > TOLERANCE else 1
    if span.until and _END - span.until > TOLERANCE:
        last = min(first_at(span.until + TOLERANCE), last)
    return first, last


# --- where it goes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _output(store: EventStore, wanted: Wanted) -> Iterator[IO[bytes]]:
    """The file to write to, under its own name only when all went well."""
    path = wanted.output
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        _check(path, store, force=wanted.force)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _check(path, store, force=wanted.force)
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise CannotExport(f"cannot write {path}: {reason}. Name a file that can be written by --output") from None


def _check(path: Path, store: EventStore, *, force: bool) -> None:
    if path.is_dir():
        raise CannotExport(f"{path} is a folder: name a file in it")
    ledger = Path(store.name)
    if path.resolve() in {ledger.with_name(f"{ledger.name}{end}").resolve() for end in ("", "-wal", "-shm", ".lock")}:
        raise CannotExport(f"{path} is the ledger itself: name another file")
    if path.exists() and not force:
        raise CannotExport(f"{path} exists already: name another file, or replace it by --force")


class _Writer(Protocol):
    def add(self, recorded: Recorded, stored: Stored) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


@contextlib.contextmanager
def _writing(format: str, file: IO[bytes]) -> Iterator[_Writer]:
    writer: _Writer = _Parquet(file) if format == "parquet" else _Lines(file)
    try:
        yield writer
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


class _Lines:
    """A JSON object for each event, one a line."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lines: list[Line] = []

    def add(self, recorded: Recorded, stored: Stored) -> None:
        self._lines.append(
            Line(
                recorded.seq,
                recorded.stream,
                recorded.version,
                recorded.topic,
                iso(stored.recorded_at),
                _order_of(recorded.stream),
                stored.event_id,
                stored.schema_version,
                stored.account,
                stored.actor,
                stored.source,
                stored.correlation_id,
                stored.causation_id,
                stored.config_version,
                stored.build,
                stored.data,
            )
        )
        if len(self._lines) == LINES:
            self.finish()

    def finish(self) -> None:
        self._file.write(_encoder.encode_lines(self._lines))
        self._lines.clear()

    def abandon(self) -> None:
        self._lines.clear()


class _Parquet:
    """Rows in groups of bounded size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._arrow, parquet = _pyarrow()
        self._types = [getattr(self._arrow, kind)(*arguments) for kind, *arguments in COLUMNS.values()]
        self._writer = parquet.ParquetWriter(
            file,
            self._arrow.schema(list(zip(COLUMNS, self._types, strict=True))),
            compression="zstd",
            use_dictionary=list(REPEATED),
            write_statistics=[name for name in COLUMNS if name != "state"],
        )
        self._recorded: list[Recorded] = []
        self._stored: list[Stored] = []
        self._bytes = 0

    def add(self, recorded: Recorded, stored: Stored) -> None:
        self._recorded.append(recorded)
        self._stored.append(stored)
        self._bytes += len(recorded.state)
        if len(self._recorded) == GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        # Left open, it would write its end into a closed file when it is collected.
        with contextlib.suppress(Exception):
            self._writer.close()

    def _flush(self) -> None:
        if not self._recorded:
            return
        columns = self._columns()
        arrays = [self._arrow.array(columns[name], type=kind) for name, kind in zip(COLUMNS, self._types, strict=True)]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, names=list(COLUMNS)), row_group_size=GROUP_ROWS)
        self._recorded.clear()
        self._stored.clear()
        self._bytes = 0

    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {
            "seq": [one.seq for one in self._recorded],
            "recorded_at": [(one.recorded_at - _EPOCH) // _MICROSECOND for one in self._stored],
            "stream": [one.stream for one in self._recorded],
            "stream_version": [one.version for one in self._recorded],
            "event": [one.topic for one in self._recorded],
            "order_id": [_order_of(one.stream) for one in self._recorded],
            "state": [one.state for one in self._recorded],
        }
        for name in COLUMNS.keys() - columns.keys():
            columns[name] = [getattr(one, name) for one in self._stored]
        return columns


def _order_of(stream: str) -> str:
    return stream.removeprefix("order/") if stream.startswith("order/") else ""


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CannotExport("Parquet needs the extra: pip install 'order-ledger[parquet]', or --format jsonl") from error
    return pyarrow, parquet


def print_exported(done: Exported, *, as_json: bool) -> None:
    """The summary: on standard output, or on standard error when the events went there."""
    out = sys.stderr if done.output == "-" else sys.stdout
    if as_json:
        print(msgspec.json.encode(done).decode(), file=out)
        return
    name = "standard output" if done.output == "-" else done.output
    span = f"{done.since or 'the beginning'} to {done.until or 'the end'}"
    if done.events:
        seqs, rate = f"seq {done.first_seq} to {done.last_seq}", f"{done.seconds} s ({done.events_per_s} events/s)"
        print(f"{name}: {done.events} events, {span}, {seqs}, in {rate}", file=out)
        print("as it is stored: `order-ledger verify` tells whether that is what was recorded", file=out)
    else:
        print(f"{name}: no events were recorded in the span {span}", file=out)
