"""Which orders hold what their requests act on, from the look at it until nothing of the request acts on it."""

import asyncio
from collections.abc import Callable

from gateway.targets import InFlight, acts_on_target, keys_of_sent
from ledger.order import WORKING, Order
from ledger.writer import Ledger


class Flight:
    """`netting` tells whether a symbol has one position; `freed` is called with each order that may try again."""

    def __init__(
        self, ledger: Ledger, keys: InFlight, netting: Callable[[], bool], freed: Callable[[str], None]
    ) -> None:
        self._ledger, self._keys, self._netting, self._freed = ledger, keys, netting, freed
        self._resting: set[str] = set()  # closes of which a rest works at the broker

    def take_up(self, order: Order) -> None:
        """The request was sent before this process began."""
        if order.sent is not None and acts_on_target(order):
            self._keys.begin(order.order_id, keys_of_sent(order.sent, order.before, netting=self._netting()))

    def may_open(self, order_id: str, symbol: str) -> bool:
        """On a netting account: not while a close of the symbol is under way."""
        return not self._netting() or self._keys.begin(order_id, frozenset({("symbol", symbol)}), shared=True)

    def unknown(self, order: Order, settle_s: float) -> None:
        """An opening order of unknown outcome keeps closes of its symbol away only as long as it may still arrive."""
        if not acts_on_target(order) and self._keys.holds(order.order_id):
            asyncio.get_running_loop().call_later(settle_s, self.release, order.order_id)

    def acting_on(self, kind: str, number: int) -> str:
        """The order whose request on this `position` or `order` has no outcome yet; empty when there is none."""
        holder = self._keys.holder((kind, number))
        return "" if holder in self._resting else holder

    def release(self, order_id: str) -> None:
        """Gives back its target; who waited for that may try. A close that rests at the broker keeps it: another one
        beside it could, on a netting account, open the other side."""
        order = self._ledger.order(order_id)
        if order is not None and order.status in WORKING and acts_on_target(order):
            self._resting.add(order_id)
            return
        self._resting.discard(order_id)
        for waiting in self._keys.end(order_id):
            self._freed(waiting)

    def look(self) -> None:
        """Something was committed: what rested may have ended."""
        for order_id in tuple(self._resting):
            self.release(order_id)
