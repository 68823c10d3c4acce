"""The judgement: ledger, broker and news against each other, and against what was promised."""

import asyncio
import time
from collections import Counter
from typing import Any, Final

import nats
import nats.js.errors
import orjson
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from gateway.chaos.watch import Watch
from gateway.chaos.world import World
from gateway.cli_proof import verify_ledger
from gateway.config import load
from gateway.messages import outgoing
from gateway.simulated.window import ask
from ledger.account_events import ExternalDealObserved
from ledger.events import decode
from ledger.order import WORKING, Order, Status
from ledger.order_events import BrokerAnswered, DealFact, DuplicateReceived, Fill, OrderPlaced, OutcomeResolved
from ledger.store import EventStore, open_file
from ledger.values import order_hash

MOST: Final = 20  # problems of one kind that are named
NEWS_S: Final = 20.0
_LIVE: Final = frozenset(
    (0, 1, 3, 4, 7, 8, 9)
)  # states of an order that the server has accepted, and not ended without
_EXPERT: Final = 3  # the reason of orders sent by a program; what the server does by itself has another

Problems = list[str]


class Books:
    """What the ledger says, read once. `tickets`, `deals`: of orders and deals by the order that names them; `news`:
    event id to subject of what upstream must have heard, `answers` those that repeat an outcome."""

    def __init__(self, store: EventStore) -> None:
        self.tickets: dict[str, set[int]] = {}
        self.deals: dict[str, list[int]] = {}
        self.external: list[int] = []
        self.known: set[int] = set()
        self.news: dict[str, str] = {}
        self.answers: set[str] = set()
        self.login = 0
        for recorded in store.scan():
            envelope = decode(recorded)
            event = envelope.data
            order_id = recorded.stream.removeprefix("order/")
            tickets = self.tickets.setdefault(order_id, set())
            match event:
                case Fill():
                    self.deals.setdefault(order_id, []).append(event.deal)
                    self.known.add(event.deal)
                    tickets.add(event.order_ticket)
                case DealFact():
                    self.known.add(event.deal)
                case OrderPlaced():
                    tickets.add(event.order_ticket)
                case BrokerAnswered():
                    tickets.add(event.result.order)
                case OutcomeResolved():
                    tickets |= {event.order_ticket, *(row.ticket for row in (*event.orders, *event.history))}
                case ExternalDealObserved():
                    self.external.append(event.deal.ticket)
                case DuplicateReceived():
                    self.answers.add(envelope.event_id)
            if (made := outgoing(recorded, envelope)) is not None:
                self.news[envelope.event_id] = made.subject


async def judge(world: World, watch: Watch, accepted: set[str]) -> tuple[Problems, dict[str, Any]]:
    """The problems, none when every promise held, and what was counted. The gateway has ended; its bus runs."""
    watch.look()
    problems, counts = _orders(world, watch.orders, watch.alerted, accepted)
    store = open_file(world.folder / "ledger.db")
    try:
        books = await asyncio.to_thread(Books, store)
    finally:
        store.close()
    more, found = _broker(world, books, watch.orders)
    problems += more
    counts |= found
    more, found = await _news(world, books)
    problems += more
    counts |= found
    verified = await asyncio.to_thread(verify_ledger, load({"data": str(world.folder)}, {}), progress=False)
    if not verified["ok"]:
        problems.append(f"verify: {orjson.dumps(verified).decode()}")
    return problems, counts | {name: verified[name] for name in ("events", "seals")}


def _orders(
    world: World, orders: dict[str, Order], alerted: set[str], accepted: set[str]
) -> tuple[Problems, dict[str, Any]]:
    """Invariant I2: what was accepted is in the ledger, and ended or visibly waiting."""
    problems = _named("accepted by the bus and not in the ledger", accepted - orders.keys())
    working = {row["ticket"] for row in ask(world.broker, "orders")}
    for order in orders.values():
        if not order.is_open or (order.status is Status.UNKNOWN and order.order_id in alerted):
            continue
        if order.status not in WORKING or order.order_ticket not in working:
            problems.append(f"{order.order_id} has not ended: {order.status}, ticket {order.order_ticket}")
    return problems, {"accepted": len(accepted)}


def _broker(world: World, books: Books, orders: dict[str, Order]) -> tuple[Problems, dict[str, Any]]:
    """Invariant I1, and that ledger and broker hold the same."""
    rows = ask(world.broker, "orders", history=True) + ask(world.broker, "orders")
    deals = {row["ticket"]: row for row in ask(world.broker, "deals") if row["symbol"]}
    dealt = {row["order"] for row in deals.values()}
    names = {order_hash(order_id): order_id for order_id in orders}
    live: Counter[str] = Counter()
    problems = []
    for row in {row["ticket"]: row for row in rows if row["magic"] and row["reason"] == _EXPERT}.values():
        order_id = names.get(row["magic"] >> 8)
        if order_id is None:
            problems.append(f"order {row['ticket']} at the broker belongs to no order of the ledger")
            continue
        live[order_id] += row["ticket"] in dealt or row["state"] in _LIVE
        if row["ticket"] not in books.tickets.get(order_id, ()):
            problems.append(f"{order_id}: order {row['ticket']} of the broker is not in the ledger")
    twice = [f"{order_id} ({number})" for order_id, number in live.items() if number > 1]
    problems += _named("more than one live order at the broker", twice)
    told = Counter(deal for found in books.deals.values() for deal in found) + Counter(books.external)
    problems += _named("deals of the broker that the ledger does not hold", deals.keys() - books.known - told.keys())
    problems += _named("deals that the broker does not hold", told.keys() - deals.keys())
    problems += _named("deals that were recorded twice", [deal for deal, number in told.items() if number > 1])
    for order_id, found in books.deals.items():
        foreign = [one for one in found if one in deals and deals[one]["magic"] >> 8 not in (0, order_hash(order_id))]
        problems += _named(f"{order_id} has deals of others", foreign)
    return problems, {"broker_orders": sum(live.values()), "deals": len(deals), "external_deals": len(books.external)}


async def _news(world: World, books: Books) -> tuple[Problems, dict[str, Any]]:
    """Invariant I4: every fill, and all other news, went out once and in order."""
    expected = set(books.news)
    heard = await _heard(world, expected)
    ids = Counter(event_id for event_id, _, _ in heard)
    problems = _named("news that went out twice", [one for one, number in ids.items() if number > 1])
    problems += _named("news that did not go out", [f"{one} {books.news[one]}" for one in expected - ids.keys()])
    problems += _named("news that are none of the ledger", ids.keys() - expected - books.answers)
    seqs = [seq for _, _, seq in heard]
    if seqs != sorted(seqs):
        problems.append("news went out in another order than that of the ledger")
    fills = sum(subject.startswith("broker.fill.") for _, subject, _ in heard)
    return problems, {"news": len(heard), "fills_told": fills}


async def _heard(world: World, expected: set[str]) -> list[tuple[str, str, int]]:
    """Event id, subject and seq of every message in the stream of the account, once all expected are there."""
    connection = await nats.connect(world.nats_url)
    try:
        js = connection.jetstream()
        [name] = [one.config.name for one in await js.streams_info() if (one.config.name or "").startswith("BROKER-")]
        deadline = time.monotonic() + NEWS_S
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
        pull = await js.pull_subscribe("", stream=name, config=config)
        found: list[tuple[str, str, int]] = []
        missing = set(expected)
        while time.monotonic() < deadline:
            try:
                messages = await pull.fetch(1_000, timeout=0.3)
            except (TimeoutError, nats.errors.TimeoutError):
                if not missing:
                    break
                continue
            for message in messages:
                body = orjson.loads(message.data)
                found.append((body["event_id"], message.subject, body["seq"]))
                missing.discard(body["event_id"])
        return found
    finally:
        await connection.close()


async def news_have_ended(world: World, pause_s: float) -> None:
    """Returns when no news went out for `pause_s`."""
    connection = await nats.connect(world.nats_url)
    try:
        js = connection.jetstream()
        last, since = -1, time.monotonic()
        while time.monotonic() - since < pause_s:
            found = [one.state for one in await js.streams_info() if (one.config.name or "").startswith("BROKER-")]
            if found and found[0].last_seq != last:
                last, since = found[0].last_seq, time.monotonic()
            await asyncio.sleep(0.2)
    finally:
        await connection.close()


def _named(what: str, which: Any) -> Problems:
    """One line of them, none for none."""
    names = sorted(str(one) for one in which)
    if not names:
        return []
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return [f"{what}: {', '.join(names[:MOST])}{more}"]
