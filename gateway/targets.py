"""PURE: what a request acts on, and which requests may be under way at the same time.

One request is in flight for each target (design: closes, modifies and cancels are proven on the target itself, so
two at once could not be told apart). On a netting account a deal of a symbol moves the one position it has: there a
close excludes the opening orders of its symbol too, or both together could open the other side.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.broker import Target
from gateway.requests import Refusal
from ledger.facts import OrderRequest
from ledger.order import AT_BROKER, IDLE, WORKING, Order, Status
from ledger.trade import ACTION_DEAL, TargetImage, TradeRequest

Key = tuple[str, int | str]
_CHANGED: Final = ("sl", "tp", "price", "stop_limit_price", "expires_at", "time_in_force")


class Aim(NamedTuple):
    """The target, by the broker's own numbers. `cap`: what of the position the named order opened."""

    target: Target
    cap: Decimal | None = None


class Withdraw(NamedTuple):
    """A cancel of an order of ours that has not been sent."""

    order_id: str


class Pending(NamedTuple):
    """The named order of ours is on its way: what it becomes must be known first."""

    order_id: str


def acts_on_target(order: Order) -> bool:
    return order.action != "open"


def aim_of(request: OrderRequest, find: Callable[[str], Order | None]) -> Aim | Withdraw | Pending | Refusal:
    """What the request is aimed at. `find`: an order of ours by its id."""
    if request.target_order_id is None:
        return Aim(
            Target(
                position_id=request.position_id or 0,
                position_by_id=request.position_by_id or 0,
                order_ticket=request.order_ticket or 0,
            )
        )
    named = find(request.target_order_id)
    if named is None:
        return Refusal((f"there is no order {request.target_order_id}",))
    if named.action != "open":
        return Refusal((f"order {named.order_id} is a {named.action or 'refused message'}: it has opened nothing",))
    if request.action == "cancel":
        return _cancelled(named)
    return _closed_or_changed(request, named)


def _cancelled(named: Order) -> Aim | Withdraw | Pending | Refusal:
    if named.status in IDLE:
        return Withdraw(named.order_id)
    if named.status in WORKING:
        return Aim(Target(order_ticket=named.order_ticket))
    if named.status in AT_BROKER:
        return Pending(named.order_id)
    return Refusal((f"order {named.order_id} is {named.status.value}: nothing of it is left to cancel",))


def _closed_or_changed(request: OrderRequest, named: Order) -> Aim | Pending | Refusal:
    if request.action == "modify" and named.status in WORKING:
        return Aim(Target(order_ticket=named.order_ticket))
    if named.filled_volume and named.position_id:
        return Aim(Target(position_id=named.position_id), cap=named.filled_volume)
    if named.status in IDLE or named.status in (Status.SENDING, Status.UNKNOWN):
        return Pending(named.order_id)
    what = "close" if request.action == "close" else "modify"
    return Refusal((f"order {named.order_id} is {named.status.value}: there is nothing to {what}",))


def is_overtaken(older: Order, newer: Order) -> bool:
    """Whether the change that waits for its next attempt would set back what the newer one, just sent, has set."""
    one, other = older.request, newer.request
    if one is None or other is None or older.action != "modify" or older.status not in IDLE:
        return False
    if target_of(older) is None or target_of(older) != target_of(newer):
        return False
    return any(getattr(one, name) is not None and getattr(other, name) is not None for name in _CHANGED)


def target_of(order: Order) -> Target | None:
    """What the last attempt acted on, by the image that was recorded with its intent."""
    return target_shown(order.before) if order.before is not None else None


def target_shown(image: TargetImage) -> Target:
    return Target(
        position_id=image.position.identifier if image.position else 0,
        position_by_id=image.position_by.identifier if image.position_by else 0,
        order_ticket=image.order.ticket if image.order else 0,
    )


def exclusive_keys(target: Target, symbol: str = "", *, netting: bool = False) -> frozenset[Key]:
    """What a request on this target needs for itself alone. `symbol`: of a close, which on a netting account excludes
    every other deal of its symbol."""
    keys: set[Key] = {("position", one) for one in (target.position_id, target.position_by_id) if one}
    if target.order_ticket:
        keys.add(("order", target.order_ticket))
    if netting and symbol:
        keys.add(("symbol", symbol))
    return frozenset(keys)


def keys_of_sent(request: TradeRequest, before: TargetImage | None, *, netting: bool) -> frozenset[Key]:
    """The same, of a request that was sent before this process began."""
    if before is None:
        return frozenset()
    target = target_shown(before)
    closes = request.action == ACTION_DEAL
    return exclusive_keys(target, request.symbol if closes else "", netting=netting)


class InFlight:
    """Which orders hold which keys; the others wait in the order they came.

    An exclusive holder is alone; shared ones (opening orders on a netting account) tolerate each other, and do not
    overtake an exclusive one that waits. Who waits has one turn for all of its keys: if each key had a queue of its
    own, two requests on the same two targets could wait for each other, and all that come after them.
    """

    def __init__(self) -> None:
        self._exclusive: dict[Key, str] = {}
        self._shared: dict[Key, set[str]] = {}
        self._held: dict[str, frozenset[Key]] = {}
        self._waiting: dict[Key, dict[str, bool]] = {}  # whether it wants the key for itself alone
        self._turns: dict[str, int] = {}  # of those that wait
        self._wanted: dict[str, set[Key]] = {}  # by those that wait
        self._came = 0

    def holder(self, key: Key) -> str:
        """The order that has the key for itself; empty when none has."""
        return self._exclusive.get(key, "")

    def holds(self, order_id: str) -> bool:
        return order_id in self._held

    def begin(self, order_id: str, keys: frozenset[Key], *, shared: bool = False) -> bool:
        """Takes the keys, all or none. Otherwise the order waits, and `end` of another names it."""
        held = self._held.get(order_id, frozenset())
        taken = [key for key in keys - held if self._is_taken(key, order_id, shared=shared)]
        if taken:
            self._wait(order_id, taken, shared=shared)
            return False
        for key in keys:
            if shared:
                self._shared.setdefault(key, set()).add(order_id)
            else:
                self._exclusive[key] = order_id
        self._held[order_id] = held | keys
        self._forget(order_id)
        return True

    def end(self, order_id: str) -> list[str]:
        """Gives back what the order holds, and names those that may try now, in the order they came."""
        keys = self._forget(order_id) | self._held.pop(order_id, frozenset())
        ready: set[str] = set()
        for key in keys:
            if self._exclusive.get(key) == order_id:
                del self._exclusive[key]
            shared = self._shared.get(key)
            if shared is not None:
                shared.discard(order_id)
                if not shared:
                    del self._shared[key]
            ready.update(self._waiting.get(key, ()))
        return sorted(ready, key=self._turns.__getitem__)

    def _is_taken(self, key: Key, order_id: str, *, shared: bool) -> bool:
        if self._exclusive.get(key, order_id) != order_id:
            return True
        others = not shared and bool(self._shared.get(key, set()) - {order_id})
        return others or self._is_behind(key, order_id)

    def _is_behind(self, key: Key, order_id: str) -> bool:
        """Whether one that came earlier wants the key for itself alone."""
        turn = self._turns.get(order_id)
        return any(
            alone and (turn is None or self._turns[one] < turn) for one, alone in self._waiting.get(key, {}).items()
        )

    def _wait(self, order_id: str, keys: list[Key], *, shared: bool) -> None:
        """For those that are taken alone: what is free of its keys may go to others meanwhile, once."""
        if order_id not in self._turns:
            self._came += 1
            self._turns[order_id] = self._came
        self._wanted.setdefault(order_id, set()).update(keys)
        for key in keys:
            self._waiting.setdefault(key, {})[order_id] = not shared

    def _forget(self, order_id: str) -> set[Key]:
        """It waits no more. Returns the keys it waited for."""
        self._turns.pop(order_id, None)
        keys = self._wanted.pop(order_id, set())
        for key in keys:
            waiting = self._waiting[key]
            del waiting[order_id]
            if not waiting:
                del self._waiting[key]
        return keys
