import asyncio
from collections.abc import Sequence

import pytest

from ledger.errors import SinkAhead
from ledger.events import Recorded, order_stream
from projections.follower import Batch, Follower, Pace, Position, Progress, SinkRefused
from tests.history import History, ListSource, full_fill

QUICK = Pace(retry_first_s=0.001, retry_most_s=0.002, idle_s=0.05)


class ListSink:
    """Holds events in memory and, like a real sink, finds its position in what it holds."""

    name = "list"

    def __init__(self, held: Sequence[Recorded] = ()) -> None:
        self.held = list(held)
        self.batches: list[Batch] = []
        self.offered: list[tuple[int, int]] = []
        self.failures: list[Exception] = []
        self.lost_replies = 0
        self.opened = 0

    async def open(self) -> None:
        self.opened += 1

    async def position(self) -> Position | None:
        return Batch(self.held).position if self.held else None

    async def write(self, batch: Batch) -> None:
        self.offered.append((batch.records[0].seq, batch.records[-1].seq))
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(batch)
        self.held += batch.records
        if self.lost_replies:
            self.lost_replies -= 1
            raise TimeoutError("the reply was lost")

    async def close(self) -> None: ...


async def follow(history: History, sink: ListSink, pace: Pace = QUICK) -> Progress:
    """Runs a follower until the sink is at the head, or gave up."""
    done = asyncio.Event()

    def watch(progress: Progress) -> None:
        if progress.state == "failed" or (progress.state == "following" and progress.position == len(history.records)):
            done.set()

    follower = Follower(ListSource(history.records), sink, pace, on_change=watch, seed=1)
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(done.wait(), 5)
    follower.stop()
    await run
    return follower.progress


async def test_a_sink_gets_every_event_once_and_in_order() -> None:
    history, sink = History().orders(20), ListSink()
    progress = await follow(history, sink)
    assert sink.held == history.records
    assert (progress.state, progress.lag, progress.events) == ("stopped", 0, len(history.records))


async def test_every_batch_ends_at_a_seal_and_keeps_to_its_bounds() -> None:
    history, sink = History().orders(50), ListSink()
    await follow(history, sink, Pace(max_events=40, idle_s=0.05))
    assert all(batch.records[-1].topic == "writer.batch_sealed" for batch in sink.batches)
    assert {len(batch) > 40 for batch in sink.batches} == {False}
    assert len(sink.batches) < 10


async def test_a_batch_is_bounded_by_bytes() -> None:
    history, sink = History().orders(30), ListSink()
    await follow(history, sink, Pace(max_bytes=6000, idle_s=0.05))
    sizes = [sum(len(one.state) for one in batch.records) for batch in sink.batches]
    assert max(sizes) <= 6000
    assert sink.held == history.records


@pytest.mark.parametrize(("symbol", "pages"), [("EURUSD", [256, 8192]), ("X" * 40_000, [256, 256])])
async def test_what_is_read_at_once_goes_by_the_size_of_the_events(symbol: str, pages: list[int]) -> None:
    history, limits = History(), []
    for _ in range(300):
        history.commit([(order_stream("o"), full_fill(symbol=symbol))])

    class Watched(ListSource):
        async def read(self, after: int, limit: int) -> list[Recorded]:
            limits.append(limit)
            return await super().read(after, limit)

    follower = Follower(Watched(history.records), ListSink(), Pace(max_events=8448))
    await follower.start()
    follower.stop()
    await follower.run()
    assert limits[:2] == pages


async def test_a_commit_larger_than_the_bounds_is_still_one_batch() -> None:
    history, sink = History().orders(400, per_commit=1000), ListSink()
    await follow(history, sink, Pace(max_events=10, max_bytes=10, idle_s=0.05))
    assert sink.held == history.records


async def test_a_follower_continues_behind_what_the_sink_holds() -> None:
    history = History().orders(10)
    seals = [one.seq for one in history.records if one.topic == "writer.batch_sealed"]
    sink = ListSink(history.records[: seals[2]])
    await follow(history, sink)
    assert sink.offered[0][0] == seals[2] + 1
    assert sink.held == history.records


async def test_a_failed_batch_is_offered_again_unchanged() -> None:
    history, sink = History().orders(3), ListSink()
    sink.failures = [ConnectionError("down"), TimeoutError("slow")]
    progress = await follow(history, sink)
    assert sink.offered[0] == sink.offered[1] == sink.offered[2]
    assert sink.held == history.records
    assert progress.retries == 2


async def test_a_batch_whose_reply_was_lost_is_not_written_twice() -> None:
    history, sink = History().orders(3), ListSink()
    sink.lost_replies = 1
    await follow(history, sink)
    assert sink.held == history.records


async def test_the_sink_is_opened_again_after_a_failure() -> None:
    history, sink = History().orders(1), ListSink()
    sink.failures = [ConnectionError("down")]
    await follow(history, sink)
    assert sink.opened == 2


async def test_a_batch_the_sink_can_never_take_stops_it_loudly() -> None:
    history, sink = History().orders(3), ListSink()
    sink.failures = [SinkRefused("too large", "raise the limit")]
    progress = await follow(history, sink)
    assert (progress.state, progress.error, progress.remedy) == ("failed", "too large", "raise the limit")
    assert sink.held == []


async def test_a_programming_error_in_one_sink_stops_only_that_one() -> None:
    history, good, bad = History().orders(3), ListSink(), ListSink()
    bad.failures = [TypeError("a bug")]
    healthy, failed = await asyncio.gather(follow(history, good), follow(history, bad))
    assert (healthy.state, failed.state) == ("stopped", "failed")
    assert good.held == history.records


async def test_an_unreadable_event_stops_the_sink_and_names_it() -> None:
    history, sink = History().orders(1), ListSink()
    broken = history.records[3]
    history.records[3] = Recorded(broken.seq, broken.stream, broken.version, "order.from_the_future", broken.state)

    async def write(batch: Batch) -> None:
        assert batch.envelopes

    sink.write = write  # type: ignore[method-assign]  # a sink that decodes
    progress = await follow(history, sink)
    assert progress.state == "failed"
    assert "order.from_the_future" in progress.error


async def test_a_sink_ahead_of_the_ledger_halts_the_start() -> None:
    history = History().orders(5)
    behind = ListSource(history.records[:2])
    follower = Follower(behind, ListSink(history.records), QUICK)
    with pytest.raises(SinkAhead, match="the ledger ends at 2"):
        await follower.start()
    assert "backup" in follower.progress.remedy


async def test_a_sink_with_another_past_halts_the_start() -> None:
    follower = Follower(ListSource(History("a").orders(5).records), ListSink(History("b").orders(5).records), QUICK)
    with pytest.raises(SinkAhead, match="share no history"):
        await follower.start()


async def test_a_sink_with_anything_beyond_the_head_halts_the_start() -> None:
    history = History().orders(2)

    class Gapped(ListSink):
        async def position(self) -> Position | None:
            return Position(0, "", highest=1000)

    with pytest.raises(SinkAhead, match="holds event 1000"):
        await Follower(ListSource(history.records), Gapped(), QUICK).start()


async def test_a_gap_in_what_can_be_read_is_waited_for_and_never_skipped() -> None:
    history, sink = History().orders(4), ListSink()
    whole = list(history.records)
    source = ListSource([one for one in whole if one.seq != 3])
    retried = asyncio.Event()
    complete = asyncio.Event()

    def watch(now: Progress) -> None:
        if now.retries > 1:
            retried.set()
        if now.position == len(whole):
            complete.set()

    follower = Follower(source, sink, QUICK, on_change=watch)
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(retried.wait(), 5)
    assert all(one.seq < 3 for one in sink.held)
    source.records = whole
    await asyncio.wait_for(complete.wait(), 5)
    follower.stop()
    await run
    assert sink.held == whole


async def test_stopping_takes_what_the_ledger_holds_at_that_moment() -> None:
    history, sink = History().orders(30), ListSink()
    follower = Follower(ListSource(history.records), sink, Pace(max_events=16, min_interval_s=60))
    await follower.start()
    follower.stop()
    await follower.run()
    assert sink.held == history.records


async def test_a_start_without_a_reachable_sink_does_not_wait_for_ever() -> None:
    class Down(ListSink):
        async def open(self) -> None:
            raise ConnectionError("refused")

    follower = Follower(ListSource(History().records), Down(), QUICK)
    assert await follower.start(patience_s=0.02) is False
    assert (follower.progress.state, follower.progress.error) == ("retrying", "refused")


async def test_retries_wait_longer_each_time_and_the_same_for_the_same_seed() -> None:
    def pauses(seed: int) -> list[float]:
        follower = Follower(ListSource([]), ListSink(), Pace(retry_first_s=1, retry_most_s=8), seed=seed)
        return [follower._failed(OSError("down")) for _ in range(5)]

    first = pauses(7)
    assert first == pauses(7)
    assert first != pauses(8)
    assert all(low / 2 <= pause <= low for pause, low in zip(first, (1, 2, 4, 8, 8), strict=True))


async def test_while_little_is_waiting_a_write_begins_only_now_and_then() -> None:
    history, sink, first = History().orders(1), ListSink(), asyncio.Event()
    pace = Pace(calm_s=60, few_events=50, idle_s=0.005)
    follower = Follower(ListSource(history.records), sink, pace, on_change=lambda now: now.batches and first.set())
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(first.wait(), 5)  # the first event of a quiet ledger is written at once
    history.orders(2)
    follower.stop()
    await run
    assert sink.held == history.records
    assert len(sink.batches) == 2


async def test_what_is_worth_a_write_is_written_without_waiting() -> None:
    history, sink = History().orders(1), ListSink()
    first, second = asyncio.Event(), asyncio.Event()

    def changed(now: Progress) -> None:
        if now.batches:
            (first if now.batches == 1 else second).set()

    pace = Pace(calm_s=60, few_events=50, idle_s=0.005)
    follower = Follower(ListSource(history.records), sink, pace, on_change=changed)
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(first.wait(), 5)
    history.orders(40)
    await asyncio.wait_for(second.wait(), 5)
    assert sink.held == history.records
    follower.stop()
    await run


async def test_a_quiet_ledger_is_written_in_paced_batches() -> None:
    history, sink = History().orders(1), ListSink()
    follower = Follower(ListSource(history.records), sink, Pace(min_interval_s=0.05, idle_s=0.005))
    run = asyncio.create_task(follower.run())
    for _ in range(20):
        history.orders(1)
        await asyncio.sleep(0.005)
    follower.stop()
    await run
    assert sink.held == history.records
    assert len(sink.batches) < 10


async def test_cancelling_ends_a_follower_at_once() -> None:
    sink = ListSink()
    wrote = asyncio.Event()
    source = ListSource(History().records)
    follower = Follower(source, sink, Pace(idle_s=60), on_change=lambda now: wrote.set() if now.batches else None)
    run = asyncio.create_task(follower.run())
    await asyncio.wait_for(wrote.wait(), 5)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert follower.progress.state == "stopped"
