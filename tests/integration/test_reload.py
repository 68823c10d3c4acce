"""Each setting that may change while the service runs, changed at the hub, and what the service then does otherwise."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from typing import Any

import orjson
import pytest

from gateway.config import load
from gateway.connection import Connection
from gateway.settings_table import ABOUT
from gateway.show import open_ledger
from gateway.simulated.window import ask
from ledger.account_events import ConfigurationAccepted
from ledger.events import Recorded, account_stream, decode, event_of
from tests.broker_fake import ACCOUNT
from tests.desk import desk
from tests.hub import HubProcess, operational
from tests.nats_server import nats_server
from tests.service import Listener, Service, market_order, until

PATIENCE_S = 20.0
HOT = {name: about.at for name, about in ABOUT.items() if about.hot}
# What the hub says before each change: nothing is told, watched or repeated that a case has not asked for.
BASE = operational(
    {
        "order_settings.max_retries": 2,
        "order_settings.retry_delay_seconds": 0.05,
        "order_settings.retry_multiplier": 1,
        "order_settings.retry_jitter": 0,
        "order_settings.park_recheck_seconds": 0.1,
        "alerts.slow_broker_seconds": 0,
        "alerts.slippage_report_pips": 0,
        "alerts.slippage_alert_pips": 0,
        "alerts.unresolved_seconds": 0,
        "position_sync.sync_interval_minutes": 0,
        "position_sync.reconcile_on_disconnect": False,
        "position_sync.poll_interval_seconds": 3600,
    }
)
# After this long an order that cannot be found is proven absent: the sum of these and half a second.
QUICK = {"NOT_AFTER_S": "0.3", "CALL_DEADLINE_S": "2", "SERVER_TIMEOUT_S": "0.1"}


class Running:
    """The service with its hub, one change at a time."""

    def __init__(self, service: Service, hub: HubProcess, listener: Listener, name: str) -> None:
        self.service, self.hub, self.listener, self.name = service, hub, listener, name
        self._settings = load({"data": str(service.folder)}, {})
        self.login = service.info["login"]
        self._broker = service.folder / "terminal" / "broker"
        self.seen = len(self.account())

    async def change(self, value: Any, **besides: Any) -> ConfigurationAccepted:
        """The hub's document with this value of the setting, once the service has taken it."""
        return await self.post({HOT[self.name]: value, **{one.replace("__", "."): it for one, it in besides.items()}})

    async def back(self) -> ConfigurationAccepted:
        return await self.post({})

    async def post(self, values: dict[str, Any]) -> ConfigurationAccepted:
        version = f"{self.name}-{time.monotonic_ns()}"
        await self.hub.post(operational(values, BASE), version)
        return await self.recorded(lambda one: isinstance(one, ConfigurationAccepted) and version in one.origin)

    async def order(self, suffix: str = "", **fields: Any) -> dict[str, Any]:
        """What became of an order."""
        await self.listener.send(market_order(self.id(suffix), **fields))
        return (await self.listener.final(self.id(suffix), PATIENCE_S))[1]

    async def place(self, **fields: Any) -> None:
        """A working order."""
        await self.listener.send(market_order(self.id(), order_type="buy_limit", price=0.9, **fields))
        await self.listener.wait_for(self.told("order.placed"), PATIENCE_S)

    def id(self, suffix: str = "") -> str:
        return self.name.lower() + suffix

    def told(self, event: str) -> Callable[[str, dict[str, Any]], bool]:
        return lambda _, body: (body.get("order_id"), body.get("event")) == (self.id(), event)

    def of(self, topic: str, suffix: str = "") -> list[Any]:
        """The events of this topic of the case's order."""
        return [one for one in self._stream(f"order/{self.id(suffix)}") if one.topic() == topic]

    def account(self) -> list[Any]:
        return self._stream(account_stream(self._settings.mt5_login or self.login))

    def versions(self, suffix: str) -> set[str]:
        """Of the settings, in the events of an order."""
        return {decode(one).config_version for one in self._records(f"order/{self.id(suffix)}")}

    def _stream(self, name: str) -> list[Any]:
        return [event_of(one) for one in self._records(name)]

    def _records(self, name: str) -> list[Recorded]:
        store = open_ledger(self._settings)
        try:
            return store.stream(name)
        finally:
            store.close()

    async def recorded(self, wanted: Callable[[Any], bool]) -> Any:
        """The first event of the account's stream, of those that the case brought about, that is wanted."""
        return await until(lambda: next((one for one in self.account()[self.seen :] if wanted(one)), None))

    def window(self, verb: str, **arguments: Any) -> Any:
        return ask(self._broker, verb, **arguments)

    def fault(self, rules: str) -> None:
        self.window("fault", add=rules, clear=True)

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The lines of the log that say this."""
        lines = [orjson.loads(line) for line in self.service.log().splitlines() if line.startswith("{")]
        return [line for line in lines if fields.items() <= line.items()]

    async def reconcile(self) -> None:
        done = await asyncio.to_thread(self.service.cli, "reconcile")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, HubProcess, str]]:
    folder = tmp_path_factory.mktemp("reload")
    with nats_server(folder) as bus:
        hub = HubProcess(folder, bus.url).start()
        named = {"NATS_URL": bus.url, "CENTRAL_HUB_URL": hub.url, "CLICKHOUSE_URL": "off", "KAFKA_BROKERS": "off"}
        service = Service(folder / "data", **named)
        service.folder.mkdir()
        lines = [f"{name.lower()} = {value}" for name, value in QUICK.items() if name != "CALL_DEADLINE_S"]
        operational_lines = ["[operational.mt5_connection]", f"timeout_seconds = {QUICK['CALL_DEADLINE_S']}"]
        (service.folder / "config.toml").write_text("\n".join(["[service]", *lines, *operational_lines]))
        try:
            yield service.start(), hub, bus.url
        finally:
            service.end()
            hub.kill()


Case = Callable[[Running], Awaitable[None]]
CASES: dict[str, Case] = {}


def shows(name: str) -> Callable[[Case], Case]:
    """The case shows the effect of this setting."""

    def take(case: Case) -> Case:
        assert name not in CASES
        CASES[name] = case
        return case

    return take


@pytest.mark.parametrize("name", HOT)
async def test_a_change_of_the_setting_is_felt_at_once(parts: Any, name: str) -> None:
    service, hub, bus_url = parts
    async with Listener(bus_url) as listener:
        running = Running(service, hub, listener, name)
        running.fault("")
        await running.back()
        await CASES[name](running)


def test_every_setting_that_is_reloaded_shows_its_effect() -> None:
    assert set(CASES) == set(HOT)


# --- log -------------------------------------------------------------------------------------------------------------


@shows("LOG_LEVEL")
async def _(g: Running) -> None:
    await g.change("error")
    before = len(g.lines(event="reconciled"))
    await g.reconcile()
    assert len(g.lines(event="reconciled")) == before
    await g.change("info")
    await g.reconcile()
    await until(lambda: len(g.lines(event="reconciled")) > before)


@shows("LOG_ALL_COMMUNICATIONS")
async def _(g: Running) -> None:
    await g.order("-silent")
    await g.change(True)
    await g.order()
    await until(lambda: g.lines(event="broker", topic="order.broker_answered", order_id=g.id()))
    await g.back()
    await g.order("-after")
    await g.reconcile()
    assert not g.lines(event="broker", order_id=g.id("-silent")) + g.lines(event="broker", order_id=g.id("-after"))


# --- how an order is handled -----------------------------------------------------------------------------------------


@shows("VALIDATE_BEFORE_SEND")
async def _(g: Running) -> None:
    await g.order("-before")
    await g.change(False)
    assert (await g.order())["event"] == "order.filled"
    assert (len(g.of("order.checked", "-before")), len(g.of("order.checked"))) == (1, 0)


@shows("MAX_RETRIES")
async def _(g: Running) -> None:
    await g.change(3)
    g.fault("requote")
    assert (await g.order())["event"] == "order.rejected"
    assert len(g.of("order.send_started")) == 4


@shows("RETRY_DELAY_S")
async def _(g: Running) -> None:
    await g.change(0.12)
    assert await delays(g) == [D("0.12"), D("0.12")]


@shows("RETRY_MULTIPLIER")
async def _(g: Running) -> None:
    await g.change(3)
    assert await delays(g) == [D("0.05"), D("0.15")]


@shows("MAX_RETRY_DELAY_S")
async def _(g: Running) -> None:
    await g.change(0.02)
    assert await delays(g) == [D("0.02"), D("0.02")]


@shows("RETRY_JITTER")
async def _(g: Running) -> None:
    await g.change(1)
    assert all(one < D("0.05") for one in await delays(g))


async def delays(g: Running) -> list[D]:
    """How long the order waited before each of its two retries."""
    g.fault("requote*2")
    assert (await g.order())["event"] == "order.filled"
    return [one.delay_s for one in g.of("order.retry_scheduled")]


@shows("MAX_UNREACHED")
async def _(g: Running) -> None:
    await g.change(2)
    g.fault("error=-8")
    assert (await g.order())["event"] == "order.failed"
    assert len(g.of("order.send_abandoned")) == 2


@shows("PARK_RECHECK_S")
async def _(g: Running) -> None:
    await g.change(0.3)
    g.fault("market_closed*1")
    assert (await g.order())["event"] == "order.filled"
    assert [one.recheck_s for one in g.of("order.parked")] == [D("0.3")]


@shows("MAX_ORDER_AGE_S")
async def _(g: Running) -> None:
    assert (await g.order("-before", created_at=ago(20)))["event"] == "order.filled"
    await g.change(10)
    assert (await g.order(created_at=ago(20)))["event"] == "order.stale"


@shows("MAX_ORDER_LIFE_S")
async def _(g: Running) -> None:
    await g.change(10)
    g.fault("requote*1")
    assert (await g.order(created_at=ago(20)))["event"] == "order.rejected"  # it may be sent, but not again
    assert len(g.of("order.send_started")) == 1


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@shows("RESEND_AFTER_PROVEN_ABSENCE")
async def _(g: Running) -> None:
    await g.change(True)
    g.fault("error=-1*1")
    filled = await g.order()
    assert (filled["event"], filled["attempts"]) == ("order.filled", 2)


@shows("DEFAULT_DEVIATION_POINTS")
async def _(g: Running) -> None:
    await g.change(7)
    await g.order()
    assert [one.request.deviation for one in g.of("order.send_started")] == [7]


# --- limits and halts ------------------------------------------------------------------------------------------------


async def refused(g: Running, suffix: str = "", **fields: Any) -> str:
    found = await g.order(suffix, **fields)
    assert found["event"] == "order.refused", found
    reasons: list[str] = found["reasons"]
    return "; ".join(reasons)


@shows("LIMIT_SYMBOLS")
async def _(g: Running) -> None:
    await g.change(["USDJPY", "XAU*"])
    assert "EURUSD" in await refused(g)


@shows("LIMIT_MIN_VOLUME")
async def _(g: Running) -> None:
    await g.change(0.5)
    assert "0.5" in await refused(g)


@shows("LIMIT_MAX_VOLUME")
async def _(g: Running) -> None:
    await g.change("0.05")
    assert "0.05" in await refused(g, volume=0.06)


@shows("LIMIT_OPEN_POSITIONS")
async def _(g: Running) -> None:
    assert (await g.order("-before"))["event"] == "order.filled"
    await g.change(1)
    assert "position" in await refused(g)


@shows("LIMIT_ORDERS_PER_MINUTE")
async def _(g: Running) -> None:
    assert (await g.order("-before"))["event"] == "order.filled"
    await g.change(1)
    assert "within a minute, 1 allowed" in await refused(g)


@shows("LIMIT_PRICE_COLLAR_PERCENT")
async def _(g: Running) -> None:
    await g.change(1)
    assert "limit: price" in await refused(g, order_type="buy_limit", price=0.9)


@shows("LIMIT_REQUIRE_SL")
async def _(g: Running) -> None:
    await g.change(True)
    assert "stop loss" in await refused(g, tp=1.5)


@shows("LIMIT_REQUIRE_TP")
async def _(g: Running) -> None:
    await g.change(True)
    assert "take profit" in await refused(g, sl=0.5)


@shows("LIMIT_DAILY_LOSS")
async def _(g: Running) -> None:
    assert (await g.order("-before", volume=1))["event"] == "order.filled"  # the spread is lost
    await g.change("0.01")
    halted = await g.recorded(lambda one: one.topic() == "account.halted")
    assert halted.source == "limit"
    assert "today's loss" in await refused(g)
    await g.back()
    assert (await g.recorded(lambda one: one.topic() == "account.resumed")).source == "limit"


@shows("MAX_QUOTE_AGE_S")
async def _(g: Running) -> None:
    g.window("market", symbol="EURUSD", changes={"quoting": "off"})
    try:
        assert "is closed" not in await refused(g, "-before", volume=500)
        await g.change(0.001)
        assert "the market of EURUSD is closed" in await refused(g, volume=500)
    finally:
        g.window("market", symbol="EURUSD", changes={"quoting": "on"})


@shows("HALT")
async def _(g: Running) -> None:
    await g.change("end of quarter")
    assert "trading is halted: configuration: end of quarter" in await refused(g)
    await g.back()
    assert (await g.order("-after"))["event"] == "order.filled"


@shows("HALT_CANCEL_ORDERS")
async def _(g: Running) -> None:
    await g.place()
    await g.change(False, halt__reason="news")
    await g.change(True, halt__reason="news")
    assert (await g.listener.final(g.id(), PATIENCE_S))[1]["event"] == "order.cancelled"


# --- alerts ----------------------------------------------------------------------------------------------------------


async def alert(g: Running, kind: str) -> None:
    def wanted(subject: str, body: dict[str, Any]) -> bool:
        return subject == f"broker.alert.{kind}" and body.get("order_id") == g.id()

    await g.listener.wait_for(wanted, PATIENCE_S)


@shows("SLOW_BROKER_S")
async def _(g: Running) -> None:
    await g.change("0.01")
    g.fault("slow=50ms*1")
    await g.order()
    await alert(g, "slow_broker")


@shows("SLIPPAGE_REPORT_PIPS")
async def _(g: Running) -> None:
    await g.change(1)
    await slipped(g)
    await until(lambda: g.lines(event="slippage", level="warning", order_id=g.id()))


@shows("SLIPPAGE_ALERT_PIPS")
async def _(g: Running) -> None:
    await g.change(1)
    await slipped(g)
    await alert(g, "slippage")


async def slipped(g: Running) -> None:
    """The deal is three pips worse than asked for."""
    g.fault("slip=30*1")
    assert (await g.order(price=g.window("price", symbol="EURUSD")["ask"]))["event"] == "order.filled"


@shows("UNRESOLVED_ALERT_S")
async def _(g: Running) -> None:
    await g.change(0.2)
    g.fault("error=-1*1")
    await g.listener.send(market_order(g.id()))
    await alert(g, "unresolved_outcome")


# --- connection and positions ----------------------------------------------------------------------------------------


def topic(name: str) -> Callable[[Any], bool]:
    return lambda one: one.topic() == f"account.{name}"


@shows("AUTO_RECONNECT")
async def _(g: Running) -> None:
    await g.change(False)
    g.window("cut")
    try:
        lost = await g.recorded(topic("disconnected"))
    finally:
        g.window("cut", duration="off")
    assert "orders wait until an operator reconnects" in lost.reason
    await g.listener.send(market_order(g.id()))
    await g.listener.wait_for(g.told("order.parked"), PATIENCE_S)
    await g.back()
    await g.recorded(topic("connected"))
    assert (await g.listener.final(g.id(), PATIENCE_S))[1]["event"] == "order.filled"


@shows("RECONNECT_INTERVAL_S")
async def _(g: Running) -> None:
    """How often is not seen from outside: here the broker counts."""
    slow, quick = (load({}, {"RECONNECT_INTERVAL_S": text}) for text in ("3600", "0.1"))
    folder = g.service.folder.parent / "desk"
    folder.mkdir()
    async with desk(folder) as d:
        d.broker.gone = True
        link = Connection(d.broker, d.ledger, ACCOUNT, terminal="simulated", check_s=0.02, reconnect_interval_s=3600)
        link.start()
        try:
            await until(lambda: d.broker.asked.get("verify", 0) >= 4)
            link.use(quick)
            await until(lambda: d.broker.asked["verify"] >= 14)  # else in two minutes
            link.use(slow)
        finally:
            await link.stop()


@shows("RECONCILE_ON_DISCONNECT")
async def _(g: Running) -> None:
    assert await reconciled_after_a_cut(g) == ["demand"]
    await g.change(True)
    assert "reconnect" in await reconciled_after_a_cut(g)


async def reconciled_after_a_cut(g: Running) -> list[str]:
    """What made it compare since then, beside an interval that another test has changed."""
    g.seen = len(g.account())
    g.window("cut")
    await g.recorded(topic("disconnected"))
    g.window("cut", duration="off")
    await g.recorded(topic("connected"))
    await g.reconcile()
    made = [one.trigger for one in g.account()[g.seen :] if one.topic() == "account.reconciled"]
    return [one for one in made if one != "interval"]


@shows("SYNC_INTERVAL_MINUTES")
async def _(g: Running) -> None:
    await g.change(0.005)
    await g.recorded(lambda one: one.topic() == "account.reconciled" and one.trigger == "interval")


@shows("RECONCILE_POLICY")
async def _(g: Running) -> None:
    """Stops of a position of somebody else are what only the comparison takes up."""
    ticket = g.window("trade", type="buy", symbol="USDJPY", volume=0.01)["order"]
    await g.reconcile()
    g.window("modify", ticket=ticket, sl=50.0)
    await g.change({"stops": "alert"})
    await g.reconcile()
    await g.back()
    await g.reconcile()
    found = [
        one for report in g.account()[g.seen :] if report.topic() == "account.reconciled" for one in report.differences
    ]
    assert [one.policy for one in found if (one.kind, one.position_id) == ("stops", ticket)] == ["alert", "correct"]


@shows("POLL_INTERVAL_S")
async def _(g: Running) -> None:
    await g.change(0.05)
    for _ in range(3):  # the first might be seen because something else is looked for just now
        g.window("trade", type="buy", symbol="USDJPY", volume=0.01)
        ticket = g.window("deals")[-1]["ticket"]
        await g.recorded(lambda one, ticket=ticket: topic("external_deal_observed")(one) and one.deal.ticket == ticket)


# --- what is on record of it -----------------------------------------------------------------------------------------


async def test_every_event_of_an_order_names_the_version_of_the_settings_in_force(parts: Any) -> None:
    service, hub, bus_url = parts
    async with Listener(bus_url) as listener:
        g = Running(service, hub, listener, "MAX_RETRIES")
        versions = []
        for retries in (7, 8):
            versions.append((await g.change(retries)).version)
            await g.order(f"-version-{retries}")
        assert [g.versions(f"-version-{retries}") for retries in (7, 8)] == [{one} for one in versions]
        assert versions[0] != versions[1]


# --- what does not change while it runs ------------------------------------------------------------------------------

WAITS = {
    "mt5_connection.timeout_seconds": 9,
    "mt5_connection.login": 4711,
    "mt5_connection.server": "Other-Server",
    "mt5_connection.terminal_path": "C:/terminal64.exe",
}


def test_the_hub_can_set_nothing_else() -> None:
    assert {about.at for about in ABOUT.values() if about.at and not about.hot} == set(WAITS)


async def test_what_needs_a_restart_says_so_and_waits_for_it(parts: Any) -> None:
    service, hub, bus_url = parts
    async with Listener(bus_url) as listener:
        g = Running(service, hub, listener, "RESTART")
        before = await g.back()
        changed = await g.post(WAITS)
        assert set(changed.waiting) == {"call_deadline_s", "mt5_login", "mt5_server", "mt5_path"}
        assert (changed.changed, changed.version, changed.settings) == ((), before.version, before.settings)
        (line,) = g.lines(event="takes effect at the next start")
        assert (line["level"], set(line["settings"])) == ("warning", set(changed.waiting))
        assert (await g.order())["event"] == "order.filled"
