"""Our view of the account, as the ledger tells it: what is open, and the deals of late. Follows the ledger in slices,
in a thread, so that it keeps no order waiting. A file in the data folder keeps it, so that a start goes on from there;
it is no source of truth: a file that is not of this ledger's past is left aside, and the view folded from the start."""

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import structlog

from ledger.account_events import ExternalDealObserved, PositionCorrected, SnapshotTaken
from ledger.book import Book
from ledger.events import Envelope, Recorded, decode, order_stream
from ledger.positions import Position
from ledger.reconcile import Values, values_of
from ledger.store import EventStore

log = structlog.get_logger()

VIEW_FILE: Final = "view.json"
SLICE: Final = 500
SAVE_AFTER: Final = 2_000  # events
PAUSE_S: Final = 0.002
DEALS_KEPT: Final = 200_000


class _Kept(msgspec.Struct, frozen=True):
    """The view after event `seq`, whose stored bytes have this SHA-256."""

    seq: int
    sha256: str
    positions: dict[int, Position]
    tickets: dict[int, int]
    deals: dict[int, Values]


class LedgerView:
    """`positions` and `tickets` (that changed) by identifier, of what is open; `deals` by ticket. `file` keeps it."""

    def __init__(self, store: EventStore, file: Path) -> None:
        self._store, self._file, self._book = store, file, Book()
        self._saved: int | None = None
        self.positions: dict[int, Position] = {}
        self.tickets: dict[int, int] = {}
        self.deals: dict[int, Values] = {}

    async def catch_up(self) -> None:
        """Takes all that is durable now."""
        if self._saved is None:
            await asyncio.to_thread(self._restore)
        more = True
        while more:
            more = await asyncio.to_thread(self._slice)
            await asyncio.sleep(PAUSE_S)  # a pause between slices, for what is more urgent
        self._forget()
        if self._book.seq >= (self._saved or 0) + SAVE_AFTER:
            await asyncio.to_thread(self._save)

    def catch_up_now(self) -> None:
        """The same without a pause, for a process that has nothing more urgent; and the file is left to its owner."""
        if self._saved is None:
            self._restore()
        while self._slice():
            self._forget()
        self._forget()

    def _forget(self) -> None:
        while len(self.deals) > DEALS_KEPT:
            del self.deals[next(iter(self.deals))]

    @property
    def seq(self) -> int:
        """Of the last event taken."""
        return self._book.seq

    def _restore(self) -> None:
        self._saved = 0
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the kept view of the account cannot be read: it is made again", error=str(error))
            return
        if self._digest(kept.seq) != kept.sha256:
            log.warning("the kept view of the account is not of this ledger: it is made again")
            return
        self._saved = self._book.seq = kept.seq
        self.positions, self.tickets, self.deals = kept.positions, kept.tickets, kept.deals

    def _save(self) -> None:
        seq = self._book.seq
        kept = _Kept(seq, self._digest(seq), self.positions, self.tickets, self.deals)
        new = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):  # without it the next start takes longer, no more
            new.write_bytes(msgspec.json.encode(kept))
            new.replace(self._file)
            self._saved = seq

    def _digest(self, seq: int) -> str:
        found = self._store.at(seq)
        return hashlib.sha256(found.state).hexdigest() if found is not None else ""

    def _slice(self) -> bool:
        """False when nothing was left to take."""
        records = list(islice(self._store.scan(self._book.seq), SLICE))
        if records:
            self._take([(one, decode(one)) for one in records])
        return len(records) == SLICE

    def _take(self, batch: Sequence[tuple[Recorded, Envelope]]) -> None:
        book = self._book
        book.trim()
        missing = book.missing_orders([recorded for recorded, _ in batch])
        past = self._store.streams([order_stream(one) for one in missing])
        for order_id, version in missing.items():
            known = [one for one in past.get(order_stream(order_id), ()) if one.version < version]
            book.learn_order(order_id, [(one, decode(one)) for one in known])
        for position_id in book.missing_positions(batch):
            if position_id in self.positions:
                book.learn_position(self.positions[position_id])
        changes = book.take(batch)
        for changed in changes.positions:
            position = changed.position
            if position.is_open:
                self.positions[position.position_id] = position
            else:
                self.positions.pop(position.position_id, None)
                self.tickets.pop(position.position_id, None)
        for fill in changes.fills.values():
            if not fill.fact.provisional:
                costs = (fill.commission, fill.swap, fill.fee, fill.profit)
                self.deals[fill.fact.deal] = (fill.fact.volume, fill.fact.price, *costs)
        for _, envelope in batch:
            event = envelope.data
            if isinstance(event, ExternalDealObserved):
                self.deals[event.deal.ticket] = values_of(event.deal)
            elif isinstance(event, PositionCorrected):
                self._ticket(event.position.identifier, event.position.ticket)
            elif isinstance(event, SnapshotTaken):
                for shown in event.positions:
                    self._ticket(shown.identifier, shown.ticket)

    def _ticket(self, position_id: int, ticket: int) -> None:
        if position_id in self.positions and ticket != position_id:
            self.tickets[position_id] = ticket
        else:
            self.tickets.pop(position_id, None)
