"""What earlier closes of an order have taken of it, on a netting account.

There its volume is part of the one position of its symbol: what stands there may be that of other orders, so the
position does not tell how much is left of one. Its closes do. They are found by the deals of the position, which the
broker keeps, and, until their deals show, by what this process has prepared.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Final

from ledger.order import Order
from ledger.trade import ZERO, Deal
from ledger.values import plain
from ledger.writer import Ledger

MAX_KEPT: Final = 1_000  # orders whose closes are known beside their deals

# By the ticket of a deal the order of ours that made it, or empty.
OwnersOf = Callable[[Sequence[Deal]], Awaitable[dict[int, str]]]


async def nobodys(_: Sequence[Deal]) -> dict[int, str]:
    return {}


class Closes:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.owners_of: OwnersOf = nobodys
        self._prepared: OrderedDict[str, set[str]] = OrderedDict()

    async def left(self, named: Order, close: Order, deals: Sequence[Deal]) -> Decimal:
        """Lots of the named order that no other close of it has taken. `deals`: those of its position."""
        opened = min((one.ticket for one in named.deals), default=0)
        owners = await self.owners_of([deal for deal in deals if deal.entry and deal.ticket > opened])
        known = self._prepared.setdefault(named.order_id, set())
        self._prepared.move_to_end(named.order_id)
        if len(self._prepared) > MAX_KEPT:
            self._prepared.popitem(last=False)
        others = {one for one in owners.values() if one} | known
        others.discard(close.order_id)
        known.add(close.order_id)
        await self._ledger.load(others)
        taken = sum((self._taken(one, named.order_id) for one in others), ZERO)
        return max(plain(named.filled_volume - taken), ZERO)

    def _taken(self, order_id: str, named: str) -> Decimal:
        order = self._ledger.order(order_id)
        if order is None or order.request is None or order.request.target_order_id != named:
            return ZERO
        return order.filled_volume if order.action == "close" else ZERO
