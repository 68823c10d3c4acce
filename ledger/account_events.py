"""The facts of the trading account (`account/{login}`), and of messages that were no order (`inbox/{date}`)."""

from datetime import datetime
from decimal import Decimal

import msgspec

from ledger.facts import Fact, Raw
from ledger.trade import ZERO, Deal, Position


class AccountConnected(Fact, frozen=True, kw_only=True, gc=False, tag="account.connected"):
    login: int
    server: str
    currency: str
    margin_mode: int
    balance: Decimal
    equity: Decimal
    terminal: str
    broker_utc_offset_s: int = 0


class AccountDisconnected(Fact, frozen=True, kw_only=True, gc=False, tag="account.disconnected"):
    login: int
    server: str
    reason: str


class LoginRefused(Fact, frozen=True, kw_only=True, gc=False, tag="account.login_refused"):
    """The broker refused the login, or another account or server answered than this ledger is bound to."""

    login: int
    server: str
    code: int
    reason: str


class ExternalDealObserved(Fact, frozen=True, kw_only=True, gc=False, tag="account.external_deal_observed"):
    """A deal of this account that no request of ours asked for: by hand, by another program, by the broker (stop
    loss, take profit, stop-out, costs). `order_id`: the order that opened the position it acts on, where known."""

    deal: Deal
    broker_time: datetime | None = None
    broker_utc_offset_s: int = 0
    note: str = ""
    order_id: str = ""


class DealsFollowed(Fact, frozen=True, kw_only=True, gc=False, tag="account.deals_followed"):
    """Where to look for deals after a restart: all that the broker showed before `through_msc` (its clock) are in the
    ledger before this event. `tickets`: those of them that are looked at again from there on, complete from
    `known_from_msc` on (0: not said). `named`: ticket at the broker and order id of those that an operator found: the
    broker shows no other sign of whose they are."""

    through_msc: int
    tickets: tuple[int, ...] = ()
    known_from_msc: int = 0
    named: tuple[tuple[int, str], ...] = ()


class TradingHalted(Fact, frozen=True, kw_only=True, gc=False, tag="account.halted"):
    """Nothing may open or add to a position from here on. `source`: `operator`, `configuration`, `limit` or
    `heartbeat`; each lifts only its own. `cancel_orders`: whether working orders are cancelled too. `until`: when the
    source lifts it by itself, where it is known."""

    source: str
    reason: str
    by: str = ""
    cancel_orders: bool = False
    until: datetime | None = None


class TradingResumed(Fact, frozen=True, kw_only=True, gc=False, tag="account.resumed"):
    """The halt of this source is lifted; others may still stand."""

    source: str
    reason: str = ""
    by: str = ""


class ControlReceived(Fact, frozen=True, kw_only=True, gc=False, tag="account.control_received"):
    """Somebody asked for `command` (halt, resume, close_all, reconcile, resolve): recorded before it is done, and
    also when it is refused, for `reasons`. `by`: who, as the caller says; `raw`: the request as it came."""

    command: str
    by: str
    reason: str = ""
    accepted: bool = True
    reasons: tuple[str, ...] = ()
    raw: Raw | None = None


class AlertRaised(Fact, frozen=True, kw_only=True, gc=False, tag="account.alert_raised"):
    """What a person must look at, where no other event says it already. `about`: the seq of the event it speaks of;
    0 where there is none."""

    kind: str
    text: str
    order_id: str = ""
    symbol: str = ""
    about: int = 0


class ConfigurationAccepted(Fact, frozen=True, kw_only=True, gc=False, tag="account.configuration_accepted"):
    """Settings in force from here on. `origin`: flags, environment, hub, file, defaults; `changed`: the paths that
    differ from before; `waiting`: those whose change takes effect at the next start. `settings` holds no secret."""

    version: str
    origin: str
    digest: str
    changed: tuple[str, ...] = ()
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    waiting: tuple[str, ...] = ()


class ConfigurationRefused(Fact, frozen=True, kw_only=True, gc=False, tag="account.configuration_refused"):
    """Settings that were refused as a whole; the old ones stay. Every error, by path."""

    version: str
    origin: str
    errors: tuple[str, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One difference between our view and the broker's. `policy`: `alert`, `adopt` or `correct`, as applied."""

    kind: str
    ours: str
    brokers: str
    policy: str
    order_id: str = ""
    order_ticket: int = 0
    position_id: int = 0
    deal: int = 0
    symbol: str = ""


class AccountReconciled(Fact, frozen=True, kw_only=True, gc=False, tag="account.reconciled"):
    """Our view was compared with the broker's. `trigger`: start, reconnect, interval or demand. `differences`: what is
    new; `standing`: what was told by an earlier one, is only alerted, and is still so."""

    trigger: str
    positions: int
    orders: int
    deals: int
    differences: tuple[Difference, ...] = ()
    deals_since: datetime | None = None
    standing: tuple[Difference, ...] = ()


class PositionCorrected(Fact, frozen=True, kw_only=True, gc=False, tag="account.position_corrected"):
    """A position as the broker shows it, where no deal explains how it came to differ from ours (`kind`); a volume of
    0: the broker has none. From here on this is our view. `order_id`: the order that opened it, where it was ours."""

    position: Position
    kind: str
    order_id: str = ""


class SnapshotTaken(Fact, frozen=True, kw_only=True, gc=False, tag="account.snapshot_taken"):
    """The account and its open positions as the broker showed them. Amounts in the account's currency."""

    currency: str
    balance: Decimal
    equity: Decimal
    margin: Decimal = ZERO
    margin_free: Decimal = ZERO
    profit: Decimal = ZERO
    positions: tuple[Position, ...] = ()
    working_orders: int = 0


class MessageRejected(Fact, frozen=True, kw_only=True, gc=False, tag="inbox.message_rejected"):
    """A message that names no order we could open a stream for."""

    reasons: tuple[str, ...]
    raw: Raw
    order_id: str = ""
    symbol: str = ""


AccountEvent = (
    AccountConnected
    | AccountDisconnected
    | LoginRefused
    | ExternalDealObserved
    | DealsFollowed
    | TradingHalted
    | TradingResumed
    | ControlReceived
    | AlertRaised
    | ConfigurationAccepted
    | ConfigurationRefused
    | AccountReconciled
    | PositionCorrected
    | SnapshotTaken
)
