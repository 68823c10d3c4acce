"""PURE: amounts and times → the whole numbers that columns hold.

Amounts must fit `Decimal(18, 8)`: one value beyond it would fail a whole insert and a ninth decimal would be cut
silently. What does not fit is rounded to 8 decimals or set to the nearest bound, and its row says so.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

STEP: Final = Decimal("0.00000001")
EXACT: Final = Context(prec=80, rounding=ROUND_HALF_EVEN)
EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_BOUND: Final = Decimal("9999999999.99999999")
_BOUND_UNITS: Final = 10**18 - 1

# Volumes and prices recur, within an order and from one to the next; to look one up takes a tenth of working it out.
_UNITS: Final[dict[Decimal, int]] = {}
_UNITS_KEPT: Final = 16_384


class Amounts:
    """The amounts of one row, in units of 1e-8, and the names of those that are not exact."""

    __slots__ = ("inexact",)

    def __init__(self) -> None:
        self.inexact: Sequence[str] = ()

    def fit(self, column: str, value: Decimal) -> int:
        if not value:
            return 0
        try:
            known = _UNITS.get(value)
        except TypeError:  # a signalling NaN cannot be looked up
            known = None
        if known is not None:
            return known
        exact, units = fit(value)
        if not exact:
            self.inexact = [*self.inexact, column]
        elif len(_UNITS) < _UNITS_KEPT:
            _UNITS[value] = units
        else:
            _UNITS.clear()
        return units

    def or_null(self, column: str, value: Decimal | None) -> int | None:
        return None if value is None else self.fit(column, value)


def fit(value: Decimal) -> tuple[bool, int]:
    """Whether the value fits `Decimal(18, 8)`, and it or the nearest that does, in units of 1e-8."""
    if not value:
        return True, 0
    if not value.is_finite():
        return False, 0 if value.is_nan() else _BOUND_UNITS if value > 0 else -_BOUND_UNITS
    if -_BOUND <= value <= _BOUND:
        scaled = value.scaleb(8, EXACT)
        units = int(scaled)
        if units == scaled:
            return True, units
        return False, int(scaled.to_integral_value(ROUND_HALF_EVEN))
    return False, _BOUND_UNITS if value > 0 else -_BOUND_UNITS


def wide(value: Decimal) -> int:
    """For `Decimal(38, 8)`: bounded, with 8 decimals."""
    if not value.is_finite():
        return 0
    if value.adjusted() > 29:
        return 10**38 - 1 if value > 0 else 1 - 10**38
    return int(value.scaleb(8, EXACT).to_integral_value(ROUND_HALF_EVEN))


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, the form a DateTime64(6) is inserted in; exact, unlike `timestamp()`."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment_or_null(moment: datetime | None) -> int | None:
    return None if moment is None else microseconds(moment)
