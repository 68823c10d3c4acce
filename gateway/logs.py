"""The log: one line for each thing that happens, JSON for machines, words on a terminal; both on standard error.

What is secret is so by its type (`gateway.config.Secret`) and shows as dots wherever it stands, however deep. Text that
came from elsewhere cannot end a line or paint the terminal: JSON escapes it, and on a terminal so does `printable`.
"""

import logging
import sys
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, TextIO

import msgspec
import orjson
import structlog

from gateway.secret import Secret

MAX_DEPTH: Final = 8
# What ends a line for some readers, and JSON lets stand.
_BREAKS: Final = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})


def set_up_logging(level: str, out: TextIO | None = None) -> None:
    """`level`: debug, info, warning or error."""
    out = out or sys.stderr
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redacted,
    ]
    if out.isatty():
        processors += [_printable, structlog.dev.ConsoleRenderer()]
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=_json))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(out),
    )


def safe(value: Any, depth: int = 0) -> Any:
    """The value as plain data, with dots where a secret stands; deeper than eight levels, and of types that are no
    data, only what they call themselves."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Secret():
            return repr(value)
        case Decimal() | datetime() | date():
            return str(value)
        case bytes() | bytearray():
            return f"({len(value)} bytes)"
        case _ if depth >= MAX_DEPTH:
            return "…"
        case Mapping():
            return {str(safe(name, depth + 1)): safe(one, depth + 1) for name, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [safe(one, depth + 1) for one in value]
        case msgspec.Struct():
            return {name: safe(getattr(value, name), depth + 1) for name in value.__struct_fields__}
        case BaseException():
            return f"{type(value).__name__}: {value}"
        case _:
            return str(value)


def printable(text: str) -> str:
    """The text with whatever would end the line or control the terminal shown as its escape."""
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def one_line(text: str) -> str:
    """JSON that is one line for every reader."""
    return text if text.isascii() else text.translate(_BREAKS)


def _redacted(_: Any, __: str, entry: Any) -> dict[str, Any]:
    return {name: safe(value) for name, value in entry.items()}


def _printable(_: Any, __: str, entry: Any) -> dict[str, Any]:
    return {
        name: printable(value) if isinstance(value, str) and name != "exception" else value
        for name, value in entry.items()
    }


def _json(entry: Any, **_: Any) -> str:
    try:
        return one_line(orjson.dumps(entry, default=str).decode())
    except TypeError:  # an integer beyond 64 bits, a lone surrogate: the line is not lost for that
        return orjson.dumps({name: ascii(value) for name, value in entry.items()}).decode()
