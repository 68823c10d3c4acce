"""Reconciliation on a real ledger and a simulated broker, where a person at the terminal makes the difference."""

from collections.abc import Callable
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import msgspec
import orjson
import requests

from gateway.messages import outgoing
from ledger.account_events import AccountReconciled, Difference
from ledger.events import decode
from ledger.order import Status
from tests.differences import agrees
from tests.gateway_desk import Desk, desk_in
from tests.service import Listener, Service, serving

REPORTS = ("account.reconciled", "account.snapshot_taken", "account.connected", "account.deals_followed")


def reports(desk: Desk) -> list[AccountReconciled]:
    return [one for one in desk.events("") if isinstance(one, AccountReconciled)]


async def away(desk: Desk, meanwhile: Callable[[], Any]) -> AccountReconciled:
    """What the reconciliation at the start says of what happened while the gateway was away."""
    await desk.stop()
    meanwhile()
    before = len(reports(desk_at_rest(desk)))
    await desk.start()
    return await desk.when(lambda: next(iter(reports(desk)[before:]), None), 15, lambda: str(desk.topics("")))


def desk_at_rest(desk: Desk) -> Desk:
    from ledger.store import open_store

    desk.store = open_store(desk.settings.ledger_url.reveal())
    return desk


def facts(desk: Desk) -> list[tuple[str, int]]:
    """All that the ledger holds but reports and what each start says."""
    return [(one.stream, one.version) for one in desk.store.scan(0) if one.stream[:6] == "order/" or (
        one.stream[:8] == "account/" and one.topic not in REPORTS)]  # fmt: skip


async def adds_nothing(desk: Desk) -> None:
    before = facts(desk)
    again = await desk.reconciler.run("demand")
    assert (again.differences, facts(desk)) == ((), before)


def one_of(report: AccountReconciled, kind: str) -> Difference:
    (found,) = report.differences
    assert found.kind == kind
    return found


async def run_for(desk: Desk, trigger: str, times: int = 1) -> list[AccountReconciled]:
    """The reports that were made on this occasion, as soon as there are so many."""

    def made() -> list[AccountReconciled] | None:
        found = [one for one in reports(desk) if one.trigger == trigger]
        return found if len(found) >= times else None

    found: list[AccountReconciled] = await desk.when(made, 30, lambda: str([one.trigger for one in reports(desk)]))
    return found


def alert_of(desk: Desk) -> str:
    stream = desk.store.stream(f"account/{desk.ledger.login}")
    made = [outgoing(one, decode(one)) for one in stream if one.topic == "account.reconciled"]
    (last,) = [one for one in made if one is not None][-1:]
    assert last.subject == "broker.alert.reconciliation"
    return str(last.message.description)


async def test_a_position_closed_by_hand_is_missing_at_the_broker_and_corrected_by_its_deal(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        opened = await desk.open("o-1")
        report = await away(desk, lambda: desk.window("close", ticket=opened.position_id))
        found = one_of(report, "missing_at_broker")
        assert (report.trigger, found.policy) == ("start", "correct")
        assert (found.order_id, found.position_id) == ("o-1", opened.position_id)
        assert found.deal == desk.deals()[-1]["ticket"]
        assert "missing_at_broker EURUSD" in alert_of(desk)
        await agrees(desk)
        await adds_nothing(desk)


async def test_a_position_from_before_the_ledger_is_adopted_as_the_broker_shows_it(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        desk.window("trade", type="sell", symbol="EURUSD", volume=0.3)
        await desk.stop()
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (desk.folder / name).unlink(missing_ok=True)
        await desk.start()
        report = await desk.reconciler.run("demand")
        assert one_of(report, "unknown_at_broker").brokers.startswith("short 0.3 at")
        assert (await desk.event("", "account.position_corrected")).position.volume == D("0.3")
        await agrees(desk)
        await adds_nothing(desk)


async def test_a_working_order_filled_meanwhile_misses_its_fill(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        placed = await desk.open("o-1", order_type="buy_limit", price=0.9)
        report = await away(desk, lambda: desk.window("fill", ticket=placed.order_ticket))
        found = one_of(report, "fill_missing")
        assert (found.order_id, found.brokers, found.policy) == ("o-1", "buy 0.1 at 0.9", "adopt")
        assert (await desk.ended("o-1")).filled_volume == D("0.1")
        await agrees(desk)
        await adds_nothing(desk)


async def test_a_working_order_placed_by_hand_is_alerted_once_and_then_stands(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        report = await away(
            desk, lambda: desk.window("trade", type="buy-limit", symbol="EURUSD", volume=0.1, price=0.9)
        )
        found = one_of(report, "order_unknown")
        assert (found.ours, found.policy) == ("", "alert")
        await adds_nothing(desk)
        assert (await desk.reconciler.run("demand")).standing == (found,)
        await desk.restart()
        later = await desk.reconciler.run("demand")
        assert (later.differences, later.standing) == ((), (found,))


async def test_an_order_under_way_is_no_difference(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        desk.fault("order_send:late=700ms*1")
        await desk.submit("o-1", symbol="EURUSD", order_type="buy", volume=0.1)
        report = await desk.reconciler.run("demand")
        await desk.until("o-1", Status.FILLED, Status.UNKNOWN)
        assert report.differences == ()


# --- the occasions ----------------------------------------------------------------------------------------------


async def test_a_start_that_cannot_see_the_account_tries_again_until_it_does(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        await run_for(desk, "start")
        report = await away(desk, lambda: desk.window("fault", add="positions_get:error=-10004*2"))
        assert report.trigger == "start"


async def test_it_runs_after_each_reconnect(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        for times in (1, 2):
            desk.window("cut")
            await desk.when(lambda n=times: seen(desk, "account.disconnected", n), 30, lambda: str(desk.topics("")))
            desk.window("trade", type="buy", symbol="EURUSD", volume=0.2)
            desk.window("cut", duration="off")
            await run_for(desk, "reconnect", times)
        await agrees(desk)


async def test_a_reconnect_makes_none_where_that_is_switched_off(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True, RECONCILE_ON_DISCONNECT="false") as desk:
        await run_for(desk, "start")
        connected = desk.topics("").count("account.connected")
        desk.window("cut")
        await desk.event("", "account.disconnected", 30)
        desk.window("cut", duration="off")
        await desk.when(lambda: seen(desk, "account.connected", connected + 1), 30, lambda: str(desk.topics("")))
        await desk.reconciler.run("demand")
        assert [one.trigger for one in reports(desk)] == ["start", "demand"]


async def test_it_runs_by_interval_also_by_one_that_was_changed_meanwhile(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True, SYNC_INTERVAL_MINUTES="1440") as desk:
        await run_for(desk, "start")
        desk.reconciler.use(msgspec.structs.replace(desk.settings, sync_interval_minutes=0.002))
        await run_for(desk, "interval", 3)


def seen(desk: Desk, topic: str, times: int) -> bool | None:
    return True if desk.topics("").count(topic) >= times else None


async def test_a_running_service_tells_of_it_by_command_bus_metric_and_http(tmp_path: Path) -> None:
    """Stops of a foreign position are what only the reconciliation takes up."""
    with serving(tmp_path / "d", CLICKHOUSE_URL="off", BROKER_CONTROL="on") as service:
        ticket = orjson.loads(service.cli("sim", "trade", "sell", "EURUSD", "0.3", "--magic", "777", "--json").stdout)
        service.cli("reconcile")
        service.cli("sim", "modify", str(ticket["order"]), "--sl", "1.5")
        async with Listener(service.info["nats_url"]) as listener:
            asked = await listener.connection.request(
                "broker.control.reconcile", b'{"by": "ops", "reason": "test"}', timeout=20
            )
            (found,) = orjson.loads(asked.data)["reconciled"]["differences"]
            assert (found["kind"], found["policy"], found["brokers"]) == ("stops", "correct", "sl 1.5, tp 0")
            _, told = await listener.wait_for(lambda _, body: "stops" in body.get("description", ""))
            assert (told["kind"], told["event"]) == ("reconciliation", "account.reconciled")
        assert "no difference" in service.cli("reconcile").stdout
        shown = get(service, "/api/v1/positions").json()["positions"]
        assert [(one["position_id"], one["sl"]) for one in shown] == [(ticket["order"], "1.5")]
        counted = get(service, "/metrics").text
        assert 'differences_total{kind="stops",policy="correct"} 1.0' in counted
        assert 'alerts_total{kind="reconciliation"}' in counted


def get(service: Service, path: str) -> requests.Response:
    return requests.get(service.info["http_url"] + path, timeout=20)
