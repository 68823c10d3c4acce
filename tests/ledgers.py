"""Ledgers on SQLite, written by the writer: orders of every kind, interleaved, with a clock the test sets."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

from ledger.commands import OrderCommand
from ledger.store import open_store
from ledger.writer import Cause, Ledger
from tests.decider import answer, check, deal, receive, start, unknown

BEGINNING = datetime(2026, 3, 1, 12, tzinfo=UTC)
CAUSE = Cause(actor="client", correlation_id="corr-1")


def _sent(order_id: str) -> list[OrderCommand]:
    return [receive(order_id=order_id), check(), start(1)]


# By the state they end in: the commands of an order and the number of its deal.
LIVES: dict[str, Callable[[str, int], list[OrderCommand]]] = {
    "filled": lambda order_id, n: [*_sent(order_id), answer("success", deal(n))],
    "filled in two": lambda order_id, n: [
        *_sent(order_id),
        answer("success", deal(n, "0.1", price=Decimal("1.1")), deal(n + 1, "0.2", price=Decimal("1.4"))),
    ],
    "partially_filled": lambda order_id, n: [*_sent(order_id), answer("success", deal(n, "0.1"))],
    "rejected": lambda order_id, _: [receive(order_id=order_id), check(False, 10019)],
    "refused": lambda order_id, _: [receive(order_id=order_id, volume="NaN")],
    "unknown": lambda order_id, _: [*_sent(order_id), unknown()],
    "requested": lambda order_id, _: [receive(order_id=order_id)],
    "filled, and again": lambda order_id, n: [
        *_sent(order_id),
        answer("success", deal(n)),
        *[receive(order_id=order_id)] * 3,
    ],
}


def clock(random: Random, *, set_back: bool) -> Callable[[], datetime]:
    """Moves on by up to a second at each look; is now and then set back by up to a minute."""
    now = BEGINNING

    def look() -> datetime:
        nonlocal now
        now += timedelta(microseconds=random.randrange(1_000_000))
        if set_back and random.random() < 0.1:
            now -= timedelta(seconds=random.randrange(60))
        return now

    return look


async def write_ledger(
    folder: Path, orders: int, clock: Callable[[], datetime], random: Random, first: int = 0
) -> None:
    """Writes the orders `o-{number}` one event here, one there. A ledger that exists is continued; each close leaves
    a checkpoint."""
    url = f"sqlite:///{folder / 'ledger.db'}"
    ledger = await Ledger.open(open_store(url), login=5001, server="Demo", clock=clock, build="test")
    names = list(LIVES)
    todo = {f"o-{n}": LIVES[names[n % len(names)]](f"o-{n}", 10 * n + 1) for n in range(first, first + orders)}
    while todo:
        order_id = random.choice(list(todo))
        await ledger.execute(order_id, todo[order_id].pop(0), CAUSE).durable
        if not todo[order_id]:
            del todo[order_id]
    await ledger.close()
