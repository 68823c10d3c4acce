"""Every class of difference, made by hand at the broker: in the ledger, on the bus, in the tables, set right or only
told, and never twice. Whoever else follows the account rests, so that what is seen is the reconciliation's own work."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import nats
import orjson
import pytest
import pytest_asyncio

from gateway.outbox import Outbox
from ledger.account_events import AccountReconciled, Difference
from ledger.reconcile import ALERT, CLASSES
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.follower import Follower, Pace, Progress, Sink
from tests.differences import CASES, Case, agrees
from tests.engine import engine_path, fresh_database
from tests.gateway_desk import Desk, desk_in
from tests.nats_server import nats_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What is said of the account and the way to it, and changes nothing of orders and positions.
QUIET = ("account.reconciled", "account.snapshot_taken", "account.connected", "account.disconnected")
ALL_ALERTED = dict.fromkeys(CLASSES, ALERT)
names = (f"o-{number}" for number in itertools.count(1))


class Scene:
    """A desk, the alerts that the bus brought, and the tables."""

    def __init__(self, desk: Desk, client: Any, database: str) -> None:
        self.desk, self._client, self._database = desk, client, database
        self.alerts: dict[str, dict[str, Any]] = {}
        self.progress: dict[str, Progress] = {}
        self.moved = asyncio.Event()

    async def hear(self, message: Any) -> None:
        told = orjson.loads(message.data)
        self.alerts[told["event_id"]] = told
        self.moved.set()

    def follow(self, progress: Progress) -> None:
        self.progress[progress.sink] = progress
        self.moved.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                self.moved.clear()
                await self.moved.wait()

    async def reconcile(self, policies: Mapping[str, str]) -> AccountReconciled:
        """Compares now, by these policies; checks that message and row say what the event says."""
        desk = self.desk
        desk.reconciler.use(msgspec.structs.replace(desk.settings, reconcile_policy=dict(policies)))
        report = await desk.reconciler.run("demand")
        recorded = [one for one in desk.store.stream(desk_stream(desk)) if one.topic == "account.reconciled"][-1]
        assert desk.events("")[recorded.version - 1] == report
        await self.until(lambda: self.progress["clickhouse"].position >= recorded.seq)
        sql = f"SELECT * FROM {self._database}.reconciliations FINAL WHERE seq = {recorded.seq}"
        (row,) = self._client.query(sql).named_results()
        assert (row["trigger"], row["difference_count"]) == ("demand", len(report.differences))
        for name in ("kind", "policy", "ours", "brokers", "position_id", "symbol"):
            assert row[f"differences.{name}"] == [getattr(one, name) for one in report.differences]
        event_id = f"{desk.ledger.ledger_id}:{recorded.seq}"
        if report.differences:
            await self.until(lambda: event_id in self.alerts)
            told = self.alerts[event_id]
            assert (told["kind"], told["event"]) == ("reconciliation", "account.reconciled")
            for one in report.differences:
                assert f"{one.kind} " in told["description"]
        else:
            assert event_id not in self.alerts
        return report

    def facts(self) -> list[str]:
        """Topics of all that the ledger holds of orders and of the account, but reports."""
        return [one.topic for one in self.desk.store.scan(0) if one.stream != "writer" and one.topic not in QUIET]


def desk_stream(desk: Desk) -> str:
    return f"account/{desk.ledger.login}"


@contextlib.asynccontextmanager
async def running(source: Any, sink: Sink, scene: Scene) -> AsyncIterator[None]:
    follower = Follower(source, sink, Pace(idle_s=0.5), on_change=scene.follow)
    assert await follower.start(10)
    task = asyncio.create_task(follower.run())
    try:
        yield
    finally:
        follower.stop()
        await task
        await sink.close()


@contextlib.asynccontextmanager
async def opened(folder: Path, mode: str) -> AsyncIterator[Scene]:
    target, database = Target(path=engine_path()), fresh_database()
    client = connect(target)
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(nats_server(folder))
        desk = await stack.enter_async_context(desk_in(folder / "d", f"--margin-mode={mode}"))
        await desk.sync.stop()
        scene = Scene(desk, client, database)
        connection = await nats.connect(server.url)
        stack.push_async_callback(connection.close)
        await connection.subscribe("broker.alert.reconciliation", cb=scene.hear)
        ledger, tail = desk.ledger, desk.ledger.tail
        outbox = Outbox(
            connection, desk.store, tail, ledger.ledger_id, ledger.login, new_ledger=True, on_failure=tail.wake
        )
        tables = ClickHouseSink(target, ledger.ledger_id, database=database, past=desk.store.streams)
        await stack.enter_async_context(running(tail, outbox, scene))
        await stack.enter_async_context(running(tail, tables, scene))
        yield scene
    client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scenes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callable[[str], Awaitable[Scene]]]:
    """By the account's margin mode; each is opened once."""
    known: dict[str, Scene] = {}
    async with contextlib.AsyncExitStack() as stack:

        async def scene(mode: str) -> Scene:
            if mode not in known:
                known[mode] = await stack.enter_async_context(opened(tmp_path_factory.mktemp(mode), mode))
            return known[mode]

        yield scene


def one_of(found: tuple[Difference, ...], kind: str) -> Difference:
    chosen = [one for one in found if one.kind == kind]
    assert chosen, found
    return chosen[0]


@pytest.mark.parametrize("case", CASES, ids=repr)
async def test_a_difference_is_told_and_set_right_as_policy_has_it_and_never_twice(
    scenes: Callable[[str], Awaitable[Scene]], case: Case
) -> None:
    scene = await scenes(case.mode)
    differ = await case.make(scene.desk, next(names))
    if not scene.desk.window("fault")["rules"]:  # else the account cannot be looked at
        await scene.reconcile({})
    differ()

    facts = scene.facts()
    alerted = one_of((await scene.reconcile(ALL_ALERTED)).differences, case.kind)
    again = await scene.reconcile(ALL_ALERTED)
    assert (alerted.policy, again.differences, scene.facts()) == (ALERT, (), facts)
    assert alerted in again.standing

    report = await scene.reconcile({})
    if case.records:
        assert one_of(report.differences, case.kind).policy == case.policy
    else:
        assert alerted in report.standing
    assert scene.facts()[len(facts) :] == list(case.records)
    last = await scene.reconcile({})
    assert (last.differences, scene.facts()[len(facts) :]) == ((), list(case.records))
    await agrees(scene.desk)


async def test_every_class_has_its_case() -> None:
    assert {one.kind for one in CASES} == set(CLASSES)
    set_right = {one.kind for one in CASES if one.records}
    assert set_right == {kind for kind, policies in CLASSES.items() if policies[0] != ALERT}
