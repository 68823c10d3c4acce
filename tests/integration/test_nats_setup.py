"""The NATS we meet: logins and TLS, streams and consumers that are checked, poison, and what the server promises."""

import asyncio
import sqlite3
from datetime import UTC, datetime

import nats
import nats.js.errors
import orjson
import pytest
from structlog.testing import capture_logs

from gateway.bus import MAX_DELIVERIES, STREAM, BusRefused, OrderBus
from gateway.config import load
from gateway.nats_connection import NatsUnreachable, connect, warn_of_early_acks
from ledger.store import open_store
from ledger.writer import Ledger
from tests import nats_logins
from tests.desk import Taken, until
from tests.nats_server import nats_server
from tests.servers import free_port
from tests.service import market_order

SECRETS = ("hush-hush", nats_logins.USER.decode(), nats_logins.OTHER.decode())


async def logged_in(url: str, **environment: str) -> bool:
    settings = load({}, environment)
    connection = await connect(settings, [url], name="test", within_s=5, reconnect=False)
    await connection.flush()
    await connection.close()
    return True


WAYS = {
    "user and password": (
        "authorization { user: ann, password: 'hush-hush' }",
        {"NATS_USER": "ann", "NATS_PASSWORD": "hush-hush"},
        {"NATS_USER": "ann", "NATS_PASSWORD": "wrong"},
    ),
    "token": (
        "authorization { token: 'hush-hush' }",
        {"NATS_TOKEN": "hush-hush"},
        {"NATS_TOKEN": "hush-hush-not"},
    ),
    "nkey": (
        f"authorization {{ users: [ {{ nkey: {nats_logins.public(nats_logins.USER)} }} ] }}",
        {"NATS_NKEY": nats_logins.USER.decode()},
        {"NATS_NKEY": nats_logins.OTHER.decode()},
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_way_to_log_in_works_and_a_wrong_secret_is_a_clear_error_without_it(tmp_path, way):
    config, right, wrong = WAYS[way]
    with nats_server(tmp_path, config) as server:
        assert await logged_in(server.url, **right)
        for refused in (wrong, {}):
            with pytest.raises(NatsUnreachable) as raised:
                await logged_in(server.url, **refused)
            assert "authorization" in str(raised.value).lower()
            assert not any(secret in str(raised.value) for secret in SECRETS)


async def test_a_credentials_file_logs_in(tmp_path):
    path = nats_logins.credentials(tmp_path)
    with nats_server(tmp_path, nats_logins.operator_config()) as server:
        assert await logged_in(server.url, NATS_CREDS=str(path))
        with pytest.raises(NatsUnreachable):
            await logged_in(server.url)


async def test_a_seed_that_is_none_is_not_shown(tmp_path):
    with (
        nats_server(tmp_path) as server,
        pytest.raises(NatsUnreachable, match="the credentials cannot be used") as raised,
    ):
        await logged_in(server.url, NATS_NKEY="SUAhush-hush")
    assert "hush" not in str(raised.value)


async def test_tls_with_our_own_authority_and_a_certificate_of_the_client(tmp_path):
    made = nats_logins.certificates(tmp_path)
    config = f"tls {{ cert_file: '{made['cert']}', key_file: '{made['key']}', ca_file: '{made['ca']}', verify: true }}"
    files = {"NATS_TLS_CA": str(made["ca"]), "NATS_TLS_CERT": str(made["cert"]), "NATS_TLS_KEY": str(made["key"])}
    with nats_server(tmp_path, config) as server:
        url = server.url.replace("nats://", "tls://")
        assert await logged_in(url, **files)
        with pytest.raises(NatsUnreachable):
            await logged_in(url, NATS_TLS_CA=str(made["ca"]))
        with pytest.raises(NatsUnreachable, match="the TLS files of NATS_TLS_CA cannot be used"):
            await logged_in(url, NATS_TLS_CA=str(made["key"]))


@pytest.mark.parametrize(("sync", "warned"), [("", True), ("sync_interval: always", False)])
async def test_a_server_that_acknowledges_before_fsync_is_warned_of(tmp_path, sync, warned):
    port = free_port()
    config = f"http: '127.0.0.1:{port}'\njetstream {{ store_dir: '{tmp_path}/js', {sync} }}"
    with nats_server(tmp_path, config), capture_logs() as lines:
        await warn_of_early_acks(load({}, {"NATS_MONITOR_URL": f"http://127.0.0.1:{port}"}))
    assert ["before they are on its disk" in one["event"] for one in lines] == ([True] if warned else [])


async def test_a_monitoring_that_does_not_answer_is_said_and_stops_nothing():
    with capture_logs() as lines:
        await warn_of_early_acks(load({}, {"NATS_MONITOR_URL": f"http://ann:hush@127.0.0.1:{free_port()}"}))
    assert [one["event"] for one in lines] == ["the monitoring of NATS does not answer"]
    assert "hush" not in str(lines)


# --- orders in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    with nats_server(tmp_path) as running:
        yield running


class Inbox:
    """Orders in, for one account, with nobody behind who sends them."""

    def __init__(self, tmp_path, server, login: int = 7, **options) -> None:
        self._path, self._server, self._login, self._options = tmp_path / f"{login}.db", server, login, options
        self.submitter = Taken()
        self.submitter.backlog = 0

    async def __aenter__(self) -> "Inbox":
        self.store = open_store(f"sqlite:///{self._path}")
        self.ledger = await Ledger.open(
            self.store, login=self._login, server="s", clock=lambda: datetime.now(UTC), build="test"
        )
        self.connection = await nats.connect(self._server.url)
        self.js = self.connection.jetstream()
        self.bus = OrderBus(self.connection, self.ledger, self.submitter, lambda: datetime.now(UTC), **self._options)
        try:
            await self.bus.start()
        except BusRefused:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_) -> None:
        await self.bus.stop()
        await self.connection.close()
        await self.ledger.close()

    async def consumer(self):
        return await self.js.consumer_info(STREAM, f"order-ledger-{self._login}")

    async def send(self, payload: bytes, subject: str = "orders.submitted.EURUSD") -> None:
        await self.js.publish(subject, payload)

    async def settled(self) -> None:
        """Until nothing is pending and nothing waits for its acknowledgement."""
        async with asyncio.timeout(10):
            while (info := await self.consumer()).num_ack_pending or info.num_pending:  # noqa: ASYNC110  # it must be asked
                await asyncio.sleep(0.01)


async def test_what_waits_for_its_acknowledgement_is_bounded_as_configured(tmp_path, server):
    async with Inbox(tmp_path, server, max_ack_pending=17) as inbox:
        assert (await inbox.consumer()).config.max_ack_pending == 17


async def test_a_message_is_acknowledged_when_it_is_durable_and_not_before(tmp_path, server):
    """Invariant I2."""
    async with Inbox(tmp_path, server) as inbox:
        blocker = sqlite3.connect(tmp_path / "7.db")
        blocker.execute("BEGIN IMMEDIATE")  # as a disk that does not come back
        await inbox.send(orjson.dumps(market_order("o-1")))
        await until(lambda: inbox.submitter.order_ids == ["o-1"])
        await asyncio.sleep(0.3)  # what must not happen has no event
        assert (await inbox.consumer()).num_ack_pending == 1
        assert inbox.store.last_version("order/o-1") == 0
        blocker.rollback()
        blocker.close()
        await inbox.settled()
        assert inbox.store.last_version("order/o-1") == 1


async def test_poison_is_recorded_and_then_terminated_so_that_it_never_comes_again(tmp_path, server):
    async with Inbox(tmp_path, server) as inbox:
        advisories = []

        async def advise(message):
            advisories.append(message.subject)

        await inbox.connection.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>", cb=advise)
        await inbox.send(b"buy EURUSD now!")
        await inbox.send(orjson.dumps(market_order("o-1")))
        await until(lambda: inbox.submitter.order_ids == ["o-1"])
        await inbox.settled()
        await until(lambda: advisories)
        topics = [one.topic for one in inbox.store.read(0, 100)]
        assert topics.count("inbox.message_rejected") == 1


async def test_a_message_that_was_delivered_often_and_never_recorded_is_taken_for_poison(tmp_path, server):
    async with Inbox(tmp_path, server) as inbox:
        await inbox.send(orjson.dumps(market_order("o-0")))
        await inbox.settled()
    connection = await nats.connect(server.url)
    subscription = await connection.jetstream().pull_subscribe_bind("order-ledger-7", STREAM)
    await connection.jetstream().publish("orders.submitted.EURUSD", orjson.dumps(market_order("o-1")))
    for _ in range(MAX_DELIVERIES):  # as if the service had ended each time
        (message,) = await subscription.fetch(1, timeout=5)
        await message.nak()
    await connection.close()
    async with Inbox(tmp_path, server) as inbox:
        await inbox.settled()
        assert inbox.submitter.order_ids == []
        (rejected,) = [one for one in inbox.store.read(0, 100) if one.topic == "inbox.message_rejected"]
        assert b"delivered more than 20 times without being recorded" in rejected.state


async def test_what_is_in_hand_is_not_delivered_again_however_long_it_waits(tmp_path, server):
    async with Inbox(tmp_path, server, ack_wait_s=0.3) as inbox:
        await inbox.send(orjson.dumps(market_order("o-1")))
        await until(lambda: inbox.submitter.order_ids)
        inbox.submitter.backlog = 1_000_000  # as while the broker hangs: what has been asked for waits here
        await inbox.send(orjson.dumps(market_order("o-2")))
        await until(lambda: len(inbox.submitter.order_ids) == 2)
        await inbox.send(orjson.dumps(market_order("o-3")))
        await until(lambda: inbox.bus._pull.waiting)
        await asyncio.sleep(1.0)  # what must not happen has no event
        assert (await inbox.consumer()).num_redelivered == 0
        inbox.submitter.backlog = 0
        await until(lambda: inbox.submitter.order_ids == ["o-1", "o-2", "o-3"])


async def test_what_a_killed_gateway_had_in_hand_comes_to_the_next_one_within_seconds(tmp_path, server):
    async with Inbox(tmp_path, server):
        pass
    connection = await nats.connect(server.url)
    subscription = await connection.jetstream().pull_subscribe_bind("order-ledger-7", STREAM)
    await connection.jetstream().publish("orders.submitted.EURUSD", orjson.dumps(market_order("o-1")))
    await subscription.fetch(1, timeout=5)
    await connection.close()  # it took the order, and ended
    async with Inbox(tmp_path, server) as inbox:
        await until(lambda: inbox.submitter.order_ids == ["o-1"])
        assert (await inbox.consumer()).config.ack_wait == 5


async def test_two_gateways_never_take_the_same_unaddressed_orders(tmp_path, server):
    async with Inbox(tmp_path, server, 7):
        with pytest.raises(BusRefused, match=r"the gateway of account 7 takes orders\.submitted\.> already"):
            async with Inbox(tmp_path, server, 8):
                pass
        async with Inbox(tmp_path, server, 8, unaddressed=False) as other:
            await other.send(orjson.dumps(market_order("mine")), "orders.account.8.EURUSD")
            await until(lambda: other.submitter.order_ids == ["mine"])
            await other.send(orjson.dumps(market_order("theirs")))
            await other.settled()
            assert other.submitter.order_ids == ["mine"]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"subjects": ["orders.other.>"]}, "add orders.submitted.>"),
        ({"storage": "memory"}, "is kept in memory"),
        ({"retention": "interest"}, "keeps nothing while nobody listens"),
    ],
)
async def test_a_stream_that_orders_are_not_safe_in_is_refused_with_the_remedy(tmp_path, server, config, problem):
    connection = await nats.connect(server.url)
    await connection.jetstream().add_stream(**({"name": STREAM, "subjects": ["orders.>"]} | config))
    await connection.close()
    with pytest.raises(BusRefused, match=problem):
        async with Inbox(tmp_path, server):
            pass


async def test_a_consumer_that_cannot_become_what_is_needed_is_named_with_the_remedy(tmp_path, server):
    connection = await nats.connect(server.url)
    js = connection.jetstream()
    await js.add_stream(name=STREAM, subjects=["orders.submitted.>", "orders.account.>"])
    await js.add_consumer(STREAM, durable_name="order-ledger-7", ack_policy="none")
    await connection.close()
    with pytest.raises(BusRefused, match="delete it, nothing is lost by that"):
        async with Inbox(tmp_path, server):
            pass
