"""Arguments and results of MetaTrader5's functions on their way to another process and back."""

from datetime import datetime
from typing import Any

from gateway.simulated import structs


class NotCarried(Exception):
    """The text is that of last_error -2: nothing is called."""


def carried(value: Any, name: str = "") -> Any:
    """The argument as the package would read it, of a type that every wire carries. Raises NotCarried."""
    if isinstance(value, datetime):
        return int(value.timestamp())
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise NotCarried(f'Invalid "{name}" argument' if name else "Invalid arguments")


def pairs(fields: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((str(name), carried(value, str(name))) for name, value in fields.items())


class Reader:
    """Reads what `mt5_remote.plain` made. Structs have the fields the other side told, also ones we do not know."""

    def __init__(self) -> None:
        self._structs: dict[str, type[structs.StructSequence]] = {}

    def read(self, found: Any) -> Any:
        """Raises ValueError or KeyError for what it cannot read."""
        match tuple(found):
            case ("value", value):
                return value
            case ("tuple", items):
                return tuple(map(self.read, items))
            case ("struct", name, fields, items):
                if fields is not None:
                    self._structs[name] = structs.define(name, tuple(fields))
                return self._structs[name](map(self.read, items))
            case ("array", fields, data):
                import numpy as np

                return np.frombuffer(data, dtype=[tuple(field) for field in fields]).copy()
        raise ValueError("an unknown kind of value")
