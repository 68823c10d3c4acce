"""Times as people write and read them: ISO 8601, UTC, with microseconds and `Z`. Pure."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from ledger.errors import LedgerError
from ledger.values import shorten

_DAY = timedelta(days=1)


class BadTime(LedgerError):
    """A text that names no time."""


def iso(moment: datetime) -> str:
    """`2026-03-01T12:00:00.123456Z`, always with six decimals, so that texts sort as the times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_time(text: str) -> datetime:
    """A moment in ISO 8601; without a zone it is UTC, a date alone is its beginning. Raises BadTime."""
    return _parse(text)[0]


def parse_end(text: str) -> datetime:
    """As `parse_time`, but a date alone is the end of that day, which is the beginning of the next. Raises BadTime."""
    moment, is_day = _parse(text)
    try:
        return moment + _DAY if is_day else moment
    except OverflowError:
        raise BadTime(f"{text!r} is too late to be the end of a day") from None


def parse_as_of(text: str) -> datetime:
    """As `parse_time`, but a date alone is the last moment of that day. Raises BadTime."""
    moment, is_day = _parse(text)
    return moment + (_DAY - timedelta(microseconds=1)) if is_day else moment


def _parse(text: str) -> tuple[datetime, bool]:
    text = text.strip()
    try:
        day = date.fromisoformat(text)
    except ValueError:
        pass
    else:
        return datetime(day.year, day.month, day.day, tzinfo=UTC), True
    try:
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)), False
    except (ValueError, OverflowError):
        raise BadTime(
            f"{shorten(text)!r} is no time: write it as 2026-03-01, 2026-03-01T12:00:00Z or "
            "2026-03-01T13:00:00.123456+01:00"
        ) from None


class Span(msgspec.Struct, frozen=True):
    """The times from `since` to before `until`; None leaves that side open. Spans that meet share no moment."""

    since: datetime | None = None
    until: datetime | None = None

    def holds(self, moment: datetime) -> bool:
        return (self.since is None or moment >= self.since) and (self.until is None or moment < self.until)


def parse_span(since: str | None, until: str | None) -> Span:
    """The span of two texts, either of which may be missing. Raises BadTime, also when it ends before it begins."""
    span = Span(None if since is None else parse_time(since), None if until is None else parse_end(until))
    if span.since and span.until and span.until < span.since:
        raise BadTime(f"--until {iso(span.until)} lies before --since {iso(span.since)}: swap them")
    return span


def with_iso_times(value: Any) -> Any:
    """Nested lists and dicts with every time in them as text."""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, dict):
        return {name: with_iso_times(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_iso_times(one) for one in value]
    return value
