"""While the broker cannot be reached: orders wait up to their age, what is unknown is settled when it is back."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

import pytest

from gateway.broker import Account, LoginRefused
from gateway.config import load
from gateway.connection import Connection
from gateway.terminal import pauses
from ledger.account_events import AccountConnected, AccountDisconnected
from ledger.order import Status
from tests.broker_fake import ACCOUNT, FakeBroker
from tests.desk import desk as edge
from tests.gateway_desk import QUICK, Desk, desk_in

MARKET = {"symbol": "EURUSD", "order_type": "buy", "volume": 0.1}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path / "d") as running:
        yield running


async def down(desk: Desk) -> AccountDisconnected:
    return await desk.event("", "account.disconnected")


async def connects(desk: Desk, count: int) -> None:
    """Waits for so many `AccountConnected`."""

    def found() -> bool | None:
        return sum(isinstance(one, AccountConnected) for one in desk.events("")) >= count or None

    await desk.when(found, 15.0, lambda: str(desk.topics("")))


async def test_a_server_that_changes_to_summer_time_and_back_is_followed_while_connected(desk: Desk) -> None:
    for shift, offset_s in (("1h", 10_800), ("0", 7200)):
        desk.window("clock", shift=shift)
        async with asyncio.timeout(30):
            while desk.connection.account.server_utc_offset_s != offset_s:  # noqa: ASYNC110  # it is no event
                await asyncio.sleep(0.1)
        filled = await desk.open(f"o-{offset_s}")
        assert (await desk.event(filled.order_id, "order.filled")).broker_utc_offset_s == offset_s
    assert sum(isinstance(one, AccountConnected) for one in desk.events("")) == 1


async def test_orders_wait_visibly_while_the_connection_is_cut_and_are_sent_when_it_is_back(desk: Desk) -> None:
    desk.window("cut")
    assert "not connected to its broker" in (await down(desk)).reason
    for number in range(20):
        await desk.submit(f"o-{number}", **MARKET)
    parked = await desk.event("o-0", "order.parked")
    assert "not connected to the broker" in parked.reason
    desk.window("cut", duration="off")
    for number in range(20):
        filled = await desk.ended(f"o-{number}")
        assert (filled.status, filled.attempt) == (Status.FILLED, 1)
    assert len(desk.deals()) == 20
    assert [one.removeprefix("account.") for one in desk.topics("")][-2:] == ["disconnected", "connected"]


async def test_an_order_that_has_waited_too_long_for_the_connection_is_stale(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", MAX_ORDER_AGE_S="1.5") as desk:
        desk.window("cut")
        await down(desk)
        await desk.submit("o-1", **MARKET)
        assert (await desk.ended("o-1")).status is Status.STALE
        desk.window("cut", duration="off")
        await connects(desk, 2)
        assert desk.deals() == []


async def test_a_send_is_preceded_by_a_proof_of_the_connection_that_is_young_enough(tmp_path: Path) -> None:
    """Nobody notices the cut before the next order: it must not be sent into it."""
    async with desk_in(tmp_path / "d", CONNECTION_CHECK_S="0.05") as desk:
        await desk.connection.stop()  # nothing looks in between
        desk.window("cut")
        while desk.connection.is_fresh:
            await desk.query.account()
        await desk.submit("o-1", **MARKET)
        await down(desk)
        assert "order.send_started" not in [one.topic for one in desk.store.stream("order/o-1")]
        desk.window("cut", duration="off")
        assert await desk.connection.reconnect() == ""
        assert (await desk.ended("o-1")).status is Status.FILLED


async def test_without_auto_reconnect_orders_wait_for_an_operator(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", AUTO_RECONNECT="false") as desk:
        assert desk.trade.pid is not None
        os.kill(desk.trade.pid, signal.SIGKILL)
        assert "until an operator reconnects" in (await down(desk)).reason
        await desk.submit("o-1", **MARKET)
        await desk.until("o-1", Status.PARKED)
        assert not desk.connection.up
        assert await desk.connection.reconnect() == ""
        assert (await desk.ended("o-1")).status is Status.FILLED
        assert len(desk.deals()) == 1


async def test_auto_reconnect_may_be_switched_while_it_runs_and_while_the_terminal_is_lost(desk: Desk) -> None:
    def use(auto_reconnect: str) -> None:
        settings = load({"data": str(desk.folder)}, QUICK | {"AUTO_RECONNECT": auto_reconnect})
        desk.connection.use(settings)
        desk.trade.use(settings)

    use("off")
    assert desk.trade.pid is not None
    os.kill(desk.trade.pid, signal.SIGKILL)
    assert "until an operator reconnects" in (await down(desk)).reason
    await desk.submit("o-1", **MARKET)
    await desk.until("o-1", Status.PARKED)
    use("on")
    await connects(desk, 2)
    assert (await desk.ended("o-1")).status is Status.FILLED


async def test_a_login_that_is_refused_later_is_an_event_and_nothing_is_tried_until_an_operator_reconnects(
    desk: Desk,
) -> None:
    password = desk.folder / "broker" / "password"
    password.write_text("another one")
    assert desk.trade.pid is not None
    os.kill(desk.trade.pid, signal.SIGKILL)
    refused = await desk.event("", "account.login_refused")
    assert refused.code == -6
    assert "until an operator reconnects" in refused.reason
    assert [one.removeprefix("account.") for one in desk.topics("")][-2:] == ["disconnected", "login_refused"]
    await desk.submit("o-1", **MARKET)
    await desk.until("o-1", Status.PARKED)
    assert "Authorization failed" in await desk.connection.reconnect()
    password.unlink()
    assert await desk.connection.reconnect() == ""
    assert (await desk.ended("o-1")).status is Status.FILLED
    assert desk.topics("").count("account.login_refused") == 1


async def test_answers_of_another_account_do_not_pass_for_those_of_ours(tmp_path: Path) -> None:
    """A person logs in to another account at the terminal, while one order after the other is answered."""

    class Elsewhere(FakeBroker):
        async def verify(self) -> Account:
            raise LoginRefused("the terminal is logged in to account 8, not 7")

    async with edge(tmp_path) as d:
        link = Connection(Elsewhere(), d.ledger, ACCOUNT, terminal="simulated", check_s=0.1)
        link.start()
        async with asyncio.timeout(10):
            while link.up:
                link.answered()
                await asyncio.sleep(0.01)
        assert (link.is_fresh, link.reason) == (False, "the terminal is logged in to account 8, not 7")
        await link.stop()


async def test_no_answer_makes_a_look_at_the_account_younger_than_it_is(tmp_path: Path) -> None:
    async with edge(tmp_path) as d:
        link = Connection(FakeBroker(), d.ledger, ACCOUNT, terminal="simulated", check_s=0.05)
        async with asyncio.timeout(10):
            while link.is_fresh:
                link.answered()
                await asyncio.sleep(0.01)
        assert await link.verify()
        assert link.is_fresh
        await link.stop()


def test_the_pauses_between_attempts_to_connect_double_up_to_the_interval() -> None:
    assert list(islice(pauses(30), 11)) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert list(islice(pauses(0.05), 2)) == [0.05, 0.05]


async def test_a_terminal_that_cannot_be_started_for_a_while_is_started_when_it_can(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the system has no file or process left for it: whatever fails then must not be the last attempt."""
    failed = asyncio.Event()
    pair = socket.socketpair

    def none_left() -> NoReturn:
        failed.set()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gateway.terminal.socket.socketpair", none_left)
    for terminal in (desk.trade, desk.query):
        assert terminal.pid is not None
        os.kill(terminal.pid, signal.SIGKILL)
    await asyncio.wait_for(failed.wait(), 10)
    monkeypatch.setattr("gateway.terminal.socket.socketpair", pair)
    await desk.open("o-1")
    await desk.submit("c-1", action="close", target_order_id="o-1")
    assert (await desk.ended("c-1")).status is Status.FILLED


async def test_a_terminal_that_dies_during_a_send_comes_back_and_settles_what_it_left(desk: Desk) -> None:
    desk.fault("crash_after*1")
    await desk.submit("o-1", **MARKET)
    filled = await desk.ended("o-1")
    assert (filled.status, filled.attempt, len(desk.deals())) == (Status.FILLED, 1, 1)
    await connects(desk, 2)
    await desk.open("o-2")


async def test_a_connection_that_is_back_has_what_is_unknown_looked_for_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.probe.PROBE_DELAYS_S", (0.0, 3_600.0))
    async with desk.sync.lock:  # nobody else asks for it
        desk.fault("lost*1; orders_get:error=-1*1")
        await desk.submit("o-1", **MARKET)
        await desk.event("o-1", "order.outcome_probed")
        await connects(desk, 2)
        assert (await desk.ended("o-1")).status is Status.FILLED


async def test_a_broker_that_hangs_costs_a_deadline_and_no_order(desk: Desk) -> None:
    desk.fault("hang_after=0*1")
    await desk.submit("o-1", **MARKET)
    await desk.open("o-2")
    assert (await desk.ended("o-1")).status is Status.FILLED
    assert sorted(deal["order"] for deal in desk.deals()) == sorted(
        desk.ledger.order(one).order_ticket  # type: ignore[union-attr]
        for one in ("o-1", "o-2")
    )


async def test_short_losses_are_not_told_of_each_order(desk: Desk) -> None:
    assert desk.trade.pid is not None
    os.kill(desk.trade.pid, signal.SIGKILL)
    await down(desk)
    await desk.open("o-1")
    assert "parked" not in desk.topics("o-1")


async def test_a_target_that_cannot_be_seen_is_looked_at_again(desk: Desk) -> None:
    await desk.open("o-1")
    desk.fault("positions_get:error=-1*2")
    await desk.submit("c-1", action="close", target_order_id="o-1")
    assert (await desk.ended("c-1")).status is Status.FILLED
