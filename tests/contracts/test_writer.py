"""The one writer of a ledger, on every database: nothing lost, nothing twice, never two writers."""

import asyncio
import random
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from ledger import writer as writer_module
from ledger.account_events import AccountDisconnected, MessageRejected, TradingHalted, TradingResumed
from ledger.commands import RefuseOrder
from ledger.errors import (
    ForeignLedger,
    LedgerDamaged,
    LedgerError,
    LedgerFenced,
    LedgerLocked,
    LedgerUnavailable,
)
from ledger.events import (
    WRITER_STREAM,
    BatchSealed,
    Checkpointed,
    LedgerCreated,
    Recorded,
    account_stream,
    decode,
    order_stream,
)
from ledger.order import Order, Status, fold
from ledger.seal import batches, verify
from ledger.store import EventStore, VersionTaken
from ledger.writer import MAX_BATCH, Cause, Executed, Ledger
from tests.contracts.conftest import Place
from tests.decider import NOW, answer, check, deal, message, not_sent, receive, start, unknown

CAUSE = Cause(actor="client", correlation_id="corr-1")
LOST = AccountDisconnected(login=5001, server="Demo", reason="test")


class Store:
    """A real store that a test can disturb."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def opened(place: Place, wrap: Callable[[EventStore], Any] = Store, **changes: Any) -> Ledger:
    fields = {"login": 5001, "server": "Demo", "clock": lambda: NOW, "build": "test"} | changes
    return await asyncio.wait_for(Ledger.open(place.open(wrap=wrap), **fields), 20)


async def crash(ledger: Ledger) -> None:
    """The end of a process: what is not stored is gone, the lock is free."""
    await ledger._end()
    ledger._lock.release()


@pytest.fixture
async def ledger(place: Place) -> AsyncIterator[Ledger]:
    found = await opened(place)
    yield found
    await found.close()


def place_order(ledger: Ledger, order_id: str, **changes: Any) -> Executed:
    return ledger.execute(order_id, receive(order_id=order_id, **changes), CAUSE)


async def durable(*executed: Executed | asyncio.Future) -> list:
    futures = [one.durable if isinstance(one, Executed) else one for one in executed]
    return await asyncio.wait_for(asyncio.gather(*futures), 10)


def stored(place: Place) -> list[Recorded]:
    return list(place.open(readonly=True).scan())


def sound(place: Place) -> list[Recorded]:
    """All events, after the invariants of any ledger were checked."""
    records = stored(place)
    found = verify(records)
    assert found.ok, found.problem
    assert [one.seq for one in records] == list(range(1, len(records) + 1))
    return records


def as_stored(records: list[Recorded]) -> list[Recorded]:
    """What a follower was given, without what the writer adds for its own process."""
    return [Recorded(one.seq, one.stream, one.version, one.topic, one.state) for one in records]


def refold(records: list[Recorded]) -> dict[str, Order]:
    streams: dict[str, list] = {}
    for one in records:
        kind, _, order_id = one.stream.partition("/")
        if kind == "order":
            streams.setdefault(order_id, []).append(decode(one).data)
    return {order_id: fold(order_id, events) for order_id, events in streams.items()}


# --- committing -------------------------------------------------------------------------------------------------


async def test_a_new_ledger_begins_with_what_it_is_bound_to_under_a_seal(place, ledger):
    created, seal = sound(place)
    assert decode(created).data == LedgerCreated(ledger_id=ledger.ledger_id, login=5001, server="Demo")
    assert decode(seal).data.epoch == ledger.epoch == 1


async def test_a_decision_is_durable_under_the_seq_it_is_given(place, ledger):
    executed = place_order(ledger, "ord_1")
    (committed,) = await durable(executed)
    record = place.open(readonly=True).at(committed.first_seq)
    envelope = decode(record)
    assert (record.stream, record.version, committed.events) == ("order/ord_1", 1, 1)
    assert envelope.data == executed.events[0]
    assert (envelope.recorded_at, envelope.actor, envelope.correlation_id) == (NOW, "client", "corr-1")
    assert (envelope.event_id, envelope.account, envelope.build) == (f"{ledger.ledger_id}:3", "5001", "test")


async def test_what_waits_is_committed_together_under_one_seal(place, ledger):
    await durable(*[place_order(ledger, f"ord_{n}") for n in range(100)])
    groups = list(batches(sound(place)))
    assert len(groups) <= 3
    assert sum(len(group) - 1 for group in groups) == 101


async def test_a_commit_is_never_larger_than_its_limit(place, ledger):
    await durable(*[place_order(ledger, f"ord_{n}", volume=None) for n in range(300)])  # two events each
    groups = list(batches(sound(place)))
    assert max(len(group) - 1 for group in groups) == MAX_BATCH
    for group in groups:
        first, last = decode(group[-1]).data.first, decode(group[-1]).data.last
        assert [first, last] == [group[0].seq, group[-2].seq]


async def test_messages_of_one_order_in_one_batch_do_not_conflict(place, ledger):
    first, again, other = place_order(ledger, "ord_1"), place_order(ledger, "ord_1"), place_order(ledger, "ord_1", sl=1)
    checked = ledger.execute("ord_1", check(), CAUSE)
    sent = ledger.execute("ord_1", start(1), CAUSE)
    await durable(first, again, other, checked, sent)
    groups = list(batches(sound(place)))
    assert [one.topic for one in groups[1][:-1]] == [
        "order.requested",
        "order.duplicate_received",
        "order.conflict_received",
        "order.checked",
        "order.send_started",
    ]
    assert refold(stored(place)) == {"ord_1": ledger.order("ord_1")}


async def test_a_command_with_nothing_to_say_is_done_at_once_and_stores_nothing(place, ledger):
    await durable(place_order(ledger, "ord_1"))
    before = len(stored(place))
    executed = ledger.execute("ord_1", unknown(), CAUSE)
    assert executed.durable.done()
    assert executed.durable.result().events == 0
    assert len(stored(place)) == before


async def test_facts_of_other_streams_get_the_versions_of_their_streams(place, ledger):
    raw = receive(message(order_id="a/b")).received.raw
    rejected = MessageRejected(reasons=("order_id",), raw=raw)
    await durable(
        *[ledger.append(s, e, CAUSE) for s, e in [("account/5001", LOST), ("inbox/2026-03-01", rejected)] * 3]
    )
    await ledger.close()
    again = await opened(place)
    await durable(again.append("account/5001", LOST, CAUSE), again.append("inbox/2026-03-01", rejected, CAUSE))
    await again.close()
    versions = [one.version for one in sound(place) if one.stream == "account/5001"]
    assert versions == [1, 2, 3, 4]


async def test_a_future_resolves_only_when_its_events_are_stored(place):
    reached, gate = threading.Event(), threading.Event()

    class Slow(Store):
        is_local = False  # not to be waited for by the loop itself

        def insert(self, batch):
            if batch[0].stream == "order/ord_1":
                reached.set()
                assert gate.wait(10)
            self._store.insert(batch)

    ledger = await opened(place, Slow)
    first, second = place_order(ledger, "ord_1"), None
    assert await asyncio.to_thread(reached.wait, 10)
    second = place_order(ledger, "ord_2")
    assert not first.durable.done()
    assert await ledger.tail.head() == 2
    assert len(stored(place)) == 2
    gate.set()
    await durable(first, second)
    assert len(list(batches(sound(place)))) == 3
    await ledger.close()


async def test_no_future_is_resolved_while_its_commit_is_made(place):
    waiting, early = [], []

    class Watched(Store):
        def insert(self, batch):
            self._store.insert(batch)
            early.extend(one for one in waiting if one.durable.done())

    ledger = await opened(place, Watched)
    waiting += [place_order(ledger, f"ord_{n}") for n in range(20)]
    await durable(*waiting)
    assert early == []
    await ledger.close()


async def test_a_clock_that_goes_back_does_not_disturb_the_order(place):
    times = iter([NOW + timedelta(seconds=s) for s in (0, 50, -3600, 10, -7200, 5, 5, 5)])
    ledger = await opened(place, clock=lambda: next(times))
    for n in range(4):
        await durable(place_order(ledger, f"ord_{n}"))
    await ledger.close()
    recorded = [decode(one).recorded_at for one in sound(place)]
    assert recorded != sorted(recorded)


# --- resuming ---------------------------------------------------------------------------------------------------


async def test_a_restart_resumes_the_open_orders_and_the_chain_in_the_next_epoch(place, ledger):
    for order_id, commands in {
        "requested": (),
        "sending": (check(), start(1)),
        "lost": (check(), start(1), unknown()),
        "filled": (check(), start(1), answer("success", deal())),
    }.items():
        place_order(ledger, order_id)
        for command in commands:
            last = ledger.execute(order_id, command, CAUSE)
    await durable(last)
    open_before, ledger_id = dict(ledger.open_orders), ledger.ledger_id
    await ledger.close()
    again = await opened(place)
    assert again.open_orders == open_before
    assert set(open_before) == {"requested", "sending", "lost"}
    assert (again.epoch, again.ledger_id) == (2, ledger_id)
    await durable(place_order(again, "later"))
    await again.close()
    seals = [decode(one).data for one in sound(place) if one.topic == "writer.batch_sealed"]
    assert [seal.epoch for seal in seals] == sorted(seal.epoch for seal in seals)
    assert [seal.previous for seal in seals[1:]] == [seal.digest for seal in seals[:-1]]


async def test_a_restart_after_a_crash_knows_everything_that_was_durable(place):
    ledger = await opened(place)
    place_order(ledger, "a")
    place_order(ledger, "b")
    await durable(ledger.execute("b", check(), CAUSE))
    before = dict(ledger.open_orders)
    place_order(ledger, "never_durable")
    await crash(ledger)
    again = await opened(place)
    assert {name: order for name, order in again.open_orders.items() if name != "never_durable"} == before
    await again.close()
    sound(place)


async def test_a_duplicate_of_an_order_that_ended_before_the_restart_is_recognised(place, ledger):
    place_order(ledger, "ord_1")
    for command in (check(), start(1), answer("success", deal())):
        last = ledger.execute("ord_1", command, CAUSE)
    await durable(last)
    await ledger.close()
    again = await opened(place)
    assert again.order("ord_1") is None
    await again.load(["ord_1", "ord_2"])
    assert again.order("ord_1").status is Status.FILLED
    assert again.order("ord_2") is None
    repeated = place_order(again, "ord_1")
    assert [one.topic() for one in repeated.events] == ["order.duplicate_received"]
    assert (repeated.events[0].status, repeated.events[0].standing_version) == ("filled", 5)
    await again.close()
    sound(place)


async def test_a_restart_and_a_stop_of_an_idle_ledger_add_nothing(place):
    for _ in range(3):
        await (await opened(place)).close()
    assert [one.topic.partition(".")[2] for one in sound(place)] == [
        "ledger_created",
        "batch_sealed",
        "checkpointed",
        "batch_sealed",
    ]


async def test_close_commits_what_waits_and_then_takes_no_more(place):
    ledger = await opened(place)
    waiting = [place_order(ledger, f"ord_{n}") for n in range(400)]
    await ledger.close()
    assert all(one.durable.done() for one in waiting)
    assert len(refold(sound(place))) == 400
    with pytest.raises(LedgerUnavailable, match="has stopped"):
        place_order(ledger, "late")


async def test_a_start_reads_from_the_last_checkpoint_only(place, monkeypatch):
    monkeypatch.setattr(writer_module, "CHECKPOINT_EVERY", 50)
    scanned = []

    class Counting(Store):
        def scan(self, after=0):
            for one in self._store.scan(after):
                scanned.append(one)
                yield one

    ledger = await opened(place)
    await durable(place_order(ledger, "old_and_open"))
    for n in range(120):
        await durable(place_order(ledger, f"ord_{n}", volume=None))  # refused at once
    await crash(ledger)
    checkpoints = [one for one in stored(place) if one.topic == "writer.checkpointed"]
    assert [decode(one).data.open_orders for one in checkpoints] == [("old_and_open",)] * len(checkpoints)
    assert len(checkpoints) >= 5
    again = await opened(place, Counting)
    assert 0 < len(scanned) <= 60 < len(stored(place))
    assert list(again.open_orders) == ["old_and_open"]
    await again.close()
    sound(place)


@pytest.mark.parametrize("seed", range(4))
async def test_after_any_life_and_crash_the_open_orders_are_those_of_a_full_replay(place, monkeypatch, seed):
    monkeypatch.setattr(writer_module, "CHECKPOINT_EVERY", 15)
    chance = random.Random(seed)
    for _ in range(3):
        ledger = await opened(place)
        for _ in range(chance.randint(5, 60)):
            order_id = f"ord_{chance.randrange(12)}"
            await ledger.load([order_id])
            executed = step(ledger, order_id, chance)
            if chance.random() < 0.4:
                await durable(executed)
        await crash(ledger)
        again = await opened(place)
        replay = refold(sound(place))
        assert again.open_orders == {name: order for name, order in replay.items() if order.is_open}
        await again.close()


def step(ledger: Ledger, order_id: str, chance: random.Random) -> Executed:
    """Anything that may come next for this order."""
    order = ledger.order(order_id)
    if order is None or chance.random() < 0.2:
        return place_order(ledger, order_id)
    attempt = order.attempt
    command = {
        Status.REQUESTED: check(),
        Status.READY: start(attempt + 1),
        Status.SENDING: chance.choice([unknown(attempt), not_sent(attempt), answer("fatal", attempt=attempt)]),
        Status.UNKNOWN: answer("success", deal(chance.randint(1, 10**6), "0.1"), attempt=attempt),
        Status.PARTIALLY_FILLED: answer("success", deal(chance.randint(1, 10**6), "0.2"), attempt=attempt),
    }.get(order.status, receive(order_id=order_id, volume="7"))
    return ledger.execute(order_id, command, CAUSE)


# --- whose ledger it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"login": 4999}, {"server": "Live"}])
async def test_the_ledger_of_another_account_is_refused_and_left_alone(place, ledger, changes):
    await ledger.close()
    before = stored(place)
    with pytest.raises(ForeignLedger, match="belongs to account 5001 on Demo, the terminal is logged in to"):
        await opened(place, **changes)
    assert stored(place) == before
    await (await opened(place)).close()


async def test_a_second_writer_is_refused_while_the_first_lives(place, ledger):
    with pytest.raises(LedgerLocked, match="another process writes the ledger"):
        await opened(place)
    await durable(place_order(ledger, "ord_1"))
    sound(place)


class Unlocked(Store):
    """A writer that believes to hold the lock: taken over by force, or a lock that failed."""

    class Lock:
        def check(self) -> None: ...
        def release(self) -> None: ...

    def lock(self):
        return self.Lock()


class Starved(Unlocked):
    """Whose commits never get their turn, once the ledger is open."""

    starving = False

    def insert(self, batch):
        if self.starving:
            raise LedgerUnavailable("another program holds a transaction on it")
        self._store.insert(batch)


async def test_a_writer_that_never_gets_its_turn_notices_that_it_was_overtaken(place):
    ledger = await opened(place, Starved)
    ledger._store.starving = True
    waiting = place_order(ledger, "ord_1")
    thief = await opened(place, Unlocked)
    await durable(place_order(thief, "ord_2"))
    with pytest.raises(LedgerFenced, match="another writer committed"):
        await asyncio.wait_for(waiting.durable, 5)  # long before a commit is given up
    for one in (thief, ledger):
        await one.close()


async def test_an_idle_writer_that_was_overtaken_notices_within_two_seconds_and_says_so(place, ledger):
    thief = await opened(place, Unlocked)
    await durable(place_order(thief, "ord_1"))
    failure = await asyncio.wait_for(asyncio.shield(ledger.failure), 2)
    assert isinstance(failure, LedgerFenced)
    assert "another writer committed" in str(failure)
    with pytest.raises(LedgerUnavailable, match="has stopped"):
        place_order(ledger, "ord_2")
    await thief.close()
    sound(place)


async def test_a_busy_writer_that_was_overtaken_cannot_commit(place, ledger):
    thief = await opened(place, Unlocked)
    await durable(place_order(thief, "ord_1"))
    with pytest.raises(LedgerFenced, match="another writer committed at 3: this one stops"):
        await durable(place_order(ledger, "ord_2"))
    assert isinstance(ledger.failure.result(), LedgerFenced)
    await thief.close()
    assert list(refold(sound(place))) == ["ord_1"]


async def test_of_two_writers_at_the_same_version_one_goes_on_and_nothing_is_mixed(place, ledger):
    thief = await opened(place, Unlocked)
    both = [place_order(ledger, "same"), place_order(thief, "same", volume="0.4")]
    results = await asyncio.wait_for(asyncio.gather(*[one.durable for one in both], return_exceptions=True), 10)
    assert sorted(isinstance(one, LedgerFenced) for one in results) == [False, True]
    await thief.close()
    assert len(refold(sound(place))) == 1


async def test_a_writer_that_takes_over_says_so_first_and_fences_the_other(place, ledger):
    await durable(place_order(ledger, "ord_1"))
    thief = await opened(place, take_over=True)
    assert list(thief.open_orders) == ["ord_1"]
    with pytest.raises(LedgerFenced, match="another writer committed at 5: this one stops"):
        await durable(place_order(ledger, "ord_2"))
    await durable(place_order(thief, "ord_3"))
    await thief.close()
    records = sound(place)
    took_over = decode(records[4]).data
    assert (took_over.topic(), took_over.epoch, took_over.displaced) == ("writer.took_over", 2, "epoch 1")
    assert decode(records[5]).data.epoch == 2


async def test_a_writer_that_took_over_holds_the_lock_once_the_other_lets_go(place, ledger):
    thief = await opened(place, take_over=True)
    assert isinstance(await asyncio.wait_for(asyncio.shield(ledger.failure), 2), LedgerFenced)
    await ledger.close()
    thief._lock.check()  # as it does every second
    with pytest.raises(LedgerLocked, match="another process writes the ledger"):
        await opened(place)
    await thief.close()


async def test_taking_over_what_nobody_holds_is_a_start_like_any_other(place, ledger):
    await ledger.close()
    again = await opened(place, take_over=True)
    await again.close()
    assert "writer.took_over" not in {one.topic for one in sound(place)}


async def test_a_take_over_succeeds_against_a_writer_that_never_rests(place, ledger):
    async def busy() -> None:
        for n in range(100_000):
            await durable(place_order(ledger, f"busy_{n}"))

    work = asyncio.create_task(busy())
    thief = await opened(place, take_over=True)
    with pytest.raises((LedgerFenced, LedgerUnavailable)):
        await work
    assert set(thief.open_orders) == set(refold(sound(place)))
    await thief.close()


async def test_a_take_over_whose_reply_was_lost_is_not_repeated(place, ledger):
    class Deaf(Store):
        told = 0

        def insert_next(self, build):
            self._store.insert_next(build)
            Deaf.told += 1
            if Deaf.told == 1:
                raise LedgerUnavailable("the reply was lost")

    thief = await opened(place, Deaf, take_over=True)
    await durable(place_order(thief, "ord_1"))
    await thief.close()
    assert Deaf.told == 2
    assert [one.topic for one in sound(place)].count("writer.took_over") == 1


async def test_a_lost_lock_stops_a_busy_writer_too(place):
    class Losing(Store):
        def lock(self):
            class Lost(Unlocked.Lock):
                def check(self) -> None:
                    raise LedgerLocked("lost the lock")

            return Lost()

    ledger = await opened(place, Losing)
    for n in range(1_000_000):
        if ledger.failure.done():
            break
        await asyncio.wait([place_order(ledger, f"ord_{n}").durable])
    assert isinstance(ledger.failure.result(), LedgerLocked)
    await ledger.close()
    sound(place)


async def test_a_transaction_of_a_stranger_delays_a_commit_and_not_the_loop(place, ledger):
    if place.kind == "sqlite":
        import sqlite3

        stranger = sqlite3.connect(place.path, isolation_level=None)
        stranger.execute("BEGIN IMMEDIATE")
    else:
        import psycopg

        stranger = psycopg.connect(place.url)
        stranger.execute("LOCK TABLE stored_events IN EXCLUSIVE MODE")
    waiting = place_order(ledger, "ord_1").durable
    turns = 0
    while turns < 50:  # the loop goes on meanwhile
        await asyncio.sleep(0.002)
        turns += 1
    assert not waiting.done()
    stranger.rollback()
    await durable(waiting)
    stranger.close()


async def test_many_open_orders_are_loaded_by_few_queries(place, ledger):
    orders = [place_order(ledger, f"ord_{n}") for n in range(1_200)]
    await durable(*orders)
    before = dict(ledger.open_orders)
    await ledger.close()
    asked = []

    class Counting(Store):
        def streams(self, streams):
            asked.append(len(streams))
            return self._store.streams(streams)

        def stream(self, *_):
            raise AssertionError("one query for one order")

    again = await opened(place, Counting)
    assert again.open_orders == before
    assert asked == [1_200]
    await again.close()


async def test_a_damaged_event_stops_the_start_and_is_named(place, ledger):
    await durable(place_order(ledger, "ord_1"))
    await ledger.close()
    for stream, seq in ((order_stream("ord_1"), 3), (WRITER_STREAM, 1)):
        place.run("UPDATE stored_events SET state = %s WHERE originator_id = %s", b'{"seq":%d}' % seq, stream)
        with pytest.raises(LedgerDamaged, match="run verify") as damage:
            await opened(place)
        assert damage.value.first_bad_seq <= seq


# --- trouble with the database ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stores", [True, False], ids=["reply_lost", "request_lost"])
async def test_a_commit_of_unknown_fate_is_repeated_and_settled_without_doubling(place, stores):
    tries = []

    class Shaky(Store):
        def insert(self, batch):
            tries.append([one.state for one in batch])
            if len(tries) == 2:
                if stores:
                    self._store.insert(batch)
                raise LedgerUnavailable("the connection was lost")
            self._store.insert(batch)

    ledger = await opened(place, Shaky)
    await durable(*[place_order(ledger, f"ord_{n}") for n in range(5)])
    assert tries[1] == tries[2]
    await durable(place_order(ledger, "ord_5"))
    await ledger.close()
    assert len(refold(sound(place))) == 6


async def test_a_store_that_stays_away_fails_every_future_and_stops_the_writer(place):
    tries = []

    class Gone(Store):
        def insert(self, batch):
            if batch[0].seq > 2:
                tries.append(batch)
                raise LedgerUnavailable("the disk is full")
            self._store.insert(batch)

    ledger = await opened(place, Gone, patience_s=0.2)
    waiting = [place_order(ledger, f"ord_{n}") for n in range(600)]
    failure = await asyncio.wait_for(asyncio.shield(ledger.failure), 5)
    assert str(failure) == "the disk is full"
    assert 2 < len(tries) < 10  # it pauses in between
    assert all(one == tries[0] for one in tries)
    results = await asyncio.wait_for(asyncio.gather(*[one.durable for one in waiting], return_exceptions=True), 5)
    assert {type(one) for one in results} == {LedgerUnavailable}
    with pytest.raises(LedgerUnavailable, match="has stopped"):
        place_order(ledger, "ord_1")
    await ledger.close()
    assert len(sound(place)) == 2


@pytest.mark.parametrize(
    "error", [LedgerUnavailable("no versions"), RuntimeError("a defect")], ids=["unavailable", "defect"]
)
async def test_whatever_breaks_before_the_commit_fails_its_futures_too(place, error):
    class Blind(Store):
        def last_version(self, stream):
            if stream.startswith("account/"):
                raise error
            return self._store.last_version(stream)

    ledger = await opened(place, Blind)
    with pytest.raises(LedgerUnavailable, match=r"no versions|a defect"):
        await durable(ledger.append("account/5001", LOST, CAUSE), place_order(ledger, "ord_1"))
    assert isinstance(ledger.failure.result(), LedgerError)
    await ledger.close()


async def test_a_failed_creation_releases_the_lock(place):
    class Full(Store):
        def insert(self, batch):
            raise LedgerUnavailable("the disk is full")

    with pytest.raises(LedgerUnavailable, match="the disk is full"):
        await opened(place, Full, patience_s=0.1)
    await (await opened(place)).close()
    sound(place)


async def test_a_version_that_is_taken_by_a_stranger_is_a_second_writer(place):
    class Taken(Store):
        def insert(self, batch):
            if batch[0].seq > 2:
                raise VersionTaken
            self._store.insert(batch)

    ledger = await opened(place, Taken)
    with pytest.raises(LedgerFenced):
        await durable(place_order(ledger, "ord_1"))
    await ledger.close()


# --- what followers of this process see ---------------------------------------------------------------------------


async def test_the_tail_shows_what_is_durable_and_nothing_else(place, ledger):
    await durable(*[place_order(ledger, f"ord_{n}") for n in range(20)])
    records = stored(place)
    head = await ledger.tail.head()
    assert head == records[-1].seq
    for after in (0, 1, 5, head - 1, head, head + 5):
        assert as_stored(await ledger.tail.read(after, 7)) == records[after : after + 7]
    assert as_stored([await ledger.tail.at(seq) for seq in (1, 7, head)]) == [records[0], records[6], records[-1]]
    assert await ledger.tail.at(0) is await ledger.tail.at(head + 1) is None


async def test_the_tail_of_a_restarted_writer_reads_the_past_from_the_store(place, ledger):
    await durable(*[place_order(ledger, f"ord_{n}") for n in range(5)])
    await ledger.close()
    again = await opened(place)
    past = stored(place)
    assert await again.tail.read(0, 100) == past
    await durable(place_order(again, "later"))
    records = stored(place)
    for after in range(len(records)):
        assert as_stored(await again.tail.read(after, 1)) == records[after : after + 1]
    await again.close()


async def test_a_follower_that_waits_is_woken_by_the_next_commit(ledger):
    head = await ledger.tail.head()
    heard = []
    ledger.tail.on_commit(lambda: heard.append(1))
    waiter = asyncio.create_task(ledger.tail.wait(head, 10))
    await asyncio.sleep(0)
    assert not waiter.done()
    await durable(place_order(ledger, "ord_1"))
    await asyncio.wait_for(waiter, 1)
    assert heard == [1]
    await ledger.tail.wait(head, 10)  # something is there already
    await ledger.tail.wait(head + 2, 0.001)  # nothing comes: it returns all the same


# --- kill -9 ----------------------------------------------------------------------------------------------------

WRITE = """
import asyncio, sys
from datetime import UTC, datetime
from ledger.store import open_store
from ledger.writer import Cause, Ledger
from tests.decider import check, receive

async def main(url, run):
    ledger = await Ledger.open(open_store(url), login=5001, server="Demo", clock=lambda: datetime.now(UTC), build="t")
    async def producer(number):
        for n in range(10**9):
            order_id = f"ord_{run}_{number}_{n}"
            ledger.execute(order_id, receive(order_id=order_id), Cause(actor="client"))
            committed = await ledger.execute(order_id, check(), Cause(actor="client")).durable
            print(committed.first_seq, order_id, flush=True)
    await asyncio.gather(*[producer(number) for number in range(8)])

asyncio.run(main(*sys.argv[1:]))
"""


def killed_writer(url: str, run: int, after_lines: int) -> list[tuple[int, str]]:
    """Lets another process write until it has acknowledged so many orders, kills it, and gives all it said."""
    with subprocess.Popen([sys.executable, "-c", WRITE, url, str(run)], stdout=subprocess.PIPE, text=True) as process:
        too_late = threading.Timer(20, process.kill)
        too_late.start()
        lines = [process.stdout.readline() for _ in range(after_lines)]
        process.kill()
        too_late.cancel()
        lines += process.stdout.readlines()
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


async def test_a_writer_killed_at_any_instant_has_kept_its_word(place):
    chance = random.Random(20_260_301)
    acknowledged: list[tuple[int, str]] = []
    for run in range(5):
        acknowledged += killed_writer(place.url, run, chance.randint(1, 120))
        records = await _settled(place)
        by_seq = {one.seq: one for one in records}
        for seq, order_id in acknowledged:
            assert (by_seq[seq].stream, by_seq[seq].topic) == (order_stream(order_id), "order.checked")
        assert isinstance(decode(records[-1]).data, BatchSealed)
    assert len(acknowledged) > 5
    ledger = await opened(place)
    assert ledger.epoch == 6
    assert ledger.open_orders == refold(records)
    await ledger.close()
    sound(place)


STALE = """
import asyncio, sys
from datetime import UTC, datetime
from ledger.store import open_store
from ledger.writer import Cause, Ledger
from tests.decider import receive

async def main(url, role):
    now = lambda: datetime.now(UTC)
    ledger = await Ledger.open(
        open_store(url), login=5001, server="Demo", clock=now, build="t", take_over=role == "thief"
    )
    n = 0
    while role != "idle" or n == 0:
        n += 1
        executed = ledger.execute(f"{role}_{n}", receive(order_id=f"{role}_{n}"), Cause(actor="client"))
        done, _ = await asyncio.wait([executed.durable, ledger.failure], return_when="FIRST_COMPLETED")
        if ledger.failure.done():
            break
        print(executed.durable.result().first_seq, f"{role}_{n}", flush=True)
    error = await ledger.failure
    print(type(error).__name__, error, flush=True)
    await ledger.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("stale", ["idle", "busy", "paused"])
def test_a_displaced_process_stops_within_two_seconds_of_the_other_ones_first_commit(place, stale):
    def run(role):
        return subprocess.Popen([sys.executable, "-c", STALE, place.url, role], stdout=subprocess.PIPE, text=True)

    with run("busy" if stale == "busy" else "idle") as old:
        lines = [old.stdout.readline()]
        if stale == "paused":
            old.send_signal(signal.SIGSTOP)
        with run("thief") as new:
            new_lines = [new.stdout.readline()]
            old.send_signal(signal.SIGCONT)
            try:
                rest, _ = old.communicate(timeout=2.5)  # half a second for the process to end
            finally:
                old.kill()
                new.kill()
                new_lines += new.stdout.readlines()
    lines += rest.splitlines()
    assert lines[-1].startswith("LedgerFenced ledger "), lines[-1]
    assert "another writer committed" in lines[-1]
    by_seq = {one.seq: one.stream for one in sound(place)}
    for line in (*lines[:-1], *(one for one in new_lines if one.endswith("\n"))):
        seq, order_id = line.split()
        assert by_seq[int(seq)] == order_stream(order_id)


async def _settled(place: Place) -> list[Recorded]:
    """The events once the database has noticed that the writer is gone (its last commit may still be under way)."""
    store = place.open()
    deadline = asyncio.get_running_loop().time() + 5
    while True:
        try:
            store.lock().release()
            return sound(place)
        except LedgerLocked:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)


# --- checkpoints ------------------------------------------------------------------------------------------------


async def test_a_checkpoint_names_the_orders_that_are_open_at_its_place(place, monkeypatch):
    monkeypatch.setattr(writer_module, "CHECKPOINT_EVERY", 8)
    ledger = await opened(place)
    for n in range(15):
        place_order(ledger, f"open_{n}")
        await durable(place_order(ledger, f"refused_{n}", volume=None))
    await ledger.close()
    records = sound(place)
    checkpoints = [one for one in records if isinstance(decode(one).data, Checkpointed)]
    assert len(checkpoints) > 3
    for one in checkpoints:
        replay = refold(records[: one.seq])
        assert set(decode(one).data.open_orders) == {name for name, order in replay.items() if order.is_open}


async def test_a_seal_points_to_the_last_checkpoint_before_it(place, monkeypatch):
    monkeypatch.setattr(writer_module, "CHECKPOINT_EVERY", 8)
    ledger = await opened(place)
    for n in range(20):
        await durable(place_order(ledger, f"ord_{n}"))
    await ledger.close()
    last = 0
    for one in sound(place):
        data = decode(one).data
        if isinstance(data, Checkpointed):
            last = one.seq
        elif isinstance(data, BatchSealed):
            assert data.checkpoint == last
    assert last > 0


async def test_an_order_that_was_loaded_is_not_forgotten_before_its_message_is_decided(place, ledger, monkeypatch):
    monkeypatch.setattr("ledger.writer.MAX_ENDED_ORDERS", 5)
    names = [f"o-{number}" for number in range(6)]
    for name in names:
        await place_order(ledger, name).durable
        await ledger.execute(name, RefuseOrder(reasons=("test",)), CAUSE).durable
    await ledger.load(["new", *names[:3]])
    fresh = place_order(ledger, "new")
    ledger.execute("new", RefuseOrder(reasons=("test",)), CAUSE)
    again = place_order(ledger, names[1])
    await again.durable
    assert [event.topic() for event in fresh.events] == ["order.requested"]
    assert [event.topic() for event in again.events] == ["order.duplicate_received"]


async def test_an_order_that_was_loaded_is_not_forgotten_because_somebody_else_loads_meanwhile(
    place, ledger, monkeypatch
):
    """A duplicate of it would begin a second life in a stream that exists: the writer would stop as if displaced."""
    monkeypatch.setattr("ledger.writer.MAX_ENDED_ORDERS", 5)

    async def ended(name: str) -> None:
        place_order(ledger, name)
        await ledger.execute(name, RefuseOrder(reasons=("test",)), CAUSE).durable

    for number in range(5):
        await ended(f"o-{number}")
    # So many at once are read by a thread, from any store.
    loading = asyncio.create_task(ledger.load(["o-0", *(f"new-{number}" for number in range(100))]))
    await asyncio.sleep(0)
    for number in range(2):
        place_order(ledger, f"other-{number}")
        ledger.execute(f"other-{number}", RefuseOrder(reasons=("test",)), CAUSE)
    await ledger.load(["other-0"])
    await loading
    again = place_order(ledger, "o-0")
    await again.durable
    assert [event.topic() for event in again.events] == ["order.duplicate_received"]


async def test_a_halt_survives_restarts_until_its_own_source_lifts_it(place):
    account = account_stream(5001)
    ledger = await opened(place)
    halts = [TradingHalted(source="operator", reason="news"), TradingHalted(source="limit", reason="daily loss")]
    await durable(*[ledger.append(account, one, CAUSE) for one in halts])
    await ledger.close()  # with a checkpoint
    ledger = await opened(place)
    assert ledger.account.halted == "operator: news; limit: daily loss"
    await durable(ledger.append(account, TradingResumed(source="limit"), CAUSE))
    await ledger._end()  # without one
    ledger._lock.release()
    ledger._store.close()
    ledger = await opened(place)
    assert ledger.account.halts == (halts[0],)
    await ledger.close()


async def test_two_writers_never_seal_the_same_bytes(place):
    first = await opened(place)
    second = await opened(place, take_over=True) if place.kind == "postgresql" else None
    ours = await durable(place_order(second or first, "ord_1"))
    assert ours
    seals = {decode(one).actor for one in sound(place) if one.stream == WRITER_STREAM and one.topic.endswith("sealed")}
    assert len(seals) == (2 if second else 1)
    for ledger in filter(None, (second, first)):
        await ledger.close()
