"""Positions as of a time, folded from the whole ledger: what was known then, or what had happened at the broker."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, Literal

from ledger.book import Book, positions_at_broker
from ledger.events import Envelope, Recorded, decode
from ledger.positions import Position
from ledger.store import PAGE, EventStore

By = Literal["recorded", "broker"]
_HIDDEN: Final = frozenset({"base", "tail", "void"})


def positions_of(
    store: EventStore, moment: datetime, by: By, advance: Callable[[Iterable[Recorded]], Iterable[Recorded]] = iter
) -> list[Position]:
    """By identifier, those that were closed included. Raises LedgerError.

    `recorded`: what we knew at that time. `broker`: what had happened at the broker by then, as everything recorded
    since tells it.
    """
    head = store.head()
    total = head.seq if head else 0
    pairs = ((one, decode(one)) for one in advance(store.scan()) if one.seq <= total)
    if by == "broker":
        return sorted(positions_at_broker(pairs, moment).values(), key=lambda one: one.position_id)
    book = Book(positions_kept=total + 1)
    page: list[tuple[Recorded, Envelope]] = []
    for one in pairs:
        if one[1].recorded_at <= moment:
            page.append(one)
        if len(page) >= PAGE:
            _take(book, store, page)
            page = []
    _take(book, store, page)
    return sorted((one for one in book.positions if not one.void), key=lambda one: one.position_id)


def _take(book: Book, store: EventStore, page: list[tuple[Recorded, Envelope]]) -> None:
    """Orders that the book has forgotten are read again, so that memory has a bound."""
    missing = book.missing_orders(recorded for recorded, _ in page)
    for stream, events in store.streams([f"order/{order_id}" for order_id in missing]).items():
        order_id = stream.removeprefix("order/")
        before = (one for one in events if one.version < missing[order_id])
        book.learn_order(order_id, ((one, decode(one)) for one in before))
    book.take(page)
    book.trim()


def shown(position: Position) -> dict[str, object]:
    """For machines: as it is, without what only the fold needs."""
    return {name: getattr(position, name) for name in position.__struct_fields__ if name not in _HIDDEN}
