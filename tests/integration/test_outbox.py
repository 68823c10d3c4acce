"""News out, on a real NATS: once per event, in order, across restarts of either side, and never refilled."""

import asyncio
import contextlib
import signal
import time
from datetime import UTC, datetime

import nats
import orjson
import pytest
from nats.js.errors import NotFoundError

from gateway.outbox import STRANGERS, SUBJECTS, Outbox, OutboxRefused
from ledger.commands import ReceiveOrder
from ledger.events import BatchSealed, decode
from ledger.intake import read_order
from ledger.store import open_store
from ledger.writer import Cause, Ledger
from projections.follower import Follower, Pace
from tests.decider import ORDER_ID, D, deal, deals, filled, receive
from tests.nats_server import nats_server
from tests.service import market_order

CAUSE = Cause(actor="test")


@pytest.fixture
def server(tmp_path):
    with nats_server(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(tmp_path, login=7):
    store = open_store(f"sqlite:///{tmp_path / f'ledger-{login}.db'}")
    ledger = await Ledger.open(store, login=login, server="s", clock=lambda: datetime.now(UTC), build="test")
    try:
        yield ledger, store
    finally:
        await ledger.close()


@contextlib.asynccontextmanager
async def following(server, ledger, store, *, new_ledger=True, shared=False):
    """The outbox as the service runs it; at the end it finishes what the ledger holds."""
    connection = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=quiet)
    outbox = Outbox(
        connection,
        store,
        ledger.tail,
        ledger.ledger_id,
        ledger.login,
        new_ledger=new_ledger,
        on_failure=ledger.tail.wake,
        shared=shared,
    )
    follower = Follower(ledger.tail, outbox, Pace(retry_first_s=0.05, retry_most_s=0.2, idle_s=0.2))
    try:
        await follower.start(5)
    except BaseException:
        await connection.close()
        raise
    task = asyncio.create_task(follower.run())
    try:
        yield
        await told_up_to(await ledger.tail.head(), outbox)
    finally:
        follower.stop()
        await task
        await outbox.close()
        await connection.close()


async def quiet(_):
    pass


async def told_up_to(seq, outbox):
    """Acknowledgements come without an event of their own: they are looked for."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 20
    while outbox.settled.seq < seq:
        assert loop.time() < deadline, "NATS did not acknowledge the news"
        await asyncio.sleep(0.01)


async def take(ledger, *order_ids):
    """Records orders that are refused at once: each is one piece of news."""
    for order_id in order_ids:
        payload = orjson.dumps(market_order(order_id, volume=0))
        executed = ledger.execute(order_id, ReceiveOrder(received=read_order(payload)), CAUSE)
        await executed.durable


async def held(server, stream="BROKER-7") -> list[str]:
    """The order ids in the stream of news, in order."""
    return [one["order_id"] for one in await bodies(server, stream)]


async def bodies(server, stream="BROKER-7") -> list[dict]:
    connection = await nats.connect(server.url)
    try:
        js = connection.jetstream()
        info = await js.stream_info(stream)
        first, last = info.state.first_seq, info.state.last_seq
        found = [await js.get_msg(stream, seq=number) for number in range(first, last + 1)]
        return [orjson.loads(one.data) for one in found]
    finally:
        await connection.close()


@pytest.mark.parametrize("behind", [False, True])
async def test_a_duplicate_is_told_the_fill_as_it_was_known_when_it_came(tmp_path, server, behind):
    lives = [
        *filled,
        receive(),
        deals(deal(price=D("1.09"))),
        receive(),
        deals(deal(price=D("1.09"), commission=D(-2))),
    ]
    async with opened(tmp_path) as (ledger, store):

        async def live():
            for command in (*lives, receive(), receive()):
                await ledger.execute(ORDER_ID, command, CAUSE).durable

        if behind:  # all of it has happened when it is told
            async with following(server, ledger, store):
                await take(ledger, "o-1")
            await live()
        async with following(server, ledger, store, new_ledger=not behind):
            if not behind:
                await live()
    answers = [one for one in await bodies(server) if one.get("duplicate")]
    assert [(one["event"], one["price"], one["commission"]) for one in answers] == [
        ("order.filled", 1.1, 0),
        ("order.filled", 1.09, 0),
        ("order.filled", 1.09, -2),
        ("order.filled", 1.09, -2),
    ]
    assert {one["final"] for one in answers} == {True}


async def test_each_event_is_told_once_and_in_order(tmp_path, server):
    names = [f"o-{number}" for number in range(50)]
    async with opened(tmp_path) as (ledger, store), following(server, ledger, store):
        await take(ledger, *names)
    assert await held(server) == names


async def test_after_a_restart_it_continues_where_it_was(tmp_path, server):
    async with opened(tmp_path) as (ledger, store):
        async with following(server, ledger, store):
            await take(ledger, "o-1")
        await take(ledger, "o-2")
    async with opened(tmp_path) as (ledger, store), following(server, ledger, store, new_ledger=False):
        await take(ledger, "o-3")
    assert await held(server) == ["o-1", "o-2", "o-3"]


async def test_the_header_of_the_last_message_is_enough_when_the_cursor_is_old(tmp_path, server):
    async with opened(tmp_path) as (ledger, store):
        async with following(server, ledger, store):
            await take(ledger, "o-1")
        connection = await nats.connect(server.url)
        bucket = await connection.jetstream().key_value(f"order-ledger-{ledger.ledger_id}")
        await bucket.delete("outbox")
        await connection.close()
        async with following(server, ledger, store):
            await take(ledger, "o-2")
    assert await held(server) == ["o-1", "o-2"]


async def test_a_nats_that_lost_everything_is_not_refilled(tmp_path, server):
    async with opened(tmp_path) as (ledger, store):
        async with following(server, ledger, store):
            await take(ledger, "o-1")
        connection = await nats.connect(server.url)
        await connection.jetstream().delete_stream("BROKER-7")
        await connection.jetstream().delete_key_value(f"order-ledger-{ledger.ledger_id}")
        await connection.close()
        async with following(server, ledger, store, new_ledger=False):
            await take(ledger, "o-2")
    assert await held(server) == ["o-2"]


async def test_a_stranger_in_the_stream_does_not_stop_the_news(tmp_path, server):
    async with opened(tmp_path) as (ledger, store), following(server, ledger, store):
        await take(ledger, "o-1")
        connection = await nats.connect(server.url)
        await connection.jetstream().publish("broker.order.EURUSD", orjson.dumps({"order_id": "stranger"}))
        await connection.close()
        await take(ledger, "o-2", "o-3")
    assert await held(server) == ["o-1", "stranger", "o-2", "o-3"]


async def test_killing_nats_under_way_loses_and_doubles_nothing(tmp_path, server):
    names = [f"o-{number}" for number in range(30)]
    async with opened(tmp_path) as (ledger, store), following(server, ledger, store):
        await take(ledger, *names[:10])
        server.stop(signal.SIGKILL)
        await take(ledger, *names[10:20])
        server.start()
        await take(ledger, *names[20:])
    assert await held(server) == names


# --- a stream that forgets, and a cursor that is behind -------------------------------------------------------------


@contextlib.asynccontextmanager
async def jetstream(server):
    connection = await nats.connect(server.url)
    try:
        yield connection.jetstream()
    finally:
        await connection.close()


async def until(look, is_so):
    """JetStream tells nobody when it stores and forgets: it is asked."""
    deadline = time.monotonic() + 20
    while not is_so(await look()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def state_of(js):
    return (await js.stream_info("BROKER-7")).state


async def expire_all(js):
    """Lets the stream's retention remove every message, and then keep the next ones for a week again."""
    config = (await js.stream_info("BROKER-7")).config
    await js.update_stream(config.evolve(max_age=0.2, duplicate_window=0.2))
    await until(lambda: state_of(js), lambda state: not state.messages)
    await js.update_stream(config)
    with pytest.raises(NotFoundError):
        await js.get_last_msg("BROKER-7", "broker.>")


@pytest.mark.parametrize("happens", ["nothing", "the gateway restarts", "NATS restarts"])
async def test_when_retention_has_removed_everything_the_next_news_follows_the_last(tmp_path, server, happens):
    async with opened(tmp_path) as (ledger, store), jetstream(server) as js:
        async with following(server, ledger, store):
            await take(ledger, "o-1", "o-2", "o-3")
            if happens != "the gateway restarts":
                await until(lambda: state_of(js), lambda state: state.last_seq == 3)
                await expire_all(js)
                if happens == "NATS restarts":
                    server.stop()
                    server.start()
                await take(ledger, "o-4")
        if happens == "the gateway restarts":
            await expire_all(js)
            async with following(server, ledger, store, new_ledger=False):
                await take(ledger, "o-4")
        state = await state_of(js)
        assert (state.first_seq, state.last_seq) == (4, 4)
        assert (await js.get_msg("BROKER-7", seq=4)).headers["Nats-Expected-Last-Sequence"] == "3"
    assert await held(server) == ["o-4"]


async def test_in_a_quiet_time_the_cursor_comes_to_the_head(tmp_path, server):
    async with opened(tmp_path) as (ledger, store), jetstream(server) as js, following(server, ledger, store):
        await take(ledger, "o-1", "o-2")
        bucket = await js.key_value(f"order-ledger-{ledger.ledger_id}")
        head = await ledger.tail.head()
        await until(lambda: bucket.get("outbox"), lambda entry: orjson.loads(entry.value)["seq"] == head)


@pytest.mark.parametrize("hidden_by", ["a purge", "strangers"])
async def test_news_that_nats_had_before_is_not_told_twice_and_holds_up_nothing(tmp_path, server, hidden_by):
    """The acknowledgement `duplicate`: the cursor is behind, as a kill leaves it, and no message shows how far."""
    async with opened(tmp_path) as (ledger, store), jetstream(server) as js:
        async with following(server, ledger, store):
            await take(ledger, "o-1", "o-2", "o-3")
        bucket = await js.key_value(f"order-ledger-{ledger.ledger_id}")
        first_seal = next(event for event in map(decode, store.scan()) if isinstance(event.data, BatchSealed))
        await bucket.put("outbox", orjson.dumps({"seq": first_seal.seq, "digest": first_seal.data.digest}))
        if hidden_by == "a purge":
            await js.purge_stream("BROKER-7")
        else:
            for _ in range(STRANGERS + 1):
                await js.publish("broker.order.EURUSD", orjson.dumps({"order_id": "stranger"}))
        async with following(server, ledger, store, new_ledger=False):
            await take(ledger, "o-4", "o-5")
    strangers = [] if hidden_by == "a purge" else ["o-1", "o-2", "o-3", *["stranger"] * (STRANGERS + 1)]
    assert await held(server) == [*strangers, "o-4", "o-5"]


async def test_a_stranger_with_the_id_of_our_next_news_cannot_suppress_it(tmp_path, server):
    async with opened(tmp_path) as (ledger, store), jetstream(server) as js:
        async with following(server, ledger, store):
            await take(ledger, "o-1")
        config = (await js.stream_info("BROKER-7")).config
        await js.update_stream(config.evolve(duplicate_window=2))
        head = await ledger.tail.head()
        for seq in range(head + 1, head + 4):
            body = orjson.dumps({"order_id": "stranger"})
            await js.publish("broker.order.EURUSD", body, headers={"Nats-Msg-Id": f"{ledger.ledger_id}:{seq}"})
        async with following(server, ledger, store):
            await take(ledger, "o-2")
    assert await held(server) == ["o-1", *["stranger"] * 3, "o-2"]


# --- several accounts on one NATS -----------------------------------------------------------------------------------


async def heard(server, names):
    """What a plain subscriber hears until it has heard of all these orders: (subject, account, order id)."""
    connection = await nats.connect(server.url)
    found = []
    done = asyncio.Event()

    async def take_one(message):
        body = orjson.loads(message.data)
        found.append((message.subject, body["account"], body["order_id"]))
        if {order_id for _, _, order_id in found} >= set(names):
            done.set()

    await connection.subscribe("broker.*.*", cb=take_one)
    await connection.flush()
    return connection, found, done


async def test_accounts_share_a_nats_and_plain_subscribers_hear_of_all(tmp_path, server):
    async with opened(tmp_path, 7) as (one, one_store), opened(tmp_path, 8) as (other, other_store):
        connection, found, done = await heard(server, ["o-1", "o-2", "p-1"])
        async with following(server, one, one_store, shared=True), following(server, other, other_store, shared=True):
            await take(one, "o-1")
            await take(other, "p-1")
            await take(one, "o-2")
        await asyncio.wait_for(done.wait(), 5)
        await connection.close()
    assert sorted(found) == [
        ("broker.error.EURUSD", "7", "o-1"),
        ("broker.error.EURUSD", "7", "o-2"),
        ("broker.error.EURUSD", "8", "p-1"),
    ]
    assert (await held(server, "BROKER-7"), await held(server, "BROKER-8")) == (["o-1", "o-2"], ["p-1"])


async def test_killing_a_shared_nats_loses_and_doubles_nothing_in_either_stream(tmp_path, server):
    async with (
        opened(tmp_path, 7) as (one, one_store),
        opened(tmp_path, 8) as (other, other_store),
        following(server, one, one_store, shared=True),
        following(server, other, other_store, shared=True),
    ):
        for number in range(30):
            await take(one, f"o-{number}")
            await take(other, f"p-{number}")
            if number == 10:
                server.stop(signal.SIGKILL)
            if number == 20:
                server.start()
    assert await held(server, "BROKER-7") == [f"o-{number}" for number in range(30)]
    assert await held(server, "BROKER-8") == [f"p-{number}" for number in range(30)]


async def test_a_second_account_that_would_take_the_same_subjects_is_refused_with_the_remedy(tmp_path, server):
    async with (
        opened(tmp_path, 7) as (one, one_store),
        opened(tmp_path, 8) as (other, other_store),
        following(server, one, one_store),
    ):
        with pytest.raises(OutboxRefused, match="set NATS_NEWS=shared on all gateways"):
            async with following(server, other, other_store):
                pass


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"subjects": ["broker.fill.>"]}, "it has the subjects"),
        ({"storage": "memory"}, "it is kept in memory"),
        ({"retention": "interest"}, "its retention is not limits"),
    ],
)
async def test_a_stream_that_the_news_are_not_safe_in_is_refused(tmp_path, server, config, problem):
    connection = await nats.connect(server.url)
    await connection.jetstream().add_stream(**({"name": "BROKER-7", "subjects": list(SUBJECTS)} | config))
    await connection.close()
    async with opened(tmp_path) as (ledger, store):
        with pytest.raises(OutboxRefused, match=problem):
            async with following(server, ledger, store):
                pass
