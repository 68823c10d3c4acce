"""The book of orders and positions: it agrees with the domain's fold, and forgetting changes nothing."""

from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ledger.account_events import ExternalDealObserved, SnapshotTaken
from ledger.book import Book, positions_at_broker
from ledger.commands import OrderCommand
from ledger.events import Recorded, account_stream, decode, order_stream
from ledger.order_events import FillCorrected, FillCostsChanged, OrderModified
from ledger.positions import Position
from ledger.trace import OrderTrace, follow
from ledger.trade import Deal
from ledger.trade import Position as Shown
from tests.history import BEGINNING, History, full_fill, past_of
from tests.unit.test_order_laws import live, lives

ACCOUNT = account_stream(5001)


def pairs(records: list[Recorded]) -> list[Any]:
    return [(one, decode(one)) for one in records]


def taken(history: History) -> dict[int, Position]:
    book = Book()
    book.take(pairs(history.records))
    return {one.position_id: one for one in book.positions}


def filled(**fields: Any) -> Any:
    return full_fill(**({"position_id": 900, "order_ticket": 900} | fields))


@given(lives())
def test_an_order_stands_where_the_domain_says_after_any_life(life: list[OrderCommand]) -> None:
    order, events = live(life)
    history = History()
    history.commit([(order_stream("ord_1"), one) for one in events])
    trace = OrderTrace("ord_1")
    for recorded, envelope in pairs(history.records):
        if recorded.stream == order_stream("ord_1"):
            follow(trace, recorded, envelope)
    assert (trace.status, trace.version, trace.is_open) == (order.status, order.version, order.is_open)
    assert (trace.filled_volume, trace.order_ticket) == (order.filled_volume, order.order_ticket)
    assert (trace.attempts, trace.retries, trace.duplicates, trace.conflicts) == (
        order.attempt, order.retries, order.duplicates, order.conflicts,
    )  # fmt: skip
    assert sorted(trace.fills) == sorted(one.ticket for one in order.deals)
    assert [trace.fills[one.ticket].commission for one in order.deals] == [one.commission for one in order.deals]
    assert trace.symbol == order.symbol
    if order.attempt:  # before that the domain has no terms, and the trace those of the request
        assert (trace.sl, trace.tp) == (order.terms.sl, order.terms.tp)


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_what_is_forgotten_and_learnt_again_leads_to_the_same(seed: int, every: int) -> None:
    random = Random(seed)
    history = History()
    for _ in range(25):
        number = random.randrange(8)
        history.commit([(order_stream(f"o{number}"), filled(
            deal=random.randrange(10**6), side=random.choice(["buy", "sell"]), position_id=random.choice([1, 2, 900]),
            order_ticket=900 + number, volume=Decimal(random.randrange(1, 9)), profit=Decimal(random.randrange(9)),
        ))])  # fmt: skip
    whole, parts = Book(), Book()
    expected = whole.take(pairs(history.records))
    versions = []
    known: dict[int, Position] = {}
    for start in range(0, len(history.records), every):
        part = history.records[start : start + every]
        parts = Book(orders_kept=1, positions_kept=1) if random.random() < 0.3 else parts
        for order_id, version in parts.missing_orders(part).items():
            stream = order_stream(order_id)
            past = past_of(history.records)([stream])[stream][: version - 1]
            parts.learn_order(order_id, pairs(past))
        for position_id in parts.missing_positions(pairs(part)) & set(known):
            parts.learn_position(known[position_id])
        changes = parts.take(pairs(part))
        known |= {one.position.position_id: one.position for one in changes.positions}
        versions += [one.position for one in changes.positions]
        parts.trim()
    assert versions == [one.position for one in expected.positions]


def test_a_fill_and_a_deal_of_nobody_make_one_position() -> None:
    history = History()
    history.commit([(order_stream("o"), filled(side="buy", volume=Decimal(2)))])
    stop = Deal(ticket=77, order=901, type=1, entry=1, position_id=900, reason=4, volume=Decimal(2),
                price=Decimal("1.05"), profit=Decimal(-9), symbol="EURUSD")  # fmt: skip
    deposit = Deal(ticket=78, type=2, profit=Decimal(100))
    history.commit([(ACCOUNT, ExternalDealObserved(deal=one)) for one in (stop, deposit)])
    (position,) = taken(history).values()
    assert (position.volume, position.realized_profit, position.exit_reason) == (0, -9, "stop_loss")


def test_a_provisional_fill_moves_to_the_position_its_deal_names() -> None:
    first = filled(deal=1, position_id=700, order_ticket=700)
    later = filled(deal=2, position_id=0, order_ticket=900, provisional=True, commission=Decimal(0))
    history = History()
    history.commit([(order_stream("a"), first), (order_stream("b"), later)])
    fields = {name: getattr(later, name) for name in later.__struct_fields__}
    fields |= {"position_id": 700, "provisional": False, "corrects": 1, "was_volume": later.volume}
    history.commit([(order_stream("b"), FillCorrected(**fields, was_price=later.price))])
    found = taken(history)
    assert found[900].void
    assert found[700].volume == first.volume + later.volume


def test_later_costs_reach_the_position_and_the_fill() -> None:
    history = History()
    history.commit([(order_stream("o"), filled(deal=5, commission=Decimal(0)))])
    change = FillCostsChanged(
        deal=5, fill_version=1, commission=Decimal(-3), swap=Decimal(-1), fee=Decimal(0), profit=Decimal(0)
    )
    batch = history.commit([(order_stream("o"), change)])
    book = Book()
    book.take(pairs(history.records[: -len(batch)]))
    changes = book.take(pairs(batch))
    (fill,) = changes.fills.values()
    assert (fill.commission, fill.changed_seq, fill.seq) == (-3, batch[0].seq, 3)
    assert (changes.positions[0].position.commission, changes.positions[0].position.swap) == (-3, -1)


def test_stops_follow_modifications_and_snapshots() -> None:
    history = History()
    history.commit([(order_stream("o"), filled())])
    moved = OrderModified(symbol="EURUSD", position_id=900, sl=Decimal("1.01"), tp=Decimal("1.2"))
    history.commit([(order_stream("o"), moved)])
    assert (taken(history)[900].sl, taken(history)[900].tp) == (Decimal("1.01"), Decimal("1.2"))
    shown = Shown(ticket=900, identifier=900, sl=Decimal("1.02"), price_current=Decimal("1.3"), profit=Decimal(4))
    snapshot = SnapshotTaken(currency="USD", balance=Decimal(1), equity=Decimal(1), positions=(shown,))
    history.commit([(ACCOUNT, snapshot)])
    position = taken(history)[900]
    assert (position.sl, position.tp, position.floating_profit) == (Decimal("1.02"), 0, 4)


def test_what_had_happened_is_told_in_the_order_of_the_brokers_times() -> None:
    history = History()
    late = filled(deal=1, side="buy", volume=Decimal(1), price=Decimal(100), broker_time=BEGINNING)
    early = filled(
        deal=2, side="sell", volume=Decimal(1), price=Decimal(90), broker_time=BEGINNING - timedelta(minutes=1)
    )
    history.commit([(order_stream("a"), late), (order_stream("b"), early)])
    at = positions_at_broker(pairs(history.records), BEGINNING - timedelta(seconds=30))
    assert (at[900].side, at[900].volume) == ("short", 1)
    assert not positions_at_broker(pairs(history.records), BEGINNING)[900].is_open
    assert positions_at_broker(pairs(history.records), BEGINNING - timedelta(hours=1)) == {}
