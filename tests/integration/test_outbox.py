"""News out, on a real NATS: once per event, in order, across restarts of either side, and never refilled."""

import asyncio
import contextlib
import signal
from datetime import UTC, datetime

import nats
import orjson
import pytest

from gateway.outbox import Outbox
from ledger.commands import ReceiveOrder
from ledger.intake import read_order
from ledger.store import open_store
from ledger.writer import Cause, Ledger
from projections.follower import Follower, Pace
from tests.nats_server import nats_server
from tests.service import market_order

CAUSE = Cause(actor="test")


@pytest.fixture
def server(tmp_path):
    with nats_server(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger = await Ledger.open(store, login=7, server="s", clock=lambda: datetime.now(UTC), build="test")
    try:
        yield ledger, store
    finally:
        await ledger.close()


@contextlib.asynccontextmanager
async def following(server, ledger, store, *, new_ledger=True):
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
    )
    follower = Follower(ledger.tail, outbox, Pace(retry_first_s=0.05, retry_most_s=0.2, idle_s=0.2))
    await follower.start(5)
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


async def held(server) -> list[str]:
    """The order ids in the stream of news, in order."""
    connection = await nats.connect(server.url)
    try:
        js = connection.jetstream()
        info = await js.stream_info("BROKER-7")
        first, last = info.state.first_seq, info.state.last_seq
        found = [await js.get_msg("BROKER-7", seq=number) for number in range(first, last + 1)]
        return [orjson.loads(one.data)["order_id"] for one in found]
    finally:
        await connection.close()


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
