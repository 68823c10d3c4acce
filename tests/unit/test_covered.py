"""Whether some events are what the seals over them say."""

from collections.abc import Iterator

import msgspec
import pytest

from ledger.covered import problem_of
from ledger.events import Recorded
from tests.history import History

MINE = "order/ord_2_1"  # of its events the batch of 3 to 7 holds one, that of 8 to 12 two


class Records:
    """A store of these events."""

    def __init__(self, records: list[Recorded]) -> None:
        self.records = records

    def read(self, after: int, limit: int) -> list[Recorded]:
        return self.records[after : after + limit]

    def scan(self, after: int) -> Iterator[Recorded]:
        return iter(self.records[after:])


@pytest.fixture
def records() -> list[Recorded]:
    return History().orders(3).records


def told(records: list[Recorded]) -> str:
    return problem_of(Records(records), [one for one in records if one.stream == MINE])


def test_of_events_whose_seals_hold_nothing_is_said(records):
    assert told(records) == ""
    assert problem_of(Records(records), []) == ""


@pytest.mark.parametrize("seq", range(1, 15))
def test_whatever_is_changed_in_their_batches_is_told_and_nothing_else(records, seq):
    one = records[seq - 1]
    records[seq - 1] = msgspec.structs.replace(one, state=one.state.replace(b"client", b"broker"))
    assert bool(told(records)) is (3 <= seq <= 12)


def test_an_event_that_was_taken_out_of_the_stream_is_told(records):
    mine = [one for one in records if one.stream == MINE]
    assert problem_of(Records(records), mine[1:]) == f"event 1 of {MINE} is missing"


def test_an_event_that_is_not_at_its_place_in_the_ledger_is_told(records):
    mine = [one for one in records if one.stream == MINE]
    mine[2] = msgspec.structs.replace(mine[2], state=b"{}")
    assert problem_of(Records(records), mine) == "event 9 is not the one that its seal covers"


def test_without_a_seal_they_stand_under_none(records):
    assert told(records[:6]) == "event 6 is under no seal"


def test_a_seal_that_cannot_be_read_is_told(records):
    records[6] = msgspec.structs.replace(records[6], state=b"{")
    assert told(records) == "the seal 7 cannot be read"
