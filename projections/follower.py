"""Follows the ledger into a sink: position → batch → sink, the one mechanism behind every projection.

A sink knows its own position (the last seal it holds); nothing is kept beside it. Before the first write the
follower proves that the ledger holds that very seal, so a restored backup or a wrong folder stops the start and is
never papered over. Batches end at seals. A batch that failed is offered again, unchanged, until the sink takes it.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog

from ledger.errors import LedgerError, LedgerUnavailable, SinkAhead
from ledger.events import BatchSealed, Envelope, Recorded, decode
from ledger.store import EventSource

SEALED: Final = BatchSealed.topic()
log = structlog.get_logger()
LOOK_S: Final = 0.05
FIRST_PAGE: Final = 256
# What time may heal. TimeoutError and ConnectionError are OSErrors.
HEALABLE: Final = (OSError, LedgerUnavailable)


class SinkUnavailable(ConnectionError):
    """The sink cannot take this now; the same batch may be offered again."""


class SinkRefused(LedgerError):
    """The sink can never take this: repeating would not help. `remedy` tells a person what would."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class Position(msgspec.Struct, frozen=True):
    """The last seal a sink holds without a gap before it. `highest` is the greatest seq of anything in it, where a
    gap makes that greater than `seq`; `seq` 0 then means that not even the first seal is complete."""

    seq: int
    digest: str
    highest: int = 0


class Held(Protocol):
    """What a sink's answer must at least tell: `Position`, or anything with these two."""

    @property
    def seq(self) -> int: ...
    @property
    def digest(self) -> str: ...


class Batch:
    """Consecutive events that end at a seal; decoded once, when first asked for."""

    def __init__(self, records: Sequence[Recorded]) -> None:
        self.records = records
        seal = decode(records[-1]).data
        if not isinstance(seal, BatchSealed):
            raise ValueError(  # noqa: TRY004  # the value is wrong, not a type
                f"a batch ends at a seal, not at {records[-1].topic}"
            )
        self.position = Position(records[-1].seq, seal.digest)
        self._envelopes: list[Envelope] | None = None

    @property
    def envelopes(self) -> list[Envelope]:
        """The decoded events, in the order of `records`. Raises what `ledger.events.decode` raises."""
        if self._envelopes is None:
            self._envelopes = [decode(one) for one in self.records]
        return self._envelopes

    def __len__(self) -> int:
        return len(self.records)


class Sink(Protocol):
    """Where a projection goes. A failure that time can heal is an OSError (TimeoutError, ConnectionError and
    `SinkUnavailable` are) or LedgerUnavailable; everything else stops this sink, and only this one.

    A sink that returns from `write` before all is safe has a method `check()`, which raises what `write` would have."""

    @property
    def name(self) -> str: ...

    async def open(self) -> None:
        """Connects. Called again after a failure, so it must begin afresh."""
        ...

    async def position(self) -> Held | None:
        """None when the sink holds nothing."""
        ...

    async def write(self, batch: Batch) -> None:
        """Returns when the batch is durable and visible. The same batch, or parts of it, may come again."""
        ...

    async def close(self) -> None: ...


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one follower. A batch is at least one sealed commit, however large, and at most `max_events` or
    `max_bytes` of stored bytes; `min_interval_s` is the least time between the starts of two writes while the sink
    keeps up, so that a quiet ledger does not become one insert per row. `most_lag_s`, where it is not 0, is the time in
    which an event shall be there: an event that comes just behind a batch waits for that write, the pause and its own
    write, so the pause then takes what two of the last writes leave of that time, and at least `min_interval_s`."""

    max_events: int = 8192
    max_bytes: int = 8 * 1024 * 1024
    min_interval_s: float = 0.0
    most_lag_s: float = 0.0
    calm_s: float = 0.0
    few_events: int = 0
    retry_first_s: float = 0.1
    retry_most_s: float = 30.0
    idle_s: float = 5.0


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a follower stands. `state`: starting, following, retrying, stopped (asked to), failed (gave up)."""

    sink: str
    state: str
    position: int = 0
    head: int = 0
    events: int = 0
    batches: int = 0
    retries: int = 0
    error: str = ""
    remedy: str = ""

    @property
    def lag(self) -> int:
        """Events the ledger holds and the sink does not."""
        return max(0, self.head - self.position)


class Follower:
    """Keeps one sink at the head of the ledger. `on_change` gets every new `Progress`; it must not block."""

    def __init__(
        self,
        source: EventSource,
        sink: Sink,
        pace: Pace | None = None,
        *,
        on_change: Callable[[Progress], None] | None = None,
        seed: int | None = None,
    ) -> None:
        self._source, self._sink, self._pace = source, sink, pace or Pace()
        self._on_change = on_change
        self._random = random.Random(seed)
        self._check_sink: Callable[[], None] = getattr(sink, "check", lambda: None)
        self._stop = asyncio.Event()
        self._waiting: asyncio.Future[None] | None = None
        self._attached = False
        self._pending: Batch | None = None
        self._failures_in_a_row = 0
        self._slow_s = 0.0
        self.progress = Progress(sink=sink.name, state="starting")

    async def start(self, patience_s: float = 0.0) -> bool:
        """Opens the sink and proves that it holds this ledger's past.

        Returns False when the sink cannot be reached within `patience_s`: `run` then keeps trying.
        Raises SinkAhead, or what else makes the sink unusable.
        """
        deadline = time.monotonic() + patience_s
        while not self._attached:
            try:
                await self._attach()
            except HEALABLE as error:
                pause_s = self._failed(error)
                if time.monotonic() + pause_s >= deadline:
                    return False
                await self._pause(pause_s)
            except Exception as error:
                self._gave_up(error)
                raise
        return True

    async def run(self) -> None:
        """Follows until `stop`, then takes what the ledger holds at that moment and returns.

        A failure that cannot heal ends it too: see `progress.state`. Never raises but on cancellation.
        """
        try:
            while not self._stop.is_set():
                try:
                    if not self._attached:
                        await self._attach()
                    await self._step()
                except HEALABLE as error:
                    # Whether a failed write took effect is unknown: the sink is asked for its position again.
                    self._attached = False
                    await self._pause(self._failed(error))
            await self._finish()
            self._report(state="stopped")
        except asyncio.CancelledError:
            self._report(state="stopped")
            raise
        except Exception as error:  # whatever it is, it ends this sink and no other
            self._gave_up(error)

    def stop(self) -> None:
        """Asks `run` to finish what the ledger holds and to return."""
        self._stop.set()
        if self._waiting is not None:
            self._waiting.cancel()

    def note_head(self, head: int) -> None:
        """Tells where the ledger ends, so that the lag is true also while a write takes long."""
        if head > self.progress.head:
            self._report(head=head)

    async def _attach(self) -> None:
        await self._sink.open()
        held = await self._sink.position()
        head = await self._source.head()
        if held is not None:
            await self._check(held, head)
        position = held.seq if held else 0
        if self._pending is not None and self._pending.records[0].seq != position + 1:
            self._pending = None
        self._attached = True
        state = "following" if self.progress.state == "starting" else self.progress.state
        self._report(state=state, position=position, head=max(head, self.progress.head))

    async def _check(self, held: Held, head: int) -> None:
        name = self._sink.name
        highest = max(held.seq, getattr(held, "highest", 0))
        if highest > head:
            raise SinkAhead(f"{name} holds event {highest}, but the ledger ends at {head}")
        if held.seq == 0:
            return
        seal = await self._source.at(held.seq)
        if seal is None or seal.topic != SEALED:
            raise SinkAhead(f"{name} ends at a seal {held.seq} that this ledger does not have")
        data = decode(seal).data
        if not isinstance(data, BatchSealed) or data.digest != held.digest:
            raise SinkAhead(f"{name} holds another event {held.seq} than this ledger: they share no history")

    async def _step(self) -> None:
        """One batch, or a wait until there may be one."""
        self._check_sink()
        began = time.monotonic()
        full = await self._take()
        if full is None:
            self._healthy()
            await self._until(self._source.wait(self.progress.position, self._pace.idle_s))
        elif not full:
            took_s = time.monotonic() - began
            # A write that was slow once may be again: the longest of late counts, and fades.
            self._slow_s = max(took_s, self._slow_s * 0.95)
            interval_s = max(self._pace.min_interval_s, self._pace.most_lag_s - 2 * self._slow_s)
            await self._pause(interval_s - took_s if self._pace.most_lag_s == 0 else interval_s)
            await self._calm_until(began + self._pace.calm_s)

    async def _calm_until(self, moment: float) -> None:
        """Waits until then (monotonic), or until enough is waiting to be worth a write."""
        while (left_s := moment - time.monotonic()) > 0 and not self._stop.is_set():
            if await self._source.head() - self.progress.position >= self._pace.few_events:
                return
            await self._pause(min(LOOK_S, left_s))

    async def _take(self) -> bool | None:
        """Writes one batch; None when there is none, else whether more may be waiting behind it."""
        full = False
        if self._pending is None:
            self._pending, full = await self._next_batch(self.progress.position)
        batch = self._pending
        if batch is None:
            return None
        await self._sink.write(batch)
        self._pending = None
        self._healthy()
        now, position = self.progress, batch.position.seq
        self._report(
            position=position,
            head=max(now.head, position),
            events=now.events + len(batch),
            batches=now.batches + 1,
        )
        return full

    async def _finish(self) -> None:
        """Takes the sink to where the ledger ends now. One failure ends it: what is missing is refilled later."""
        if not self._attached:
            return
        try:
            target = await self._source.head()
            while self.progress.position < target and await self._take() is not None:
                pass
        except HEALABLE as error:
            self._report(error=_text(error))

    async def _next_batch(self, after: int) -> tuple[Batch | None, bool]:
        """The next events up to a seal, and whether more may be waiting behind them."""
        pace = self._pace
        records: list[Recorded] = []
        cut = size = 0
        limit = FIRST_PAGE
        while True:
            found = await self._source.read(after + len(records), limit)
            for one in found:
                expected = after + len(records) + 1
                if one.seq != expected:
                    raise LedgerUnavailable(f"event {expected} cannot be read yet, event {one.seq} can")
                records.append(one)
                size += len(one.state)
                if one.topic == SEALED:
                    if cut and (size > pace.max_bytes or len(records) > pace.max_events):
                        return Batch(records[:cut]), True
                    cut = len(records)
            if cut and (size > pace.max_bytes or len(records) >= pace.max_events):
                return Batch(records[:cut]), True
            if len(found) < limit:
                return (Batch(records[:cut]) if cut else None), False
            # The next page by the size of these events: pages of a fixed number could be far larger than the bounds.
            fitting = max(pace.max_bytes - size, 0) * len(records) // size + 1
            limit = max(min(fitting, pace.max_events - len(records)), FIRST_PAGE)

    async def _until(self, event: Coroutine[Any, Any, None]) -> None:
        """Waits for the event or the request to stop; an error of the event is raised."""
        if self._stop.is_set():
            event.close()
            return
        # One task and no race of two: a busy ledger comes through here a thousand times a second.
        self._waiting = asyncio.ensure_future(event)
        try:
            await self._waiting
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
        finally:
            self._waiting.cancel()
            self._waiting = None

    async def _pause(self, pause_s: float) -> None:
        """Sleeps, or less when asked to stop."""
        if pause_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    def _failed(self, error: Exception) -> float:
        """Counts and tells a failure; returns how long to wait: exponential, with half of it random."""
        if self._failures_in_a_row == 0:
            log.warning("sink failed, it will be tried again", sink=self._sink.name, error=_text(error))
        self._failures_in_a_row += 1
        self._report(state="retrying", retries=self.progress.retries + 1, error=_text(error))
        doublings = min(self._failures_in_a_row - 1, 20)
        longest: float = min(self._pace.retry_most_s, self._pace.retry_first_s * 2**doublings)
        return longest * (0.5 + self._random.random() / 2)

    def _healthy(self) -> None:
        self._failures_in_a_row = 0
        if self.progress.state == "retrying":
            log.info("sink works again", sink=self._sink.name)
            self._report(state="following", error="")

    def _gave_up(self, error: Exception) -> None:
        expected = isinstance(error, LedgerError | msgspec.MsgspecError)
        log.error("sink stopped", sink=self._sink.name, error=_text(error), exc_info=None if expected else error)
        self._report(state="failed", error=_text(error), remedy=remedy_of(error))

    def _report(self, **changes: Any) -> None:
        self.progress = msgspec.structs.replace(self.progress, **changes)
        if self._on_change is not None:
            self._on_change(self.progress)


def remedy_of(error: BaseException) -> str:
    """What a person can do about an error that stopped a sink."""
    if isinstance(error, SinkRefused) and error.remedy:
        return error.remedy
    if isinstance(error, SinkAhead):
        return (
            "if the ledger was restored from a backup, restore it with --audit, which adds what the audit log holds, "
            "or into a new data folder, where all is rebuilt from the ledger; "
            "if the folder or server is another ledger's, correct the setting. Nothing was changed"
        )
    if isinstance(error, LedgerUnavailable):
        return "start the gateway before the projections, and let both name the same ledger by LEDGER_URL or --data"
    if isinstance(error, LedgerError):
        return "upgrade this program or repair the ledger, then start again: the projection continues where it stopped"
    return "see the log; after a restart the projection continues where it stopped"


def _text(error: BaseException) -> str:
    """One line of at most 500 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:500]
