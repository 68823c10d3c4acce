"""Trading by hand mixed with ours, at random: in the end the ledger holds what the broker holds.

`MANUAL_STEPS=5000` for the long form, `MANUAL_SEED` for another life; both are printed when it fails.
"""

import contextlib
import os
from decimal import Decimal as D
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.simulated.window import WindowRefused
from ledger.order import ENDED, Status
from tests.differences import agrees
from tests.gateway_desk import Desk, desk_in

STEPS = int(os.environ.get("MANUAL_STEPS", "120"))
SEED = int(os.environ.get("MANUAL_SEED", "7"))
_SETTLED = (*sorted(ENDED), Status.PLACED, Status.PARTIALLY_FILLED)
SYMBOLS = ("EURUSD", "XAUUSD")
BY_PROGRAM = 3  # DEAL_REASON_EXPERT


class Hands:
    """A person at the terminal, and a strategy beside."""

    def __init__(self, desk: Desk, random: Random) -> None:
        self.desk, self.random, self.given = desk, random, 0

    async def step(self) -> None:
        if self.random.random() < 0.4:
            await self.ours()
        else:
            with contextlib.suppress(WindowRefused):  # what the broker refuses is no trade
                self.by_hand()

    async def ours(self) -> None:
        self.given += 1
        positions = self.desk.window("positions")
        order: dict[str, Any] = {"symbol": self.random.choice(SYMBOLS), "volume": 0.1}
        order["order_type"] = self.random.choice(["buy", "sell"])
        if positions and self.random.random() < 0.5:
            order = {"action": "close", "position_id": self.random.choice(positions)["identifier"]}
        elif self.random.random() < 0.2:
            order = {"symbol": "EURUSD", "order_type": "buy_limit", "volume": 0.1, "price": 0.9}
        await self.desk.submit(f"o-{self.given}", **order)

    def by_hand(self) -> None:
        window, random = self.desk.window, self.random
        positions, orders = window("positions"), window("orders")
        choice = random.randrange(9)
        if choice == 0 and positions:
            one = random.choice(positions)
            window("close", ticket=one["ticket"], volume=random.choice([None, 0.03]))
        elif choice == 1 and positions:
            one = random.choice(positions)
            window("modify", ticket=one["ticket"], sl=random.choice([0.0, round(one["price_open"] * 0.9, 2)]))
        elif choice == 2 and orders:
            window(random.choice(["close", "fill"]), ticket=random.choice(orders)["ticket"])
        elif choice == 3:
            window("price", symbol=random.choice(SYMBOLS), points=random.randint(-50, 50))
        elif choice == 4 and len(positions) < 40:
            kind = random.choice(["buy", "sell"])
            window("trade", type=kind, symbol=random.choice(SYMBOLS), volume=random.choice([0.05, 0.2]))
        elif choice == 5 and len(orders) < 20:
            window("trade", type="buy-limit", symbol="EURUSD", volume=0.1, price=0.9)
        elif choice == 6 and len(positions) < 40:
            window("trade", type="sell", symbol=random.choice(SYMBOLS), volume=0.1, magic=777)
        elif choice == 7 and positions:
            self.by_staff(random.choice(positions))
        elif choice == 8:
            ours = [deal for deal in self.desk.deals()[-20:] if deal["magic"] > 777 and deal["reason"] == BY_PROGRAM]
            if ours:
                window("book", deal=random.choice(ours)["ticket"], swap=round(random.uniform(-3, 3), 2))

    def by_staff(self, position: dict[str, Any]) -> None:
        """What no deal tells of, and what a broker does over night."""
        window, random, ticket = self.desk.window, self.random, position["ticket"]
        choice = random.randrange(4)
        if choice == 0:
            window("reopen", ticket=ticket)
        elif choice == 1:
            window("amend", ticket=ticket, volume=random.choice([0.05, 0.15]))
        elif choice == 2:
            window("amend", ticket=ticket, price=round(position["price_open"] * 1.01, 2))
        else:
            window("amend", ticket=ticket, side="buy" if position["type"] else "sell")


@pytest.mark.parametrize("mode", ["hedging", "netting"])
async def test_after_random_trading_by_hand_and_by_us_the_ledger_holds_what_the_broker_holds(
    tmp_path: Path, mode: str
) -> None:
    random = Random(SEED)
    told = f"MANUAL_SEED={SEED} MANUAL_STEPS={STEPS} mode {mode}"
    async with desk_in(tmp_path / "d", f"--margin-mode={mode}", reconciles=True, MAX_ORDER_AGE_S="0") as desk:
        hands = Hands(desk, random)
        for number in range(STEPS):
            await hands.step()
            if number % 50 == 25:
                await desk.reconciler.run("demand")
            if number % 500 == 60:
                await desk.restart()
        for number in range(1, hands.given + 1):
            await settled(desk, f"o-{number}")
        await desk.reconciler.run("demand")
        last = await desk.reconciler.run("demand")
        assert last.differences == (), told
        await holds_what_the_broker_holds(desk, told)


async def settled(desk: Desk, order_id: str) -> None:
    await desk.ledger.load([order_id])
    await desk.until(order_id, *_SETTLED, timeout_s=60)


async def holds_what_the_broker_holds(desk: Desk, told: str) -> None:
    await agrees(desk, told)
    recorded = desk.reconciler._view.deals
    for deal in desk.deals():
        values = tuple(D(str(deal[name])) for name in ("volume", "price", "commission", "swap", "fee", "profit"))
        assert recorded.get(deal["ticket"]) == values, f"{told}: {deal}"
    working = {row["ticket"] for row in desk.window("orders") if row["magic"]}
    placed = {one.order_ticket for one in desk.ledger.open_orders.values()}
    assert placed == working, told
