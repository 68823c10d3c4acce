"""The facts of one order: the events of a stream `order/{order_id}`."""

from datetime import datetime
from decimal import Decimal

from ledger.facts import Fact, OrderRequest, Raw
from ledger.trade import ZERO, BrokerOrder, CheckResult, Deal, Position, TargetImage, TradeRequest, TradeResult


class OrderRequested(Fact, frozen=True, kw_only=True, gc=False, tag="order.requested"):
    """A message named an order for the first time. `request` is None when it could not be understood: then
    OrderRefused follows. `content` is the digest of the economic fields (invariant I3). `age_from` is the time
    the order's age counts from: its `created_at`, or the time the message bus took it. `accepted` is False when
    OrderRefused follows in the same commit. `ignored`: fields of the message that no order has, such as a misspelt
    one; they have no effect."""

    request: OrderRequest | None
    content: str
    raw: Raw
    symbol: str = ""
    age_from: datetime | None = None
    accepted: bool = True
    ignored: tuple[str, ...] = ()


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
    """Too old to be sent. `cause`: `age` (since it was created, before the first send), `life` (before a later one)
    or `valid_until`, which passed `age_s` ago (then `limit_s` is 0). Version 1 had no `cause`."""

    age_s: Decimal
    limit_s: Decimal
    symbol: str = ""
    cause: str = ""


class OrderChecked(Fact, frozen=True, kw_only=True, gc=False, tag="order.checked"):
    """What `order_check` said; no effect at the broker. `result` is None when the check could not be made."""

    passed: bool
    result: CheckResult | None = None
    retcode_name: str = ""
    problem: str = ""


class SendStarted(Fact, frozen=True, kw_only=True, gc=False, tag="order.send_started"):
    """The intent, durable before the effect: the request exactly as it will be sent. `before`: what it acts on, as
    it was then; a close, modify or cancel is proven against it."""

    attempt: int
    request: TradeRequest
    before: TargetImage | None = None


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


class RetryScheduled(Fact, frozen=True, kw_only=True, gc=False, tag="order.retry_scheduled"):
    """The attempt failed and another one follows, not before `not_before` (`delay_s` after this)."""

    attempt: int
    delay_s: Decimal
    not_before: datetime
    reason: str
    retcode: int = 0
    retcode_name: str = ""
    symbol: str = ""


class OrderParked(Fact, frozen=True, kw_only=True, gc=False, tag="order.parked"):
    """It cannot be traded now (market closed, frozen, trading disabled): tried again after `recheck_s`, until it is
    too old."""

    attempt: int
    recheck_s: Decimal
    not_before: datetime
    reason: str
    retcode: int = 0
    retcode_name: str = ""
    symbol: str = ""


class OutcomeUnknown(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_unknown"):
    """The attempt may or may not have taken effect. Only evidence or an operator's word ends this."""

    attempt: int
    code: int
    reason: str
    symbol: str = ""


class OutcomeProbed(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_probed"):
    """The broker was asked for traces of the attempt. `complete`: all four queries succeeded while connected.
    `settled`: nothing can arrive any more, and still it is open. Recorded when what it shows changes, not on every
    repetition."""

    attempt: int
    complete: bool
    found: bool
    reason: str = ""
    settled: bool = False


class OutcomeResolved(Fact, frozen=True, kw_only=True, gc=False, tag="order.outcome_resolved"):
    """How an unknown outcome ended: `found`, `absent`, `superseded` (what it acted on has moved on, and it cannot act
    any more) or `abandoned` (an operator's word only). `by`: `probe` or `operator`; who that was stands in the
    envelope. `evidence` says it in words, the records are what the broker showed."""

    attempt: int
    resolution: str
    by: str
    evidence: str
    order_ticket: int = 0
    symbol: str = ""
    orders: tuple[BrokerOrder, ...] = ()
    history: tuple[BrokerOrder, ...] = ()
    positions: tuple[Position, ...] = ()
    deals: tuple[Deal, ...] = ()


class OrderPlaced(Fact, frozen=True, kw_only=True, gc=False, tag="order.placed"):
    """The broker holds the order as a working one, under `order_ticket`."""

    symbol: str
    side: str
    order_ticket: int
    order_type: str = ""
    volume: Decimal = ZERO
    price: Decimal = ZERO
    stop_limit_price: Decimal = ZERO
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    attempts: int = 1
    retcode: int = 0
    retcode_name: str = ""


class DealFact(Fact, frozen=True, kw_only=True, gc=False):
    """A deal of ours. `remaining_volume` counts after this deal; `requested_price` is None when none was asked."""

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


class Fill(DealFact, frozen=True, kw_only=True, gc=False):
    """A deal seen for the first time: what upstream hears of as a fill, once."""


class OrderPartiallyFilled(Fill, frozen=True, kw_only=True, gc=False, tag="order.partially_filled"):
    """A fill that leaves volume open."""


class OrderFilled(Fill, frozen=True, kw_only=True, gc=False, tag="order.filled"):
    """The fill that completes the order."""


class FillCorrected(DealFact, frozen=True, kw_only=True, gc=False, tag="order.fill_corrected"):
    """A provisional fill, as the deal itself tells it: completed by its costs, or corrected. `corrects` is the
    version of the fill in this stream."""

    corrects: int
    was_volume: Decimal
    was_price: Decimal


class FillCostsChanged(Fact, frozen=True, kw_only=True, gc=False, tag="order.fill_costs_changed"):
    """Costs of a known deal changed after it (a broker books commission or swap late): the new totals."""

    deal: int
    fill_version: int
    commission: Decimal
    swap: Decimal
    fee: Decimal
    profit: Decimal
    symbol: str = ""


class OrderModified(Fact, frozen=True, kw_only=True, gc=False, tag="order.modified"):
    """The working order, or the position this order opened, has other values now. `by`: the order id of the request
    that changed it; empty when it was changed elsewhere."""

    symbol: str
    order_ticket: int = 0
    position_id: int = 0
    price: Decimal = ZERO
    stop_limit_price: Decimal = ZERO
    sl: Decimal = ZERO
    tp: Decimal = ZERO
    expiration: int = 0
    by: str = ""


class OrderCancelled(Fact, frozen=True, kw_only=True, gc=False, tag="order.cancelled"):
    """The order, or what remained of it, was cancelled: by the broker, or, without an `order_ticket`, before it was
    sent. `by` as in OrderModified."""

    symbol: str
    order_ticket: int
    filled_volume: Decimal
    remaining_volume: Decimal
    reason: str = ""
    by: str = ""


class OrderExpired(Fact, frozen=True, kw_only=True, gc=False, tag="order.expired"):
    """The working order, or what remained of it, reached its expiration at the broker."""

    symbol: str
    order_ticket: int
    filled_volume: Decimal
    remaining_volume: Decimal


class RequestCompleted(Fact, frozen=True, kw_only=True, gc=False, tag="order.completed"):
    """A request that makes no deal (modify, cancel) took effect on its target."""

    symbol: str
    action: str
    order_ticket: int = 0
    position_id: int = 0
    target_order_id: str = ""
    attempts: int = 1
    retcode: int = 0
    retcode_name: str = ""


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
    | RetryScheduled
    | OrderParked
    | OutcomeUnknown
    | OutcomeProbed
    | OutcomeResolved
    | OrderPlaced
    | OrderPartiallyFilled
    | OrderFilled
    | FillCorrected
    | FillCostsChanged
    | OrderModified
    | OrderCancelled
    | OrderExpired
    | RequestCompleted
    | OrderRejected
    | OrderFailed
    | AnomalyDetected
)
