"""What tests of the broker side share: a clock they own, requests, and a folder whose broker ends with the test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from gateway.broker import Send
from gateway.simulated.arguments import read_request
from gateway.simulated.link import stop_broker
from gateway.simulated.rows import Request
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


def buy(magic: int = 7, **fields: Any) -> TradeRequest:
    return TradeRequest(**({"action": 1, "symbol": "EURUSD", "volume": Decimal("0.01"), "magic": magic} | fields))


def send(request: TradeRequest, within_s: float = 5.0) -> Send:
    return Send(request, time.monotonic() + within_s)
