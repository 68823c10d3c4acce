"""The facts of one order: the events of a stream `order/{order_id}`."""

from datetime import datetime
from decimal import Decimal

from ledger.facts import Fact, OrderRequest, Raw
from ledger.trade import ZERO, CheckResult, Deal, TradeRequest, TradeResult


class OrderRequested(Fact, frozen=True, kw_only=True, gc=False, tag="order.requested"):
    """A message named an order for the first time. `request` is None when it could not be understood: then
    OrderRefused follows. `content` is the digest of the economic fields (invariant I3). `age_from` is the time
    the order's age counts from: its `created_at`, or the time the message bus took it. `accepted` is False when
    OrderRefused follows in the same commit."""

    request: OrderRequest | None
    content: str
    raw: Raw
    symbol: str = ""
    age_from: datetime | None = None
    accepted: bool = True


class DuplicateReceived(Fact, frozen=True, kw_only=True, gc=False, tag="order.duplicate_received"):
    """The same order came again with the same content. `standing_version` is the event of this
    stream that holds the outcome so far."""

    number: int
    standing_version: int
    standing_topic: str
    status: str


class ConflictReceived(Fact, frozen=True, kw_only=True, gc=False, tag="order.conflict_received"):
    """The same order id came with other content: refused, kept for the record."""

    content: str
    raw: Raw
    reasons: tuple[str, ...] = ()
    symbol: str = ""


class OrderRefused(Fact, frozen=True, kw_only=True, gc=False, tag="order.refused"):
    """Refused by us before the broker: every reason, not the first. `category`: `malformed` or `refused`."""

    reasons: tuple[str, ...]
    category: str
    symbol: str = ""


class OrderStale(Fact, frozen=True, kw_only=True, gc=False, tag="order.stale"):
    """Too old to be sent: `age_s` exceeded `limit_s`, or `valid_until` has passed (then `limit_s` is 0)."""

    age_s: Decimal
    limit_s: Decimal
    symbol: str = ""


class OrderChecked(Fact, frozen=True, kw_only=True, gc=False, tag="order.checked"):
    """What `order_check` said; no effect at the broker. `result` is None when the check could not be made."""

    passed: bool
    result: CheckResult | None = None
    retcode_name: str = ""
    problem: str = ""


class SendStarted(Fact, frozen=True, kw_only=True, gc=False, tag="order.send_started"):
    """The intent, durable before the effect: the request exactly as it will be sent."""

    attempt: int
    request: TradeRequest


class BrokerAnswered(Fact, frozen=True, kw_only=True, gc=False, tag="order.broker_answered"):
    """The result of `order_send`, in full. `verdict`: success, retriable, wait, ambiguous or fatal, as classed
    when it arrived, so that a replay does not depend on today's table. `latency_s`: call to answer."""

    attempt: int
    result: TradeResult
    retcode_name: str
    verdict: str
    description: str = ""
    latency_s: Decimal = ZERO


class SendAbandoned(Fact, frozen=True, kw_only=True, gc=False, tag="order.send_abandoned"):
    """The attempt provably did not reach the broker (`code`/`reason` as the terminal gave them)."""

    attempt: int
    code: int
    reason: str


class OutcomeUnknown(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_unknown"):
    """The attempt may or may not have taken effect. Only evidence or an operator's word ends this."""

    attempt: int
    code: int
    reason: str
    symbol: str = ""


class OutcomeProbed(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_probed"):
    """The broker was asked for traces of the attempt. `complete`: all four queries succeeded while connected.
    Recorded when what it shows changes, not on every repetition."""

    attempt: int
    complete: bool
    found: bool
    reason: str = ""


class OutcomeResolved(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_resolved"):
    """How an unknown outcome ended: `found` or `absent`, by `evidence`, with what proves it."""

    attempt: int
    resolution: str
    by: str
    evidence: str
    order_ticket: int = 0
    symbol: str = ""


class Fill(Fact, frozen=True, kw_only=True, gc=False):
    """A deal of ours. `remaining_volume` counts after this fill; `requested_price` is None when none was asked."""

    symbol: str
    side: str
    order_ticket: int
    deal: int
    position_id: int
    volume: Decimal
    price: Decimal
    filled_volume: Decimal
    remaining_volume: Decimal
    attempts: int = 1
    requested_price: Decimal | None = None
    point: Decimal | None = None
    commission: Decimal = ZERO
    swap: Decimal = ZERO
    fee: Decimal = ZERO
    profit: Decimal = ZERO
    entry: int = 0
    reason: int = 0
    broker_time_msc: int = 0
    broker_utc_offset_s: int = 0
    broker_time: datetime | None = None
    retcode: int = 0
    retcode_name: str = ""
    provisional: bool = False
    raw: Deal | None = None


class OrderPartiallyFilled(Fill, frozen=True, kw_only=True, gc=False, tag="order.partially_filled"):
    """A fill that leaves volume open."""


class OrderFilled(Fill, frozen=True, kw_only=True, gc=False, tag="order.filled"):
    """The fill that completes the order."""


class OrderRejected(Fact, frozen=True, kw_only=True, gc=False, tag="order.rejected"):
    """The broker said no (`order_check` or `order_send`), finally."""

    symbol: str
    retcode: int
    retcode_name: str
    category: str
    description: str
    attempts: int = 0
    retriable: bool = False
    advice: str = ""


class OrderFailed(Fact, frozen=True, kw_only=True, gc=False, tag="order.failed"):
    """The order ended by the system, not by the broker: proven absent after an unknown outcome, or never sent."""

    symbol: str
    category: str
    reason: str
    attempts: int = 0
    retriable: bool = False


class AnomalyDetected(Fact, frozen=True, kw_only=True, gc=False, tag="order.anomaly_detected"):
    """A fact that does not fit its request. The fact itself stands beside it; a person must look."""

    kind: str
    detail: str
    symbol: str = ""


OrderEvent = (
    OrderRequested
    | DuplicateReceived
    | ConflictReceived
    | OrderRefused
    | OrderStale
    | OrderChecked
    | SendStarted
    | BrokerAnswered
    | SendAbandoned
    | OutcomeUnknown
    | OutcomeProbed
    | OutcomeResolved
    | OrderPartiallyFilled
    | OrderFilled
    | OrderRejected
    | OrderFailed
    | AnomalyDetected
)
