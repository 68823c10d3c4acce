"""Slippage in pips. Pure."""

from decimal import Decimal
from typing import Final, Protocol

from ledger.trade import ZERO
from ledger.values import plain

_PIP_POINTS: Final = Decimal(10)


class Deal(Protocol):
    """What `ledger.order_events.DealFact` tells of it."""

    @property
    def side(self) -> str: ...
    @property
    def price(self) -> Decimal: ...
    @property
    def requested_price(self) -> Decimal | None: ...
    @property
    def point(self) -> Decimal | None: ...


def pips_worse(fill: Deal) -> Decimal | None:
    """How much worse the deal was than the price asked for, in pips, below 0 when it was better; None where none was
    asked. A pip is ten points where prices have a digit beyond it (0.00001, 0.001), else one."""
    if not fill.requested_price or not fill.point:
        return None
    worse = fill.price - fill.requested_price if fill.side == "buy" else fill.requested_price - fill.price
    if not worse:
        return ZERO
    exponent = fill.point.normalize().as_tuple().exponent
    return plain(worse / (fill.point * _PIP_POINTS if exponent in (-5, -3) else fill.point))
