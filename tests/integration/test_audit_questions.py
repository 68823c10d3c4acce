"""The ten questions of an audit, each answered by SQL over the read-only endpoint. What is expected is computed here
from the events of the ledger alone, by other means than the projection's."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
import pytest_asyncio
from clickhouse_connect.driver.exceptions import DatabaseError

from gateway.simulated import constants as c
from ledger.account_events import AccountReconciled, Difference, SnapshotTaken, TradingHalted, TradingResumed
from ledger.commands import OrderCommand, RecordDeals, StartSend
from ledger.decide import decide
from ledger.events import account_stream, decode, order_stream
from ledger.order import Order, evolve
from ledger.order_events import ConflictReceived, DuplicateReceived, OrderRequested
from ledger.trade import Position as Shown
from projections.clickhouse import ClickHouseSink, Target
from projections.digest import batches_of
from projections.endpoint import Endpoint
from tests.decider import again, answer, check, deal, not_sent, receive, start, unknown
from tests.engine import engine_path, fresh_database
from tests.history import History, past_of
from tests.trading import Trader

Row = dict[str, Any]
ACCOUNT = account_stream(5001)
CENT = Decimal("0.00000001")

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Symbol, side, price asked, (volume, price) of each fill, hours later.
SLIPPED = (
    ("EURUSD", "sell", "1.1", (("0.1", "1.09997"), ("0.2", "1.0999")), 0),
    ("EURUSD", "buy", "1.1", (("0.07", "1.10011"), ("0.23", "1.1")), 0),
    ("EURUSD", "sell", "1.1", (("0.3", "1.10004"),), 1),
    ("GBPUSD", "buy", "1.3", (("0.3", "1.30001"),), 1),
)


def live(history: History, order_id: str, *commands: OrderCommand) -> None:
    """An order lived through, each step in a commit of its own."""
    order = Order(order_id=order_id)
    for command in commands:
        events = decide(order, command)
        for event in events:
            order = evolve(order, event)
        if events:
            history.commit([(order_stream(order_id), event) for event in events])


def ledger(folder: Path) -> History:
    """Trading, and what an auditor looks for beside it."""
    trader = Trader(folder, 11, c.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING).trade(150)
    history = trader.history
    for number in range(6):
        live(history, f"rejected-{number}", receive(order_id=f"rejected-{number}"), check(False, 10019 - number % 2))
    for number in range(3):
        live(history, f"malformed-{number}", receive(order_id=f"malformed-{number}", volume="NaN"))
    for number, asked in enumerate(("1.1", "1.2", None, "1.3")):
        order_id = f"priced-{number}"
        price = {} if asked is None else {"price": asked}
        request = receive(order_id=order_id, **price)
        dealt = deal(10**6 + number, price=Decimal("1.2"), position_id=900 + number)
        live(history, order_id, request, check(), start(1), answer("success", dealt))
    # Others with what an average can go wrong by: volumes, sides, fills of one order, and hours.
    for number, (symbol, side, asked, prices, hour) in enumerate(SLIPPED):
        order_id = f"slipped-{number}"
        request = receive(order_id=order_id, symbol=symbol, order_type=side, price=asked)
        told = [
            deal(
                2 * 10**6 + 10 * number + place,
                volume,
                symbol=symbol,
                price=Decimal(price),
                type=int(side == "sell"),
                position_id=1900 + number,
                time_msc=1_772_373_600_123 + hour * 3_600_000,
            )
            for place, (volume, price) in enumerate(prices)
        ]
        known = {"point": Decimal("0.003"), "broker_utc_offset_s": 7200}
        sent = start(1, symbol=symbol, type=int(side == "sell"))
        late = RecordDeals(deals=tuple(told), **known)
        live(history, order_id, request, check(), sent, answer("success", *told[:1], **known), late)
    dealt = deal(3 * 10**6, position_id=2900)
    twice = (start(1), answer("retriable", again=again()), start(2), answer("success", dealt, attempt=2))
    live(history, "sent-twice", receive(order_id="sent-twice"), check(), *twice)
    live(history, "lost", receive(order_id="lost"), check(), start(1), unknown())
    live(history, "on its way", receive(order_id="away"), check(), start(1))
    live(history, "again", *[receive(order_id="again")] * 3, receive(order_id="again", volume="0.9"))
    live(
        history,
        "retried",
        receive(order_id="retried"),
        check(),
        start(1),
        not_sent(),
        StartSend(attempt=2, request=start(2).request),
    )
    history.commit([(ACCOUNT, TradingHalted(source="operator", reason="news", by="ann", cancel_orders=True))])
    history.commit([(ACCOUNT, TradingResumed(source="operator", reason="over", by="bob"))])
    open_now = trader.desk.positions[:3]
    shown = tuple(
        Shown(ticket=row.ticket, identifier=row.identifier, price_current=Decimal("1.5"), profit=Decimal(number))
        for number, row in enumerate(open_now, 1)
    )
    snapshot = SnapshotTaken(currency="USD", balance=Decimal("1e12"), equity=Decimal("0.5"), positions=shown)
    found = (Difference(kind="missing", ours="none", brokers="0.1", policy="alert", position_id=9),)
    history.commit([(ACCOUNT, snapshot)])
    history.commit([(ACCOUNT, AccountReconciled(trigger="start", positions=3, orders=0, deals=9, differences=found))])
    return history


class Audit:
    def __init__(self, history: History, client: Any) -> None:
        self.client = client
        self.events = [(one, decode(one)) for one in history.records]

    def ask(self, sql: str, **parameters: Any) -> list[Row]:
        rows = self.client.query(sql, parameters=parameters).named_results()
        return [{name: _utc(value) for name, value in row.items()} for row in rows]

    def told(self, topic: str) -> list[tuple[Any, Any]]:
        return [(one, envelope) for one, envelope in self.events if one.topic == topic]


def _utc(value: Any) -> Any:
    """The client shows times of UTC without a zone."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def audit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Audit]:
    history = ledger(tmp_path_factory.mktemp("desk"))
    database = fresh_database()
    sink = ClickHouseSink(
        Target(path=engine_path()), history.ledger_id, database=database, past=past_of(history.records)
    )
    await sink.open()
    for _ in range(2):  # what is there twice must not count twice
        for batch in batches_of(history.records, 100):
            await sink.write(batch)
    await sink.close()
    endpoint = Endpoint(engine_path(), database=database)
    await endpoint.start()
    host, _, port = endpoint.url.removeprefix("http://").rpartition(":")
    yield Audit(history, await _client(host, int(port), database))
    await endpoint.close()


async def _client(host: str, port: int, database: str) -> Any:
    import asyncio

    return await asyncio.to_thread(clickhouse_connect.get_client, host=host, port=port, database=database)


@pytest_asyncio.fixture(loop_scope="module")
async def ask(audit: Audit) -> Any:
    """The endpoint answers in this loop, so the client asks from a thread."""
    import asyncio

    async def asked(sql: str, **parameters: Any) -> list[Row]:
        return await asyncio.to_thread(audit.ask, sql, **parameters)

    return asked


async def test_what_happened_to_an_order(audit: Audit, ask: Any) -> None:
    rows = await ask("SELECT * FROM order_audit_trail WHERE order_id = 'priced-0' ORDER BY seq")
    mine = [(one, envelope) for one, envelope in audit.events if one.stream == "order/priced-0"]
    assert [(row["seq"], row["event"], row["stream_version"]) for row in rows] == [
        (one.seq, one.topic, one.version) for one, _ in mine
    ]
    assert [row["recorded_at"] for row in rows] == [envelope.recorded_at for _, envelope in mine]
    assert rows[-1]["deal"] == 10**6
    (refused,) = await ask(
        "SELECT said FROM order_audit_trail WHERE order_id = 'malformed-1' AND event = 'order.refused'"
    )
    assert "volume" in refused["said"]
    (said,) = await ask("SELECT count() AS n FROM order_audit_trail WHERE match(said, '^[0-9]+$')")
    assert said["n"] == 0


async def test_what_each_order_came_to_at_the_broker(audit: Audit, ask: Any) -> None:
    rows = {row["order_id"]: row for row in await ask("SELECT * FROM executions_by_order")}
    deals: dict[str, dict[int, Any]] = defaultdict(dict)
    for one, envelope in audit.events:
        event: Any = envelope.data
        if one.topic in ("order.filled", "order.partially_filled", "order.fill_corrected"):
            deals[one.stream[6:]][event.deal] = (event.volume, event.price, event.commission)
        elif one.topic == "order.fill_costs_changed":
            volume, price, _ = deals[one.stream[6:]][event.deal]
            deals[one.stream[6:]][event.deal] = (volume, price, event.commission)
    assert rows.keys() == deals.keys()
    for order_id, found in deals.items():
        volume = sum(one[0] for one in found.values())
        average = sum(one[0] * one[1] for one in found.values()) / volume
        row = rows[order_id]
        assert (row["fill_count"], row["quantity"]) == (len(found), volume)
        assert row["average_fill_price"] == average.quantize(CENT, ROUND_DOWN)
        assert row["commission_total"] == sum(one[2] for one in found.values())


async def test_where_and_when_fills_slipped(audit: Audit, ask: Any) -> None:
    fills: dict[int, Any] = {}  # by deal: as it was told last, and where it belongs
    for one, envelope in audit.events:
        event: Any = envelope.data
        if one.topic in ("order.filled", "order.partially_filled"):
            fills[event.deal] = (event, event.broker_time or envelope.recorded_at)
        elif one.topic == "order.fill_corrected":
            fills[event.deal] = (event, event.broker_time or fills[event.deal][1])
    by_place = defaultdict(list)
    for fill, at in fills.values():
        if fill.requested_price is not None:
            worse = (fill.price - fill.requested_price) * (1 if fill.side == "buy" else -1)
            by_place[fill.symbol, at.replace(minute=0, second=0, microsecond=0)].append((fill, worse))
    rows = {(row["symbol"], row["hour"]): row for row in await ask("SELECT * FROM slippage_by_symbol_and_hour")}
    assert rows.keys() == by_place.keys()
    assert len(rows) >= 3
    for place, found in by_place.items():
        row = rows[place]
        lots = sum(fill.volume for fill, _ in found)
        average = sum(fill.volume * worse for fill, worse in found) / lots
        assert (row["fills"], row["lots"]) == (len(found), lots)
        assert row["average_slippage"] == average.quantize(CENT, ROUND_DOWN)
        assert row["worse"] == sum(worse > 0 for _, worse in found)
        assert row["better"] == sum(worse < 0 for _, worse in found)
        points = [(worse / fill.point).quantize(CENT) for fill, worse in found if fill.point]
        assert row["worst_points"] == max(points, default=None)
        mean = (sum(points) / len(points)).quantize(CENT, ROUND_DOWN) if points else None
        assert row["average_points"] == mean


async def test_why_orders_were_rejected_and_how_often(audit: Audit, ask: Any) -> None:
    rows = await ask("SELECT * FROM rejections_by_retcode")
    rejected = Counter(envelope.data.retcode for _, envelope in audit.told("order.rejected"))
    refused = len(audit.told("order.refused"))
    requested = len(audit.told("order.requested"))
    assert {row["retcode"]: row["rejected"] for row in rows if row["order_status"] == "rejected"} == dict(rejected)
    assert sum(row["rejected"] for row in rows if row["order_status"] == "refused") == refused
    assert {row["requested_in_all"] for row in rows} == {requested}
    assert {row["share"] for row in rows} == {round(row["rejected"] / requested, 6) for row in rows}


async def test_what_is_open(audit: Audit, ask: Any) -> None:
    net: dict[int, Decimal] = defaultdict(Decimal)
    symbols: dict[int, str] = {}
    last: dict[int, Any] = {}
    for one, envelope in audit.events:
        event: Any = envelope.data
        if one.topic in ("order.filled", "order.partially_filled", "order.fill_corrected"):
            last[event.deal] = (
                event.position_id or event.order_ticket,
                event.symbol,
                event.side == "buy",
                event.volume,
            )
        elif one.topic == "account.external_deal_observed" and event.deal.type < 2:
            dealt = event.deal
            last[dealt.ticket] = (dealt.position_id, dealt.symbol, dealt.type == 0, dealt.volume)
    for position, symbol, buy, volume in last.values():
        net[position] += volume if buy else -volume
        symbols[position] = symbol
    rows = {row["symbol"]: row for row in await ask("SELECT * FROM open_exposure")}
    for symbol in {symbols[position] for position, volume in net.items() if volume}:
        mine = [volume for position, volume in net.items() if volume and symbols[position] == symbol]
        row = rows[symbol]
        assert (row["long_lots"], row["short_lots"]) == (
            sum(v for v in mine if v > 0), -sum(v for v in mine if v < 0),
        )  # fmt: skip
        assert (row["net_lots"], row["open_positions"]) == (sum(mine), len(mine))
    assert sum(row["unrealized"] or 0 for row in rows.values()) == 6


async def test_what_was_earned_and_what_it_cost(audit: Audit, ask: Any) -> None:
    money: dict[int, Decimal] = {}
    for one, envelope in audit.events:
        event: Any = envelope.data
        if one.topic == "account.external_deal_observed":
            event = event.deal
            money[event.ticket] = event.profit + event.commission + event.swap + event.fee
        elif one.topic.startswith("order.") and hasattr(event, "commission") and hasattr(event, "deal"):
            money[event.deal] = event.profit + event.commission + event.swap + event.fee
    (row,) = await ask(
        "SELECT sum(net) AS net, sum(deals) AS deals, sum(deals_with_costs_unknown) AS open FROM realised_profit"
    )
    assert (row["net"], row["deals"], row["open"]) == (sum(money.values()), len(money), 0)


async def test_how_long_the_steps_take(audit: Audit, ask: Any) -> None:
    requested, sent, answered, filled = (dict[str, datetime]() for _ in range(4))
    attempts: dict[tuple[str, int], datetime] = {}
    answered_attempt: dict[str, datetime] = {}
    for one, envelope in audit.events:
        event: Any = envelope.data
        if one.topic == "order.requested":
            requested[one.stream] = envelope.recorded_at
        elif one.topic == "order.send_started":
            sent.setdefault(one.stream, envelope.recorded_at)
            attempts[one.stream, event.attempt] = envelope.recorded_at
        elif one.topic == "order.broker_answered":
            answered[one.stream] = envelope.recorded_at  # the last answer of an order counts
            answered_attempt[one.stream] = attempts[one.stream, event.attempt]
        elif one.topic == "order.filled":
            filled[one.stream] = envelope.recorded_at
    steps = {
        "1 requested to sent": (requested, sent),
        "2 sent to answered": (answered_attempt, answered),
        "3 answered to filled": (answered, filled),
        "4 requested to filled": (requested, filled),
    }
    rows = {row["step"]: row for row in await ask("SELECT * FROM latency_percentiles")}
    assert rows.keys() == steps.keys()
    for step, (begun, ended) in steps.items():
        waits = sorted((at - begun[stream]) / timedelta(milliseconds=1) for stream, at in ended.items())
        row = rows[step]
        assert (row["orders"], row["max_ms"]) == (len(waits), waits[-1]), step
        for column, part in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
            assert row[column] == waits[int(len(waits) * part)], step


async def test_which_orders_are_unresolved(audit: Audit, ask: Any) -> None:
    rows = {row["order_id"]: row for row in await ask("SELECT * FROM unresolved_orders")}
    assert set(rows) == {"lost", "on its way", "retried"}
    unknown_at = audit.told("order.outcome_unknown")[0][1].recorded_at
    assert (rows["lost"]["state"], rows["lost"]["unresolved_since"]) == ("unknown", unknown_at)
    assert (rows["retried"]["state"], rows["retried"]["attempts"]) == ("sending", 2)


async def test_which_orders_came_again(audit: Audit, ask: Any) -> None:
    rows = await ask("SELECT * FROM duplicates_and_conflicts ORDER BY seq")
    told = [(one, env) for one, env in audit.events if isinstance(env.data, DuplicateReceived | ConflictReceived)]
    assert [(row["seq"], row["kind"], row["order_id"]) for row in rows] == [
        (one.seq, "duplicate" if isinstance(env.data, DuplicateReceived) else "conflict", one.stream[6:])
        for one, env in told
    ]
    assert [row["kind"] for row in rows] == ["duplicate", "duplicate", "conflict"]


async def test_who_halted_and_resumed(audit: Audit, ask: Any) -> None:
    rows = await ask("SELECT what, person, reason, cancels_orders, recorded_at FROM halts_and_resumes ORDER BY seq")
    halted, resumed = audit.told("account.halted")[0][1], audit.told("account.resumed")[0][1]
    assert [(row["what"], row["person"], row["reason"], bool(row["cancels_orders"])) for row in rows] == [
        ("halted", "ann", "news", True), ("resumed", "bob", "over", False),
    ]  # fmt: skip
    assert [row["recorded_at"] for row in rows] == [halted.recorded_at, resumed.recorded_at]


# --- beside the ten ---------------------------------------------------------------------------------------------


async def test_snapshots_and_reconciliations_have_their_tables(audit: Audit, ask: Any) -> None:
    (snapshot,) = await ask("SELECT * FROM account_snapshots FINAL")
    assert (snapshot["balance"], snapshot["equity"], snapshot["open_positions"]) == (10**12, Decimal("0.5"), 3)
    (difference,) = await ask("SELECT * FROM reconciliation_differences")
    assert (difference["kind"], difference["brokers"], difference["position_id"]) == ("missing", "0.1", 9)


async def test_every_order_of_the_ledger_is_one_row(audit: Audit, ask: Any) -> None:
    (row,) = await ask("SELECT count() n, uniqExact(order_id) ids FROM orders FINAL")
    assert row["n"] == row["ids"] == sum(isinstance(env.data, OrderRequested) for _, env in audit.events)


WRITING = [
    "INSERT INTO orders (order_id) VALUES ('x')",
    "ALTER TABLE orders DELETE WHERE 1",
    "ALTER TABLE executions UPDATE profit = 0 WHERE 1",
    "DROP TABLE positions",
    "TRUNCATE TABLE order_events",
    "EXCHANGE TABLES positions AND orders",
    "RENAME TABLE positions TO other",
    "CREATE TABLE mine (x Int8) ENGINE = Memory",
    "CREATE VIEW mine AS SELECT 1",
    "OPTIMIZE TABLE orders FINAL",
    "SYSTEM STOP MERGES",
    "SET final = 0",
    "KILL QUERY WHERE 1",
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT file('/etc/passwd')",
    "SELECT * FROM url('http://127.0.0.1/', 'LineAsString')",
    "SELECT * FROM orders INTO OUTFILE '/tmp/orders'",
    "INSERT INTO FUNCTION file('/tmp/x', 'CSV') SELECT 1",
    "BACKUP TABLE orders TO File('/tmp/x')",
    "ATTACH TABLE other FROM '/tmp' (x Int8) ENGINE = MergeTree ORDER BY x",
]


@pytest.mark.parametrize("statement", WRITING)
async def test_a_reader_can_neither_write_nor_reach_files(audit: Audit, ask: Any, statement: str) -> None:
    with pytest.raises(DatabaseError):
        await ask(statement)
