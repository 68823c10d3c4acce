"""Sealed histories for tests of what follows a ledger: small, deterministic, and true to the stored form."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec

from ledger.events import (
    WRITER_STREAM,
    BatchSealed,
    Envelope,
    Event,
    LedgerCreated,
    Recorded,
    encode,
    order_stream,
    schema_version,
)
from ledger.facts import OrderRequest, Raw
from ledger.order_events import OrderFilled, OrderPartiallyFilled, OrderRequested
from ledger.seal import GENESIS, close_seal, leaf_hash, merkle_root

BEGINNING = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)


class History:
    """Builds events as the writer stores them. `clock` moves one millisecond per event."""

    def __init__(self, ledger_id: str = "ledger-a", login: int = 5001) -> None:
        self.ledger_id, self.login = ledger_id, login
        self.records: list[Recorded] = []
        self.clock = BEGINNING
        self._versions: dict[str, int] = {}
        self._digest = GENESIS
        self.commit([(WRITER_STREAM, LedgerCreated(ledger_id=ledger_id, login=login, server="Demo"))])

    def commit(self, events: Iterable[tuple[str, Event]]) -> list[Recorded]:
        """Appends the events and their seal; returns them."""
        start = len(self.records)
        batch = [self._record(stream, event, start + i) for i, (stream, event) in enumerate(events, 1)]
        seal = BatchSealed(
            epoch=1,
            first=start + 1,
            last=start + len(batch),
            checkpoint=0,
            root=merkle_root([leaf_hash(one) for one in batch]).hex(),
            previous=self._digest,
            digest=GENESIS,
        )
        closed = close_seal(self._record(WRITER_STREAM, seal, start + len(batch) + 1))
        self._digest = closed.state[-67:-3].decode()
        batch.append(closed)
        self.records += batch
        return batch

    def orders(self, count: int, per_commit: int = 4) -> "History":
        """Adds `count` orders, each requested and filled in two deals."""
        todo = [one for number in range(count) for one in self._order(number)]
        for start in range(0, len(todo), per_commit):
            self.commit(todo[start : start + per_commit])
        return self

    def order(self) -> "History":
        """Adds one order that is like no other so far."""
        self.commit(self._order(len(self.records)))
        return self

    def _order(self, number: int) -> Sequence[tuple[str, Event]]:
        order_id = f"ord_{len(self.records)}_{number}"
        stream = order_stream(order_id)
        request = OrderRequest(order_id=order_id, symbol="EURUSD", order_type="buy", volume=Decimal("0.3"))
        raw = Raw(size=2, sha256="0" * 64, text='{"note": "ünïcode \\n"}')
        return (
            (stream, OrderRequested(request=request, content="c", raw=raw, symbol="EURUSD")),
            (stream, partial_fill(deal=2 * number + 1)),
            (stream, full_fill(deal=2 * number + 2)),
        )

    def _record(self, stream: str, event: Event, seq: int) -> Recorded:
        self.clock += timedelta(milliseconds=1)
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        envelope = Envelope(
            seq=seq,
            event_id=f"{self.ledger_id}:{seq}",
            schema_version=schema_version(event.topic()),
            recorded_at=self.clock,
            account=str(self.login),
            actor="client",
            correlation_id="corr-1",
            data=event,
        )
        return Recorded(seq, stream, version, event.topic(), encode(envelope))


def partial_fill(deal: int = 1, **changes: object) -> OrderPartiallyFilled:
    fill = OrderPartiallyFilled(
        symbol="EURUSD",
        side="buy",
        order_ticket=900,
        deal=deal,
        position_id=900,
        volume=Decimal("0.1"),
        price=Decimal("1.10002"),
        filled_volume=Decimal("0.1"),
        remaining_volume=Decimal("0.2"),
        requested_price=Decimal("1.10000"),
        point=Decimal("0.00001"),
        commission=Decimal("-0.35"),
        broker_time_msc=1_772_373_600_123,
        broker_utc_offset_s=7200,
        broker_time=BEGINNING,
        retcode=10009,
        retcode_name="TRADE_RETCODE_DONE",
    )
    return msgspec.structs.replace(fill, **changes)


def full_fill(deal: int = 2, **changes: object) -> OrderFilled:
    base = msgspec.structs.asdict(partial_fill(deal))
    base |= {"volume": Decimal("0.2"), "filled_volume": Decimal("0.3"), "remaining_volume": Decimal(0)}
    return OrderFilled(**(base | changes))


def past_of(records: list[Recorded]) -> Callable[[Sequence[str]], dict[str, list[Recorded]]]:
    """Reads the streams of a list that may grow, as a store does."""
    return lambda streams: {name: [one for one in records if one.stream == name] for name in streams}


class ListSource:
    """An event source over a list that may grow."""

    def __init__(self, records: list[Recorded]) -> None:
        self.records = records
        self.reads = 0

    async def read(self, after: int, limit: int) -> list[Recorded]:
        self.reads += 1
        return self.records[after : after + limit]

    async def at(self, seq: int) -> Recorded | None:
        return self.records[seq - 1] if 0 < seq <= len(self.records) else None

    async def head(self) -> int:
        return self.records[-1].seq if self.records else 0

    async def wait(self, after: int, timeout_s: float) -> None:
        import asyncio

        if len(self.records) <= after:
            await asyncio.sleep(min(timeout_s, 0.01))
