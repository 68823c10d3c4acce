"""One thing is broken, and the doctor names it and its remedy; and the checklist of a service that is well."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Any

import nats
import orjson
import pytest

from gateway.chaos.world import children
from gateway.config import load
from gateway.doctor import Check, diagnose
from gateway.doctor_facts import gather
from gateway.show import open_ledger
from gateway.simulated.window import ask
from ledger.events import account_stream, event_of
from tests.hub import HubProcess, any_hub, operational
from tests.nats_server import nats_server
from tests.service import Listener, Service, market_order, run_cli, serving, until

# What to look at, by trouble: the whole list of the description of the service.
LISTED = {
    "connection failing": ("terminal running", "server and login", "MT5_PASSWORD", "terminal's log", "by hand"),
    "orders rejected with 10013": ("symbol names", "volume", "SL and TP", "market hours", "broker's restrictions"),
    "fills are not told": (
        "NATS publishing",
        "orders are taken",
        "trade results",
        "NATS by hand",
        "errors in handling",
    ),
    "positions differ": ("position sync", "fills recorded", "positions API", "interval", "trades by hand"),
    "high latency to the broker": ("network", "terminal's place", "response times", "limit or market", "broker"),
}
NOTHING_THERE = {
    "NATS_URL": "nats://127.0.0.1:1",
    "CLICKHOUSE_URL": "http://127.0.0.1:1",
    "KAFKA_BROKERS": "127.0.0.1:1",
    "CENTRAL_HUB_URL": "http://127.0.0.1:1",
}
PATIENCE_S = 20.0


class Patient:
    """A service that can be examined, and have something done to it."""

    def __init__(self, service: Service, bus_url: str = "") -> None:
        self.service = service
        self.bus_url = bus_url or service.info["nats_url"]
        self._seen: dict[tuple[tuple[str, str], ...], dict[tuple[str, str], Check]] = {}

    async def checks(self, **settings: str) -> dict[tuple[str, str], Check]:
        """By trouble and name. `settings`: what the doctor's environment says."""
        key = tuple(settings.items())
        if settings != NOTHING_THERE or key not in self._seen:  # to find that nobody answers takes long
            found = load({"data": str(self.service.folder)}, settings)
            self._seen[key] = {(one.trouble, one.name): one for one in diagnose(found, await gather(found))}
        return self._seen[key]

    def window(self, verb: str, **arguments: Any) -> Any:
        return ask(self.service.folder / "terminal" / "broker", verb, **arguments)

    def fault(self, rules: str) -> None:
        self.window("fault", add=rules, clear=True)

    async def order(self, order_id: str, **fields: Any) -> dict[str, Any]:
        """The first final news of it, or that it works or is parked."""
        async with Listener(self.bus_url) as listener:
            await listener.send(market_order(order_id, **fields))

            def is_told(_: str, body: dict[str, Any]) -> bool:
                known = body.get("final") or body.get("event") in (
                    "order.placed",
                    "order.parked",
                    "order.outcome_unknown",
                )
                return body.get("order_id") == order_id and bool(known)

            return (await listener.wait_for(is_told, PATIENCE_S))[1]

    async def reconcile(self) -> None:
        done = await asyncio.to_thread(self.service.cli, "reconcile")
        assert done.returncode == 0, done.stderr

    async def recorded(self, topic: str) -> Any:
        """The newest event of this topic in the account's stream, once there is one."""
        return (await until(lambda: [one for one in self.account() if one.topic() == f"account.{topic}"]))[-1]

    def account(self) -> list[Any]:
        store = open_ledger(load({"data": str(self.service.folder)}, {}))
        try:
            return [event_of(one) for one in store.stream(account_stream(self.service.info["login"]))]
        finally:
            store.close()


class Clinic:
    """`well` stays so but for one thing at a time; `worn` has a bus of its own and is broken in the end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.well = Patient(stack.enter_context(serving(folder / "well", POLL_INTERVAL_S="60")))
        self._worn: Patient | None = None
        self.before: dict[tuple[str, str], Check] = {}

    async def worn(self) -> Patient:
        """Its broker was slow in what orders it had."""
        if self._worn is None:
            folder = self._folder / "worn"
            folder.mkdir()
            bus = self._stack.enter_context(nats_server(folder))
            named = {"NATS_URL": bus.url, "CLICKHOUSE_URL": "off", "KAFKA_BROKERS": "off"}
            running = serving(folder / "data", SYNC_INTERVAL_MINUTES="0", **named)
            self._worn = worn = Patient(await asyncio.to_thread(self._stack.enter_context, running), bus.url)
            for number in range(3):
                await worn.order(f"limit-{number}", order_type="buy_limit", price=0.9)
            worn.fault("slow=1100ms*3")
            for number in range(3):
                await worn.order(f"market-{number}")
        return self._worn


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with ExitStack() as stack:
        yield Clinic(tmp_path_factory.mktemp("doctor"), stack)


# What is wrong: whose, what the doctor's environment says, and words of what it must find.
Broken = tuple[Patient, dict[str, str], str]
BREAKS: dict[tuple[str, str], Callable[[Clinic], AbstractAsyncContextManager[Broken]]] = {}


def breaks(trouble: str, name: str) -> Callable[[Callable[[Clinic], AsyncIterator[Broken]]], None]:
    def take(function: Callable[[Clinic], AsyncIterator[Broken]]) -> None:
        assert (trouble, name) not in BREAKS
        BREAKS[trouble, name] = contextlib.asynccontextmanager(function)

    return take


async def test_of_a_service_that_is_well_nothing_is_wrong(clinic: Clinic) -> None:
    await clinic.well.recorded("reconciled")
    found = await clinic.well.checks()
    assert [one for one in found.values() if one.status != "ok"] == []
    told = {trouble: tuple(name for one, name in found if one == trouble) for trouble, _ in found}
    assert {trouble: names for trouble, names in told.items() if trouble != "dependencies"} == LISTED
    code = await asyncio.to_thread(clinic.well.service.cli, "doctor")
    assert (code.returncode, code.stdout.splitlines()[-1]) == (0, f"{len(found)} of {len(found)} checks are well")


@pytest.mark.parametrize(("trouble", "name"), [(one, name) for one, names in LISTED.items() for name in names])
async def test_what_is_broken_is_named_with_its_remedy(clinic: Clinic, trouble: str, name: str) -> None:
    async with BREAKS[trouble, name](clinic) as (patient, settings, words):
        check = (await patient.checks(**settings))[trouble, name]
    assert check.status in ("failed", "warning"), check
    assert words in check.found
    assert check.remedy


# --- the connection fails --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def cut(clinic: Clinic) -> AsyncIterator[Broken]:
    """The terminal has lost its broker."""
    clinic.well.window("cut")
    await clinic.well.recorded("disconnected")
    try:
        yield clinic.well, {}, "not connected to its broker"
    finally:
        clinic.well.window("cut", duration="off")

        def again() -> bool:
            return clinic.well.account()[-1].topic() in (
                "account.connected",
                "account.reconciled",
                "account.snapshot_taken",
            )

        await until(again)


BREAKS["connection failing", "terminal running"] = cut
BREAKS["connection failing", "by hand"] = cut


@breaks("connection failing", "server and login")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    yield clinic.well, {"MT5_SERVER": "Other-Server"}, "MT5_SERVER is Other-Server"


@breaks("connection failing", "MT5_PASSWORD")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    real = {"TERMINAL": "mt5linux", "MT5_LOGIN": "1", "MT5_SERVER": "Broker-Real"}
    yield clinic.well, real, "MT5_PASSWORD is not set"


@breaks("connection failing", "terminal's log")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    async with cut(clinic):
        pass
    yield clinic.well, {}, "last: the terminal is not connected to its broker"


# --- orders are rejected ---------------------------------------------------------------------------------------------


@breaks("orders rejected with 10013", "symbol names")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    await clinic.well.order("bad-symbol", symbol="EUR/USD")
    yield clinic.well, {}, "the broker does not know EUR/USD"


@breaks("orders rejected with 10013", "volume")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    await clinic.well.order("bad-volume", volume=0.001)
    yield clinic.well, {}, "bad-volume asked for 0.001 lots of EURUSD (0.01 to"


@breaks("orders rejected with 10013", "SL and TP")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    await clinic.well.order("bad-stops", sl=1.5)
    yield clinic.well, {}, "sl 1.5 must be at least"


@breaks("orders rejected with 10013", "market hours")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.window("market", symbol="GBPUSD", changes={"sessions": "never"})
    assert (await clinic.well.order("at-night", symbol="GBPUSD"))["event"] == "order.parked"
    yield clinic.well, {}, "the market of GBPUSD was closed"
    clinic.well.window("market", symbol="GBPUSD", changes={"sessions": "always"})


@breaks("orders rejected with 10013", "broker's restrictions")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.window("market", symbol="USDJPY", changes={"trade_mode": "closeonly"})
    await clinic.well.order("restricted", symbol="USDJPY")
    yield clinic.well, {}, "trading in USDJPY is restricted by the broker"
    clinic.well.window("market", symbol="USDJPY", changes={"trade_mode": "full"})


# --- fills are not told ----------------------------------------------------------------------------------------------


@breaks("fills are not told", "NATS publishing")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    assert (await clinic.well.order("lost-news"))["event"] == "order.filled"
    connection = await nats.connect(clinic.well.bus_url)
    js = connection.jetstream()
    subject = "broker.fill.EURUSD"
    await js.purge_stream(await js.find_stream_name_by_subject(subject), subject=subject)
    await connection.close()
    yield clinic.well, {}, "of the ledger is not on its subject"


@breaks("fills are not told", "orders are taken")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    worn = await clinic.worn()
    name = f"order-ledger-{worn.service.info['login']}"
    worn.service.kill()
    async with Listener(worn.bus_url) as listener:
        js = listener.connection.jetstream()
        async with asyncio.timeout(PATIENCE_S):
            while (await js.consumer_info("ORDERS", name)).num_waiting:  # noqa: ASYNC110  # the server tells nobody
                await asyncio.sleep(0.05)
        await listener.send(market_order("nobody-takes-it"))
    yield worn, {}, "1 orders wait and nobody pulls them"


@breaks("fills are not told", "trade results")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.fault("error=-1*1")
    assert (await clinic.well.order("unknown"))["event"] == "order.outcome_unknown"
    yield clinic.well, {}, "the outcome of 1 order is unknown"


@breaks("fills are not told", "NATS by hand")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    yield clinic.well, NOTHING_THERE, "cannot reach NATS at nats://127.0.0.1:1"


@breaks("fills are not told", "errors in handling")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    await filled_behind_our_back(clinic.well, "dear", price=1.2)
    yield clinic.well, {}, "fill_price: deal"


async def filled_behind_our_back(patient: Patient, order_id: str, price: float) -> None:
    """A working order is filled, and the reconciliation is the first to see it."""
    for number in range(5):
        ticket = (await patient.order(f"{order_id}-{number}", order_type="buy_limit", price=0.9))["ticket"]
        await asyncio.sleep(1.5)  # after it was placed it is looked for quickly, for about so long
        patient.window("fill", ticket=ticket, price=price)
        await patient.reconcile()
        if any(one.kind == "fill_missing" for one in (await patient.recorded("reconciled")).differences):
            return
    raise AssertionError("each fill was seen at once")


# --- positions differ ------------------------------------------------------------------------------------------------


@breaks("positions differ", "position sync")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.window("trade", type="buy-limit", symbol="EURUSD", volume=0.1, price=0.9)
    await clinic.well.reconcile()
    yield clinic.well, {}, "order_unknown EURUSD"


@breaks("positions differ", "fills recorded")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    await filled_behind_our_back(clinic.well, "late", price=0.9)
    yield clinic.well, {}, "came in by reconciliation only"


@breaks("positions differ", "positions API")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.fault("positions_get:error=-1")
    yield clinic.well, {}, "positions"
    clinic.well.fault("")


@breaks("positions differ", "interval")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    yield await clinic.worn(), {}, "reconciliation by interval is off"


@breaks("positions differ", "trades by hand")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.window("trade", type="buy", symbol="EURUSD", volume=0.3)
    await clinic.well.reconcile()
    yield clinic.well, {}, "lately that nobody here asked for"


# --- the broker is slow ----------------------------------------------------------------------------------------------


@breaks("high latency to the broker", "network")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    clinic.well.fault("account_info:slow=1200ms*3")
    yield clinic.well, {}, "a query took"
    clinic.well.fault("")


@breaks("high latency to the broker", "terminal's place")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    far = {"TERMINAL": "mt5linux", "MT5LINUX_HOST": "10.0.0.9", "MT5_LOGIN": "1", "MT5_SERVER": "s"}
    yield clinic.well, far, "the terminal is on 10.0.0.9"


@breaks("high latency to the broker", "response times")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    yield await clinic.worn(), {}, "answers took more than 1 s"


@breaks("high latency to the broker", "limit or market")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    yield await clinic.worn(), {}, "market p50"


@breaks("high latency to the broker", "broker")
async def _(clinic: Clinic) -> AsyncIterator[Broken]:
    yield await clinic.worn(), {}, "slow most of the time"


# --- dependencies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NATS", "ClickHouse", "Kafka", "Central Hub"])
async def test_a_server_that_is_not_there_is_named(clinic: Clinic, name: str) -> None:
    check = (await clinic.well.checks(**NOTHING_THERE))["dependencies", name]
    assert check.status in ("failed", "warning"), check
    assert "127.0.0.1:1" in check.found or check.found.startswith("it does not answer")
    assert check.remedy


async def test_a_hub_that_lies_is_named(clinic: Clinic) -> None:
    async with any_hub() as hub:
        assert (
            "no configuration"
            in (await clinic.well.checks(CENTRAL_HUB_URL=hub.url))["dependencies", "Central Hub"].found
        )


async def test_a_ledger_that_is_none_and_a_service_that_does_not_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
    found = load({"data": str(tmp_path)}, {})
    wrong = {one.name: one for one in diagnose(found, await gather(found)) if one.trouble == "dependencies"}
    assert (wrong["ledger"].status, wrong["ledger"].remedy) == (
        "failed",
        "name its folder by --data, or run `order-ledger verify`",
    )
    assert (wrong["service"].status, wrong["service"].remedy) == (
        "failed",
        f"start `order-ledger serve --data {tmp_path}`",
    )


async def test_a_refused_login_is_named_with_the_word_of_the_broker(tmp_path: Path) -> None:
    with serving(tmp_path, CLICKHOUSE_URL="off", KAFKA_BROKERS="off") as running:
        patient = Patient(running)
        patient.fault("initialize:error=-6; login:error=-6")
        for pid in children(running.pid):
            if is_terminal(pid):
                os.kill(pid, signal.SIGKILL)
        refused = await patient.recorded("login_refused")
        check = (await patient.checks())["connection failing", "server and login"]
    assert (check.status, check.found) == ("failed", refused.reason)
    assert check.remedy.startswith("set MT5_LOGIN and MT5_SERVER")


def is_terminal(pid: int) -> bool:
    return b"gateway.terminal_child" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_difference_is_shown_as_a_table(clinic: Clinic) -> None:
    clinic.well.window("trade", type="buy", symbol="EURUSD", volume=0.3)
    table = clinic.well.service.cli("reconcile").stdout
    assert "unknown_at_broker" in table
    assert "long 0.3 at" in table
    shown = orjson.loads(clinic.well.service.cli("reconcile", "--json").stdout)
    assert shown["reconciled"].get("differences", []) == []


# --- the checklist ---------------------------------------------------------------------------------------------------


def checklist(service: Service, **settings: str) -> tuple[int, list[dict[str, str]]]:
    done = run_cli("doctor", "--checklist", "--json", "--data", str(service.folder), **settings)
    return done.returncode, orjson.loads(done.stdout)["checks"]


async def test_the_ten_items_of_the_checklist_hold_for_a_service_with_its_hub(tmp_path: Path) -> None:
    with nats_server(tmp_path) as bus:
        hub = HubProcess(tmp_path, bus.url).start()
        named = {"NATS_URL": bus.url, "CENTRAL_HUB_URL": hub.url}
        try:
            await hub.post(operational({"order_settings.max_retries": 4}), "first")
            with serving(tmp_path / "data", **named) as running:
                patient = Patient(running, bus.url)
                code, items = await asyncio.to_thread(checklist, running, **named)
                assert (code, [one["status"] for one in items]) == (0, ["ok"] * 9 + ["unproven"]), items
                await hub.post(operational({"order_settings.max_retries": 5}), "second")
                await in_force(patient, "hub version second,")
                code, items = await asyncio.to_thread(
                    checklist, running, NATS_URL=bus.url
                )  # the hub as the service says
                assert (code, [one["status"] for one in items]) == (0, ["ok"] * 10), items
                assert items[-1]["found"].startswith("policy.max_retries, now version ")

                await hub.post(operational({"mt5_connection.timeout_seconds": 9}), "third")
                await in_force(patient, "hub version third,")
                check = (await patient.checks(**named))["dependencies", "configuration"]
                assert (check.found, check.remedy) == (
                    "changed, but not in force: call_deadline_s",
                    "restart the service",
                )
                await hub.post(operational({"limits.require_sl": "yes"}), "fourth")
                await patient.recorded("configuration_refused")
                check = (await patient.checks(**named))["dependencies", "configuration"]
                assert "refused: operational.limits.require_sl must be true or false, not text" in check.found
                assert check.remedy.startswith("correct it at the hub")
        finally:
            hub.kill()


async def in_force(patient: Patient, origin: str) -> None:
    def taken() -> bool:
        return any(origin in getattr(one, "origin", "") for one in patient.account())

    await until(taken)


def test_without_a_hub_all_but_the_hub_s_items_hold(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        code, items = checklist(running)
    assert (code, [one["status"] for one in items]) == (0, ["ok"] * 8 + ["unproven"] * 2), items


def test_without_a_service_the_checklist_fails(tmp_path: Path) -> None:
    done = run_cli("doctor", "--checklist", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "no service runs" in done.stdout
