"""The broker port: what the gateway may ask of a terminal, and the typed outcomes it gets back.

An expected failure is a value, never an exception: `NotSent` (provably did not reach the broker), `Answered`
(a result struct came back, whatever its retcode) or `Unknown` (the request may have taken effect; only evidence
can tell). Implementations: `gateway/terminal.py` (a child process around any MetaTrader5 module) and, for tests,
`gateway/mt5.py` in the same process.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Protocol

import msgspec

from ledger.trade import BrokerOrder, CheckResult, Deal, Position, TargetImage, TradeRequest, TradeResult


class NotSent(msgspec.Struct, frozen=True, tag=True):
    """The request did not reach the broker. `code`/`text` are `last_error`, or 0 and our own reason."""

    code: int
    text: str


class Unknown(msgspec.Struct, frozen=True, tag=True):
    """The request may or may not have taken effect. `code`/`text` as in `NotSent`."""

    code: int
    text: str


class Answered(msgspec.Struct, frozen=True, tag=True):
    """The broker answered. `deals`: those visible at once whose ticket the result names (costs are in them)."""

    result: TradeResult
    deals: tuple[Deal, ...] = ()


Outcome = NotSent | Unknown | Answered


class Checked(msgspec.Struct, frozen=True, tag=True):
    """`order_check` answered; retcode 0 means the broker would accept the request now."""

    result: CheckResult


CheckOutcome = Checked | NotSent | Unknown


class Send(msgspec.Struct, frozen=True):
    """A request, and the time (s, gateway/elapsed.py) after which it must not be sent (design: fenced broker)."""

    request: TradeRequest
    not_after: float


class Account(msgspec.Struct, frozen=True, kw_only=True):
    login: int
    server: str
    currency: str
    margin_mode: int  # 0 netting, 1 exchange, 2 hedging
    balance: Decimal
    equity: Decimal
    margin: Decimal
    margin_free: Decimal
    name: str = ""
    company: str = ""
    leverage: int = 0
    server_utc_offset_s: int | None = None  # the server's wall clock minus UTC; None until a live tick has shown it


class Symbol(msgspec.Struct, frozen=True, kw_only=True):
    """The part of SymbolInfo an order is built from and checked against."""

    name: str
    digits: int
    point: Decimal
    trade_tick_size: Decimal
    trade_contract_size: Decimal
    volume_min: Decimal
    volume_max: Decimal
    volume_step: Decimal
    trade_stops_level: int
    trade_freeze_level: int
    trade_mode: int
    trade_exemode: int
    filling_mode: int  # bit flags: FOK 1, IOC 2, BOC 4
    expiration_mode: int
    order_mode: int
    bid: Decimal
    ask: Decimal
    select: bool = True  # in the terminal's Market Watch: only then it has prices


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    time_msc: int
    bid: Decimal
    ask: Decimal


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker shows of the wanted magics and comments, by four fresh queries of one connected terminal.

    `complete` is False when the terminal was not connected or a query failed: then absence proves nothing.
    """

    complete: bool
    orders: tuple[BrokerOrder, ...] = ()
    history: tuple[BrokerOrder, ...] = ()
    deals: tuple[Deal, ...] = ()
    positions: tuple[Position, ...] = ()
    reason: str = ""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a request acts on: a position by its identifier (a second one for close-by), or an order by its ticket."""

    position_id: int = 0
    position_by_id: int = 0
    order_ticket: int = 0


class TargetView(msgspec.Struct, frozen=True, kw_only=True):
    """The target as the broker shows it now; what does not exist any more is None in `image`. `history`: the order,
    once it has ended. `deals`: all of the position."""

    image: TargetImage
    history: BrokerOrder | None = None
    deals: tuple[Deal, ...] = ()


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What the account shows: open positions, working orders, and what ended or was dealt from a time on. Empty is also
    what was not asked for."""

    positions: tuple[Position, ...]
    orders: tuple[BrokerOrder, ...]
    history: tuple[BrokerOrder, ...]
    deals: tuple[Deal, ...]


class TerminalError(Exception):
    """The terminal cannot be used now. `code` is last_error's, or 0."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class LoginRefused(TerminalError):
    """The broker refused the login, or another account or server answered: a stop, not a retry."""


class Broker(Protocol):
    """A connected terminal. Every call has the deadline the implementation was made with."""

    async def connect(self) -> Account:
        """The account the terminal is logged in to. Raises TerminalError, LoginRefused."""
        ...

    async def check(self, requests: Sequence[TradeRequest]) -> list[CheckOutcome]:
        """One outcome per request, in order; has no effect at the broker."""
        ...

    async def send(self, sends: Sequence[Send]) -> list[Outcome]:
        """One outcome per request, in order. The requests are sent one after the other, each only before its
        `not_after`; a deadline makes that one and those behind it Unknown or NotSent as the truth is."""
        ...

    async def symbol(self, name: str) -> Symbol | None:
        """None if the broker does not know it. Raises TerminalError."""
        ...

    async def tick(self, name: str) -> Tick | None: ...

    async def account(self) -> Account: ...

    async def verify(self) -> Account:
        """The account, asked now, while the terminal is connected to its broker. Raises TerminalError, LoginRefused."""
        ...

    async def find(self, magics: Sequence[int], comments: Sequence[str], since_s: float) -> Evidence:
        """All that carries one of the magics or comment tokens, looking back `since_s` seconds."""
        ...

    async def target(self, target: Target) -> TargetView:
        """Fresh, while connected as the account. Raises TerminalError, LoginRefused."""
        ...

    async def activity(self, since_msc: int, *, orders: bool = True, rest: bool = True) -> Activity:
        """`since_msc`: the server's wall clock in milliseconds, inclusive. `orders`: the working ones too; `rest`:
        positions and ended orders too. Deals always. Raises TerminalError, LoginRefused."""
        ...

    async def close(self) -> None: ...
