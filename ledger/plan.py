"""The process manager: what is to be done next for an order. Pure, so that a restart is nothing special:
load the open orders and ask for each.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, assert_never

import msgspec

from ledger.order import Order, Status

# The first probe comes at once; then each waits longer, up to the last.
PROBE_DELAYS_S: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings an order is handled by. Seconds; 0 switches an age limit off."""

    validate_before_send: bool = True
    max_order_age_s: float = 30.0
    max_order_life_s: float = 300.0
    max_attempts: int = 8


class Check(msgspec.Struct, frozen=True):
    """Ask the broker whether it would accept the order."""


class Send(msgspec.Struct, frozen=True):
    """Record the intent, then send."""

    attempt: int


class Expire(msgspec.Struct, frozen=True):
    """Too old to be sent."""

    age_s: Decimal
    limit_s: Decimal


class Abandon(msgspec.Struct, frozen=True):
    """Provably not at the broker, and not to be tried again."""

    reason: str


class Probe(msgspec.Struct, frozen=True):
    """Look for traces of the attempt at the broker, `delay_s` after the probe before."""

    attempt: int
    delay_s: float


class Await(msgspec.Struct, frozen=True):
    """The broker has the order; news will come."""


class End(msgspec.Struct, frozen=True):
    """Nothing is left to do."""


Step = Check | Send | Expire | Abandon | Probe | Await | End


def next_step(order: Order, now: datetime, policy: Policy, *, probes: int = 0) -> Step:
    """What to do next. `probes`: how many this process has made for the current attempt.

    An order found in SENDING was left by a process that ended: its outcome is as unknown as after a lost reply.
    """
    match order.status:
        case Status.REQUESTED | Status.READY:
            expired = _expired(order, now, policy)
            if expired is not None:
                return expired
            if order.attempt >= policy.max_attempts:
                return Abandon(f"{order.attempt} attempts did not reach the broker")
            if order.status is Status.REQUESTED and policy.validate_before_send:
                return Check()
            return Send(order.attempt + 1)
        case Status.SENDING | Status.UNKNOWN:
            return Probe(order.attempt, PROBE_DELAYS_S[min(probes, len(PROBE_DELAYS_S) - 1)])
        case Status.PARTIALLY_FILLED:
            return Await()
        case Status.FILLED | Status.REFUSED | Status.STALE | Status.REJECTED | Status.FAILED | Status.NEW:
            return End()
        case _:
            assert_never(order.status)


def _expired(order: Order, now: datetime, policy: Policy) -> Expire | None:
    """Age counts before the first attempt, life before every one (a duplicate never gets here)."""
    request, since = order.request, order.requested.age_from if order.requested else None
    if request is not None and request.valid_until is not None and now > request.valid_until:
        return Expire(_seconds(now - request.valid_until), Decimal(0))
    limit_s = policy.max_order_age_s if order.attempt == 0 else policy.max_order_life_s
    if since is None or limit_s <= 0:
        return None
    age = now - since
    if age <= timedelta(seconds=limit_s):
        return None
    return Expire(_seconds(age), Decimal(str(limit_s)))


def _seconds(span: timedelta) -> Decimal:
    return Decimal(round(span / timedelta(milliseconds=1))) / 1000
