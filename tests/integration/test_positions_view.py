"""The views over the executions, on the real engine: positions and orders as the fold of their fills."""

from decimal import Decimal
from typing import Any

import pytest

from ledger.events import order_stream
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.follower import Batch
from tests.engine import engine_path, fresh_database
from tests.history import History, full_fill, partial_fill

Row = dict[str, Any]


async def positions_after(*fills: dict[str, Any]) -> list[Row]:
    """The positions after these deals, each of an order of its own."""
    history = History()
    for number, changes in enumerate(fills, 1):
        history.commit([(order_stream(f"o{number}"), full_fill(deal=number, **changes))])
    return await rows_of(history, "positions", "position_id")


async def rows_of(history: History, view: str, key: str) -> list[Row]:
    database = fresh_database()
    sink = ClickHouseSink(Target(path=engine_path()), history.ledger_id, database=database)
    await sink.open()
    for _ in range(2):  # repeated rows must not count twice
        await sink.write(Batch(history.records))
    await sink.close()
    client = connect(Target(path=engine_path()))
    found = list(client.query(f"SELECT * FROM {database}.{view} ORDER BY {key}").named_results())
    client.close()
    return found


def deal(side: str, volume: str, price: str, **more: Any) -> dict[str, Any]:
    return {"side": side, "volume": Decimal(volume), "price": Decimal(price), **more}


async def test_a_bought_position_is_long_and_open() -> None:
    (row,) = await positions_after(deal("buy", "0.5", "1.1"))
    assert (row["side"], row["position_status"], row["quantity"]) == ("long", "open", Decimal("0.5"))
    assert (row["entry_price"], row["closed_at"], row["entry_order_id"]) == (Decimal("1.1"), None, "o1")


async def test_entries_are_weighted_by_volume_and_exits_do_not_move_them() -> None:
    (row,) = await positions_after(
        deal("sell", "1", "100"), deal("sell", "3", "104"), deal("buy", "2", "90", entry=1, profit=Decimal("26"))
    )
    assert (row["side"], row["quantity"], row["entry_price"]) == ("short", Decimal(2), Decimal(103))
    assert row["realized_pnl"] == Decimal(26)


async def test_a_position_whose_volume_is_gone_is_closed() -> None:
    (row,) = await positions_after(deal("buy", "0.3", "1.1"), deal("sell", "0.3", "1.2", entry=1))
    assert (row["position_status"], row["side"], row["quantity"]) == ("closed", "long", 0)
    assert row["closed_at"] is not None


async def test_costs_are_summed_apart_from_profit() -> None:
    (row,) = await positions_after(
        deal("buy", "1", "1", commission=Decimal("-1.5"), fee=Decimal("-0.25"), swap=Decimal("-0.1")),
        deal("sell", "1", "2", commission=Decimal("-1.5"), profit=Decimal(10), swap=Decimal("-0.2")),
    )
    assert (row["commission_total"], row["swap_total"], row["realized_pnl"]) == (
        Decimal("-3.25"),
        Decimal("-0.3"),
        Decimal(10),
    )


async def test_positions_are_told_apart_by_their_identifier() -> None:
    rows = await positions_after(deal("buy", "1", "1", position_id=7), deal("sell", "2", "1", position_id=8))
    assert [(row["position_id"], row["side"]) for row in rows] == [(7, "long"), (8, "short")]


async def test_a_deal_without_a_position_yet_stands_under_its_order_ticket() -> None:
    (row,) = await positions_after(deal("buy", "1", "1", position_id=0, order_ticket=77, provisional=True))
    assert row["position_id"] == 77


async def test_large_prices_and_volumes_do_not_overflow() -> None:
    (row,) = await positions_after(*[deal("buy", "9999999999", "9999999999.99999999")] * 1)
    assert row["entry_price"] == Decimal("9999999999.99999999")


@pytest.mark.parametrize(("prices", "average"), [(("1.1", "1.3"), "1.2"), (("1", "2"), "1.5")])
async def test_an_order_shows_the_average_of_its_fills(prices: tuple[str, str], average: str) -> None:
    history = History()
    first = partial_fill(1, volume=Decimal(1), price=Decimal(prices[0]))
    second = full_fill(2, volume=Decimal(1), price=Decimal(prices[1]))
    history.commit([(order_stream("o"), first), (order_stream("o"), second)])
    (row,) = await rows_of(history, "executions_by_order", "order_id")
    assert (row["average_fill_price"], row["quantity"], row["fill_count"]) == (Decimal(average), Decimal(2), 2)
    assert row["complete"] == 1
