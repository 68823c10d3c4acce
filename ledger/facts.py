"""What facts are made of: the base of all events, the request of an order, and the bytes of a message as they came.

The structs of the facts are the stored schema. A field is never renamed, retyped or removed, a new one has a
default. The tag is the event's topic: a stable name, never an import path. Amounts are Decimal and stored as
strings, times are UTC with microseconds. All are frozen and can hold no cycle, so the collector need not track them
(`gc=False`): with thousands of orders in memory its full passes would be the longest pauses of the service.
"""

from datetime import datetime
from decimal import Decimal
from typing import Final

import msgspec

MAX_RAW: Final = 64 * 1024


class Raw(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """The bytes as they came: text up to 64 KiB; always their size and SHA-256. Bytes that are no UTF-8 are
    kept as hexadecimal and say so."""

    size: int
    sha256: str
    text: str | None = None
    encoding: str = "utf-8"


class OrderRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A request as understood: the fields of the order message, parsed and within bounds."""

    order_id: str
    action: str = "open"
    symbol: str = ""
    order_type: str = ""
    volume: Decimal | None = None
    price: Decimal | None = None
    stop_limit_price: Decimal | None = None
    sl: Decimal | None = None
    tp: Decimal | None = None
    deviation: int | None = None
    filling: str | None = None
    time_in_force: str | None = None
    expires_at: str | None = None
    position_id: int | None = None
    position_by_id: int | None = None
    order_ticket: int | None = None
    target_order_id: str | None = None
    account: str | None = None
    magic: int | None = None
    comment: str | None = None
    timeframe: str | None = None
    valid_until: datetime | None = None
    created_at: datetime | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    signal_id: str | None = None
    strategy_id: str | None = None
    audit: dict[str, str] | None = None

    @property
    def side(self) -> str:
        """`buy`, `sell`, or empty for a request that opens nothing."""
        return self.order_type.partition("_")[0]


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="event"):
    """Base of all events."""

    @classmethod
    def topic(cls) -> str:
        return str(cls.__struct_config__.tag)
