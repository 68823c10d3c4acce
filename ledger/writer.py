"""The one writer of a ledger: decides on pending state, commits in groups, seals every commit.

A producer calls `execute` (a command of one order) or `append` (a fact of another stream). The decision is made
at once, on a state that includes what is not yet durable; the returned future resolves when it is. One task takes
whatever waits, at most 256 events, gives it dense sequence numbers, closes it with its seal and stores it in one
transaction. When a commit fails the pending state is ahead of the truth: the writer stops, and the process with it.
"""

import asyncio
import contextlib
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from queue import SimpleQueue
from typing import Final, NamedTuple

import msgspec

from ledger.commands import OrderCommand
from ledger.decide import decide
from ledger.errors import ForeignLedger, LedgerDamaged, LedgerError, LedgerFenced, LedgerUnavailable
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
    decode,
    encode,
    order_stream,
    schema_version,
)
from ledger.order import Order, evolve
from ledger.order_events import OrderEvent
from ledger.seal import GENESIS, close_seal, leaf_hash, merkle_root
from ledger.store import EventStore, VersionTaken, WriterLock, last_seal
from ledger.tail import Tail

MAX_BATCH: Final = 256
MAX_ENDED_ORDERS: Final = 5_000
CHECKPOINT_EVERY: Final = 20_000
HEAD_CHECK_S: Final = 1.0
SOON_S: Final = 0.002
LOAD_AT_ONCE: Final = 64
COMMIT_ATTEMPTS: Final = 5


def _event_of(recorded: Recorded) -> Event:
    """The event. Raises LedgerDamaged when its bytes are none, UnknownSchema when they are of a newer version."""
    try:
        return decode(recorded).data
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LedgerDamaged(f"event {recorded.seq} cannot be read ({error}): run verify", recorded.seq) from None


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


class _CommitThread:
    """Runs one commit after the other outside the loop; a pool would cost more than the hop itself."""

    def __init__(self, work: Callable[[list[Recorded]], None]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[list[Recorded], asyncio.Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)
        self._thread.start()

    def run(self, records: list[Recorded]) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((records, done))
        return done

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            records, done = job
            failure: BaseException | None = None
            try:
                self._work(records)
            except BaseException as error:  # whatever it is, the loop must hear of it
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                self._loop.call_soon_threadsafe(_settle, done, failure)


def _settle(done: "asyncio.Future[None]", failure: BaseException | None) -> None:
    if done.cancelled():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


class Ledger:
    """The writer. Made by `Ledger.open`; all methods belong to the event loop it was opened in."""

    def __init__(
        self, store: EventStore, lock: WriterLock, clock: Callable[[], datetime], *, build: str, config_version: str
    ) -> None:
        self._store, self._lock, self._clock = store, lock, clock
        self._build, self.config_version = build, config_version
        self.ledger_id = ""
        self.login, self.server = 0, ""
        self.epoch = 1
        self._seq = 0
        self._digest = GENESIS
        self._checkpoint = 0
        self._versions: OrderedDict[str, int] = OrderedDict()
        self._open: dict[str, Order] = {}
        self._ended: OrderedDict[str, Order] = OrderedDict()
        self._queue: deque[_Pending] = deque()
        self._taken: list[_Pending] = []
        self._wake = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._thread = _CommitThread(self._store_durably)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="ledger-read")
        self._task: asyncio.Task[None] | None = None
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
    ) -> "Ledger":
        """The writer of this ledger, with its open orders loaded; creates the ledger when it is empty.

        Raises LedgerLocked (another writer), ForeignLedger (another account), LedgerDamaged, LedgerUnavailable.
        """
        lock = await asyncio.to_thread(store.lock)
        ledger = cls(store, lock, clock, build=build, config_version=config_version)
        try:
            found = await asyncio.to_thread(last_seal, store)
            if found is None:
                ledger.ledger_id = uuid.uuid4().hex
                ledger.login, ledger.server = login, server
                ledger._start()
                created = LedgerCreated(ledger_id=ledger.ledger_id, login=login, server=server)
                await ledger.append(WRITER_STREAM, created, Cause(actor="writer"))
            else:
                head, seal = found
                await asyncio.to_thread(ledger._resume, head, seal, login, server)
                ledger.tail = Tail(store, head.seq)
                ledger._start()
        except BaseException:
            lock.release()
            await asyncio.to_thread(ledger._thread.close)
            raise
        return ledger

    @property
    def open_orders(self) -> dict[str, Order]:
        """The orders that have not ended, by order id: a view, not to be changed."""
        return self._open

    def order(self, order_id: str) -> Order | None:
        """The state of a loaded order, pending events included; None when it is not loaded."""
        return self._open.get(order_id) or self._ended.get(order_id)

    async def load(self, order_ids: Iterable[str]) -> None:
        """Makes the orders known to `execute`: from memory, or from the store (one hop for all of them)."""
        # Only here is anything forgotten: what a caller has loaded stays until it loads again.
        while len(self._ended) > MAX_ENDED_ORDERS:
            self._ended.popitem(last=False)
        missing = [one for one in order_ids if self.order(one) is None]
        if not missing:
            return
        if self._store.is_local and len(missing) <= LOAD_AT_ONCE:
            loaded = self._read_orders(missing)
        else:
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(self._readers, self._read_orders, missing)
        for order in loaded:
            if self.order(order.order_id) is None:  # another message may have been quicker
                self._keep(order)

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
        durable: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        # Its version is taken when the batch is made: these streams may not be in memory.
        self._enqueue(_Pending(stream, 0, [event], cause, self._clock(), durable))
        return durable

    async def close(self) -> None:
        """Commits what waits, records a checkpoint, releases the lock."""
        if self._task is not None and not self.failure.done():
            if self._checkpoint != self._seq - 1:
                self._checkpoint_now()
            self._closing = True
            self._wake.set()
            await self._task
        self._lock.release()
        await asyncio.to_thread(self._thread.close)
        self._readers.shutdown(wait=True)
        self._store.close()

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

    def _read_orders(self, order_ids: list[str]) -> list[Order]:
        """Those that exist; for the rest an empty state needs no reading."""
        existing = self._store.existing([order_stream(one) for one in order_ids])
        return [self._read_order(one) for one in order_ids if order_stream(one) in existing]

    def _read_order(self, order_id: str) -> Order:
        order = Order(order_id=order_id)
        for recorded in self._store.stream(order_stream(order_id)):
            order = evolve(order, _event_of(recorded))  # type: ignore[arg-type]  # an order's stream holds its events
        return order

    def _resume(self, head: Recorded, seal: BatchSealed, login: int, server: str) -> None:
        first = self._store.at(1)
        created = _event_of(first) if first is not None else None
        if not isinstance(created, LedgerCreated):
            raise LedgerDamaged(f"ledger {self._store.name} does not begin with its creation", 1)
        if (created.login, created.server) != (login, server):
            raise ForeignLedger(
                f"ledger {self._store.name} belongs to account {created.login} on {created.server}, "
                f"the terminal is logged in to {login} on {server}: name the right folder or account"
            )
        self.ledger_id, self.login, self.server = created.ledger_id, created.login, created.server
        self.epoch = seal.epoch + 1
        self._seq, self._digest, self._checkpoint = head.seq, seal.digest, seal.checkpoint
        self._versions[WRITER_STREAM] = head.version
        touched: dict[str, None] = {}
        if seal.checkpoint:
            found = self._store.at(seal.checkpoint)
            data = _event_of(found) if found is not None else None
            if not isinstance(data, Checkpointed):
                raise LedgerDamaged(f"the checkpoint {seal.checkpoint} is missing: run verify", seal.checkpoint)
            touched.update(dict.fromkeys(data.open_orders))
        for recorded in self._store.scan(seal.checkpoint):
            kind, _, order_id = recorded.stream.partition("/")
            if kind == "order":
                touched[order_id] = None
        for order_id in touched:
            order = self._read_order(order_id)
            if order.is_open:
                self._open[order_id] = order

    def _start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ledger-writer")

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
            while self._queue or not self._closing:
                if not self._wake.is_set() and not self._closing:
                    try:
                        async with asyncio.timeout(HEAD_CHECK_S):
                            await self._wake.wait()
                    except TimeoutError:
                        await self._check_head()
                        continue
                if self._soon is not None:
                    self._soon.cancel()
                    self._soon = None
                if self._queue:
                    await self._commit(self._take())
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
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._readers, self._last_versions, unknown)
            self._versions.update(found)

    def _last_versions(self, streams: set[str]) -> dict[str, int]:
        return {stream: self._store.last_version(stream) for stream in streams}

    async def _commit(self, batch: list[_Pending]) -> None:
        await self._learn_versions(batch)
        records, seal, seqs = self._sealed(batch)
        if self._store.is_local:
            # A commit on a local file takes less time than the way to another thread and back.
            self._store_durably(records)
            await asyncio.sleep(0)
        else:
            await self._thread.run(records)
        self._seq, self._digest = records[-1].seq, seal.digest
        for pending, first_seq in zip(batch, seqs, strict=True):
            if not pending.durable.done():
                pending.durable.set_result(Committed(first_seq, len(pending.events)))
        self.tail.extend(records)
        if self._seq - self._checkpoint >= CHECKPOINT_EVERY and not self._closing:
            self._checkpoint_now()

    def _checkpoint_now(self) -> None:
        # The state includes what is pending, and all of that is queued before this event: it fits its place.
        self.append(WRITER_STREAM, Checkpointed(open_orders=tuple(self._open)), Cause(actor="writer"))

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
        closed = close_seal(self._record(seq + 1, WRITER_STREAM, version, seal, Cause(actor="writer"), now))
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

    def _store_durably(self, records: list[Recorded]) -> None:
        """Stores the batch; a commit whose reply was lost is repeated identically and settled by its seal."""
        for attempt in range(COMMIT_ATTEMPTS):
            try:
                self._store.insert(records)
                return
            except VersionTaken:
                if self._store.is_stored(records[-1]):
                    return
                raise LedgerFenced(
                    f"ledger {self._store.name}: another writer committed at {records[0].seq}: this one stops"
                ) from None
            except LedgerUnavailable:
                if attempt == COMMIT_ATTEMPTS - 1:
                    raise

    async def _check_head(self) -> None:
        """An idle writer makes sure that it still is the only one."""
        loop = asyncio.get_running_loop()
        head = await loop.run_in_executor(self._readers, self._store.head)
        if head is not None and head.seq > self._seq:
            raise LedgerFenced(f"ledger {self._store.name}: another writer committed up to {head.seq}: this one stops")
        await loop.run_in_executor(self._readers, self._lock.check)
