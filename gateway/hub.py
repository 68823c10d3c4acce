"""The Central Hub as a client sees it: fetches the configuration of a service, keeps the last good one, registers.

Nothing here holds anything up for longer than a timeout, and whatever the hub answers is judged before it counts: an
answer that cannot be read, or whose settings are refused, leaves what was good before.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import orjson
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway.documents import deep_merge

log = structlog.get_logger()

MAX_ANSWER: Final = 1 << 20
CACHE_S: Final = 300.0
MAX_VERSION: Final = 64
MAX_DEPTH: Final = 32
UPDATED: Final = "config.update."  # and the service: where the hub tells of changes
_STALE: Final = float("-inf")
Check = Callable[[Mapping[str, Any]], list[str]]


class HubError(Exception):
    """The hub gave no configuration: one line that says why. It never repeats what the hub said."""


class HubUnreadable(HubError):
    """The hub answered, but not with what a configuration is."""


class HubConfig(msgspec.Struct, frozen=True):
    """What the hub holds for a service. `updated_at`: milliseconds since 1970, 0 where it says nothing."""

    config: dict[str, Any]
    version: str = ""
    updated_at: int = 0


def read_answer(body: bytes) -> HubConfig:
    """An answer or a message of the hub; its `config` is an object, or a text that holds one. Raises HubUnreadable."""
    if len(body) > MAX_ANSWER:
        raise HubUnreadable(f"the hub's configuration is larger than {MAX_ANSWER} bytes")
    answer = _object(body, "the hub's answer")
    config = answer.get("config")
    if isinstance(config, str):
        config = _object(config, "the hub's config")
    if not isinstance(config, dict):
        raise HubUnreadable("the hub's answer has no object `config`")
    if _is_deeper(config, MAX_DEPTH):
        raise HubUnreadable(f"the hub's config is nested deeper than {MAX_DEPTH} groups")
    updated = answer.get("updated_at")
    if not isinstance(updated, int) or isinstance(updated, bool) or not 0 <= updated < 2**63:
        updated = 0
    return HubConfig(config, _version(answer.get("version")), updated)


def _object(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except ValueError:
        raise HubUnreadable(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise HubUnreadable(f"{what} is not a JSON object")
    return found


def _is_deeper(config: dict[str, Any], levels: int) -> bool:
    level: list[Any] = [config]
    while level and levels:
        level = [one for group in level for one in (group.values() if isinstance(group, dict) else group)]
        level = [one for one in level if isinstance(one, dict | list)]
        levels -= 1
    return bool(level)


def _version(value: Any) -> str:
    text = str(value) if isinstance(value, str | int | float) else ""
    return "".join(one if one.isprintable() else "?" for one in text)[:MAX_VERSION]


class Hub:
    """Requests to the hub. `url`: its address; `api_key`: sent as `X-API-Key` where there is one."""

    def __init__(self, url: str, api_key: str = "", timeout_s: float = 3.0) -> None:
        self._url, self._timeout = url.rstrip("/"), aiohttp.ClientTimeout(total=timeout_s)
        self._headers = {"X-API-Key": api_key} if api_key else {}

    async def fetch(self, service: str) -> HubConfig:
        """Raises HubError, at the latest after the timeout."""
        status, body = await self._ask("GET", f"/api/v1/config/{service}")
        if status != 200:
            reason = "has no configuration for this service yet" if status == 404 else f"answered {status}"
            raise HubError(f"the hub {reason}")
        return read_answer(body)

    async def post(self, path: str, body: Mapping[str, Any]) -> int:
        """The status of the answer. Raises HubError."""
        return (await self._ask("POST", path, orjson.dumps(body)))[0]

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, headers=headers) as session,
                session.request(method, self._url + path, data=body, allow_redirects=False) as answer,
            ):
                found = bytearray()
                async for piece in answer.content.iter_chunked(65_536):
                    found += piece
                    if len(found) > MAX_ANSWER:
                        break
                return answer.status, bytes(found)
        except TimeoutError:
            raise HubError(f"the hub did not answer within {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HubError(f"the hub cannot be asked ({type(error).__name__})") from None


class LastGood:
    """The last configuration that was accepted, on disk. What cannot be read or written is as if it were not there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> HubConfig | None:
        try:
            return read_answer(self._path.read_bytes())
        except (OSError, HubError):
            return None

    def write(self, config: HubConfig) -> None:
        scratch = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(orjson.dumps(msgspec.structs.asdict(config)))
            scratch.replace(self._path)
        except (OSError, TypeError) as error:
            log.warning("the hub's configuration is not kept on disk", error=type(error).__name__)


async def obtain(hub: Hub, service: str, kept: LastGood, check: Check) -> tuple[HubConfig | None, str, list[str]]:
    """The configuration to run on; where it is from, in words; and what was refused. Never raises."""
    refused: list[str] = []
    try:
        found = await hub.fetch(service)
        refused = check(found.config)
        if not refused:
            kept.write(found)
            return found, f"hub version {found.version or '?'}", []
        why = "what the hub holds is refused"
    except HubUnreadable as error:
        why, refused = "what the hub holds is refused", [str(error)]
    except HubError as error:
        why = str(error)
    last = kept.read()
    if last is not None and not check(last.config):
        log.warning("running on the hub's last good configuration", reason=why, version=last.version)
        return last, f"last good of the hub, version {last.version or '?'}", refused
    log.warning("running on safe defaults", reason=why)
    return None, "safe defaults, no hub", refused


class ConfigClient:
    """The configuration of a service for programs: the hub's, deep-merged over `safe_defaults`, so that no key of
    theirs is ever missing. `source` says where it is from: `hub …`, `last good …` or `safe defaults`."""

    def __init__(
        self,
        service_name: str,
        safe_defaults: Mapping[str, Any],
        *,
        url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 3.0,
        cache_s: float = CACHE_S,
        kept_in: Path | None = None,
        check: Check = lambda _: [],
    ) -> None:
        url = os.environ.get("CENTRAL_HUB_URL", "") if url is None else url
        key = os.environ.get("CENTRAL_HUB_API_KEY", "") if api_key is None else api_key
        folder = kept_in or Path(os.environ.get("ORDER_LEDGER_DATA") or "./.order-ledger")
        self._hub = Hub(url, key, timeout_s) if url else None
        self._service, self._defaults, self._cache_s, self._check = service_name, safe_defaults, cache_s, check
        self._kept = LastGood(folder / f"hub-{service_name}.json")
        self._config, self._at, self._asked = deep_merge({}, safe_defaults), _STALE, False
        self._asking = asyncio.Lock()
        self.source, self.version = "safe defaults", ""

    async def init_async(self) -> None:
        """Asks the hub for the first time; without an answer it goes on with what there is."""
        await self.get_config()

    async def follow(self, connection: Client) -> None:
        """From now on what the hub changes counts at once: told over NATS that there is news, the next `get_config`
        asks. The message itself is not believed, and without it `cache_s` goes on to count. Raises nats.errors.Error.
        """

        async def changed(_: Msg) -> None:
            self._at = _STALE

        await connection.subscribe(UPDATED + self._service, cb=changed)

    async def get_config(self) -> dict[str, Any]:
        """A copy of the configuration, at most `cache_s` old as long as the hub answers."""
        async with self._asking:
            if self._hub is not None and time.monotonic() - self._at > self._cache_s:
                self._at = time.monotonic()  # from before the answer: what is told meanwhile is asked for again
                found, source, _ = await obtain(self._hub, self._service, self._kept, self._check)
                first, self._asked = not self._asked, True
                if found is not None or first:
                    self._config = deep_merge(self._defaults, found.config if found else {})
                    self.source, self.version = source, found.version if found else ""
        return deep_merge({}, self._config)


async def keep_registered(hub: Hub, about: Mapping[str, Any], status: Callable[[], str], every_s: float) -> None:
    """Registers, then sends heartbeats with the `status` of the moment for ever, as well as it can: a hub that does not
    take them changes nothing."""
    registered = False
    while True:
        with contextlib.suppress(HubError):
            if not registered:
                registered = await hub.post("/api/v1/discovery/register", about) < 300
            else:
                beat = {
                    "service_name": about["name"],
                    "instance_id": about["metadata"]["instance_id"],
                    "status": status(),
                    "timestamp": round(time.time() * 1000),
                    "metrics": {},
                }
                registered = await hub.post("/api/v1/discovery/heartbeat", beat) != 404
        await asyncio.sleep(every_s)
