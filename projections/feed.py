"""Batches in, rows out: the book with what it must read when it does not keep it.

Orders and positions are folded from all their events, of which a batch holds the last ones. Of the others, an order's
earlier events are read from the ledger, and a position as it was before the batch from `position_history`, which has
every version. Both depend on the batch alone and not on what happened to be kept, so a restart, a repetition and a
rebuild give the same rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ledger.book import Book, Changes
from ledger.errors import LedgerUnavailable
from ledger.events import Envelope, Recorded, decode, order_stream
from projections.follower import Batch
from projections.rows import derived_rows, position_of, rows_of
from projections.tables import Row

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# All events of these streams, by stream.
Past = Callable[[Sequence[str]], Mapping[str, Sequence[Recorded]]]
# The folds of these positions before a seq: (account, identifiers, seq).
Folds = Callable[[str, Sequence[int], int], Iterable[str]]

_FOLDS = (
    "SELECT argMax(fold, seq) FROM {table} WHERE ledger_id = {ledger:String} AND account = {account:String} "
    "AND position_id IN ({ids}) AND seq < {seq:UInt64} GROUP BY position_id"
)


def no_past(streams: Sequence[str]) -> Mapping[str, Sequence[Recorded]]:
    """For a ledger that cannot be read beside its batches: one that needs earlier events has to wait."""
    raise LedgerUnavailable(f"the earlier events of {streams[0]} cannot be read")


def folds_of(client: "Callable[[], Client]", table: str, ledger_id: str) -> Folds:
    """Reads `position_history`, by the name given."""

    def read(account: str, ids: Sequence[int], seq: int) -> Iterable[str]:
        sql = _FOLDS.replace("{table}", table).replace("{ids}", ", ".join(map(str, ids)))
        found = client().query(sql, parameters={"ledger": ledger_id, "account": account, "seq": seq})
        return [str(row[0]) for row in found.result_rows]

    return read


class Feed:
    """The rows of consecutive batches. A batch that does not follow the last one begins afresh."""

    def __init__(self, past: Past, folds: Folds) -> None:
        self._past, self._folds = past, folds
        self._book = Book()

    def forget(self) -> None:
        """What was taken last did not get to the tables."""
        self._book = Book()

    def rows(self, batch: Batch) -> dict[str, list[Row]]:
        """By table, only tables that have any. Raises LedgerUnavailable when earlier events cannot be read."""
        return rows_of(*self._taken(batch))

    def derived(self, batch: Batch) -> dict[str, list[Row]]:
        """The same without `order_events`, whose rows need no fold."""
        return derived_rows(*self._taken(batch))

    def _taken(self, batch: Batch) -> tuple[list[tuple[Recorded, Envelope]], Changes]:
        first = batch.records[0].seq
        if self._book.seq != first - 1:
            self.forget()
        book = self._book
        pairs = list(zip(batch.records, batch.envelopes, strict=True))
        book.trim()
        self._learn_orders(book.missing_orders(batch.records))
        wanted = book.missing_positions(pairs)
        if wanted and first > 1:
            account = next((one.account for one in batch.envelopes if one.account), "")
            for fold in self._folds(account, sorted(wanted), first):
                book.learn_position(position_of(fold))
        return pairs, book.take(pairs)

    def _learn_orders(self, missing: dict[str, int]) -> None:
        if not missing:
            return
        found = self._past([order_stream(one) for one in missing])
        for order_id, version in missing.items():
            known = [one for one in found.get(order_stream(order_id), ()) if one.version < version]
            if len(known) != version - 1:
                raise LedgerUnavailable(f"order {order_id} lacks events before version {version}")
            self._book.learn_order(order_id, [(one, decode(one)) for one in known])
