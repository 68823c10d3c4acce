"""What tests of the broker side share: a clock they own, requests, and a folder whose broker ends with the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.broker import Send
from gateway.elapsed import elapsed_s
from gateway.simulated import constants as c
from gateway.simulated import structs
from gateway.simulated.arguments import read_request
from gateway.simulated.faults import parse
from gateway.simulated.link import stop_broker
from gateway.simulated.plans import NONE
from gateway.simulated.rows import DealRow, OrderRow, PositionRow, Request, World
from gateway.simulated.service import Broker
from gateway.simulated.symbols import SymbolSpec
from ledger.trade import TradeRequest

LOGIN = 5_000_001
SERVER = "OrderLedger-Sim"
WEDNESDAY_NOON_MS = 1_700_654_400_000  # 2023-11-22T12:00:00Z


class Clock:
    """UTC milliseconds, moved by the test."""

    def __init__(self, ms: int = WEDNESDAY_NOON_MS) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


@contextmanager
def broker_in(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    finally:
        stop_broker(folder)


def mt5_request(**fields: Any) -> Request:
    """A market buy of 0.01 EURUSD as the simulated broker sees it, with `fields` changed."""
    return Request(*read_request(({"action": 1, "symbol": "EURUSD", "volume": 0.01} | fields,), {}))


def at_the_exchange(folder: Path) -> "Desk":
    """A desk on an exchange account, 18:00 at the server: the stock is traded."""
    desk = Desk(folder, margin_mode=c.ACCOUNT_MARGIN_MODE_EXCHANGE)
    desk.clock.ms += 4 * 3_600_000
    return desk


class Desk:
    """A broker in this process, under a clock the test owns: its rules without terminal and connection."""

    def __init__(self, folder: Path, **world: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.clock = Clock()
        self.broker = Broker(folder, World(**world), self.clock)
        self.state = self.broker.state

    def restart(self) -> "Desk":
        """Another broker over the same folder, at the same moment."""
        self.close()
        later = Desk.__new__(Desk)
        later.folder, later.clock = self.folder, self.clock
        later.broker = Broker(self.folder, World(), self.clock)
        later.state = later.broker.state
        return later

    def close(self) -> None:
        self.broker.journal.close()

    def check(self, **fields: Any) -> int:
        return int(self.broker.trading.check(mt5_request(**fields))[0])

    def send(self, fault: str = "", **fields: Any) -> Any:
        """The OrderSendResult; `fault` is one of those that change what the broker does."""
        tampering = parse(fault)[1][0].fault.tampering() if fault else NONE
        result, _ = self.broker.trading.send(mt5_request(**fields), tampering=tampering)
        return structs.OrderSendResult((*result, 1, 0, None))

    def done(self, **fields: Any) -> Any:
        """The result of a request that must succeed."""
        result = self.send(**fields)
        assert result.retcode in (10008, 10009), result
        return result

    def define(self, symbol: str = "EURUSD", **changes: Any) -> SymbolSpec:
        return self.broker.set_symbol(symbol, changes)

    def rules(self, **changes: object) -> None:
        self.broker.control.do("rules", {"changes": {name: str(value) for name, value in changes.items()}})

    def points(self, symbol: str = "EURUSD") -> tuple[int, int]:
        """Bid and ask in points."""
        quote = self.broker.market.quote(symbol, self.broker.clock())
        return quote.bid, quote.ask

    def price(self, off: int = 0, symbol: str = "EURUSD", side: str = "bid") -> float:
        """The bid or ask, `off` points higher."""
        points = self.points(symbol)[side == "ask"] + off
        return self.broker.market.symbols[symbol].price(points)

    def move(self, points: int, symbol: str = "EURUSD") -> None:
        """The price jumps, now."""
        self.broker.control.do("price", {"symbol": symbol, "points": points})

    def wait(self, ms: int) -> None:
        self.clock.ms += ms
        self.broker.trading.advance()

    @property
    def positions(self) -> list[PositionRow]:
        return list(self.state.positions.values())

    @property
    def working(self) -> list[OrderRow]:
        return list(self.state.working.values())

    @property
    def deals(self) -> list[DealRow]:
        """Without the deposit."""
        return [deal for deal in self.state.deals.values() if deal.symbol]


def buy(magic: int = 7, **fields: Any) -> TradeRequest:
    return TradeRequest(**({"action": 1, "symbol": "EURUSD", "volume": Decimal("0.01"), "magic": magic} | fields))


def send(request: TradeRequest, within_s: float = 5.0) -> Send:
    return Send(request, elapsed_s() + within_s)
