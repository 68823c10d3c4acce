"""How the MetaTrader5 package reads its arguments: no conversion, and a local refusal that names the field.

Observed of package 5.0.6231: a trade request is read key by key in a fixed order, the first bad one ends the call
with (-2, 'Invalid "key" argument'); every key is optional; unknown keys are ignored; an int is not a float, a float
is not an int, and a symbol or comment may have 29 UTF-16 units.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

MAX_TEXT: Final = 29
MAX_KEYWORD: Final = 4096  # characters of a group, password or server: whatever needs more is a mistake


class BadArgument(Exception):
    """The text is the one `last_error()` reports with code -2."""


class Int(NamedTuple):
    """An int in [low, high)."""

    low: int
    high: int


U32: Final = Int(0, 2**32)
U64: Final = Int(0, 2**64)
Kind = Int | type[str] | type[float]

# In the order the binding checks them; the order of the struct's fields is REQUEST_FIELDS.
_CHECKED: Final[tuple[tuple[str, Kind], ...]] = (
    ("action", U32),
    ("magic", U64),
    ("order", U64),
    ("symbol", str),
    ("volume", float),
    ("price", float),
    ("stoplimit", float),
    ("sl", float),
    ("tp", float),
    ("deviation", U64),
    ("type", U32),
    ("type_filling", U32),
    ("type_time", U32),
    ("expiration", Int(-(2**63), 2**63)),
    ("comment", str),
    ("position", U64),
    ("position_by", U64),
)


def _can_be_sent(text: str) -> bool:
    """Half a surrogate pair is no text."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def utf16_units(text: str) -> int:
    """Length as Windows counts it; a lone surrogate counts as too long, since it cannot be passed on."""
    try:
        return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        return MAX_TEXT + 1


def _fits(value: Any, kind: Kind) -> bool:
    if kind is float:
        return isinstance(value, float)
    if kind is str:
        return isinstance(value, str) and utf16_units(value) <= MAX_TEXT
    assert isinstance(kind, Int)
    return isinstance(value, int) and kind.low <= value < kind.high


def read_request(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The 17 fields of a trade request, in struct order. One dict, or keywords, never both."""
    if args:
        if len(args) > 1 or kwargs:
            raise BadArgument("Invalid number of arguments")
        if not isinstance(args[0], dict):
            raise BadArgument("Unnamed arguments not allowed")
    given = args[0] if args else kwargs
    plain = _read_plain(given)
    if plain is not None:
        return plain
    fields: list[Any] = []
    for name, kind in _CHECKED:
        value = given.get(name, _MISSING)
        if value is _MISSING:
            fields.append("" if kind is str else 0.0 if kind is float else 0)
        elif not _fits(value, kind):
            raise BadArgument(f'Invalid "{name}" argument')
        else:
            # Subclasses (bool, numpy.float64) become what the terminal keeps.
            fields.append(str(value) if kind is str else float(value) if kind is float else int(value))
    return fields


def _read_plain(given: Mapping[str, Any]) -> list[Any] | None:
    """The same for a request of plain values that all fit, which is nearly every one; None for any other."""
    fields = _EMPTY.copy()
    for name, value in given.items():
        slot = _SLOTS.get(name)
        if slot is None:
            continue
        index, type_, kind = slot
        if type(value) is not type_ or not (type_ is float or _fits(value, kind)):
            return None
        fields[index] = value
    return fields


_MISSING: Final = object()
_TYPES: Final = {name: kind if kind in (str, float) else int for name, kind in _CHECKED}
_SLOTS: Final = {name: (index, _TYPES[name], kind) for index, (name, kind) in enumerate(_CHECKED)}
_EMPTY: Final = [type_() for type_ in _TYPES.values()]


def parse_keywords(given: Mapping[str, Any], known: Mapping[str, Kind]) -> dict[str, Any]:
    for name, value in given.items():
        kind = known.get(name)
        if kind is None:
            raise BadArgument("Invalid arguments")
        if kind is str:
            if not isinstance(value, str) or len(value) > MAX_KEYWORD or not _can_be_sent(value):
                raise BadArgument(f'Invalid "{name}" argument')
        elif not _fits(value, kind):
            raise BadArgument(f'Invalid "{name}" argument')
    return dict(given)


def seconds(value: Any) -> int:
    """A date as the binding reads it: a datetime by its timestamp (a naive one is in this host's zone) in 32 bits,
    a number as it is."""
    if isinstance(value, datetime):
        try:
            return (int(value.timestamp()) + 2**31) % 2**32 - 2**31
        except (ValueError, OverflowError, OSError):  # of a naive one that this host's zone takes out of all years
            raise BadArgument("Invalid arguments") from None
    if isinstance(value, int | float) and abs(value) < 2**53:
        return int(value)
    raise BadArgument("Invalid arguments")


def symbol_name(args: tuple[Any, ...]) -> str:
    """The only argument of the functions that take a symbol."""
    if len(args) != 1:
        raise BadArgument("Invalid number of arguments")
    if not isinstance(args[0], str) or utf16_units(args[0]) > MAX_TEXT:
        raise BadArgument("Invalid arguments")
    return args[0]


def whole(value: Any, kind: Int) -> int:
    """An int of the kind, for a function whose arguments have no names."""
    if not _fits(value, kind):
        raise BadArgument("Invalid arguments")
    return int(value)
