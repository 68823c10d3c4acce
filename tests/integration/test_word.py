"""An operator finds an order at the broker that a person made by hand: nothing of it carries our marks."""

import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import orjson
import pytest

from gateway.control import Control
from gateway.halts import Halts
from gateway.queries import Declined
from ledger.commands import ResolveOutcome
from ledger.order import Status
from tests.differences import agrees
from tests.gateway_desk import CLIENT, Desk, desk_in

D = Decimal
BY_HAND = {"type": "buy", "symbol": "EURUSD", "volume": 0.1}
EXTERNAL = "account.external_deal_observed"


@contextlib.asynccontextmanager
async def unknown_order(folder: Path, **settings: str) -> AsyncIterator[Desk]:
    """A desk with the order o-1, whose outcome stays unknown: it has not arrived, and that is not proven for long."""
    async with desk_in(folder / "d", reconciles=True, SERVER_TIMEOUT_S="60", **settings) as desk:
        desk.fault("error=-10002*1")
        await desk.submit("o-1", symbol="EURUSD", order_type="buy", volume=0.1)
        await desk.until("o-1", Status.UNKNOWN)
        yield desk


async def found(desk: Desk, ticket: int) -> str:
    """The operator's word, and what the operator is told."""
    halts = Halts(desk.ledger, None, desk.settings)
    control = Control(desk.ledger, halts, desk.clock, take=desk.submitter.take, sync=desk.sync)
    word = {"by": "ann", "reason": "by hand", "order_id": "o-1", "resolution": "found", "order_ticket": ticket}
    return (await control.call("resolve", orjson.dumps(word), "test")).description


async def everything_agrees(desk: Desk) -> None:
    """Each deal stands in the ledger once, and the positions are the broker's."""
    await desk.reconciler.run("demand")
    assert (await desk.reconciler.run("demand")).differences == ()
    await agrees(desk, "after the operator's word")
    fills = [one.deal for one in desk.events("o-1") if one.topic() in ("order.filled", "order.partially_filled")]
    external = [one.deal.ticket for one in desk.events("") if one.topic() == EXTERNAL and one.deal.symbol]
    assert sorted(fills + external) == sorted(deal["ticket"] for deal in desk.deals())


async def test_an_order_that_a_hand_placed_is_filled_by_its_deals_also_after_a_restart(tmp_path: Path) -> None:
    async with unknown_order(tmp_path) as desk:
        made = desk.window("trade", **BY_HAND | {"type": "buy-limit", "price": 0.9})
        assert await found(desk, made["order"]) == "order o-1 is placed"
        desk.window("fill", ticket=made["order"], volume=0.04)
        assert (await desk.until("o-1", Status.PARTIALLY_FILLED)).filled_volume == D("0.04")
        await desk.restart()
        desk.window("fill", ticket=made["order"])
        filled = await desk.ended("o-1")
        assert (filled.status, filled.filled_volume, len(filled.deals)) == (Status.FILLED, D("0.1"), 2)
        await everything_agrees(desk)


async def test_deals_of_a_hand_that_nobody_had_looked_at_become_the_order_s_fills(tmp_path: Path) -> None:
    async with unknown_order(tmp_path) as desk:
        async with desk.sync.lock:  # nothing is followed meanwhile
            made = desk.window("trade", **BY_HAND)
            assert await desk.sync.objection("o-1", made["order"]) == ""
            word = ResolveOutcome(resolution="found", reason="by hand", order_ticket=made["order"])
            desk.sync.named(desk.ledger.execute("o-1", word, CLIENT).order)
        filled = await desk.ended("o-1")
        assert (filled.status, [one.ticket for one in filled.deals]) == (Status.FILLED, [made["deal"]])
        await desk.restart()
        desk.window("book", deal=made["deal"], swap=-1.5)
        desk.sync.poke()
        await desk.event("o-1", "order.fill_costs_changed")
        await everything_agrees(desk)


async def test_deals_that_have_moved_the_position_already_do_not_move_it_again(tmp_path: Path) -> None:
    async with unknown_order(tmp_path) as desk:
        made = desk.window("trade", **BY_HAND)
        await desk.event("", EXTERNAL)
        await found(desk, made["order"])
        ended = await desk.ended("o-1")
        assert (ended.status, ended.filled_volume) == (Status.CANCELLED, D(0))
        told = desk.messages("o-1")[-1][1].description
        assert f"its deals {made['deal']} are in the ledger as external ones" in told
        await everything_agrees(desk)
        desk.window("book", deal=made["deal"], swap=-1.5)
        await desk.reconciler.run("demand")
        await desk.restart()
        await everything_agrees(desk)
        assert desk.topics("o-1")[-1] == "cancelled"


async def test_a_ticket_the_broker_does_not_know_or_of_another_order_is_declined(tmp_path: Path) -> None:
    async with unknown_order(tmp_path) as desk:
        other = await desk.open("o-2")
        with pytest.raises(Declined, match="the broker knows no order 4711: name the ticket of the order"):
            await found(desk, 4711)
        with pytest.raises(Declined, match=f"order {other.order_ticket} at the broker is that of o-2"):
            await found(desk, other.order_ticket)
        assert "outcome_resolved" not in desk.topics("o-1")
        assert [one.topic() for one in desk.events("")].count("account.control_received") == 2


async def test_a_close_that_a_hand_made_ends_and_gives_its_position_back(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True, SERVER_TIMEOUT_S="60") as desk:
        opened = await desk.open("o-2", volume=0.3)
        desk.fault("error=-10002*1")
        await desk.submit("o-1", action="close", target_order_id="o-2", volume=0.1)
        await desk.until("o-1", Status.UNKNOWN)
        made = desk.window("close", ticket=opened.position_id, volume=0.1)
        await desk.event("", EXTERNAL)
        await found(desk, made["order"])
        assert (await desk.ended("o-1")).status is Status.CANCELLED
        await desk.submit("c-2", action="close", target_order_id="o-2")
        assert (await desk.ended("c-2")).filled_volume == D("0.2")
        assert desk.window("positions") == []
