"""Reconciliation on a real ledger and a simulated broker, where a person at the terminal makes the difference."""

from collections.abc import Callable
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.messages import outgoing
from ledger.account_events import AccountReconciled, Difference
from ledger.events import decode
from ledger.order import Status
from tests.gateway_desk import Desk, desk_in

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
    (found,) = [one for one in report.differences if one.kind == kind]
    return found


def alert_of(desk: Desk) -> str:
    stream = desk.store.stream(f"account/{desk.ledger.login}")
    made = [outgoing(one, decode(one)) for one in stream if one.topic == "account.reconciled"]
    (last,) = [one for one in made if one is not None][-1:]
    assert last.subject == "broker.alert.reconciliation"
    return str(last.message.description)


async def agrees(desk: Desk) -> None:
    """Our positions are the broker's."""
    await desk.reconciler._view.catch_up()
    ours = {key: (one.side, one.volume, one.sl, one.tp) for key, one in desk.reconciler._view.positions.items()}
    shown = {
        row["identifier"]: ("short" if row["type"] else "long", *(D(str(row[name])) for name in ("volume", "sl", "tp")))
        for row in desk.window("positions")
    }
    assert ours == shown


async def test_a_position_closed_by_hand_is_missing_at_the_broker_and_corrected_by_its_deal(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        opened = await desk.open("o-1")
        report = await away(desk, lambda: desk.window("close", ticket=opened.position_id))
        found = one_of(report, "missing_at_broker")
        assert (found.order_id, found.position_id, found.policy) == ("o-1", opened.position_id, "correct")
        assert found.deal == desk.deals()[-1]["ticket"]
        assert "missing_at_broker EURUSD" in alert_of(desk)
        await agrees(desk)
        await adds_nothing(desk)


async def test_a_position_opened_by_hand_is_unknown_at_the_broker_and_adopted(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        report = await away(desk, lambda: desk.window("trade", type="buy", symbol="EURUSD", volume=0.2))
        found = one_of(report, "unknown_at_broker")
        assert (found.ours, found.policy) == ("", "adopt")
        assert found.brokers.endswith("by hand")
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


async def test_a_position_halved_by_hand_differs_in_volume(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        opened = await desk.open("o-1")
        report = await away(desk, lambda: desk.window("close", ticket=opened.position_id, volume=0.04))
        found = one_of(report, "volume")
        assert (found.ours, found.brokers, found.policy, found.order_id) == ("0.1", "0.06", "correct", "o-1")
        await agrees(desk)
        await adds_nothing(desk)


async def test_stops_changed_by_hand_are_corrected_and_told_to_the_order(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        opened = await desk.open("o-1")
        report = await away(desk, lambda: desk.window("modify", ticket=opened.position_id, sl=0.9, tp=1.4))
        found = one_of(report, "stops")
        assert (found.ours, found.brokers, found.order_id) == ("no stops", "sl 0.9, tp 1.4", "o-1")
        modified = await desk.event("o-1", "order.modified")
        assert (modified.sl, modified.tp, modified.by) == (D("0.9"), D("1.4"), "")
        await agrees(desk)
        await adds_nothing(desk)


async def test_on_a_netting_account_a_position_turned_around_by_hand_is_a_reversal_with_another_ticket(
    tmp_path: Path,
) -> None:
    async with desk_in(tmp_path / "d", "--margin-mode=netting", reconciles=True) as desk:
        await desk.open("o-1")
        report = await away(desk, lambda: desk.window("trade", type="sell", symbol="EURUSD", volume=0.3))
        found = one_of(report, "netting_reversal")
        assert (found.ours[:8], found.brokers[:9], found.policy) == ("long 0.1", "short 0.2", "correct")
        assert one_of(report, "ticket_changed").policy == "correct"
        await agrees(desk)
        await adds_nothing(desk)


async def test_on_a_netting_account_more_bought_by_hand_differs_in_volume_and_price(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", "--margin-mode=netting", reconciles=True) as desk:
        await desk.open("o-1")

        def buy() -> None:
            desk.window("price", symbol="EURUSD", points=300)
            desk.window("trade", type="buy", symbol="EURUSD", volume=0.1)

        report = await away(desk, buy)
        assert {"volume", "price"} <= {one.kind for one in report.differences}
        await agrees(desk)
        await adds_nothing(desk)


async def test_a_position_reopened_over_night_is_known_by_its_new_ticket(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        opened = await desk.open("o-1")
        report = await away(desk, lambda: desk.window("reopen", ticket=opened.position_id))
        assert one_of(report, "ticket_changed").ours == str(opened.position_id)
        await agrees(desk)
        await adds_nothing(desk)


async def test_a_working_order_deleted_by_hand_is_missing_and_its_end_is_recorded(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        placed = await desk.open("o-1", order_type="buy_limit", price=0.9)
        report = await away(desk, lambda: desk.window("close", ticket=placed.order_ticket))
        found = one_of(report, "order_missing")
        assert (found.order_id, found.policy) == ("o-1", "correct")
        assert (await desk.ended("o-1")).status is Status.CANCELLED
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


async def test_a_price_of_a_working_order_changed_by_hand_is_corrected(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        placed = await desk.open("o-1", order_type="buy_limit", price=0.9)
        report = await away(desk, lambda: desk.window("modify", ticket=placed.order_ticket, price=0.91))
        assert one_of(report, "price").policy == "correct"
        assert (await desk.event("o-1", "order.modified")).price == D("0.91")
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


async def test_costs_booked_after_the_deal_are_picked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk_in(tmp_path / "d") as desk:
        await desk.open("o-1")
        await desk.sync.stop()
        ask = desk.query.activity

        async def with_swap(since_msc: int, **what: bool) -> Any:
            """As a broker does that books costs after the deal."""
            seen = await ask(since_msc, **what)
            deals = tuple(msgspec.structs.replace(deal, swap=D("-1.5")) if deal.symbol else deal for deal in seen.deals)
            return msgspec.structs.replace(seen, deals=deals)

        monkeypatch.setattr(desk.query, "activity", with_swap)
        found = one_of(await desk.reconciler.run("demand"), "cost")
        assert (found.order_id, found.policy) == ("o-1", "correct")
        assert (await desk.event("o-1", "order.fill_costs_changed")).swap == D("-1.5")
        await adds_nothing(desk)


async def test_with_the_policy_alert_a_difference_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True, RECONCILE_POLICY="stops=alert") as desk:
        opened = await desk.open("o-1")
        report = await away(desk, lambda: desk.window("modify", ticket=opened.position_id, sl=0.9))
        assert one_of(report, "stops").policy == "alert"
        assert "modified" not in desk.topics("o-1")
        await adds_nothing(desk)
        assert [one.kind for one in (await desk.reconciler.run("demand")).standing] == ["stops"]


async def test_it_runs_after_a_reconnect_and_by_interval(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True, SYNC_INTERVAL_MINUTES="0.005") as desk:
        desk.window("cut", duration="1s")

        def seen() -> bool | None:
            return {"start", "reconnect", "interval"} <= {one.trigger for one in reports(desk)} or None

        assert await desk.when(seen, 15, lambda: str([one.trigger for one in reports(desk)]))


async def test_an_order_under_way_is_no_difference(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        desk.fault("order_send:late=700ms*1")
        await desk.submit("o-1", symbol="EURUSD", order_type="buy", volume=0.1)
        report = await desk.reconciler.run("demand")
        await desk.until("o-1", Status.FILLED, Status.UNKNOWN)
        assert report.differences == ()
