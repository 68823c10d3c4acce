"""What every implementation of `gateway.broker.Broker` promises, over a real simulated broker process: in this process,
in a child, and over the Linux bridge to a real rpyc server."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from gateway.broker import (
    Account,
    Activity,
    Answered,
    Broker,
    Checked,
    CheckOutcome,
    Evidence,
    LoginRefused,
    NotSent,
    Outcome,
    Send,
    Symbol,
    Target,
    TargetView,
    TerminalError,
    Tick,
    Unknown,
)
from gateway.elapsed import elapsed_s
from gateway.mt5 import Mt5Session
from gateway.simulated.link import stop_broker
from gateway.simulated.window import ask
from gateway.terminal import TerminalProcess
from gateway.terminal_child import TerminalSettings, load_module
from ledger.trade import TargetImage, TradeRequest
from tests.mt5linux_server import BridgeServer
from tests.simulated import LOGIN, SERVER, broker_in, buy, send


class InProcess:
    """Mt5Session behind the port: what it does, without the process around it."""

    def __init__(self, settings: TerminalSettings, password: str = "") -> None:
        self.session = Mt5Session(
            load_module(settings), login=settings.login, password=password, server=settings.server
        )

    async def connect(self) -> Account:
        return self.session.connect()

    async def check(self, requests: Sequence[TradeRequest]) -> list[CheckOutcome]:
        return [self.session.check(request) for request in requests]

    async def send(self, sends: Sequence[Send]) -> list[Outcome]:
        return [self.session.send(one) for one in sends]

    async def symbol(self, name: str) -> Symbol | None:
        return self.session.symbol(name)

    async def tick(self, name: str) -> Tick | None:
        return self.session.tick(name)

    async def account(self) -> Account:
        return self.session.account()

    async def find(self, magics: Sequence[int], comments: Sequence[str], since_s: float) -> Evidence:
        return self.session.find(magics, comments, since_s)

    async def target(self, target: Target) -> TargetView:
        return self.session.target(target)

    async def activity(self, since_msc: int, *, orders: bool = True, rest: bool = True) -> Activity:
        return self.session.activity(since_msc, orders=orders, rest=rest)

    async def verify(self) -> Account:
        return self.session.verify()

    async def close(self) -> None:
        self.session.close()


class Bridged:
    """Terminals over a server for each broker folder."""

    def __init__(self) -> None:
        self.servers: dict[Path, BridgeServer] = {}

    def __call__(self, settings: TerminalSettings, password: str = "") -> TerminalProcess:
        folder = settings.broker_folder
        if folder not in self.servers:
            self.servers[folder] = BridgeServer(folder)
        port = self.servers[folder].port
        return TerminalProcess(msgspec.structs.replace(settings, kind="mt5linux", bridge_port=port), password)


Implementation = Callable[[TerminalSettings, str], Broker]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("port")
    with broker_in(folder / "broker"):
        yield folder


@pytest.fixture(scope="module")
def bridged() -> Iterator[Bridged]:
    bridged = Bridged()
    yield bridged
    for server in bridged.servers.values():
        server.close()


@pytest.fixture(params=["in-process", "in-child", "bridge"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    if request.param == "bridge":
        found: Implementation = request.getfixturevalue("bridged")
        return found
    return InProcess if request.param == "in-process" else TerminalProcess


def settings_of(folder: Path, **changes: object) -> TerminalSettings:
    return TerminalSettings(**({"folder": str(folder), "login": LOGIN, "server": SERVER} | changes))  # type: ignore[arg-type]


@pytest.fixture
async def broker(implementation: Implementation, folder: Path) -> AsyncIterator[Broker]:
    broker = implementation(settings_of(folder), "any")
    await broker.connect()
    yield broker
    await broker.close()


@pytest.fixture
def magic() -> int:
    """63 bits that no other test uses."""
    return time.time_ns() | 1 << 62


async def test_connecting_shows_the_account_and_the_servers_zone(broker: Broker) -> None:
    account = await broker.connect()
    assert (account.login, account.server, account.currency, account.margin_mode) == (LOGIN, SERVER, "USD", 2)
    assert account.server_utc_offset_s == 7200


async def test_a_market_order_is_answered_with_its_deal_and_the_costs_are_in_it(broker: Broker, magic: int) -> None:
    [outcome] = await broker.send([send(buy(magic, volume=Decimal("0.10"), comment="token"))])
    assert isinstance(outcome, Answered)
    result, [deal] = outcome.result, outcome.deals
    assert (result.retcode, result.deal, result.order) == (10009, deal.ticket, deal.order)
    assert (deal.volume, deal.commission, deal.price) == (Decimal("0.1"), Decimal("-0.35"), result.price)
    assert (deal.magic, deal.comment, deal.symbol) == (magic, "token", "EURUSD")


async def test_a_position_is_closed_by_its_ticket_and_the_deal_carries_the_profit(broker: Broker, magic: int) -> None:
    [opened] = await broker.send([send(buy(magic))])
    assert isinstance(opened, Answered)
    [closed] = await broker.send([send(buy(magic, type=1, position=opened.result.order))])
    assert isinstance(closed, Answered)
    assert closed.deals[0].entry == 1
    assert closed.deals[0].position_id == opened.result.order
    assert (await broker.find([magic], [], 60)).positions == ()


@pytest.mark.parametrize(
    ("changes", "retcode"),
    [
        ({}, 0),
        ({"volume": Decimal(101)}, 10014),
        ({"sl": Decimal(2)}, 10016),
        ({"symbol": "XAUUSD", "volume": Decimal(1000)}, 10019),
        ({"symbol": "NOPE"}, 10013),
    ],
)
async def test_a_check_has_no_effect_and_says_what_send_will(
    broker: Broker, magic: int, changes: dict[str, object], retcode: int
) -> None:
    request = buy(magic, **changes)
    [checked] = await broker.check([request])
    assert isinstance(checked, Checked)
    assert checked.result.retcode == retcode
    assert await broker.find([magic], [], 60) == Evidence(complete=True)
    [outcome] = await broker.send([send(request)])
    assert isinstance(outcome, Answered)
    assert outcome.result.retcode == (retcode or 10009)
    assert bool(outcome.deals) == (retcode == 0)


async def test_outcomes_come_in_the_order_of_the_requests(broker: Broker, magic: int) -> None:
    volumes = [Decimal(number) / 100 for number in range(1, 21)]
    outcomes = await broker.send([send(buy(magic, volume=volume)) for volume in volumes])
    assert [outcome.result.volume for outcome in outcomes if isinstance(outcome, Answered)] == volumes
    checks = await broker.check([buy(magic, volume=Decimal(volume)) for volume in (1, 1000, 1)])
    assert [check.result.retcode for check in checks if isinstance(check, Checked)] == [0, 10014, 0]


async def test_a_request_past_its_time_is_not_sent_and_the_others_are(broker: Broker, magic: int) -> None:
    late = Send(buy(magic), elapsed_s() - 0.001)
    outcomes = await broker.send([send(buy(magic)), late, send(buy(magic))])
    assert [type(outcome) for outcome in outcomes] == [Answered, NotSent, Answered]
    assert outcomes[1] == NotSent(0, "not_after passed")
    assert len((await broker.find([magic], [], 60)).deals) == 2


async def test_what_the_binding_cannot_carry_is_not_sent(broker: Broker, magic: int) -> None:
    [outcome] = await broker.send([send(buy(magic, comment="c" * 30))])
    assert isinstance(outcome, NotSent)
    assert await broker.find([magic], [], 60) == Evidence(complete=True)


async def test_an_order_is_found_by_magic_or_by_token_in_history_deals_and_positions(
    broker: Broker, magic: int
) -> None:
    token = f"t{magic:x}"
    [sent] = await broker.send([send(buy(magic, comment=token))])
    assert isinstance(sent, Answered)
    for found in (await broker.find([magic], [], 60), await broker.find([], [token], 60)):
        assert found.complete
        assert [row.ticket for row in found.history] == [sent.result.order]
        assert found.deals == sent.deals
        assert [row.identifier for row in found.positions] == [sent.result.order]
        assert found.orders == ()


async def test_nothing_is_found_of_an_order_that_never_was(broker: Broker, magic: int) -> None:
    assert await broker.find([magic], [f"t{magic:x}"], 3600) == Evidence(complete=True)


async def test_a_symbol_shows_its_limits_as_exact_numbers(broker: Broker) -> None:
    symbol = await broker.symbol("EURUSD")
    assert symbol is not None
    assert (symbol.point, symbol.volume_step, symbol.volume_max) == (Decimal("0.00001"), Decimal("0.01"), Decimal(100))
    assert symbol.bid < symbol.ask
    assert await broker.symbol("NOPE") is None


async def test_a_tick_is_fresh_and_in_server_time(broker: Broker) -> None:
    tick = await broker.tick("EURUSD")
    assert tick is not None
    assert abs(tick.time_msc / 1000 - 7200 - time.time()) < 2
    assert tick.bid < tick.ask
    assert await broker.tick("NOPE") is None


@pytest.mark.parametrize("wrong", [{"login": 42}, {"server": "Elsewhere"}])
async def test_another_account_or_server_is_refused(
    implementation: Implementation, folder: Path, wrong: dict[str, object]
) -> None:
    broker = implementation(settings_of(folder, **wrong), "any")
    with pytest.raises(LoginRefused):
        await broker.connect()
    await broker.close()


async def test_a_wrong_password_is_refused_and_not_repeated(implementation: Implementation, tmp_path: Path) -> None:
    with broker_in(tmp_path / "broker") as folder:
        folder.mkdir()
        (folder / "password").write_text("right")
        broker = implementation(settings_of(tmp_path), "hunter2")
        with pytest.raises(LoginRefused) as caught:
            await broker.connect()
        assert "hunter2" not in f"{caught.value!r} {broker!r}"
        await broker.close()


async def test_a_broker_that_goes_leaves_no_wrong_claim_and_comes_back_with_everything(
    implementation: Implementation, tmp_path: Path, magic: int
) -> None:
    with broker_in(tmp_path / "broker"):
        broker = implementation(settings_of(tmp_path, restart=False), "any")
        await broker.connect()
        [before] = await broker.send([send(buy(magic))])
        stop_broker(tmp_path / "broker")
        outcomes = await broker.send([send(buy(magic)), send(buy(magic))])
        assert isinstance(outcomes[0], Unknown)
        assert isinstance(outcomes[1], NotSent)
        with pytest.raises(TerminalError):
            await broker.account()
        assert not (await broker.find([magic], [], 60)).complete
        await broker.connect()
        found = await broker.find([magic], [], 60)
        assert isinstance(before, Answered)
        assert (found.complete, found.deals) == (True, before.deals)
        await broker.close()


async def test_after_close_nothing_is_sent(implementation: Implementation, folder: Path, magic: int) -> None:
    broker = implementation(settings_of(folder), "any")
    await broker.connect()
    await broker.close()
    [outcome] = await broker.send([send(buy(magic))])
    assert isinstance(outcome, NotSent)


async def test_a_position_is_shown_as_a_target_until_it_is_closed_and_its_deals_after_it(
    broker: Broker, magic: int
) -> None:
    [opened] = await broker.send([send(buy(magic, volume=Decimal("0.2"), sl=Decimal("0.5")))])
    assert isinstance(opened, Answered)
    target = Target(position_id=opened.result.order)
    before = await broker.target(target)
    assert before.image.position is not None
    assert (before.image.position.identifier, before.image.position.volume) == (opened.result.order, Decimal("0.2"))
    assert (before.image.position.sl, before.image.position.magic) == (Decimal("0.5"), magic)
    assert before.deals == opened.deals
    [closed] = await broker.send([send(buy(magic, type=1, volume=Decimal("0.2"), position=opened.result.order))])
    assert isinstance(closed, Answered)
    after = await broker.target(target)
    assert after.image.position is None
    assert after.deals == (*opened.deals, *closed.deals)


async def test_a_target_that_never_was_is_shown_as_nothing(broker: Broker) -> None:
    assert await broker.target(Target(position_id=2**40, position_by_id=2**40 + 1, order_ticket=2**41)) == TargetView(
        image=TargetImage()
    )


async def test_activity_shows_positions_orders_and_deals_from_a_server_time_on(broker: Broker, magic: int) -> None:
    [opened] = await broker.send([send(buy(magic))])
    assert isinstance(opened, Answered)
    [deal] = opened.deals
    seen = await broker.activity(deal.time_msc)
    assert deal in seen.deals
    assert deal.order in {order.ticket for order in seen.history}
    assert deal.position_id in {position.identifier for position in seen.positions}
    later = await broker.activity(deal.time_msc + 60_000)
    assert deal not in later.deals
    assert deal.position_id in {position.identifier for position in later.positions}


async def test_activity_leaves_out_what_is_not_asked_for(broker: Broker, magic: int) -> None:
    [opened] = await broker.send([send(buy(magic))])
    assert isinstance(opened, Answered)
    seen = await broker.activity(opened.deals[0].time_msc, orders=False, rest=False)
    assert opened.deals[0] in seen.deals
    assert (seen.positions, seen.orders, seen.history) == ((), (), ())


async def test_a_connection_is_verified_and_a_cut_one_is_not(implementation: Implementation, tmp_path: Path) -> None:
    with broker_in(tmp_path / "broker"):
        broker = implementation(settings_of(tmp_path), "any")
        await broker.connect()
        assert (await broker.verify()).login == LOGIN
        ask(tmp_path / "broker", "cut", duration="1m")
        with pytest.raises(TerminalError, match="not connected to its broker"):
            await broker.verify()
        await broker.close()
