"""The one writer of a ledger: decides on pending state, commits in groups, seals every commit.

A producer calls `execute` (a command of one order) or `append` (a fact of another stream). The decision is made
at once, on a state that includes what is not yet durable; the returned future resolves when it is. One task takes
whatever waits, at most 256 events, gives it dense sequence numbers, closes it with its seal and stores it in one
transaction. When a commit fails the pending state is ahead of the truth: the writer stops, and the process with it.

`recorded_at` is what the clock says and may go back with it: the order of the events is that of `seq` alone.
"""

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final, NamedTuple, TypeVar

import msgspec

from ledger.account import Account, evolve_account
from ledger.commands import OrderCommand
from ledger.commit import PATIENCE_S, Committer
from ledger.decide import decide
from ledger.errors import LedgerError, LedgerFenced, LedgerLocked, LedgerUnavailable
from ledger.events import (
    WRITER_STREAM,
    BatchSealed,
    Checkpointed,
    Envelope,
    Event,
    Fresh,
    LedgerCreated,
    Recorded,
    Source,
    WriterTookOver,
    account_stream,
    decode,
    encode,
    order_stream,
    schema_version,
)
from ledger.order import Order, evolve
from ledger.order_events import OrderEvent
from ledger.resume import Beginning, beginning, lock_or_displace, read_orders, standing
from ledger.seal import GENESIS, close_seal, leaf_hash, merkle_root
from ledger.store import EventStore, WriterLock
from ledger.tail import Tail

T = TypeVar("T")
MAX_BATCH: Final = 256
MAX_ENDED_ORDERS: Final = 5_000
CHECKPOINT_EVERY: Final = 20_000
GUARD_EVERY_S: Final = 1.0
SOON_S: Final = 0.002
LOAD_AT_ONCE: Final = 64


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Who and what made an event: copied into its envelope."""

    actor: str
    source: Source | None = None
    correlation_id: str = ""
    causation_id: str = ""


class Committed(msgspec.Struct, frozen=True):
    """Events that are durable: the seq of the first, and how many."""

    first_seq: int
    events: int


class Executed(NamedTuple):
    """A decision: the state after it, its events, and the future that resolves when they are durable."""

    order: Order
    events: list[OrderEvent]
    durable: "asyncio.Future[Committed]"


class _Pending(NamedTuple):
    stream: str
    first_version: int
    events: list[Event]
    cause: Cause
    recorded_at: datetime
    durable: "asyncio.Future[Committed]"


class Ledger:
    """The writer. Made by `Ledger.open`; all methods belong to the event loop it was opened in."""

    def __init__(
        self,
        store: EventStore,
        lock: WriterLock,
        clock: Callable[[], datetime],
        *,
        build: str,
        config_version: str,
        patience_s: float,
    ) -> None:
        self._store, self._lock, self._clock = store, lock, clock
        self._build, self.config_version = build, config_version
        self.ledger_id = ""
        self.login, self.server = 0, ""
        self.epoch = 1
        self._seq = self._began_at = 0
        self._digest = GENESIS
        self._checkpoint = 0
        self._versions: OrderedDict[str, int] = OrderedDict()
        # Two processes never seal the same bytes: a commit that is found stored is known to be one's own.
        self._sealer = Cause(actor=f"writer {uuid.uuid4().hex[:12]}")
        self.account = Account()
        self._open: dict[str, Order] = {}
        self._ended: OrderedDict[str, Order] = OrderedDict()
        self._queue: deque[_Pending] = deque()
        self._taken: list[_Pending] = []
        self._wake = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._committer = Committer(store, patience_s)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="ledger-read")
        self._task: asyncio.Task[None] | None = None
        self._guard: asyncio.Task[None] | None = None
        self._closing = False
        self.failure: asyncio.Future[LedgerError] = asyncio.get_running_loop().create_future()
        self.tail = Tail(store, 0)

    @classmethod
    async def open(
        cls,
        store: EventStore,
        *,
        login: int,
        server: str,
        clock: Callable[[], datetime],
        build: str,
        config_version: str = "",
        take_over: bool = False,
        lock: WriterLock | None = None,
        patience_s: float = PATIENCE_S,
        on_full: Callable[[str], None] | None = None,
    ) -> "Ledger":
        """The writer of this ledger, with its open orders loaded; creates the ledger when it is empty. `patience_s`:
        how long a commit of unknown fate is repeated before the writer stops. `lock`: the writer's lock, where the
        caller holds it already; it is released with the ledger. `on_full`: see Committer.

        `take_over`: goes on although another writer holds the lock. `WriterTookOver` is then committed before
        anything else, and from that moment the other one, alive or paused, cannot commit: its next seal has a
        version that is taken, and an idle one sees the new head within `GUARD_EVERY_S`. It sends no order whose
        intent is not committed, so what it can still send are intents committed before the take-over. Of those,
        each call at the broker is refused by the terminal's process after its `not_after`, and on one machine the
        lock of the terminal keeps a second one from trading at all. Here they are found as open orders whose
        outcome is unknown: they are looked for at the broker, and none is believed absent before any such call
        must have ended. (A writer that was paused in the middle of a transaction on SQLite holds the file itself:
        the take-over then fails, and that process must be ended first.)

        Raises LedgerLocked (another writer), ForeignLedger (another account), LedgerDamaged, LedgerUnavailable.
        """
        if lock is not None:
            held, displacing = lock, False
        else:
            held, displacing = await asyncio.to_thread(lock_or_displace, store, take_over=take_over)
        ledger = cls(store, held, clock, build=build, config_version=config_version, patience_s=patience_s)
        try:
            found = await asyncio.to_thread(beginning, store, login, server)
            if found is not None:
                await ledger._resume(found, displacing=displacing)
            elif displacing:
                raise LedgerLocked(f"another process is just creating the ledger {store.name}: there is none yet")
            ledger._start()
            if found is None:
                ledger.ledger_id = uuid.uuid4().hex
                ledger.login, ledger.server = login, server
                created = LedgerCreated(ledger_id=ledger.ledger_id, login=login, server=server)
                await ledger.append(WRITER_STREAM, created, Cause(actor="writer"))
        except BaseException:
            await ledger._end()
            held.release()
            raise
        ledger._committer.on_full = on_full
        return ledger

    @property
    def waiting(self) -> int:
        """Appends that wait for their commit."""
        return len(self._queue)

    def commit_times(self) -> list[float]:
        """Seconds of the latest commits since the last call."""
        times = self._committer.took_s
        return [times.popleft() for _ in range(len(times))]

    @property
    def open_orders(self) -> dict[str, Order]:
        """The orders that have not ended, by order id: a view, not to be changed."""
        return self._open

    def order(self, order_id: str) -> Order | None:
        """The state of a loaded order, pending events included; None when it is not loaded."""
        return self._open.get(order_id) or self._ended.get(order_id)

    async def load(self, order_ids: Iterable[str]) -> None:
        """Makes the orders known to `execute`: from memory, or from the store (one hop for all of them). Raises
        LedgerUnavailable when the store stays away."""
        # Only here is anything forgotten: what a caller has loaded stays until it loads again.
        order_ids = list(order_ids)
        for one in order_ids:
            if one in self._ended:
                self._ended.move_to_end(one)  # somebody else may load, and forget, while this waits for the store
        while len(self._ended) > MAX_ENDED_ORDERS:
            self._ended.popitem(last=False)
        missing = [one for one in order_ids if self.order(one) is None]
        if not missing:
            return
        for order in await self._loaded(missing):
            if self.order(order.order_id) is None:  # another message may have been quicker
                self._keep(order)

    async def _loaded(self, order_ids: list[str]) -> list[Order]:
        if self._store.is_local and len(order_ids) <= LOAD_AT_ONCE:
            with contextlib.suppress(LedgerUnavailable):  # as a commit is: the thread says what is wrong if it stays
                return self._existing_orders(order_ids)
        return await self._read(lambda: self._existing_orders(order_ids))

    async def _read(self, work: Callable[[], T]) -> T:
        """Beside the loop, and as patiently as a commit."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._committer.patiently, work)

    def execute(self, order_id: str, command: OrderCommand, cause: Cause, *, soon: bool = False) -> Executed:
        """Decides, on the pending state of a loaded order. The future of no events is resolved at once.

        `soon`: something of this order that must be durable is about to follow, so the commit may wait for it, at
        most `SOON_S`: one commit then does for both.
        """
        order = self.order(order_id)
        if order is None:
            order = Order(order_id=order_id)
        events = decide(order, command)
        durable: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        if not events:
            durable.set_result(Committed(self._seq, 0))
            return Executed(order, events, durable)
        first_version = order.version + 1
        for event in events:
            order = evolve(order, event)
        self._keep(order)
        pending = _Pending(order_stream(order_id), first_version, list(events), cause, self._clock(), durable)
        self._enqueue(pending, soon=soon)
        return Executed(order, events, durable)

    def append(self, stream: str, event: Event, cause: Cause) -> "asyncio.Future[Committed]":
        """Appends a fact to a stream that is no order's."""
        if stream == account_stream(self.login):
            self.account = evolve_account(self.account, event)  # type: ignore[arg-type]  # its stream holds its events
        durable: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        # Its version is taken when the batch is made: these streams may not be in memory.
        self._enqueue(_Pending(stream, 0, [event], cause, self._clock(), durable))
        return durable

    async def close(self) -> None:
        """Commits what waits, records a checkpoint if anything was committed, releases the lock."""
        if self._task is not None and not self.failure.done():
            if self._seq != self._began_at and self._checkpoint != self._seq - 1:
                self._checkpoint_now()
            self._closing = True
            self._wake.set()
            await self._task
        await self._end()
        self._lock.release()
        self._store.close()

    async def _end(self) -> None:
        """Ends what runs beside the caller. A call to a database that hangs is not waited for."""
        for task in (self._guard, self._task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(self._committer.close)
        self._readers.shutdown(wait=False)

    # --- inside -------------------------------------------------------------------------------------------------

    def _keep(self, order: Order) -> None:
        """Open orders stay; of the others the latest, for quick answers to duplicates."""
        if order.is_open:
            self._ended.pop(order.order_id, None)
            self._open[order.order_id] = order
            return
        self._open.pop(order.order_id, None)
        self._ended[order.order_id] = order
        self._ended.move_to_end(order.order_id)

    def _existing_orders(self, order_ids: list[str]) -> list[Order]:
        """Those that exist; for the rest an empty state needs no reading."""
        existing = self._store.existing([order_stream(one) for one in order_ids])
        return read_orders(self._store, [one for one in order_ids if order_stream(one) in existing])

    async def _resume(self, found: Beginning, *, displacing: bool) -> None:
        self._continue(found)
        if displacing:
            await self._committer.displace(self._taking_over)
        self._open, self.account = await asyncio.to_thread(standing, self._store, self._checkpoint, self.login)

    def _continue(self, found: Beginning) -> None:
        created, head, seal = found
        self.ledger_id, self.login, self.server = created.ledger_id, created.login, created.server
        self.epoch = seal.epoch + 1
        self._seq = self._began_at = head.seq
        self._digest, self._checkpoint = seal.digest, seal.checkpoint
        self._versions[WRITER_STREAM] = head.version
        self.tail = Tail(self._store, head.seq)

    def _taking_over(self) -> list[Recorded]:
        """The batch that displaces the other writer, continuing the head as it stands now; nothing if that head is
        this batch already. Runs beside the loop, before anything else uses this writer."""
        found = beginning(self._store, self.login, self.server)
        assert found is not None
        if decode(found.head).actor == self._sealer.actor:
            return []
        self._continue(found)
        event = WriterTookOver(
            epoch=self.epoch, host=socket.gethostname(), pid=os.getpid(), displaced=f"epoch {found.seal.epoch}"
        )
        durable: asyncio.Future[Committed] = self.failure.get_loop().create_future()
        pending = _Pending(WRITER_STREAM, 0, [event], Cause(actor="writer"), self._clock(), durable)
        records, seal, _ = self._sealed([pending])
        self._seq, self._digest = records[-1].seq, seal.digest
        self.tail = Tail(self._store, self._seq)
        return records

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ledger-writer")
        self._guard = asyncio.create_task(self._keep_guard(), name="ledger-guard")

    def _enqueue(self, pending: _Pending, *, soon: bool = False) -> None:
        if self.failure.done() or self._closing:
            raise LedgerUnavailable("the ledger's writer has stopped")
        self._queue.append(pending)
        if not soon:
            self._wake.set()
        elif not self._wake.is_set() and self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._wake_now)

    def _wake_now(self) -> None:
        self._soon = None
        self._wake.set()

    async def _run(self) -> None:
        try:
            while (self._queue or not self._closing) and not self.failure.done():
                await self._wake.wait()
                if self._soon is not None:
                    self._soon.cancel()
                    self._soon = None
                if self._queue:
                    await self._commit(self._take())
                    await asyncio.sleep(0)  # a commit may have waited for nothing, and others want their turn
                # What came meanwhile without haste waits for its companion again, unless the batch was full.
                if not self._queue:
                    self._wake.clear()
        except LedgerError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(LedgerUnavailable(f"the ledger's writer stopped: {error!r}"))
            raise

    def _fail(self, error: LedgerError) -> None:
        if not self.failure.done():
            self.failure.set_result(error)
        self._committer.stop()
        self._wake.set()
        for pending in (*self._taken, *self._queue):
            if not pending.durable.done():
                pending.durable.set_exception(error)
                pending.durable.exception()  # the waiter may be gone; the failure itself is reported once
        self._taken = []
        self._queue.clear()

    def _take(self) -> list[_Pending]:
        batch: list[_Pending] = []
        self._taken = batch  # whatever happens from here on, their waiters hear of it
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].events) <= MAX_BATCH):
            pending = self._queue.popleft()
            size += len(pending.events)
            batch.append(pending)
        return batch

    async def _learn_versions(self, batch: list[_Pending]) -> None:
        unknown = {p.stream for p in batch if p.first_version == 0} - self._versions.keys()
        if unknown:
            self._versions.update(await self._read(lambda: {one: self._store.last_version(one) for one in unknown}))

    async def _commit(self, batch: list[_Pending]) -> None:
        await self._learn_versions(batch)
        records, seal, seqs = self._sealed(batch)
        await self._committer.commit(records)
        self._seq, self._digest = records[-1].seq, seal.digest
        self._taken = []
        for pending, first_seq in zip(batch, seqs, strict=True):
            if not pending.durable.done():
                pending.durable.set_result(Committed(first_seq, len(pending.events)))
        self.tail.extend(records)
        if self._seq - self._checkpoint >= CHECKPOINT_EVERY and not self._closing:
            self._checkpoint_now()

    def _checkpoint_now(self) -> None:
        # The state includes what is pending, and all of that is queued before this event: it fits its place.
        checkpoint = Checkpointed(open_orders=tuple(self._open), halts=self.account.halts)
        self.append(WRITER_STREAM, checkpoint, Cause(actor="writer"))

    def _sealed(self, batch: list[_Pending]) -> tuple[list[Recorded], BatchSealed, list[int]]:
        """The batch as it will be stored, its seal last, and the first seq of each entry."""
        records: list[Recorded] = []
        seqs: list[int] = []
        seq = self._seq
        for pending in batch:
            seqs.append(seq + 1)
            version = pending.first_version or self._versions[pending.stream] + 1
            for event in pending.events:
                seq += 1
                records.append(self._record(seq, pending.stream, version, event, pending.cause, pending.recorded_at))
                if isinstance(event, Checkpointed):
                    self._checkpoint = seq
                version += 1
            if not pending.first_version:
                self._versions[pending.stream] = version - 1
        root = merkle_root([leaf_hash(one) for one in records]).hex()
        version = self._versions.get(WRITER_STREAM, 0) + 1
        self._versions[WRITER_STREAM] = version
        seal = BatchSealed(
            epoch=self.epoch,
            first=self._seq + 1,
            last=seq,
            checkpoint=self._checkpoint,
            root=root,
            previous=self._digest,
            digest=GENESIS,
        )
        now = batch[-1].recorded_at
        closed = close_seal(self._record(seq + 1, WRITER_STREAM, version, seal, self._sealer, now))
        records.append(closed)
        digest = closed.state[-67:-3].decode()
        return records, msgspec.structs.replace(seal, digest=digest), seqs

    def _record(self, seq: int, stream: str, version: int, event: Event, cause: Cause, at: datetime) -> Recorded:
        topic = event.topic()
        envelope = Envelope(
            seq=seq,
            event_id=f"{self.ledger_id}:{seq}",
            schema_version=schema_version(topic),
            recorded_at=at,
            account=str(self.login),
            actor=cause.actor,
            source=cause.source,
            correlation_id=cause.correlation_id,
            causation_id=cause.causation_id,
            config_version=self.config_version,
            build=self._build,
            data=event,
        )
        return Fresh(seq, stream, version, topic, encode(envelope), envelope)

    async def _keep_guard(self) -> None:
        """Makes sure, every second, that this is still the only writer: its lock is held, and, while nothing is
        committed here, nothing was committed by anybody else. A commit that is tried again and again may find that out
        late: it waits for whoever holds the file, and that may be the other writer, time after time."""
        loop = asyncio.get_running_loop()
        seen = time.monotonic()
        try:
            while True:
                await asyncio.sleep(GUARD_EVERY_S)
                before = self._seq
                try:
                    await loop.run_in_executor(self._readers, self._lock.check)
                    head = await loop.run_in_executor(self._readers, self._store.head)
                except LedgerUnavailable:
                    # A commit would be tried as long: what heals within that time stops nothing.
                    if time.monotonic() - seen > PATIENCE_S:
                        raise
                    continue
                seen = time.monotonic()
                if head is None or head.seq <= before or self._seq != before:
                    continue
                if not self._taken or decode(head).actor != self._sealer.actor:  # else it is the commit under way
                    raise LedgerFenced(
                        f"ledger {self._store.name}: another writer committed up to {head.seq}: this one stops"
                    )
        except LedgerError as error:
            self._fail(error)
        except Exception as error:
            self._fail(LedgerUnavailable(f"the guard of the ledger's writer stopped: {error!r}"))
            raise
