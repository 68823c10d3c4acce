"""The process manager: what is to be done next for an order. Pure, so that a restart is nothing special:
load the open orders and ask for each.

Ages count by the wall clock, since they begin in another process; how long to wait is told as a delay, which the
caller measures monotonically.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, assert_never

import msgspec

from ledger.commands import Again
from ledger.order import Order, Status
from ledger.values import MAX_ATTEMPT, order_hash

# The first probe comes at once; then each waits longer, up to the last.
PROBE_DELAYS_S: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)
_HASH_SIZE: Final = 2**55


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings an order is handled by. Seconds; 0 switches an age limit off.

    An order may live `max_order_age_s` before its first send and `max_order_life_s` in all. `max_retries` counts
    answers that may be better next time, `max_unreached` attempts that did not reach the broker. `retry_jitter` is
    the part of a delay that varies, by order and attempt and `jitter_seed`: the same delay on every replay.
    """

    validate_before_send: bool = True
    max_order_age_s: float = 30.0
    max_order_life_s: float = 300.0
    max_retries: int = 3
    retry_delay_s: float = 5.0
    retry_multiplier: float = 2.0
    max_retry_delay_s: float = 60.0
    retry_jitter: float = 0.2
    jitter_seed: str = ""
    max_unreached: int = 8
    park_recheck_s: float = 5.0
    resend_after_proven_absence: bool = False


class Check(msgspec.Struct, frozen=True):
    """Ask the broker whether it would accept the order. Only what opens: the answer is about money and limits, and
    a close must not wait for it."""


class Send(msgspec.Struct, frozen=True):
    """Record the intent, then send."""

    attempt: int


class Refuse(msgspec.Struct, frozen=True):
    """By a rule of ours."""

    reasons: tuple[str, ...]


class Expire(msgspec.Struct, frozen=True):
    """Too old to be sent."""

    age_s: Decimal
    limit_s: Decimal
    cause: str


class Abandon(msgspec.Struct, frozen=True):
    """Provably not at the broker, and not to be tried again."""

    reason: str


class Wait(msgspec.Struct, frozen=True):
    """Ask again after `delay_s`: the next attempt is not due, or the order will be too old by then."""

    delay_s: float


class Probe(msgspec.Struct, frozen=True):
    """Look for traces of the attempt at the broker, `delay_s` after the probe before."""

    attempt: int
    delay_s: float


class Await(msgspec.Struct, frozen=True):
    """The broker has the order; news will come."""


class End(msgspec.Struct, frozen=True):
    """Nothing is left to do."""


Step = Check | Send | Refuse | Expire | Abandon | Wait | Probe | Await | End


def next_step(
    order: Order, now: datetime, policy: Policy, *, probes: int = 0, waited_s: float = 0.0, halted: str = ""
) -> Step:
    """What to do next. `probes`: how many this process has made for the current attempt. `waited_s`: how long it has
    waited for the next one, measured monotonically. `halted`: why nothing may open or add to a position; empty when
    nothing is halted.

    An order found in SENDING was left by a process that ended: its outcome is as unknown as after a lost reply.
    """
    match order.status:
        case Status.REQUESTED | Status.READY | Status.WAITING | Status.PARKED:
            return _idle(order, now, policy, waited_s, halted)
        case Status.SENDING | Status.UNKNOWN:
            return Probe(order.attempt, PROBE_DELAYS_S[min(probes, len(PROBE_DELAYS_S) - 1)])
        case Status.PLACED | Status.PARTIALLY_FILLED:
            return Await()
        case (
            Status.FILLED
            | Status.COMPLETED
            | Status.CANCELLED
            | Status.EXPIRED
            | Status.REFUSED
            | Status.STALE
            | Status.REJECTED
            | Status.FAILED
            | Status.NEW
        ):
            return End()
        case _:
            assert_never(order.status)


def _idle(order: Order, now: datetime, policy: Policy, waited_s: float, halted: str) -> Step:
    expired = _expired(order, now, policy)
    if expired is not None:
        return expired
    if halted and opens_risk(order):
        return Refuse((f"trading is halted: {halted}",))
    if order.unreached >= policy.max_unreached:
        return Abandon(f"{order.unreached} attempts did not reach the broker")
    if order.attempt >= MAX_ATTEMPT:
        return Abandon(f"{order.attempt} attempts were made, no more can be told apart")
    if order.status in (Status.WAITING, Status.PARKED) and order.not_before is not None:
        # A wall clock that went back must not make the wait longer than it was meant to be, however often it is asked.
        due_s = min((order.not_before - now) / timedelta(seconds=1), float(order.delay_s) - waited_s)
        if due_s > 0:
            return Wait(min(due_s, _left_s(order, now, policy) + 0.001))
    if order.status is Status.REQUESTED and policy.validate_before_send and order.action == "open":
        return Check()
    return Send(order.attempt + 1)


def opens_risk(order: Order) -> bool:
    """Whether the order may open or add to a position. Closes, cancels and changes of SL/TP do not; moving the
    price of a pending order does."""
    request = order.request
    if request is None or request.action == "open":
        return True
    return request.action == "modify" and (request.price is not None or request.stop_limit_price is not None)


def retry(order: Order, attempt: int, now: datetime, policy: Policy, *, max_retries: int | None = None) -> Again | None:
    """When to send again after the attempt failed in a way that may pass; None when the retries are used up or the
    order will be too old by then. `max_retries`: a lower limit of the return code at hand."""
    allowed = policy.max_retries if max_retries is None else min(max_retries, policy.max_retries)
    if order.retries >= allowed:
        return None
    delay_s = min(policy.retry_delay_s * policy.retry_multiplier**order.retries, policy.max_retry_delay_s)
    share = order_hash(f"{order.order_id}/{attempt}/{policy.jitter_seed}") / _HASH_SIZE
    return _again(order, delay_s * (1 - policy.retry_jitter * share), now, policy)


def park(order: Order, now: datetime, policy: Policy) -> Again | None:
    """When to try again what cannot be traded now; None when the order will be too old by then."""
    return _again(order, policy.park_recheck_s, now, policy)


def resend(order: Order, now: datetime, policy: Policy) -> Again | None:
    """When to send again what provably is not at the broker; None unless the policy allows it, and time does. What
    acts on a target is never sent again by itself: the target may have moved on."""
    if not policy.resend_after_proven_absence or order.action != "open":
        return None
    return retry(order, order.attempt, now, policy)


def _again(order: Order, delay_s: float, now: datetime, policy: Policy) -> Again | None:
    if delay_s >= _left_s(order, now, policy):
        return None
    span = timedelta(milliseconds=round(delay_s * 1000))
    return Again(delay_s=_seconds(span), not_before=now + span)


def _limits(order: Order, policy: Policy) -> tuple[float, str]:
    return (policy.max_order_age_s, "age") if order.attempt == 0 else (policy.max_order_life_s, "life")


def _left_s(order: Order, now: datetime, policy: Policy) -> float:
    """Seconds until the order will be too old for another attempt; infinite when nothing limits it."""
    request, since = order.request, order.requested.age_from if order.requested else None
    left = float("inf")
    if request is not None and request.valid_until is not None:
        left = (request.valid_until - now) / timedelta(seconds=1)
    if since is not None and policy.max_order_life_s > 0:
        left = min(left, policy.max_order_life_s - (now - since) / timedelta(seconds=1))
    return max(left, 0.0)


def _expired(order: Order, now: datetime, policy: Policy) -> Expire | None:
    """Age counts before the first attempt, life before every one (a duplicate never gets here)."""
    request, since = order.request, order.requested.age_from if order.requested else None
    if request is not None and request.valid_until is not None and now > request.valid_until:
        return Expire(_seconds(now - request.valid_until), Decimal(0), "valid_until")
    limit_s, cause = _limits(order, policy)
    if since is None or limit_s <= 0:
        return None
    age = now - since
    if age <= timedelta(seconds=limit_s):
        return None
    return Expire(_seconds(age), Decimal(str(limit_s)), cause)


def _seconds(span: timedelta) -> Decimal:
    return Decimal(round(span / timedelta(milliseconds=1))) / 1000
