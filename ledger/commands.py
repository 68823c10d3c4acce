"""What can be asked of an order, and the news of the broker: the inputs of `decide.decide`.

Requests are imperative. News are `Record…`: the domain may not refuse a fact, what does not fit becomes an anomaly.
"""

from datetime import datetime
from decimal import Decimal

import msgspec

from ledger.intake import Received
from ledger.trade import (
    ZERO,
    BrokerOrder,
    CheckResult,
    Deal,
    Position,
    TargetImage,
    TradeRequest,
    TradeResult,
)


class Again(msgspec.Struct, frozen=True, gc=False):
    """Another attempt is allowed (`plan.retry`, `plan.park`): `delay_s` from now, which is at `not_before`."""

    delay_s: Decimal
    not_before: datetime


class ReceiveOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message that names this order. `unrecorded`: repetitions since the last that was recorded."""

    received: Received
    age_from: datetime | None = None
    unrecorded: int = 0


class RefuseOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """By a rule of ours: validation, limit, halt. Every reason."""

    reasons: tuple[str, ...]


class ExpireOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Too old to be sent; seconds. `cause`: age, life or valid_until."""

    age_s: Decimal
    limit_s: Decimal
    cause: str


class GiveUp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ends an order that provably is not at the broker."""

    reason: str


class WithdrawOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ends an order before it is sent, because another request, `by`, cancels it."""

    by: str


class CompleteCancel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A cancel took effect without the broker: its target had not been sent."""


class ParkOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """It cannot be sent now, for a reason that the broker did not give."""

    reason: str
    again: Again


class RecordCheck(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What `order_check` said of `request`. `result` None: it could not be asked, `problem` says why."""

    result: CheckResult | None
    passed: bool
    retcode_name: str = ""
    description: str = ""
    category: str = "fatal"
    advice: str = ""
    problem: str = ""


class StartSend(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The intent. `before`: what the request acts on, as the broker shows it now."""

    attempt: int
    request: TradeRequest
    before: TargetImage | None = None


class RecordAnswer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of `order_send`, with the class the retcode table gives it, and the deals it names.

    `again`: when to try once more, if the verdict is `retriable` or `wait` and the policy still allows it."""

    attempt: int
    result: TradeResult
    retcode_name: str
    verdict: str
    description: str
    advice: str = ""
    latency_s: Decimal = ZERO
    deals: tuple[Deal, ...] = ()
    point: Decimal | None = None
    broker_utc_offset_s: int = 0
    again: Again | None = None


class RecordNotSent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The attempt provably did not reach the broker."""

    attempt: int
    code: int
    reason: str


class RecordUnknown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The attempt may or may not have taken effect."""

    attempt: int
    code: int
    reason: str


class RecordEvidence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the broker shows of an attempt whose outcome is unknown.

    `orders`, `history`, `deals`, `positions` carry the magic or the comment of the attempt. For a request on a
    target also: `target`, as it is now (None: not asked); `target_history`, the target order in history;
    `target_deals`, all deals of the target's position. `complete`: every query succeeded, freshly, while connected.
    `settled`: long enough after any effect could still arrive, so that complete absence is proof.
    `again`: when to send again if absence is proven, where the policy allows that.
    """

    attempt: int
    complete: bool
    settled: bool
    orders: tuple[BrokerOrder, ...] = ()
    history: tuple[BrokerOrder, ...] = ()
    deals: tuple[Deal, ...] = ()
    positions: tuple[Position, ...] = ()
    target: TargetImage | None = None
    target_history: BrokerOrder | None = None
    target_deals: tuple[Deal, ...] = ()
    reason: str = ""
    point: Decimal | None = None
    broker_utc_offset_s: int = 0
    again: Again | None = None


class ResolveOutcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An operator's word on an unknown outcome: `found` (as working order `order_ticket`, whose deals follow),
    `absent` or `abandoned`."""

    resolution: str
    reason: str
    order_ticket: int = 0


class RecordDeals(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Deals of this order, as the broker shows them now: new ones, or known ones with other values."""

    deals: tuple[Deal, ...]
    point: Decimal | None = None
    broker_utc_offset_s: int = 0


class EndCounted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The broker's order of ours has ended, and these deals of it stand in the ledger already, as no order's of ours:
    they moved their position then, and are not counted again."""

    deals: tuple[Deal, ...]


class RecordOrderState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The broker's order of ours as it shows now, working or in history. `by`: the order id of the request that
    caused the change, if it was one of ours."""

    order: BrokerOrder
    by: str = ""


class RecordModified(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The position this order opened has other stops now. `by` as in RecordOrderState."""

    position: Position
    by: str = ""


OrderCommand = (
    ReceiveOrder
    | RefuseOrder
    | ExpireOrder
    | GiveUp
    | WithdrawOrder
    | CompleteCancel
    | ParkOrder
    | RecordCheck
    | StartSend
    | RecordAnswer
    | RecordNotSent
    | RecordUnknown
    | RecordEvidence
    | ResolveOutcome
    | RecordDeals
    | EndCounted
    | RecordOrderState
    | RecordModified
)
