"""Runs beside MetaTrader5: in the Python of an mt5linux server, which gets the text of this file, and in the child.

It needs nothing but the standard library and must pass as Python 3.8. Everything here is data that any wire carries:
None, bool, int, float, str, bytes and tuples of them. `gateway/mt5_values.py` reads it.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
import types
from typing import Any


def plain(value: Any, told: set[str]) -> tuple[Any, ...]:
    """A result of the module as data. `told` are the structs whose fields the other side knows."""
    if hasattr(value, "n_fields"):
        name = type(value).__name__
        fields = None if name in told else tuple(value._asdict())
        told.add(name)
        return "struct", name, fields, tuple(plain(item, told) for item in value)
    if isinstance(value, tuple):
        return "tuple", tuple(plain(item, told) for item in value)
    if hasattr(value, "dtype"):
        return "array", tuple(value.dtype.descr), value.tobytes()
    return "value", value


class Shared(types.ModuleType):
    """One in the server's process, whichever client came first: the package has one connection and one last_error."""

    lock = threading.Lock()


_shared: Any = sys.modules.setdefault("order_ledger_bridge", Shared("order_ledger_bridge"))
_told: set[str] = set()


def call(name: str, args: Any, keywords: Any, request: Any, until: float | None) -> tuple[Any, ...]:
    """(the monotonic clock, what came of it, the result or why there is none, last_error). `request` is a dict as
    pairs; past `until` of the clock nothing is called."""
    with _shared.lock:
        now = time.monotonic()
        if until is not None and now > until:
            return now, "late", None, None
        mt5 = importlib.import_module("MetaTrader5")
        function = getattr(mt5, name, None)
        if function is None:
            return now, "missing", name, None
        try:
            result = function(*(args if request is None else (dict(request),)), **dict(keywords))
        except Exception as error:
            return time.monotonic(), "raised", type(error).__name__, None
        failed = tuple(mt5.last_error()) if result is None or result is False else (1, "Success")
        return time.monotonic(), "done", plain(result, _told), failed


def ready() -> float:
    """The clock, if the package can be imported. Raises ImportError."""
    if "C:\\mt5libs" not in sys.path:
        sys.path.append("C:\\mt5libs")  # where mt5linux's images keep it
    importlib.import_module("MetaTrader5")
    return time.monotonic()
