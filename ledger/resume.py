"""What a writer needs before it may write: the lock, the end of the chain, the open orders."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from ledger.account import Account, evolve_account
from ledger.errors import ForeignLedger, LedgerDamaged, LedgerLocked
from ledger.events import BatchSealed, Checkpointed, LedgerCreated, Recorded, account_stream, event_of, order_stream
from ledger.order import Order, evolve
from ledger.store import EventStore, WriterLock, last_seal


class Beginning(NamedTuple):
    """Whose ledger it is, and the seal that the next batch continues."""

    created: LedgerCreated
    head: Recorded
    seal: BatchSealed


class _LockInWaiting:
    """The lock of a writer that took over: its own as soon as the displaced writer lets go of it."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._lock: WriterLock | None = None

    def check(self) -> None:
        if self._lock is not None:
            self._lock.check()
            return
        with contextlib.suppress(LedgerLocked):  # until then the seals alone keep the other one out
            self._lock = self._store.lock()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def lock_or_displace(store: EventStore, *, take_over: bool) -> tuple[WriterLock, bool]:
    """The writer's lock, and whether another writer holds it and must be displaced.

    Raises LedgerLocked when another one holds it and is not to be displaced.
    """
    try:
        return store.lock(), False
    except LedgerLocked:
        if not take_over:
            raise
        return _LockInWaiting(store), True


def beginning(store: EventStore, login: int, server: str) -> Beginning | None:
    """Where to continue; None in an empty ledger.

    Raises ForeignLedger when the ledger is bound to another account, LedgerDamaged, UnknownSchema.
    """
    found = last_seal(store)
    if found is None:
        return None
    first = store.at(1)
    created = event_of(first) if first is not None else None
    if not isinstance(created, LedgerCreated):
        raise LedgerDamaged(f"ledger {store.name} does not begin with its creation: run verify", 1)
    if (created.login, created.server) != (login, server):
        raise ForeignLedger(
            f"ledger {store.name} belongs to account {created.login} on {created.server}, "
            f"the terminal is logged in to {login} on {server}: name the right folder or account"
        )
    return Beginning(created, *found)


def standing(store: EventStore, checkpoint: int, login: int) -> tuple[dict[str, Order], Account]:
    """The orders that have not ended, and the account: as they stood at the checkpoint, and what came after it."""
    touched: dict[str, None] = {}
    account = Account()
    if checkpoint:
        found = store.at(checkpoint)
        data = event_of(found) if found is not None else None
        if not isinstance(data, Checkpointed):
            raise LedgerDamaged(f"the checkpoint {checkpoint} is missing: run verify", checkpoint)
        touched.update(dict.fromkeys(data.open_orders))
        account = Account(halts=data.halts)
    ours = account_stream(login)
    for recorded in store.scan(checkpoint):
        kind, _, order_id = recorded.stream.partition("/")
        if kind == "order":
            touched[order_id] = None
        elif recorded.stream == ours:
            account = evolve_account(account, event_of(recorded))  # type: ignore[arg-type]  # its stream holds its events
    orders = {order.order_id: order for order in read_orders(store, list(touched)) if order.is_open}
    return orders, account


def read_orders(store: EventStore, order_ids: Sequence[str]) -> list[Order]:
    """Those of the orders that exist, in the order of the ids; one query for many of them."""
    found = store.streams([order_stream(one) for one in order_ids])
    return [_fold(one, found[stream]) for one in order_ids if (stream := order_stream(one)) in found]


def _fold(order_id: str, records: Sequence[Recorded]) -> Order:
    order = Order(order_id=order_id)
    for recorded in records:
        order = evolve(order, event_of(recorded))  # type: ignore[arg-type]  # an order's stream holds its events
    return order
