"""A broker for tests of what asks it: what it shows is set by the test, and it can be gone."""

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from gateway.broker import (
    Account,
    Activity,
    CheckOutcome,
    Evidence,
    Outcome,
    Send,
    Symbol,
    Target,
    TargetView,
    TerminalError,
    Tick,
)
from ledger.trade import BrokerOrder, Deal, Position, TargetImage, TradeRequest

D = Decimal
EURUSD = Symbol(
    name="EURUSD",
    digits=5,
    point=D("0.00001"),
    trade_tick_size=D("0.00001"),
    trade_contract_size=D(100000),
    volume_min=D("0.01"),
    volume_max=D(50),
    volume_step=D("0.01"),
    trade_stops_level=10,
    trade_freeze_level=0,
    trade_mode=4,
    trade_exemode=2,
    filling_mode=3,
    expiration_mode=15,
    order_mode=127,
    bid=D("1.08"),
    ask=D("1.0801"),
)
ACCOUNT = Account(
    login=7,
    server="s",
    currency="USD",
    margin_mode=2,
    balance=D(10_000),
    equity=D(10_000),
    margin=D(0),
    margin_free=D(10_000),
    server_utc_offset_s=7200,
)


class FakeBroker:
    """Shows what it is told to show. `asked` counts the questions by name."""

    def __init__(self) -> None:
        self.gone = False
        self.shown = Activity(positions=(), orders=(), history=(), deals=())
        self.prices = Tick(time_msc=0, bid=D("1.08000"), ask=D("1.08010"))
        self.asked: dict[str, int] = {}

    def show(
        self,
        positions: Sequence[Position] = (),
        orders: Sequence[BrokerOrder] = (),
        deals: Sequence[Deal] = (),
    ) -> None:
        self.shown = Activity(positions=tuple(positions), orders=tuple(orders), history=(), deals=tuple(deals))

    def _ask(self, name: str) -> None:
        self.asked[name] = self.asked.get(name, 0) + 1
        if self.gone:
            raise TerminalError("the terminal is down")

    async def connect(self) -> Account:
        self._ask("connect")
        return ACCOUNT

    async def verify(self) -> Account:
        self._ask("verify")
        return ACCOUNT

    async def check(self, requests: Sequence[TradeRequest]) -> list[CheckOutcome]:
        raise NotImplementedError

    async def send(self, sends: Sequence[Send]) -> list[Outcome]:
        raise NotImplementedError

    async def symbol(self, name: str) -> Symbol | None:
        self._ask("symbol")
        return EURUSD if name == "EURUSD" else None

    async def tick(self, name: str) -> Tick | None:
        self._ask("tick")
        return self.prices if name == "EURUSD" else None

    async def account(self) -> Account:
        self._ask("account")
        return msgspec.structs.replace(ACCOUNT)

    async def find(self, magics: Sequence[int], comments: Sequence[str], since_s: float) -> Evidence:
        raise NotImplementedError

    async def target(self, target: Target) -> TargetView:
        self._ask("target")
        return TargetView(image=TargetImage())

    async def activity(self, since_msc: int) -> Activity:
        self._ask("activity")
        deals = tuple(one for one in self.shown.deals if one.time_msc >= since_msc)
        return msgspec.structs.replace(self.shown, deals=deals)

    async def close(self) -> None:
        pass
