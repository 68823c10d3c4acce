"""Whole lives of orders, as the benchmarks write them: received; checked and sending; answered with one deal."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from gateway.bench import LOGIN, SERVER, Meter
from ledger.commands import OrderCommand, ReceiveOrder, RecordAnswer, RecordCheck, StartSend
from ledger.errors import LedgerError
from ledger.intake import read_order
from ledger.store import EventStore
from ledger.trade import ACTION_DEAL, CheckResult, Deal, TradeRequest, TradeResult
from ledger.values import comment_of, magic_of
from ledger.writer import Cause, Executed, Ledger

LIFE_EVENTS: Final = 5
_LIVES_TOGETHER: Final = 100
_SCATTER: Final = 0x9E3779B97F4A7C15 >> 1 | 1  # odd, so that no two numbers meet
_NUMBERS: Final = 2**63
_CAUSE: Final = Cause(actor="bench")


async def open_ledger(store: EventStore) -> Ledger:
    """The writer; whoever gets it closes it. Interrupted or failed, neither lock nor connection is left open."""
    opening = asyncio.ensure_future(
        Ledger.open(store, login=LOGIN, server=SERVER, clock=lambda: datetime.now(UTC), build="bench")
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await (await opening).close()
        raise
    except LedgerError:
        store.close()
        raise


def order_id_of(ledger: Ledger, number: int) -> str:
    """A name that no start of the same ledger gives twice."""
    return f"bench-{ledger.epoch}-{number % _NUMBERS:016x}"


def numbers_of(ids: str) -> Iterator[int]:
    """What orders are named by: counting up, or in no order, as UUIDs are, which costs a database's index more."""
    counted = itertools.count(1)
    return counted if ids == "counting" else (number * _SCATTER % _NUMBERS for number in counted)


def received(order_id: str) -> ReceiveOrder:
    payload = b'{"order_id":"%s","symbol":"EURUSD","order_type":"buy","volume":0.3,"sl":1.05,"tp":1.11}'
    return ReceiveOrder(received=read_order(payload % order_id.encode()), age_from=datetime.now(UTC))


def sent(order_id: str) -> tuple[RecordCheck, StartSend]:
    request = TradeRequest(
        action=ACTION_DEAL,
        symbol="EURUSD",
        volume=Decimal("0.3"),
        price=Decimal("1.08062"),
        sl=Decimal("1.05"),
        tp=Decimal("1.11"),
        deviation=20,
        magic=magic_of(order_id, 1),
        comment=comment_of(order_id, 1),
    )
    checked = CheckResult(
        retcode=0, balance=Decimal(10_000), equity=Decimal(10_000), margin=Decimal("4.32"), comment="Done"
    )
    return RecordCheck(result=checked, passed=True), StartSend(attempt=1, request=request)


def answered(order_id: str, ticket: int) -> RecordAnswer:
    volume, price = Decimal("0.3"), Decimal("1.08062")
    deal = Deal(
        ticket=ticket,
        order=ticket,
        time_msc=1_772_373_600_123,
        magic=magic_of(order_id, 1),
        position_id=ticket,
        volume=volume,
        price=price,
        commission=Decimal("-1.05"),
        symbol="EURUSD",
        comment=comment_of(order_id, 1),
    )
    return RecordAnswer(
        attempt=1,
        result=TradeResult(retcode=10009, deal=ticket, order=ticket, volume=volume, price=price, comment="Done"),
        retcode_name="TRADE_RETCODE_DONE",
        verdict="success",
        description="the request was completed",
        latency_s=Decimal("0.0016"),
        deals=(deal,),
        point=Decimal("0.00001"),
        broker_utc_offset_s=7200,
    )


def steps(order_id: str, ticket: int) -> Iterator[tuple[OrderCommand, ...]]:
    """The commands of a life; what stands together becomes durable together."""
    yield (received(order_id),)
    yield sent(order_id)
    yield (answered(order_id, ticket),)


def execute(ledger: Ledger, order_id: str, commands: Sequence[OrderCommand]) -> Executed:
    """Gives the commands at once; the last one's future says when all of them are durable."""
    for command in commands[:-1]:
        ledger.execute(order_id, command, _CAUSE, soon=True)
    return ledger.execute(order_id, commands[-1], _CAUSE)


async def fill(store: EventStore, events: int, meter: Meter) -> float:
    """Adds whole lives, about `events` of them, and closes the ledger; the seconds it took."""
    began = time.perf_counter()
    ledger = await open_ledger(store)
    try:
        await live(ledger, events // LIFE_EVENTS, meter)
    finally:
        await ledger.close()
    return time.perf_counter() - began


async def live(ledger: Ledger, lives: int, meter: Meter) -> None:
    """Lives in bulk: only every hundredth is waited for."""
    for start in range(1, lives + 1, _LIVES_TOGETHER):
        numbers = range(start, min(start + _LIVES_TOGETHER, lives + 1))
        await ledger.load(())  # lets it forget orders that have ended
        for number in numbers:
            order_id = order_id_of(ledger, number * _SCATTER)
            last = [execute(ledger, order_id, commands) for commands in steps(order_id, number)][-1]
        await last.durable
        meter.step(len(numbers) * LIFE_EVENTS)


async def live_at(
    store: EventStore, orders_per_s: float, seconds: float, committed: Callable[[], None], meter: Meter
) -> None:
    """Adds whole lives, so many a second, and closes the ledger. `committed` is called behind each commit."""
    ledger = await open_ledger(store)
    ledger.tail.on_commit(committed)
    loop = asyncio.get_running_loop()
    began, number, orders = loop.time(), 0, int(orders_per_s * seconds)
    try:
        while number < orders:
            due = min(int((loop.time() - began) * orders_per_s) + 1, orders)
            await ledger.load(())
            meter.step(due - number)
            last = None
            while number < due:
                number += 1
                order_id = order_id_of(ledger, number * _SCATTER)
                last = [execute(ledger, order_id, commands) for commands in steps(order_id, number)][-1]
            if last is not None:
                await last.durable
            await asyncio.sleep(max(0.0, began + number / orders_per_s - loop.time()))
    finally:
        await ledger.close()
