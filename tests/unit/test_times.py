"""Times on the command line: what is taken, how they are shown, and spans that meet."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.times import BadTime, Span, iso, parse_as_of, parse_end, parse_span, parse_time, with_iso_times

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01T12:00",
        "2026-03-01 12:00:00.000000",
        "2026-03-01T13:00:00+01:00",
        " 20260301T12Z",
    ],
)
def test_a_time_without_a_zone_is_utc(text):
    assert parse_time(text) == NOON
    assert parse_time(text).utcoffset() == timedelta(0)


def test_a_date_is_its_beginning_as_since_and_all_of_the_day_as_until_or_as_of():
    assert parse_time("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_end("2026-03-01") == datetime(2026, 3, 2, tzinfo=UTC)
    assert parse_as_of("2026-03-01") == datetime(2026, 3, 1, 23, 59, 59, 999999, UTC)
    assert parse_end("2026-03-01T12:00:00Z") == parse_as_of("2026-03-01T12:00:00Z") == NOON


@pytest.mark.parametrize(
    "text",
    ["", " ", "yesterday", "2026-13-01", "2026-03-01T25:00", "12:00", "1772366400", "0001-01-01T00:00+14:00", "☃" * 99],
)
@pytest.mark.parametrize("parse", [parse_time, parse_end, parse_as_of])
def test_what_is_no_time_is_one_line_with_examples(text, parse):
    with pytest.raises(BadTime, match=r"is no time: write it as 2026-03-01") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_the_last_day_there_is_has_no_end():
    with pytest.raises(BadTime, match="too late"):
        parse_end("9999-12-31")
    assert parse_as_of("9999-12-31").year == 9999


def test_a_span_may_not_end_before_it_begins():
    with pytest.raises(BadTime, match=r"--until 2026-03-01T12:00:00.000000Z lies before --since 2026-03-02"):
        parse_span("2026-03-02", "2026-03-01T12:00:00Z")
    with pytest.raises(BadTime):
        parse_span("", None)
    assert parse_span("2026-03-01", "2026-03-01").holds(NOON)
    assert parse_span(None, None) == Span()


@given(moments, st.integers(-720, 840))
def test_a_shown_time_reads_back_and_shows_utc_with_microseconds(moment, minutes):
    shown = iso(moment.astimezone(timezone(timedelta(minutes=minutes))))
    assert parse_time(shown) == moment
    assert len(shown) == len("2026-03-01T12:00:00.000000Z")
    assert shown.endswith("Z")


@given(st.lists(moments, min_size=1, max_size=5).map(sorted), moments)
def test_of_spans_that_meet_exactly_one_holds_a_moment(cuts, moment):
    edges = [None, *cuts, None]
    spans = [Span(since, until) for since, until in pairwise(edges)]
    assert sum(span.holds(moment) for span in spans) == 1


def test_times_are_found_wherever_they_are_nested():
    assert with_iso_times({"a": [{"b": NOON}], "c": (1, None)}) == {
        "a": [{"b": "2026-03-01T12:00:00.000000Z"}],
        "c": [1, None],
    }
