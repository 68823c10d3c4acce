"""The Central Hub: fetched, cached, followed; and whatever it does, orders go on."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import chain, repeat
from typing import Any

import nats
import orjson
import pytest
from aiohttp import web

from gateway.config import SERVICE, load
from gateway.hub import MAX_ANSWER, ConfigClient, Hub, keep_registered
from gateway.hub_server import hub_server
from gateway.reload import registration
from gateway.show import open_ledger
from ledger.account_events import ConfigurationAccepted, ConfigurationRefused
from ledger.events import account_stream, event_of
from tests.hub import AnyHub, any_hub, operational
from tests.nats_server import nats_server
from tests.servers import free_port
from tests.service import Listener, Service, market_order, until

DEFAULTS = {"operational": {"order_settings": {"max_retries": 3, "retry_delay_seconds": 5}}}
PATIENCE_S = 20.0


async def test_the_hub_s_configuration_is_merged_over_safe_defaults_and_outlives_the_hub(tmp_path):
    async with hub_server(tmp_path / "hub.json", "127.0.0.1", 0) as (url, state):
        state.put(SERVICE, {"operational": {"order_settings": {"max_retries": 7}}}, "v1", "me")
        client = ConfigClient(SERVICE, DEFAULTS, url=url, kept_in=tmp_path)
        await client.init_async()
        merged = await client.get_config()
        assert merged["operational"]["order_settings"] == {"max_retries": 7, "retry_delay_seconds": 5}
    assert await client.get_config() == merged
    later = ConfigClient(SERVICE, DEFAULTS, url=url, kept_in=tmp_path)
    await later.init_async()
    assert (await later.get_config(), later.source) == (merged, "last good of the hub, version v1")


async def test_the_hub_is_asked_once_as_long_as_the_answer_is_fresh_and_its_loss_changes_nothing(tmp_path):
    async with any_hub() as hub:
        hub.answer = saying({"config": {"a": 1}, "version": "v1"})
        client = ConfigClient(SERVICE, DEFAULTS, url=hub.url, kept_in=tmp_path, cache_s=3600)
        for _ in range(5):
            assert (await client.get_config())["a"] == 1
        assert len(hub.asked) == 1
        always = ConfigClient(SERVICE, DEFAULTS, url=hub.url, kept_in=tmp_path, cache_s=0)
        await always.init_async()
        hub.answer = saying({"config": {"a": 2}, "version": "v2"})
        assert (await always.get_config())["a"] == 2
        hub.answer = broken
        assert ((await always.get_config())["a"], always.version) == (2, "v2")


async def test_a_change_told_over_nats_counts_at_once_and_what_the_message_says_does_not(tmp_path):
    with nats_server(tmp_path) as bus:
        async with any_hub() as hub:
            hub.answer = saying({"config": {"a": 1}, "version": "v1"})
            client = ConfigClient(SERVICE, DEFAULTS, url=hub.url, kept_in=tmp_path, cache_s=3600)
            connection = await nats.connect(bus.url)
            await client.follow(connection)
            await connection.flush()
            assert (await client.get_config())["a"] == 1
            hub.answer = saying({"config": {"a": 2}, "version": "v2"})
            assert (await client.get_config())["a"] == 1
            await connection.publish(f"config.update.{SERVICE}", b'{"config":{"a":3},"version":"v3"}')
            async with asyncio.timeout(PATIENCE_S):
                while (found := (await client.get_config())["a"]) == 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert found == 2
            await connection.close()


# --- hubs that are slow, broken, or lie ------------------------------------------------------------------------------

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def saying(answer: Any) -> Answer:
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)

    async def answer_so(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    return answer_so


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def broken(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="Traceback: hunter2")


async def elsewhere(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.1:1/")


async def half(request: web.Request) -> web.StreamResponse:
    """Promises more than it sends."""
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b'{"config":')
    assert request.transport is not None
    request.transport.close()
    return answer


async def not_packed(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"config": {}}', headers={"Content-Encoding": "gzip"})


async def dripping(request: web.Request) -> web.StreamResponse:
    """A byte at a time, for ever."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.02)


DOWN: dict[str, Answer] = {
    "never": never,
    "dripping": dripping,
    "half": half,
    "not packed": not_packed,
    "500": broken,
    "elsewhere": elsewhere,
}
# What cannot be read, and what the refusal says of it.
UNREADABLE: dict[str, tuple[Any, str]] = {
    "garbage": (b"\xff\x00{", "the hub's answer is not JSON"),
    "not an object": ([1, 2], "the hub's answer is not a JSON object"),
    "no config": ({"version": "1"}, "the hub's answer has no object `config`"),
    "config is a number": ({"config": 3}, "the hub's answer has no object `config`"),
    "config is another text": ({"config": "hunter2"}, "the hub's config is not JSON"),
    "too deep": (
        b'{"config":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        "the hub's config is nested deeper than 32 groups",
    ),
    "too large": (b'{"config": {"a": "' + b"x" * MAX_ANSWER + b'"}}', "the hub's configuration is larger than"),
}


@pytest.mark.parametrize("answer", [*DOWN.values(), *(saying(one) for one, _ in UNREADABLE.values())])
async def test_a_hub_that_is_slow_broken_or_lies_leaves_the_safe_defaults(tmp_path, answer):
    async with any_hub() as hub:
        hub.answer = answer
        client = ConfigClient(SERVICE, DEFAULTS, url=hub.url, kept_in=tmp_path, timeout_s=0.5)
        await client.init_async()
        assert (await client.get_config(), client.source) == (DEFAULTS, "safe defaults, no hub")


# --- registration and heartbeat --------------------------------------------------------------------------------------

ME = {"name": SERVICE, "metadata": {"instance_id": "1"}}


async def test_the_hub_takes_a_key_registrations_and_heartbeats(tmp_path):
    async with hub_server(tmp_path / "hub.json", "127.0.0.1", 0, "", "key") as (url, _):
        hub = Hub(url, "key")
        beat = {"service_name": SERVICE, "instance_id": "1"}
        assert await Hub(url).post("/api/v1/discovery/register", ME) == 401
        assert await hub.post("/api/v1/discovery/heartbeat", beat) == 404
        assert await hub.post("/api/v1/discovery/register", ME) == 200
        assert await hub.post("/api/v1/discovery/heartbeat", beat) == 200


async def test_registration_goes_on_trying_whatever_the_hub_does_and_begins_again_when_it_has_forgotten():
    async with any_hub() as hub:
        heard: asyncio.Queue[str] = asyncio.Queue()
        statuses = iter([500, 200, 200, 500, 404, 200])
        standing = chain(["healthy", "degraded", "unhealthy"], repeat("starting"))

        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            heard.put_nowait(body.get("status") or request.path.rpartition("/")[2])
            if request.path.endswith("heartbeat"):
                assert (body["service_name"], body["instance_id"]) == (SERVICE, "1")
                assert abs(body["timestamp"] - time.time() * 1000) < 60_000
            return web.Response(status=next(statuses, 200))

        hub.answer = answer
        task = asyncio.create_task(keep_registered(Hub(hub.url), ME, lambda: next(standing), 0.01))
        async with asyncio.timeout(PATIENCE_S):
            assert [await heard.get() for _ in range(6)] == [
                "register", "register", "healthy", "degraded", "unhealthy", "register",
            ]  # fmt: skip
            await hub.stop()
            while not heard.empty():
                heard.get_nowait()
            await hub.start()
            assert await heard.get() == "starting"
        task.cancel()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:40123", "127.0.0.1"),
        ("http://0.0.0.0:40123", socket.gethostname()),
        ("http://[::]:40123", socket.gethostname()),
        ("http://[::1]:40123", "::1"),
    ],
)
def test_a_service_registers_where_it_is_reached(url, host):
    about = registration(url, "1.0", "a")
    assert (about["name"], about["host"], about["port"]) == (SERVICE, host, 40123)


# --- the service ----------------------------------------------------------------------------------------------------

GOOD = {"config": operational({"limits.max_volume": 1, "order_settings.max_retries": 4}), "version": "good"}
# What can be read and is refused, and what the refusal names.
REFUSED: dict[str, tuple[Any, str]] = {
    "wrong types": ({"order_settings.max_retries": "many", "limits.require_sl": 1}, "max_retries must be a whole"),
    "unknown keys": ({"limits.max_volumen": 9}, "operational.limits.max_volumen is unknown"),
    "a secret": ({"mt5_connection.password": "hunter2"}, "secrets come from the environment only"),
    "out of range": ({"order_settings.max_retries": 10**9}, "max_retries must be from 0 to 100"),
    "no group": ({"limits": 5}, "operational.limits must be a group"),
}  # fmt: skip
LIES = UNREADABLE | {
    name: ({"config": operational(values), "version": name}, told) for name, (values, told) in REFUSED.items()
}


class Hubbed:
    """A service whose hub is where the test starts one."""

    def __init__(self, service: Service, bus_url: str, port: int) -> None:
        self.service, self.bus_url, self.port = service, bus_url, port

    def configurations(self) -> list[ConfigurationAccepted | ConfigurationRefused]:
        store = open_ledger(load({"data": str(self.service.folder)}, {}))
        try:
            found = [event_of(one) for one in store.stream(account_stream(self.service.info["login"]))]
        finally:
            store.close()
        return [one for one in found if isinstance(one, ConfigurationAccepted | ConfigurationRefused)]

    async def last(self, wanted: Callable[[Any], bool]) -> Any:
        """The newest configuration that was accepted or refused, once it is what is wanted."""
        return await until(lambda: found if wanted(found := self.configurations()[-1]) else None)

    async def warned(self, text: str) -> None:
        """Waits until the log says it once more."""
        before = self.service.log().count(text)
        await until(lambda: self.service.log().count(text) > before)

    async def tell(self, *messages: bytes) -> None:
        """On the subject of the hub's changes."""
        connection = await nats.connect(self.bus_url)
        for one in messages:
            await connection.publish(f"config.update.{SERVICE}", one)
        await connection.flush()
        await connection.close()


@pytest.fixture(scope="module")
def hubbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hubbed]:
    folder, port = tmp_path_factory.mktemp("hub"), free_port()
    named = {"CENTRAL_HUB_URL": f"http://127.0.0.1:{port}", "CENTRAL_HUB_POLL_S": "0.1", "CENTRAL_HUB_TIMEOUT_S": "1"}
    with nats_server(folder) as bus:
        service = Service(folder / "data", NATS_URL=bus.url, CLICKHOUSE_URL="off", KAFKA_BROKERS="off", **named)
        try:
            yield Hubbed(service.start(), bus.url, port)
        finally:
            service.end()


@pytest.fixture
async def hub(hubbed: Hubbed) -> AsyncIterator[AnyHub]:
    """Its hub, which is well."""
    async with any_hub(hubbed.port) as hub:
        hub.answer = saying(GOOD)
        await hubbed.last(accepted("good"))
        yield hub


def accepted(version: str) -> Callable[[Any], bool]:
    return lambda one: isinstance(one, ConfigurationAccepted) and f"hub version {version}," in one.origin


class Load:
    """Orders, one every 20 ms, until it is stopped."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self.sent = listener, 0
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            self.sent += 1
            await self._listener.send(market_order(f"load-{self.sent}", order_type=("buy", "sell")[self.sent % 2]))
            await asyncio.sleep(0.02)

    async def more(self) -> None:
        """Some more of them, sent by now."""
        wanted = self.sent + 3
        await until(lambda: self.sent >= wanted)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_killed_slow_and_lying_the_hub_costs_no_order_and_the_last_good_configuration_stays(hubbed, hub):
    kept = orjson.loads((hubbed.service.folder / "hub.json").read_bytes())["config"]
    async with Listener(hubbed.bus_url) as listener:
        load = Load(listener)
        await load.more()
        await hub.stop()
        await hubbed.warned("the hub is not to be asked")
        await load.more()
        await hub.start()
        for answer in DOWN.values():
            hub.answer = answer
            await hubbed.warned("the hub is not to be asked")
            await load.more()
        for name, (lie, told) in LIES.items():
            hub.answer = saying(lie)
            version = name if name in REFUSED else ""
            refused = await hubbed.last(lambda one, version=version, told=told: says(one, version, told))
            assert "hunter2" not in str(refused)
            await load.more()
        hub.answer = saying(GOOD | {"config": orjson.dumps(GOOD["config"]).decode(), "version": "a text"})
        assert (await hubbed.last(accepted("a text"))).changed == ()
        await load.stop()
        outcomes = [await listener.final(f"load-{number + 1}", PATIENCE_S) for number in range(load.sent)]
        assert {body["event"] for _, body in outcomes} == {"order.filled"}
        await listener.send(market_order("too-large", volume=1.5))
        assert (await listener.final("too-large"))[1]["event"] == "order.refused"
    assert orjson.loads((hubbed.service.folder / "hub.json").read_bytes())["config"] == kept == GOOD["config"]
    assert "hunter2" not in hubbed.service.log()


def says(one: Any, version: str, told: str) -> bool:
    return isinstance(one, ConfigurationRefused) and one.version == version and any(told in line for line in one.errors)


async def test_lies_on_the_bus_are_refused_too_and_a_change_behind_them_counts(hubbed, hub):
    hub.answer = broken
    for lie, told in UNREADABLE.values():
        body = lie if isinstance(lie, bytes) else orjson.dumps(lie)
        if len(body) < MAX_ANSWER:  # the bus itself takes no larger one
            await hubbed.tell(body)
            await hubbed.last(lambda one, told=told: says(one, "", told))
    # One that claims to be of the year 2100 does not make all after it look old.
    future = GOOD | {"version": "future", "updated_at": 4_102_444_800_000}
    await hubbed.tell(orjson.dumps(future), b"\xff")
    await hubbed.last(accepted("future"))
    await hubbed.tell(orjson.dumps(GOOD | {"version": "now", "updated_at": round(time.time() * 1000)}))
    await hubbed.last(accepted("now"))


async def test_what_the_bus_did_not_tell_is_found_by_asking(hubbed, hub):
    hub.answer = saying({"config": operational({"limits.max_volume": 2}), "version": "polled"})
    assert set((await hubbed.last(accepted("polled"))).changed) == {"limits.max_volume", "policy.max_retries"}


async def test_of_a_storm_of_changes_the_last_one_wins_and_few_are_judged(hubbed, hub):
    hub.answer = never  # nothing but the messages tells
    before, now = len(hubbed.configurations()), round(time.time() * 1000)

    def change(number: int) -> bytes:
        volume = operational({"limits.max_volume": 1 + number / 1000})
        return orjson.dumps({"config": volume, "version": f"storm-{number}", "updated_at": now + number})

    for number in range(200):  # in a second
        await hubbed.tell(change(number))
        await asyncio.sleep(0.002)
    last = await hubbed.last(accepted("storm-199"))
    assert last.settings["limits.max_volume"] == "1.199"
    assert len(hubbed.configurations()) - before < 40
    before = len(hubbed.configurations())
    await hubbed.tell(*(change(number) for number in range(200, 1400)))  # at once
    last = await hubbed.last(accepted("storm-1399"))
    assert last.settings["limits.max_volume"] == "2.399"
    assert len(hubbed.configurations()) - before < 20


async def test_with_the_hub_down_at_the_start_it_runs_on_the_last_good_configuration(hubbed, hub):
    hubbed.service.stop()
    await hub.stop()
    await asyncio.to_thread(hubbed.service.start)
    first = await hubbed.last(lambda one: "last good of the hub, version good" in getattr(one, "origin", ""))
    assert (first.settings["limits.max_volume"], first.settings["policy.max_retries"]) == ("1", "4")
    async with Listener(hubbed.bus_url) as listener:
        await listener.send(market_order("after-start", volume=1.5))
        assert (await listener.final("after-start"))[1]["event"] == "order.refused"
