"""The clients of a campaign: seeded requests of every kind, published until the bus has them.

A client that got no acknowledgement publishes again, and some do so anyway: repetitions are part of the load.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import nats
import nats.errors
import orjson
from nats.aio.client import Client

from ledger.order import Order, Status

SYMBOLS: Final = ("EURUSD", "GBPUSD", "USDJPY")
# Far from the market, so that working orders stay until they are cancelled.
FAR: Final = {"EURUSD": ("0.90000", "1.50000"), "GBPUSD": ("1.00000", "1.80000"), "USDJPY": ("110.000", "190.000")}
STOPS: Final = {"EURUSD": "0.8", "GBPUSD": "0.9", "USDJPY": "100"}
MOST_OPEN: Final = 60
MOST_WORKING: Final = 20
REPEAT: Final = 0.05
AGAIN: Final = 0.05
PUBLISH_S: Final = 1.0
PAUSE_S: Final = 0.05


class Requests:
    """Makes one request after the other. What it asks for depends on the seed, and on what it hears is open."""

    def __init__(self, chance: random.Random, prefix: str) -> None:
        self._chance, self._prefix = chance, prefix
        self._number = 0
        self._closed: set[str] = set()  # by what was asked for; now and then they are asked for again
        self.made: Counter[str] = Counter()

    def next(self, orders: Iterable[Order]) -> dict[str, Any]:
        chance = self._chance
        opened = [one for one in orders if one.action == "open" and one.request is not None]
        again = chance.random() < AGAIN
        filled = [
            one
            for one in opened
            if one.status is Status.FILLED and one.position_id and (again or one.order_id not in self._closed)
        ]
        working = [one for one in opened if one.status is Status.PLACED]
        kind = self._kind(len(filled), len(working))
        made: dict[str, Any] | None = None
        match kind:
            case "close" if filled:
                made = {"action": "close", "target_order_id": chance.choice(filled).order_id}
                if chance.random() < 0.3:
                    made["volume"] = 0.01
                else:
                    self._closed.add(made["target_order_id"])
            case "modify" if filled:
                target = chance.choice(filled)
                level = float(STOPS[target.symbol]) * (1 + chance.randrange(50) / 1000)
                # Above the market it protects a sell, below it a buy.
                field = "sl" if target.request is not None and target.request.side == "buy" else "tp"
                made = {"action": "modify", "target_order_id": target.order_id, field: round(level, 3)}
            case "change" if working:
                target = chance.choice(working)
                entry = self._entry(target.symbol, buy="buy" in (target.request.order_type if target.request else ""))
                made = {"action": "modify", "target_order_id": target.order_id, "price": entry}
            case "cancel" if working:
                made = {"action": "cancel", "target_order_id": chance.choice(working).order_id}
            case "close_by":
                made = self._close_by(filled)
            case "pending":
                symbol, buy = chance.choice(SYMBOLS), chance.random() < 0.5
                made = {
                    "symbol": symbol,
                    "order_type": "buy_limit" if buy else "sell_limit",
                    "volume": 0.01,
                    "price": self._entry(symbol, buy=buy),
                }
        if made is None:
            kind = "open"
            made = {
                "symbol": chance.choice(SYMBOLS),
                "order_type": chance.choice(("buy", "sell")),
                "volume": round(0.01 * chance.randint(1, 4), 2),
            }
        self.made[kind] += 1
        self._number += 1
        return {"order_id": f"{self._prefix}-{self._number:06}"} | made

    def _kind(self, positions: int, working: int) -> str:
        full, crowded = positions > MOST_OPEN, working > MOST_WORKING
        kinds = {
            "open": 10 if full else 40,
            "pending": 0 if crowded else 12,
            "close": 50 if full else 14,
            "modify": 8,
            "change": 6,
            "cancel": 40 if crowded else 8,
            "close_by": 12,
        }
        return self._chance.choices(list(kinds), list(kinds.values()))[0]

    def _entry(self, symbol: str, *, buy: bool) -> float:
        return round(float(FAR[symbol][0 if buy else 1]) * (1 + self._chance.randrange(100) / 10_000), 3)

    def _close_by(self, filled: list[Order]) -> dict[str, Any] | None:
        self._chance.shuffle(filled)
        for one in filled:
            for other in filled:
                same = one.symbol == other.symbol and one.request is not None and other.request is not None
                if same and one.request.side != other.request.side:  # type: ignore[union-attr]  # `same` says so
                    self._closed |= {one.order_id, other.order_id}
                    return {
                        "action": "close_by",
                        "position_id": one.position_id,
                        "position_by_id": other.position_id,
                    }
        return None


class Clients:
    """Publishes in the background. `accepted`: the order ids that the bus has acknowledged."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._connection: Client | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self.accepted: set[str] = set()
        self.messages = 0

    async def connect(self, url: str) -> None:
        async def ignore(_: Exception) -> None:
            pass  # the server is killed on purpose

        self._connection = await nats.connect(
            url, name="chaos", max_reconnect_attempts=-1, reconnect_time_wait=PAUSE_S, error_cb=ignore
        )

    def publish(self, request: dict[str, Any]) -> None:
        times = 2 if self._chance.random() < REPEAT else 1
        for _ in range(times):
            task = asyncio.create_task(self._until_accepted(request))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _until_accepted(self, request: dict[str, Any]) -> None:
        assert self._connection is not None
        payload, js = orjson.dumps(request), self._connection.jetstream()
        subject = f"orders.submitted.{request.get('symbol', 'EURUSD')}"
        while True:
            self.messages += 1
            try:
                await js.publish(subject, payload, timeout=PUBLISH_S)
            except (nats.errors.Error, TimeoutError, OSError):
                await asyncio.sleep(PAUSE_S)
                continue
            self.accepted.add(request["order_id"])
            return

    async def settled(self) -> None:
        """Returns when the bus has everything."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        if self._connection is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._connection.close()
