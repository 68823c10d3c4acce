"""Whether the service works, and which of its dependencies do."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, Literal

import msgspec

State = Literal["starting", "up", "degraded", "down", "off"]
Status = Literal["starting", "healthy", "degraded", "unhealthy"]
SERVICE: Final = "mt5-connector"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A dependency. `needed`: without it no order can be taken, so the service is not ready."""

    state: State
    needed: bool
    detail: str = ""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Times are UTC. `status` is `unhealthy` when a needed part is down, `degraded` when any other is."""

    status: Status
    service: str
    version: str
    timestamp: datetime
    uptime_seconds: float
    ready: bool
    instance_id: str
    account: int | None
    ledger_id: str | None
    head_seq: int | None
    trading: Literal["open", "halted"] | None
    halts: list[str]
    parts: dict[str, Part]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger's writer says of itself."""

    account: int
    ledger_id: str
    head_seq: int
    halts: list[str]


class HealthBook:
    """Asks every part when it is asked itself. A part that is not heard of yet is starting."""

    def __init__(
        self, version: str, instance_id: str, clock: Callable[[], datetime], uptime_s: Callable[[], float]
    ) -> None:
        self._version, self._instance_id, self._clock, self._uptime_s = version, instance_id, clock, uptime_s
        self._parts: dict[str, Callable[[], Part]] = {}
        self.standing: Callable[[], Standing | None] = lambda: None
        self.taking_orders = False

    def expect(self, name: str, *, needed: bool) -> None:
        self._parts[name] = lambda: Part(state="starting", needed=needed)

    def watch(self, name: str, ask: Callable[[], Part]) -> None:
        self._parts[name] = ask

    def parts(self) -> dict[str, Part]:
        return {name: ask() for name, ask in self._parts.items()}

    def look(self) -> Health:
        parts, standing = self.parts(), self.standing()
        return Health(
            status=_status(parts.values(), self.taking_orders),
            service=SERVICE,
            version=self._version,
            timestamp=self._clock(),
            uptime_seconds=round(self._uptime_s(), 3),
            ready=self.taking_orders and all(one.state in ("up", "degraded") for one in parts.values() if one.needed),
            instance_id=self._instance_id,
            account=standing.account if standing else None,
            ledger_id=standing.ledger_id if standing else None,
            head_seq=standing.head_seq if standing else None,
            trading=None if standing is None else "halted" if standing.halts else "open",
            halts=standing.halts if standing else [],
            parts=parts,
        )


def _status(parts: Iterable[Part], taking_orders: bool) -> Status:
    parts = list(parts)
    if any(one.needed and one.state == "down" for one in parts):
        return "unhealthy"
    if not taking_orders or any(one.needed and one.state == "starting" for one in parts):
        return "starting"
    return "degraded" if any(one.state not in ("up", "off") for one in parts) else "healthy"
