"""The queue to the terminal: lanes, pace, timers."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from gateway.queueing import Pace, Timers, TwoLanes


def test_what_is_urgent_goes_first_and_each_lane_keeps_its_order():
    lanes = TwoLanes()
    for entry in ("o1", "c1", "o2", "c2"):
        lanes.put(entry, urgent=entry.startswith("c"))
    assert len(lanes) == 4
    assert (lanes.take(3), lanes.take(3)) == (["c1", "c2", "o1"], ["o2"])


async def test_a_queue_is_ready_as_soon_as_there_is_something():
    lanes = TwoLanes()
    waiting = asyncio.create_task(lanes.ready())
    await asyncio.sleep(0)
    assert not waiting.done()
    lanes.put("o", urgent=False)
    await waiting


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 0.7), st.integers(1, 4)), max_size=40))
def test_no_second_ever_holds_more_than_the_pace_allows(per_s, asked):
    now, sent = 0.0, []
    pace = Pace(per_s, lambda: now)
    for pause, wanted in asked:
        now += pause
        room = pace.room(wanted)
        pace.count(room)
        sent += [now] * room
        if not room:
            now += pace.wait_s()
            assert pace.room(1) == 1
    for start in sent:
        assert sum(start <= one < start + 1.0 for one in sent) <= per_s


def test_the_wait_ends_when_there_is_room_again():
    now = 0.0
    pace = Pace(2, lambda: now)
    pace.count(2)
    now = 0.25
    assert (pace.room(1), pace.wait_s()) == (0, 0.75)
    now = 1.0
    assert pace.room(8) == 2


def test_what_did_not_go_after_all_leaves_its_room():
    pace = Pace(3, lambda: 0.0)
    pace.count(3)
    assert pace.room(1) == 0
    pace.give_back(2)
    assert pace.room(8) == 2


def test_without_a_pace_everything_may_go():
    pace = Pace(0)
    pace.count(10_000)
    assert pace.room(8) == 8


async def test_an_entry_has_one_timer_and_it_can_be_taken_back():
    due: asyncio.Queue[str] = asyncio.Queue()
    timers = Timers(due.put_nowait)
    timers.later("a", 0.05)
    timers.later("a", 0.01)
    timers.later("b", 0.005)
    timers.cancel("b")
    timers.later("c", 0.0)
    assert timers.waiting() == ["a", "c"]
    assert [await due.get(), await due.get()] == ["c", "a"]
    assert timers.waiting() == []
    assert due.empty()
