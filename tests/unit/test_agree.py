import msgspec
import pytest

from ledger.events import Recorded
from projections.agree import compare
from tests.history import History

RECORDS = History().orders(4).records


def changed(seq: int, **changes: object) -> list[Recorded]:
    return [msgspec.structs.replace(one, **changes) if one.seq == seq else one for one in RECORDS]


def test_two_equal_runs_agree() -> None:
    found = compare("sink", RECORDS, list(RECORDS))
    assert (found.ok, found.compared, found.held, found.seq) == (True, len(RECORDS), len(RECORDS), None)


def test_what_is_not_there_yet_is_behind_and_not_different() -> None:
    found = compare("sink", RECORDS, RECORDS[:-3])
    assert (found.ok, found.behind, found.seq) == (False, 3, None)


@pytest.mark.parametrize(
    ("held", "seq", "difference"),
    [
        (changed(5, state=b"{}"), 5, "event 5 has other bytes than the ledger"),
        (changed(5, topic="order.x"), 5, "event 5 has topic 'order.x' instead of"),
        (changed(5, version=9), 5, "event 5 has version 9 instead of"),
        ([one for one in RECORDS if one.seq != 5], 5, "event 5 is missing, 6 stands in its place"),
        ([*RECORDS[:5], *RECORDS[4:]], 5, "event 5 stands there again"),
        ([*RECORDS, Recorded(99, "s", 1, "t", b"")], 99, "holds event 99, which the ledger does not"),
    ],
)
def test_the_first_difference_is_named(held: list[Recorded], seq: int, difference: str) -> None:
    found = compare("sink", RECORDS, held)
    assert not found.ok
    assert found.seq == seq
    assert found.difference.startswith(difference)


def test_an_empty_ledger_and_an_empty_sink_agree() -> None:
    assert compare("sink", [], []).ok
