"""PURE: the tables that follow the ledger, and how their rows become a block of ClickHouse's Native format.

Rows are tuples in the order of `columns`: text as str or bytes, whole numbers as int, amounts as int in units of 1e-8,
times as int in microseconds since 1970. The block is built here and not by the client library because a rebuild is
bound by just this: amounts that are already integers, and columns that are joined and not written value by value,
cost a tenth. A whole number that its column cannot hold is set to the nearest bound; the event holds the exact one.
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any, Final

import msgspec

Row = tuple[Any, ...]

_AMOUNT: Final = "Decimal(18, 8)"
_TIME: Final = "DateTime64(6, 'UTC')"
_NAME: Final = "LowCardinality(String)"


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """`columns`: names and types in the order of the rows. Rows of one `key` replace each other, the one with the
    highest `version` stays; within a version they are equal. `deleted` names the column that marks a row as gone."""

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]
    version: str
    deleted: str = ""


ORDER_EVENTS: Final = Table(
    name="order_events",
    columns={
        "ledger_id": _NAME,
        "seq": "UInt64",
        "event_id": "String",
        "stream": "String",
        "stream_version": "UInt64",
        "event": _NAME,
        "order_id": "String",
        "account": _NAME,
        "recorded_at": _TIME,
        "schema_version": "UInt16",
        "correlation_id": "String",
        "causation_id": "String",
        "actor": _NAME,
        "data": "String",
    },
    key=("ledger_id", "seq"),
    version="seq",
)
EXECUTIONS: Final = Table(
    name="executions",
    columns={
        "execution_id": "String",
        "ledger_id": _NAME,
        "account": _NAME,
        "order_id": "String",
        "stream_version": "UInt64",
        "seq": "UInt64",
        "changed_seq": "UInt64",
        "event": _NAME,
        "symbol": _NAME,
        "side": _NAME,
        "ticket": "UInt64",
        "deal": "UInt64",
        "position_id": "UInt64",
        "entry": "UInt8",
        "reason": "UInt16",
        "fill_price": _AMOUNT,
        "fill_quantity": _AMOUNT,
        "filled_quantity": _AMOUNT,
        "remaining_quantity": _AMOUNT,
        "requested_price": f"Nullable({_AMOUNT})",
        "slippage": _AMOUNT,
        "slippage_points": f"Nullable({_AMOUNT})",
        "commission": _AMOUNT,
        "swap": _AMOUNT,
        "fee": _AMOUNT,
        "profit": _AMOUNT,
        "execution_timestamp": _TIME,
        "recorded_at": _TIME,
        "broker_time_msc": "Int64",
        "broker_utc_offset_s": "Int32",
        "attempts": "UInt16",
        "retcode": "UInt32",
        "retcode_name": _NAME,
        "provisional": "Bool",
        "corrections": "UInt16",
        "correlation_id": "String",
        "inexact": f"Array({_NAME})",
    },
    key=("account", "order_id", "stream_version", "ledger_id"),
    version="changed_seq",
)
ORDERS: Final = Table(
    name="orders",
    columns={
        "ledger_id": _NAME,
        "account": _NAME,
        "order_id": "String",
        "stream_version": "UInt64",
        "seq": "UInt64",
        "created_at": _TIME,
        "requested_at": _TIME,
        "updated_at": _TIME,
        "signal_id": "String",
        "strategy_id": "String",
        "correlation_id": "String",
        "action": _NAME,
        "symbol": _NAME,
        "timeframe": _NAME,
        "order_type": _NAME,
        "side": _NAME,
        "quantity": _AMOUNT,
        "price": f"Nullable({_AMOUNT})",
        "stop_price": f"Nullable({_AMOUNT})",
        "stop_loss": f"Nullable({_AMOUNT})",
        "take_profit": f"Nullable({_AMOUNT})",
        "position_id": "UInt64",
        "order_status": _NAME,
        "state": _NAME,
        "is_open": "Bool",
        "broker_order_id": "UInt64",
        "broker": _NAME,
        "attempts": "UInt16",
        "retries": "UInt16",
        "submitted_at": f"Nullable({_TIME})",
        "answered_at": f"Nullable({_TIME})",
        "placed_at": f"Nullable({_TIME})",
        "filled_at": f"Nullable({_TIME})",
        "cancelled_at": f"Nullable({_TIME})",
        "unknown_at": f"Nullable({_TIME})",
        "ended_at": f"Nullable({_TIME})",
        "filled_quantity": _AMOUNT,
        "remaining_quantity": _AMOUNT,
        "average_fill_price": f"Nullable({_AMOUNT})",
        "commission": _AMOUNT,
        "swap": _AMOUNT,
        "fee": _AMOUNT,
        "profit": _AMOUNT,
        "fill_count": "UInt32",
        "deal": "UInt64",
        "retcode": "UInt32",
        "retcode_name": _NAME,
        "category": _NAME,
        "rejection_reason": "String",
        "error_message": "String",
        "resolution": _NAME,
        "duplicates": "UInt32",
        "conflicts": "UInt32",
        "anomalies": "UInt32",
        "inexact": f"Array({_NAME})",
    },
    key=("account", "order_id", "ledger_id"),
    version="seq",
)
POSITIONS: Final = Table(
    name="positions",
    columns={
        "ledger_id": _NAME,
        "account": _NAME,
        "position_id": "UInt64",
        "seq": "UInt64",
        "stream": "String",
        "stream_version": "UInt64",
        "event": _NAME,
        "deal": "UInt64",
        "recorded_at": _TIME,
        "opened_at": _TIME,
        "symbol": _NAME,
        "side": _NAME,
        "quantity": _AMOUNT,
        "entry_price": _AMOUNT,
        "stop_loss": f"Nullable({_AMOUNT})",
        "take_profit": f"Nullable({_AMOUNT})",
        "position_status": _NAME,
        "current_price": f"Nullable({_AMOUNT})",
        "unrealized_pnl": f"Nullable({_AMOUNT})",
        "realized_pnl": _AMOUNT,
        "commission_total": _AMOUNT,
        "swap_total": _AMOUNT,
        "exit_price": f"Nullable({_AMOUNT})",
        "exit_quantity": _AMOUNT,
        "exit_reason": _NAME,
        "closed_at": f"Nullable({_TIME})",
        "r_multiple": f"Nullable({_AMOUNT})",
        "holding_period_hours": f"Nullable({_AMOUNT})",
        "entry_order_id": "String",
        "exit_order_id": "String",
        "deal_count": "UInt32",
        "inexact": f"Array({_NAME})",
        "void": "UInt8",
    },
    key=("account", "position_id", "ledger_id"),
    version="seq",
    deleted="void",
)
POSITION_HISTORY: Final = Table(
    name="position_history",
    columns=POSITIONS.columns | {"fold": "String"},
    key=("account", "position_id", "seq", "ledger_id"),
    version="seq",
)
RECONCILIATIONS: Final = Table(
    name="reconciliations",
    columns={
        "ledger_id": _NAME,
        "account": _NAME,
        "seq": "UInt64",
        "stream_version": "UInt64",
        "recorded_at": _TIME,
        "trigger": _NAME,
        "positions": "UInt32",
        "orders": "UInt32",
        "deals": "UInt32",
        "deals_since": f"Nullable({_TIME})",
        "difference_count": "UInt32",
        "differences.kind": f"Array({_NAME})",
        "differences.ours": "Array(String)",
        "differences.brokers": "Array(String)",
        "differences.policy": f"Array({_NAME})",
        "differences.order_id": "Array(String)",
        "differences.order_ticket": "Array(UInt64)",
        "differences.position_id": "Array(UInt64)",
        "differences.deal": "Array(UInt64)",
        "differences.symbol": f"Array({_NAME})",
    },
    key=("account", "seq", "ledger_id"),
    version="seq",
)
ACCOUNT_SNAPSHOTS: Final = Table(
    name="account_snapshots",
    columns={
        "ledger_id": _NAME,
        "account": _NAME,
        "seq": "UInt64",
        "stream_version": "UInt64",
        "event": _NAME,
        "recorded_at": _TIME,
        "currency": _NAME,
        "balance": "Decimal(38, 8)",
        "equity": "Decimal(38, 8)",
        "margin": "Nullable(Decimal(38, 8))",
        "margin_free": "Nullable(Decimal(38, 8))",
        "profit": "Nullable(Decimal(38, 8))",
        "open_positions": "Nullable(UInt32)",
        "working_orders": "Nullable(UInt32)",
    },
    key=("account", "seq", "ledger_id"),
    version="seq",
)
# In the order they are inserted: the last one tells what the others hold.
TABLES: Final = (EXECUTIONS, ORDERS, POSITION_HISTORY, POSITIONS, RECONCILIATIONS, ACCOUNT_SNAPSHOTS, ORDER_EVENTS)


# --- the Native format ------------------------------------------------------------------------------------------

_SIZES: Final = {"UInt64": "Q", "UInt32": "I", "UInt16": "H", "UInt8": "B", "Int64": "q", "Int32": "i", "Bool": "B"}
_SCALED: Final = {"Decimal(18, 8)": "q", _TIME: "q"}


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINTS: Final = tuple(_varint(number) for number in range(16_384))


def block(table: Table, rows: Sequence[Row]) -> bytes:
    """The rows as one Native block."""
    parts = [_varint(len(table.columns)), _varint(len(rows))]
    for (name, kind), values in zip(table.columns.items(), zip(*rows, strict=True), strict=True):
        sent = _sent_as(kind)
        parts += _text(name), _text(sent), _column(sent, values)
    return b"".join(parts)


def _sent_as(kind: str) -> str:
    """The dictionary of a LowCardinality column is made by the database."""
    return kind.replace(_NAME, "String")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _varint(len(encoded)) + encoded


def _column(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "String":
        return _strings(values)
    code = _SIZES.get(kind) or _SCALED.get(kind)
    if code is not None:
        return _numbers(code, values)
    if kind.startswith("Nullable("):
        if None not in values:
            return bytes(len(values)) + _column(kind[9:-1], values)
        nulls = bytes([value is None for value in values])
        return nulls + _column(kind[9:-1], [0 if value is None else value for value in values])
    if kind.startswith("Array("):
        ends = _numbers("Q", list(accumulate(len(value) for value in values)))
        return ends + _column(kind[6:-1], list(chain.from_iterable(values)))
    return b"".join([value.to_bytes(16, "little", signed=True) for value in values])  # Decimal(38, 8)


def _numbers(code: str, values: Sequence[int]) -> bytes:
    try:
        return array(code, values).tobytes()
    except OverflowError:
        low, high = bounds(code)
        return array(code, [min(max(value, low), high) for value in values]).tobytes()


def bounds(code: str) -> tuple[int, int]:
    """The least and the greatest number of an array of this type code."""
    bits = 8 * array(code).itemsize
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)


def _strings(values: Sequence[str | bytes]) -> bytes:
    """Each behind its length. Nearly all columns are of one of four kinds, none of which needs a step of Python for
    each value: the same text throughout, a few texts, short plain text, or stored bytes."""
    if not values:
        return b""
    first = values[0]
    if first == values[-1] and values.count(first) == len(values):
        return _prefixed(first) * len(values)
    if type(first) is bytes:
        sizes = list(map(len, values))
        if max(sizes) < len(_VARINTS) and set(map(type, values)) == {bytes}:
            return b"".join(chain.from_iterable(zip(map(_VARINTS.__getitem__, sizes), values, strict=True)))  # type: ignore[arg-type]
        return b"".join(map(_prefixed, values))
    distinct = set(values)
    if len(distinct) * 4 > len(values) and max(map(len, values)) < 128 and bytes not in set(map(type, values)):
        # A length below 128 is a character of its own, and in plain ASCII the length in characters that in bytes.
        text = "".join(chain.from_iterable(zip(map(chr, map(len, values)), values, strict=True)))  # type: ignore[arg-type]
        if text.isascii():
            return text.encode()
    known = {value: _prefixed(value) for value in distinct}
    return b"".join(map(known.__getitem__, values))


def _prefixed(value: str | bytes) -> bytes:
    encoded = value if isinstance(value, bytes) else value.encode()
    size = len(encoded)
    return (_VARINTS[size] if size < len(_VARINTS) else _varint(size)) + encoded


# --- the same row as text ---------------------------------------------------------------------------------------


def line(table: Table, row: Row) -> bytes:
    """A row as text that no other row has: what its digest is taken of. `line_sql` says the same in the database."""
    return b"".join([writer(value) for writer, value in zip(_writers(table), row, strict=True)])


def line_sql(table: Table) -> str:
    """The expression for `line` in ClickHouse."""
    return "concat(" + ", ".join(_written(f"`{name}`", kind) for name, kind in table.columns.items()) + ")"


def _of_number(value: int) -> bytes:
    return b"%d," % value


def _of_string(value: str | bytes) -> bytes:
    encoded = value if isinstance(value, bytes) else value.encode()
    return b"%d:%b" % (len(encoded), encoded)


def _of_nullable(value: int | None) -> bytes:
    return b"-," if value is None else b"%d," % value


def _of_array(values: Sequence[Any]) -> bytes:
    return b"%d;" % len(values) + b"".join(
        [_of_string(one) if isinstance(one, str) else _of_number(one) for one in values]
    )


_WRITERS: dict[str, list[Callable[[Any], bytes]]] = {}


def _writers(table: Table) -> list[Callable[[Any], bytes]]:
    found = _WRITERS.get(table.name)
    if found is None:
        found = _WRITERS[table.name] = [_writer(_sent_as(kind)) for kind in table.columns.values()]
    return found


def _writer(kind: str) -> Callable[[Any], bytes]:
    if kind == "String":
        return _of_string
    if kind.startswith("Array("):
        return _of_array
    return _of_nullable if kind.startswith("Nullable(") else _of_number


def _written(name: str, kind: str) -> str:
    kind = _sent_as(kind)
    if kind == "String":
        return f"toString(length({name})), ':', {name}"
    if kind.startswith("Nullable("):
        return f"ifNull({_number(name, kind[9:-1])}, '-'), ','"
    if kind.startswith("Array("):
        inner = "concat(toString(length(x)), ':', x)" if kind == "Array(String)" else "concat(toString(x), ',')"
        return f"toString(length({name})), ';', arrayStringConcat(arrayMap(x -> {inner}, {name}))"
    return f"{_number(name, kind)}, ','"


def _number(name: str, kind: str) -> str:
    if kind.startswith("DateTime64"):
        return f"toString(toUnixTimestamp64Micro({name}))"
    if kind.startswith("Decimal"):
        return f"toString(toInt256(toDecimal256({name}, 8) * 100000000))"
    return f"toString(toUInt8({name}))" if kind == "Bool" else f"toString({name})"
