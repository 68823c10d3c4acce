"""The facts of the trading account (`account/{login}`), and of messages that were no order (`inbox/{date}`)."""

from decimal import Decimal

from ledger.facts import Fact, Raw


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


class MessageRejected(Fact, frozen=True, kw_only=True, gc=False, tag="inbox.message_rejected"):
    """A message that names no order we could open a stream for."""

    reasons: tuple[str, ...]
    raw: Raw
    order_id: str = ""
    symbol: str = ""
