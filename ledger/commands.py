"""What can be asked of an order, and the news of the broker: the inputs of `decide.decide`."""

from datetime import datetime
from decimal import Decimal

import msgspec

from ledger.intake import Received
from ledger.trade import ZERO, BrokerOrder, CheckResult, Deal, Position, TradeRequest, TradeResult


class ReceiveOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message that names this order. `unrecorded`: repetitions since the last that was recorded."""

    received: Received
    age_from: datetime | None = None
    unrecorded: int = 0


class RefuseOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    reasons: tuple[str, ...]


class ExpireOrder(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Too old to be sent; seconds."""

    age_s: Decimal
    limit_s: Decimal


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
    attempt: int
    request: TradeRequest


class RecordAnswer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of `order_send`, with the class the retcode table gives it, and the deals it names."""

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


class RecordNotSent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    attempt: int
    code: int
    reason: str


class RecordUnknown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    attempt: int
    code: int
    reason: str


class RecordEvidence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the broker shows of an attempt whose outcome is unknown. `settled`: long enough after any effect could
    still arrive, so that complete absence is proof."""

    attempt: int
    complete: bool
    settled: bool
    orders: tuple[BrokerOrder, ...] = ()
    history: tuple[BrokerOrder, ...] = ()
    deals: tuple[Deal, ...] = ()
    positions: tuple[Position, ...] = ()
    reason: str = ""
    point: Decimal | None = None
    broker_utc_offset_s: int = 0


class GiveUp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ends an order that provably is not at the broker."""

    reason: str


OrderCommand = (
    ReceiveOrder
    | RefuseOrder
    | ExpireOrder
    | RecordCheck
    | StartSend
    | RecordAnswer
    | RecordNotSent
    | RecordUnknown
    | RecordEvidence
    | GiveUp
)
