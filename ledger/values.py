"""Validated values: what a number, a name or an id may be before anything else looks at it.

Every parser is total: it returns the value or raises `Refused` with a sentence for the sender. Numbers are
Decimal within the bounds of ClickHouse's `Decimal(18, 8)`, so that what is accepted here fits everywhere.
"""

import hashlib
import re
from decimal import Decimal
from functools import lru_cache
from typing import Final

MAX_DECIMALS: Final = 8
MAX_INTEGER_DIGITS: Final = 10
MAX_SYMBOL: Final = 29  # the binding takes 29 UTF-16 units, then refuses
MAX_TEXT: Final = 256
MAX_TICKET: Final = 2**64 - 1  # orders, deals and positions are numbered by 64 bits, unsigned

# ASCII digits only (`\d` would take Arabic ones), no underscores, no NaN, a bounded exponent.
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,24}(\.[0-9]{1,24})?([eE][-+]?[0-9]{1,3})?")
# As most numbers are written, and as they are kept: within the bounds, without trailing zeros.
_PLAIN: Final = re.compile(r"(0|-?[1-9][0-9]{0,9}|-?(0|[1-9][0-9]{0,9})\.[0-9]{0,7}[1-9])")
_ORDER_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SUBJECT_TOKEN: Final = re.compile(r"[^A-Za-z0-9_-]")

_ZERO: Final = Decimal(0)


class Refused(ValueError):
    """A value that may not enter; the text tells the sender why, never more than 200 characters of their own."""


def shorten(text: str, limit: int = 60) -> str:
    """The text, cut to `limit` characters with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quoted(text: str, limit: int = 60) -> str:
    """The text in quotes with its control characters escaped, cut to `limit` characters in all."""
    return shorten(repr(text), limit)


def parse_decimal(text: str) -> Decimal:
    """A plain, normalised Decimal (no exponent, no trailing zeros).

    Raises Refused: not a number, or outside 10 integer digits and 8 decimals.
    """
    if _PLAIN.fullmatch(text) is not None:
        return Decimal(text)
    if _NUMBER.fullmatch(text) is None:
        raise Refused(f"{quoted(text)} is not a decimal number")
    value = Decimal(text)
    if value == 0:
        return Decimal(0)
    digits, exponent = value.as_tuple()[1:]
    assert isinstance(exponent, int)
    if value.adjusted() >= MAX_INTEGER_DIGITS:
        raise Refused(f"{shorten(text)} is too large (at most {MAX_INTEGER_DIGITS} digits before the point)")
    trailing = 0
    while trailing < len(digits) - 1 and digits[-1 - trailing] == 0:
        trailing += 1
    if -(exponent + trailing) > MAX_DECIMALS:
        raise Refused(f"{shorten(text)} has more than {MAX_DECIMALS} decimals")
    return plain(value)


def plain(value: Decimal) -> Decimal:
    """The same number without trailing zeros, so that equal numbers are stored as equal text."""
    if not value:
        return _ZERO
    found = value.normalize()
    return Decimal(format(found, "f")) if "E+" in str(found) else found


def parse_order_id(text: str) -> str:
    """An order id: 1 to 64 of `A-Z a-z 0-9 . _ : -`, so that it can name a stream and nothing but its own."""
    if _ORDER_ID.fullmatch(text) is None:
        raise Refused(f"order_id {quoted(text)} must be 1 to 64 characters of A-Z a-z 0-9 . _ : -")
    return text


def parse_symbol(text: str) -> str:
    """A symbol name as brokers write them: 1 to 29 printable characters without blanks."""
    if text.isascii() and text.isalnum() and len(text) <= MAX_SYMBOL:  # as most are
        return text
    if not text:
        raise Refused("symbol is empty")
    if len(text) <= MAX_SYMBOL and (not text.isprintable() or any(c.isspace() for c in text)):
        raise Refused(f"symbol {quoted(text)} holds blanks or control characters")
    # A lone surrogate cannot be encoded, but neither is it printable.
    if len(text) > MAX_SYMBOL or len(text.encode("utf-16-le")) > 2 * MAX_SYMBOL:
        raise Refused(f"symbol {quoted(text)} is longer than {MAX_SYMBOL} characters")
    return text


def subject_token(symbol: str | None) -> str:
    """The symbol as one token of an outgoing NATS subject.

    Anything outside `A-Z a-z 0-9 _ -` becomes `_`, at most 32 characters; nothing usable becomes `_invalid`
    (a blank in a subject raises in the client, and one of 5,000 characters closes its connection).
    """
    token = _SUBJECT_TOKEN.sub("_", symbol or "")[:32]
    return token if token.strip("_") else "_invalid"


@lru_cache(4096)  # several times for each attempt
def order_hash(order_id: str) -> int:
    """55 bits of SHA-256 of the order id: the upper part of `magic`."""
    return int.from_bytes(hashlib.sha256(order_id.encode()).digest()[:7], "big") >> 1


# The attempt has 8 bits of the magic.
MAX_ATTEMPT: Final = 255


def magic_of(order_id: str, attempt: int) -> int:
    """The `magic` of one attempt: 55 bits of the order's hash, 8 bits of the attempt; always below 2**63."""
    if not 0 < attempt <= MAX_ATTEMPT:
        raise Refused(f"attempt {attempt} is outside 1 to 255")
    return order_hash(order_id) << 8 | attempt


def comment_of(order_id: str, attempt: int) -> str:
    """The comment token of one attempt: ASCII, at most 26 characters (the binding refuses 30, brokers cut some)."""
    readable = order_id[:8] if len(order_id) > 8 else order_id
    return f"{readable}.{order_hash(order_id):014x}.{attempt:02x}"[:26]
