"""The Central Hub: fetched, cached, followed; and whatever it does, orders go on."""

import asyncio
import contextlib

import pytest
from aiohttp import web

from gateway import documents
from gateway.config import KINDS, SERVICE, load
from gateway.hub import ConfigClient, Hub
from gateway.hub_server import hub_server
from gateway.settings_table import ABOUT
from gateway.show import open_ledger
from gateway.variables import VARIABLES
from ledger.account_events import ConfigurationAccepted, ConfigurationRefused
from ledger.events import decode
from tests.nats_server import nats_server
from tests.service import Listener, Service, market_order

DEFAULTS = {"operational": {"order_settings": {"max_retries": 3, "retry_delay_seconds": 5}}}


@contextlib.asynccontextmanager
async def lying_hub(answer):
    """A hub that answers everything with what `answer` returns."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


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


async def never(_):
    await asyncio.Event().wait()


async def garbage(_):
    return web.Response(body=b"\xff\x00{")


async def broken(_):
    return web.Response(status=500)


@pytest.mark.parametrize("answer", [never, garbage, broken])
async def test_a_hub_that_is_slow_broken_or_lies_leaves_the_safe_defaults(tmp_path, answer):
    async with lying_hub(answer) as url:
        client = ConfigClient(SERVICE, DEFAULTS, url=url, kept_in=tmp_path, timeout_s=0.2)
        await client.init_async()
        assert (await client.get_config(), client.source) == (DEFAULTS, "safe defaults, no hub")


async def test_the_hub_takes_a_key_registrations_and_heartbeats(tmp_path):
    async with hub_server(tmp_path / "hub.json", "127.0.0.1", 0, "", "key") as (url, _):
        hub, me = Hub(url, "key"), {"name": SERVICE, "metadata": {"instance_id": "1"}}
        beat = {"service_name": SERVICE, "instance_id": "1"}
        assert await Hub(url).post("/api/v1/discovery/register", me) == 401
        assert await hub.post("/api/v1/discovery/heartbeat", beat) == 404
        assert await hub.post("/api/v1/discovery/register", me) == 200
        assert await hub.post("/api/v1/discovery/heartbeat", beat) == 200


SPECIAL = {
    "logging.level": "debug",
    "limits.symbols": ["EURUSD"],
    "halt.reason": "maintenance",
    "position_sync.reconcile_policy": {"stops": "alert"},
}
HOT = {about.at: VARIABLES[name][0] for name, about in ABOUT.items() if about.hot}


def nested(path: str, value: object) -> dict:
    return documents.nested({f"operational.{path}": value})


def another(path: str) -> dict:
    """A document that changes this one setting."""
    value = load({}, {})
    for part in HOT[path].split("."):
        value = getattr(value, part)
    if path in SPECIAL:
        return nested(path, SPECIAL[path])
    if KINDS[HOT[path]] is bool:
        return nested(path, not value)
    return nested(path, 0.5 if path.endswith("jitter") else int(value) + 2)


@contextlib.asynccontextmanager
async def service_with_hub(folder):
    with nats_server(folder) as bus:
        async with hub_server(folder / "hub.json", "127.0.0.1", 0, bus.url) as (url, _):
            settings = {"NATS_URL": bus.url, "CENTRAL_HUB_URL": url, "CLICKHOUSE_URL": "off", "KAFKA_BROKERS": "off"}
            service = Service(folder / "data", **settings)
            try:
                await asyncio.to_thread(service.start)  # the hub answers meanwhile
                yield Hub(url), bus
            finally:
                service.end()


async def events_until(folder, wanted):
    """The configurations that were accepted and refused, once `wanted` holds of them."""
    store = open_ledger(load({"data": str(folder / "data")}, {}))
    try:
        async with asyncio.timeout(10):
            while True:
                kinds = (ConfigurationAccepted, ConfigurationRefused)
                found = [decode(one).data for one in store.read(0, 10_000)]
                found = [one for one in found if isinstance(one, kinds)]
                if found and wanted(found):
                    return found
                await asyncio.sleep(0.02)
    finally:
        store.close()


def changed(field):
    return lambda found: field in getattr(found[-1], "changed", ())


async def test_every_reloadable_setting_is_reloaded_and_recorded_and_orders_go_on(tmp_path):
    async with service_with_hub(tmp_path) as (hub, bus):
        for number, path in enumerate(HOT):
            assert await hub.post(f"/api/v1/config/{SERVICE}", another(path)) == 200
            found = await events_until(tmp_path, changed(HOT[path]))
            assert len(found) == number + 2
        await hub.post(f"/api/v1/config/{SERVICE}", nested("limits.require_sl", True))
        await events_until(tmp_path, changed("limits.require_sl"))
        async with Listener(bus.url) as listener:
            await listener.send(market_order("o-1"))
            assert (await listener.final("o-1"))[1]["category"] == "refused"
            await hub.post(f"/api/v1/config/{SERVICE}", nested("order_settings.max_retries", "many"))
            await events_until(tmp_path, lambda all_: isinstance(all_[-1], ConfigurationRefused))
            await hub.post(f"/api/v1/config/{SERVICE}", {})
            await events_until(tmp_path, changed("limits.require_sl"))
            await listener.send(market_order("o-2"))
            assert (await listener.final("o-2"))[1]["event"] == "order.filled"
