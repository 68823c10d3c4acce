"""Whatever is sent as an order, for `FUZZ_S` seconds (`make long`: 10 minutes): each message leaves an event, none ends
the service, and the order behind it is filled.

The seed is printed when it fails; `FUZZ_SEED` repeats it.
"""

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from gateway.config import load
from gateway.show import open_ledger
from ledger.events import decode
from tests.service import Listener, Service, market_order, serving

FUZZ_S: Final = float(os.environ.get("FUZZ_S", "10"))
SEED: Final = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(10**9)))
AT_ONCE: Final = 25

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["", "NaN", "1e400", "1_000", "-0", "\x00", "a/b", "ä" * 5000, "9" * 400, "'; DROP TABLE x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
SENSIBLE: Final[dict[str, list[Any]]] = {
    "order_id": ["f-1", "f-2", "f-3"],
    "action": ["open", "close", "modify", "cancel", "close_by"],
    "symbol": ["EURUSD", "USDJPY", "NOSUCH"],
    "order_type": ["buy", "sell", "buy_limit", "sell_stop", "buy_stop_limit"],
    "volume": [0.01, "0.02", 0.011],
    "price": [1.08, 0.9, "1.2"],
    "stop_limit_price": [1.1],
    "sl": [1.0, 2],
    "tp": [1.2, 0],
    "deviation": [10, -1],
    "filling": ["fok", "ioc", "return"],
    "time_in_force": ["gtc", "day", "specified"],
    "expires_at": ["2030-01-01T00:00:00Z", "yesterday"],
    "submitted_at": ["2026-01-01T00:00:00Z", 0],
    "target_order_id": ["f-1", "good-0"],
    "position_id": [1, 40000001],
    "position_by_id": [40000002],
    "order_ticket": [40000001],
    "magic": [7, 2**70],
    "comment": ["x", "ä" * 40],
    "account": ["7", 5000001],
}
orders = st.fixed_dictionaries(
    {"order_id": st.sampled_from(SENSIBLE["order_id"]) | st.text(max_size=70)},
    optional={name: st.sampled_from(values) | anything for name, values in SENSIBLE.items() if name != "order_id"},
)


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


whole = orders.map(as_json)
messages = (
    whole
    | st.builds(lambda data, cut: data[: cut % (len(data) + 1)], whole, st.integers(0, 2000))
    | anything.map(as_json)
    | st.binary()
)
batches = st.lists(messages, min_size=AT_ONCE, max_size=AT_ONCE)


class Sent:
    """What was sent, by its place in the stream of orders."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.messages: dict[int, bytes] = {}

    async def send(self, batch: list[bytes], name: str) -> None:
        """Sends them, and an order behind them, which must be filled."""
        async with Listener(self.service.info["nats_url"]) as listener:
            for one in [*batch, as_json(market_order(name))]:
                place = await listener.connection.jetstream().publish("orders.submitted.EURUSD", one)
                self.messages[place.seq] = one
            _, told = await listener.final(name, 30)
            assert told["status"] == "FILLED", told

    async def all_acknowledged(self) -> None:
        async with Listener(self.service.info["nats_url"]) as listener, asyncio.timeout(20):
            js = listener.connection.jetstream()
            while True:
                (consumer,) = await js.consumers_info("ORDERS")
                if not consumer.num_pending and not consumer.num_ack_pending:
                    return
                await asyncio.sleep(0.05)

    def without_event(self) -> list[bytes]:
        """Those that caused no event, and are no repetitions: of these only the first are recorded, all are counted."""
        store = open_ledger(load({"data": str(self.service.folder)}, {}))
        try:
            found, streams, after = set(), set(), 0
            while page := store.read(after, 10_000):
                for one in page:
                    source = decode(one).source
                    if source is not None and source.stream == "ORDERS":
                        found.add(source.stream_seq)
                    streams.add(one.stream)
                after = page[-1].seq
        finally:
            store.close()
        left = {place: one for place, one in self.messages.items() if place not in found}
        return [one for one in left.values() if f"order/{json.loads(one)['order_id']}" not in streams]


def test_whatever_is_sent_leaves_an_event_and_the_next_order_is_filled(tmp_path: Path) -> None:
    print(f"FUZZ_SEED={SEED}")  # shown when it fails
    end, count = time.monotonic() + FUZZ_S, 0
    with serving(tmp_path / "d", CLICKHOUSE_URL="off", KAFKA_BROKERS="off") as service:
        sent = Sent(service)

        def round_of(number: int) -> None:
            @seed(SEED + number)
            @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            @given(batch=batches)
            def fuzz(batch: list[bytes]) -> None:
                nonlocal count
                if time.monotonic() < end:
                    asyncio.run(sent.send(batch, f"good-{count}"))
                    count += 1

            fuzz()

        rounds = 0
        while time.monotonic() < end:
            round_of(rounds)
            rounds += 1

        asyncio.run(sent.all_acknowledged())
        assert sent.without_event() == []
        assert count > 0
        assert service.cli("verify").returncode == 0
        service.stop()
        assert "Traceback" not in service.log()
