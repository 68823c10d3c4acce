"""The broker's process is killed between any two calls, and the account is what it was: seeded, on each kind of one."""

import os
import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.simulated.link import read_address
from gateway.simulated.terminal import load
from tests.simulated import broker_in

STEPS = 30


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with broker_in(tmp_path / "broker") as folder:
        yield folder


def view(mt5: ModuleType) -> tuple[Any, ...]:
    """All that does not follow the price."""
    account = mt5.account_info()
    return (
        account.balance,
        account.margin,
        mt5.history_deals_get(1, 2**31 - 1),
        mt5.history_orders_get(1, 2**31 - 1),
        [(*row[:13], row.swap, row.symbol, row.comment) for row in mt5.positions_get()],
        [(*row[:19], *row[20:]) for row in mt5.orders_get()],
    )


def step(mt5: ModuleType, chance: random.Random) -> None:
    """One call; the broker may refuse it."""
    positions, orders = mt5.positions_get(), mt5.orders_get()
    what = chance.choice(["open", "open", "close", "reverse", "pending", "modify", "remove", "stops"])
    tick = mt5.symbol_info_tick("EURUSD")
    request: dict[str, Any] = {"action": mt5.TRADE_ACTION_DEAL, "symbol": "EURUSD", "magic": chance.getrandbits(60)}
    volume = chance.randint(1, 20) / 100
    if what == "open" or (what in ("close", "reverse", "stops") and not positions):
        request |= {"volume": volume, "type": chance.randint(0, 1)}
    elif what in ("close", "reverse"):
        row = chance.choice(positions)
        part = row.volume if what == "close" else round(row.volume + volume, 2)
        request |= {"volume": part, "type": 1 - row.type, "position": row.ticket}
    elif what == "stops":
        row = chance.choice(positions)
        stop = round(tick.bid - 0.05 if row.type == 0 else tick.ask + 0.05, 5)
        request |= {"action": mt5.TRADE_ACTION_SLTP, "position": row.ticket, "sl": stop}
    elif what == "pending" or not orders:
        price = round(tick.bid - 0.01 - volume / 100, 5)
        request |= {"action": mt5.TRADE_ACTION_PENDING, "volume": volume, "type": 2, "type_filling": 2, "price": price}
    elif what == "modify":
        row = chance.choice(orders)
        request |= {"action": mt5.TRADE_ACTION_MODIFY, "order": row.ticket, "price": round(row.price_open - 1e-4, 5)}
    else:
        request |= {"action": mt5.TRADE_ACTION_REMOVE, "order": chance.choice(orders).ticket}
    assert mt5.order_send(request) is not None


def cents(amount: float) -> Decimal:
    return Decimal(repr(amount)).quantize(Decimal("0.01"))


@pytest.mark.parametrize("account", ["hedging", "netting", "exchange"])
def test_killing_the_brokers_process_between_calls_changes_nothing(folder: Path, account: str) -> None:
    """[R52] [R58]"""
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)
    chance = random.Random(seed)
    mt5 = load(folder, options=("--margin-mode", account))
    assert mt5.initialize()
    kills = set(chance.sample(range(STEPS), 5))
    for number in range(STEPS):
        step(mt5, chance)
        if number in kills:
            before, address = view(mt5), read_address(folder)
            assert address is not None
            os.kill(address.pid, signal.SIGKILL)
            assert mt5.account_info() is None
            assert mt5.initialize()
            assert view(mt5) == before
    deals = mt5.history_deals_get(1, 2**31 - 1)
    total = sum(cents(d.profit) + cents(d.commission) + cents(d.swap) + cents(d.fee) for d in deals)
    assert cents(mt5.account_info().balance) == total
    net: dict[str, Decimal] = defaultdict(Decimal)
    for row in deals[1:]:
        net[row.symbol] += Decimal(repr(row.volume)) * (1 if row.type == mt5.DEAL_TYPE_BUY else -1)
    for row in mt5.positions_get():
        net[row.symbol] -= Decimal(repr(row.volume)) * (1 if row.type == mt5.POSITION_TYPE_BUY else -1)
    assert not any(net.values()), "what the deals bought and sold is what is open"
    mt5.shutdown()
