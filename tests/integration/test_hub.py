"""The Central Hub: fetched, cached, followed; and whatever it does, orders go on."""

import asyncio
import contextlib
import os

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.config import SERVICE, VARIABLES
from gateway.hub import ConfigClient, Hub
from gateway.hub_server import hub_server
from gateway.settings_table import ABOUT
from tests.nats_server import nats_server
from tests.service import Service

DEFAULTS = {"operational": {"order_settings": {"max_retries": 3, "retry_delay_seconds": 5}}}
OTHER = {
    "logging.level": "debug",
    "order_settings.validate_before_send": False,
    "order_settings.retry_multiplier": 3,
    "order_settings.retry_jitter": 0.5,
    "order_settings.resend_after_proven_absence": True,
    "limits.symbols": ["EURUSD"],
    "limits.require_sl": True,
    "limits.require_tp": True,
    "halt.reason": "maintenance",
    "halt.cancel_orders": True,
}


def nested(path: str, value: object) -> dict:
    for name in reversed(f"operational.{path}".split(".")):
        value = {name: value}
    return value  # type: ignore[return-value]


@contextlib.asynccontextmanager
async def lying_hub(answer):
    """A hub that answers everything with what `answer` returns."""
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
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


async def refused_types(_):
    return web.json_response({"config": {"operational": {"order_settings": {"max_retries": "many"}}}})


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


def configurations(service: Service) -> list[dict]:
    found = service.cli("export", "--format", "jsonl", "--stream", "account/1")
    return [orjson.loads(line) for line in found.stdout.splitlines()]
