"""Hot reload: what the Central Hub sends or is found to hold becomes new settings, or an event that says why not.

A document is judged as a whole. Of an accepted one, what may change while the service runs takes effect at once; what
needs a restart keeps its old value until then, and the log says so. A storm of messages is answered by its last.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from gateway.config import SERVICE, ConfigurationError, Settings, described, layered, version_of
from gateway.guarded import cancelled
from gateway.http_guard import is_unspecified
from gateway.hub import UPDATED, Hub, HubConfig, HubError, HubUnreadable, LastGood, keep_registered, obtain, read_answer
from gateway.settings_table import ABOUT
from gateway.variables import VARIABLES
from ledger.account_events import ConfigurationAccepted, ConfigurationRefused
from ledger.events import account_stream
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

CAUSE: Final = Cause(actor="gateway")
CALM_S: Final = 0.2  # between two documents that are judged
HEARTBEAT_S: Final = 30.0
MAX_ERROR: Final = 300
MAX_HEARD: Final = 4_096  # messages that may wait: of a storm the last one counts, and it must not be dropped
MAX_AHEAD_MS: Final = 86_400_000


def reloaded(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...], tuple[str, ...]]:
    """The settings that can be in force without a restart; the fields that changed; and those that wait for one."""
    changed: list[str] = []
    waiting: list[str] = []
    found = old
    for name, (field, _) in VARIABLES.items():
        group, _, inner = field.rpartition(".")
        before, after = (getattr(getattr(one, group) if group else one, inner) for one in (old, new))
        if before == after:
            continue
        if not ABOUT[name].hot:
            waiting.append(field)
            continue
        changed.append(field)
        changes = {inner: after}
        if group:
            changes = {group: msgspec.structs.replace(getattr(found, group), **changes)}
        found = msgspec.structs.replace(found, **changes)
    return found, tuple(changed), tuple(waiting)


def changed_at(found: HubConfig) -> int:
    """When the hub changed it, in milliseconds since 1970; 0 where it does not say, or names a time that is yet to
    come: one such answer would make everything after it look overtaken."""
    return found.updated_at if found.updated_at <= time.time() * 1000 + MAX_AHEAD_MS else 0


def _is_older(found: HubConfig, other: HubConfig) -> bool:
    return 0 < changed_at(found) < changed_at(other)


def registration(url: str, build: str, instance_id: str) -> dict[str, Any]:
    """What a service that listens there tells the hub of itself. Where it listens on every address of the machine, the
    name of the machine is the one that others know."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return {
        "name": SERVICE,
        "host": socket.gethostname() if is_unspecified(host) else host,
        "port": parts.port,
        "protocol": "http",
        "health_endpoint": "/health",
        "version": build,
        "metadata": {"instance_id": instance_id},
    }


class HubSettings:
    """The settings of a service with a hub. `use` hears of every new value."""

    def __init__(self, flags: Mapping[str, str | None], env: Mapping[str, str]) -> None:
        self._flags, self._env = flags, env
        self.settings = layered(flags, env).settings
        self.origin = "flags, environment, file, defaults"
        self._hub: Hub | None = None
        if self.settings.central_hub_url:
            key, timeout_s = self.settings.central_hub_api_key.reveal(), self.settings.central_hub_timeout_s
            self._hub = Hub(self.settings.central_hub_url.reveal(), key, timeout_s)
        self._kept = LastGood(self.settings.data / "hub.json")
        self._use: Callable[[Settings], None] = lambda _: None
        self._ledger: Ledger | None = None
        self._refused: tuple[str, tuple[str, ...]] | None = None  # the last refusal, told once
        self._taken: HubConfig | None = None
        self._next: HubConfig | HubError | None = None
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    async def ask(self) -> Settings:
        """The settings to start with. Raises ConfigurationError where, without the hub, too little is known."""
        if self._hub is None:
            return self.settings
        found, source, refused = await obtain(self._hub, SERVICE, self._kept, self._problems)
        self.settings = layered(self._flags, self._env, found.config if found else {}).settings
        self.origin = f"flags, environment, {source}, file, defaults"
        self._taken = found
        if refused:
            self._refused = ("", tuple(one[:MAX_ERROR] for one in refused))
        return self.settings

    async def follow(
        self,
        ledger: Ledger,
        connection: Client,
        use: Callable[[Settings], None],
        about: Mapping[str, Any],
        status: Callable[[], str],
    ) -> None:
        """Records what is in force, then hears of every change. The hub is told `about` the service, and its
        `status`."""
        self._ledger, self._use = ledger, use
        if self._refused is not None:
            version, errors = self._refused
            self._append(ConfigurationRefused(version=version, origin="hub", errors=errors))
        version, digest = version_of(self.settings)
        self._append(
            ConfigurationAccepted(version=version, origin=self.origin, digest=digest, settings=described(self.settings))
        )
        if self._hub is None:
            return
        await connection.subscribe(UPDATED + SERVICE, cb=self._hear, pending_msgs_limit=MAX_HEARD)
        registered = keep_registered(self._hub, about, status, HEARTBEAT_S)
        for work in (self._run(), self._poll(self._hub), registered):
            self._tasks.append(asyncio.create_task(work, name="hub"))

    async def stop(self) -> None:
        await cancelled(*self._tasks)

    async def _hear(self, message: Msg) -> None:
        try:
            found: HubConfig | HubError = read_answer(message.data)
        except HubError as error:
            found = error
        self._offer(found)

    def _offer(self, found: HubConfig | HubError) -> None:
        """It is judged next, unless what waits for that already is better: newer, or not garbage."""
        waiting = self._next
        if isinstance(waiting, HubConfig) and (isinstance(found, HubError) or _is_older(found, waiting)):
            return
        self._next = found
        self._arrived.set()

    async def _poll(self, hub: Hub) -> None:
        while True:
            await asyncio.sleep(self.settings.central_hub_poll_s)
            try:
                found = await hub.fetch(SERVICE)
            except HubUnreadable as error:
                self._offer(error)
            except HubError as error:
                log.warning("the hub is not to be asked, its last configuration stays", error=str(error))
            else:
                self._offer(found)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            found, self._next = self._next, None
            if isinstance(found, HubError):
                self._refuse("", [str(found)])
            elif found is not None:
                self._take(found)
            await asyncio.sleep(CALM_S)

    def _take(self, found: HubConfig) -> None:
        before = self._taken
        if before is not None and _is_older(found, before):
            return  # what was overtaken on its way
        problems = self._problems(found.config)
        if problems:
            self._refuse(found.version, problems)
            return
        self._refused, self._taken = None, found
        if before is not None and (found.config, found.version) == (before.config, before.version):
            return
        self._kept.write(found)
        wanted = layered(self._flags, self._env, found.config).settings
        settings, changed, waiting = reloaded(self.settings, wanted)
        if waiting:
            log.warning("takes effect at the next start", settings=waiting, hub_version=found.version)
        self.settings = settings
        version, digest = version_of(settings)
        assert self._ledger is not None
        self._ledger.config_version = version
        self._append(
            ConfigurationAccepted(
                version=version,
                origin=f"flags, environment, hub version {found.version or '?'}, file, defaults",
                digest=digest,
                changed=changed,
                settings=described(settings),
                waiting=waiting,
            )
        )
        if changed:
            self._use(settings)
        log.info("configuration accepted", changed=changed, config_version=version, hub_version=found.version)

    def _problems(self, document: Mapping[str, Any]) -> list[str]:
        try:
            layered(self._flags, self._env, document)
        except ConfigurationError as error:
            return str(error).splitlines()
        return []

    def _refuse(self, version: str, problems: list[str]) -> None:
        refusal = (version, tuple(one[:MAX_ERROR] for one in problems))
        if refusal == self._refused:
            return
        self._refused = refusal
        log.error("the hub's configuration is refused, the old one stays", hub_version=version, problems=problems)
        self._append(ConfigurationRefused(version=version, origin="hub", errors=refusal[1]))

    def _append(self, event: ConfigurationAccepted | ConfigurationRefused) -> None:
        assert self._ledger is not None
        self._ledger.append(account_stream(self._ledger.login), event, CAUSE)


def set_log_level(level: str) -> None:
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))
