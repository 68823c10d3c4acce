"""Our view of the account, as the ledger tells it: what is open, and the deals of late. Follows the ledger in slices,
in a thread, so that it keeps no order waiting; begins anew with every start of the gateway."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Final

from ledger.account_events import ExternalDealObserved, PositionCorrected, SnapshotTaken
from ledger.book import Book
from ledger.events import Envelope, Recorded, decode, order_stream
from ledger.positions import Position
from ledger.reconcile import Values, values_of
from ledger.store import EventStore

SLICE: Final = 500
PAUSE_S: Final = 0.002
DEALS_KEPT: Final = 200_000


class LedgerView:
    """`positions` and `tickets` (that changed) by identifier, of what is open; `deals` by ticket."""

    def __init__(self, store: EventStore) -> None:
        self._store, self._book = store, Book()
        self.positions: dict[int, Position] = {}
        self.tickets: dict[int, int] = {}
        self.deals: dict[int, Values] = {}

    async def catch_up(self) -> None:
        """Takes all that is durable now."""
        more = True
        while more:
            more = await asyncio.to_thread(self._slice)
            await asyncio.sleep(PAUSE_S)  # a pause between slices, for what is more urgent
        while len(self.deals) > DEALS_KEPT:
            del self.deals[next(iter(self.deals))]

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
