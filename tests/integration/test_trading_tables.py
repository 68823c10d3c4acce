"""The tables after random trading: what the broker has, to the last decimal. TRADES=10000 makes it as many orders."""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from gateway.simulated import constants as c
from gateway.simulated.market import UNIT, units
from gateway.simulated.rows import PositionRow
from ledger.book import Book, positions_at_broker
from ledger.events import decode
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.digest import agree_tables, batches_of
from tests.engine import engine_path, fresh_database
from tests.history import past_of
from tests.trading import Trader

TRADES = int(os.environ.get("TRADES", "600"))
MODES = {
    "hedging": c.ACCOUNT_MARGIN_MODE_RETAIL_HEDGING,
    "netting": c.ACCOUNT_MARGIN_MODE_RETAIL_NETTING,
    "exchange": c.ACCOUNT_MARGIN_MODE_EXCHANGE,
}
Row = dict[str, Any]


class Traded:
    """Some trading, and the tables that followed it."""

    def __init__(self, trader: Trader, client: Any, database: str) -> None:
        self.trader, self._client, self.database = trader, client, database

    def rows(self, sql: str, **parameters: Any) -> list[Row]:
        named = sql.replace("{db}", self.database)
        return list(self._client.query(named, parameters=parameters).named_results())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(MODES))
async def traded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traded]:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    folder: Path = tmp_path_factory.mktemp("desk")
    trader = Trader(folder, seed, MODES[request.param]).trade(TRADES)
    target, database = Target(path=engine_path()), fresh_database()
    records = trader.history.records
    sink = ClickHouseSink(target, trader.history.ledger_id, database=database, past=past_of(records))
    await sink.open()
    for batch in batches_of(records, 700):
        await sink.write(batch)
    await sink.close()
    client = connect(target)
    yield Traded(trader, client, database)
    client.close()
    trader.desk.close()


def of_broker(rows: list[PositionRow]) -> dict[int, tuple[str, Decimal, Decimal]]:
    return {
        row.identifier: (
            "short" if row.type else "long", Decimal(units(row.volume)) / UNIT, Decimal(units(row.price_open)) / UNIT,
        )
        for row in rows
    }  # fmt: skip


def of_table(rows: list[Row]) -> dict[int, tuple[str, Decimal, Decimal]]:
    return {
        row["position_id"]: (row["side"], row["quantity"], row["entry_price"])
        for row in rows
        if row["position_status"] == "open"
    }


def money(deals: list[Any]) -> tuple[Decimal, ...]:
    return tuple(
        sum((Decimal(repr(getattr(one, name))) for one in deals), Decimal(0))
        for name in ("volume", "profit", "commission", "swap", "fee")
    )


def test_open_positions_are_those_of_the_broker(traded: Traded) -> None:
    held = of_table(traded.rows("SELECT * FROM {db}.positions FINAL"))
    assert held == of_broker(traded.trader.desk.positions)
    assert held


def test_every_position_has_the_money_of_its_deals(traded: Traded) -> None:
    state = traded.trader.desk.state
    for row in traded.rows("SELECT * FROM {db}.positions FINAL"):
        _, profit, commission, swap, fee = money(state.deals_of_position(row["position_id"]))
        assert (row["realized_pnl"], row["commission_total"], row["swap_total"]) == (profit, commission + fee, swap)


def test_the_executions_add_up_to_the_brokers_deals(traded: Traded) -> None:
    deals = traded.trader.desk.deals
    (row,) = traded.rows(
        "SELECT sum(fill_quantity) v, sum(profit) p, sum(commission) c, sum(swap) s, sum(fee) f, count() n, "
        "countIf(provisional) open FROM {db}.executions FINAL"
    )
    assert (row["v"], row["p"], row["c"], row["s"], row["f"]) == money(deals)
    assert (row["n"], row["open"]) == (len(deals), 0)


def test_the_fills_of_each_order_are_its_deals(traded: Traded) -> None:
    by_ticket: dict[int, list[Any]] = {}
    for deal in traded.trader.desk.deals:
        by_ticket.setdefault(deal.order, []).append(deal)
    rows = traded.rows(
        "SELECT any(ticket) ticket, sum(fill_quantity) v, sum(profit) p, sum(commission) c, sum(swap) s, sum(fee) f "
        "FROM {db}.executions FINAL WHERE order_id != '' GROUP BY order_id"
    )
    assert rows
    for row in rows:
        assert (row["v"], row["p"], row["c"], row["s"], row["f"]) == money(by_ticket[row["ticket"]])


def test_the_tables_have_the_digests_of_the_ledger(traded: Traded) -> None:
    history = traded.trader.history
    found = agree_tables(history.records, past_of(history.records), traded._client, traded.database, history.ledger_id)
    assert [one.table for one in found if not one.ok] == []


def test_positions_at_a_time_of_the_broker_are_those_it_had_then(traded: Traded) -> None:
    pairs = [(one, decode(one)) for one in traded.trader.history.records]
    looks = list(traded.trader.seen.items())
    for at, rows in looks[:: max(1, len(looks) // 5)]:
        held = traded.rows("SELECT * FROM {db}.positions_at_broker(at = {at:DateTime64(6, 'UTC')})", at=_text(at))
        assert of_table(held) == of_broker(rows)
        ours = positions_at_broker(pairs, at)
        assert {
            (one.position_id, one.volume, one.realized_profit, one.commission + one.fee) for one in ours.values()
        } == {(one["position_id"], one["quantity"], one["realized_pnl"], one["commission_total"]) for one in held}


def test_positions_as_recorded_are_those_the_first_events_give(traded: Traded) -> None:
    records = traded.trader.history.records
    half = decode(records[len(records) // 2])
    rows = traded.rows(
        "SELECT * FROM {db}.positions_as_recorded(at = {at:DateTime64(6, 'UTC')})", at=_text(half.recorded_at)
    )
    book = Book()
    book.take([(one, decode(one)) for one in records[: half.seq]])
    assert of_table(rows) == {
        one.position_id: (one.side, one.volume, one.entry_price) for one in book.positions if one.is_open
    }


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")
