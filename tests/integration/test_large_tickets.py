"""Tickets are unsigned 64-bit numbers, and beyond 2**53 a float would change them: they come through whole."""

import json

import orjson
import pytest

from gateway import interface as api
from gateway.messages import encode, outgoing
from ledger.account_events import AccountReconciled, Difference, ExternalDealObserved
from ledger.events import decode
from ledger.intake import read_order
from ledger.trade import Deal
from projections.clickhouse import ClickHouseSink, Target, connect
from projections.digest import batches_of
from tests.decider import D
from tests.engine import engine_path, fresh_database
from tests.history import History, full_fill, past_of

LARGEST = 2**64 - 1
ODD = 2**53 + 1


@pytest.fixture
def history():
    history = History()
    numbers = {"order_ticket": LARGEST - 1, "position_id": LARGEST - 1}
    for number, kind in enumerate(history.orders(1).records):
        if kind.topic == "order.filled":
            stream = history.records[number].stream
    history.commit([(stream, full_fill(LARGEST, **numbers)), (stream, full_fill(ODD, **numbers))])
    by_hand = Deal(ticket=LARGEST - 2, order=ODD, position_id=ODD, symbol="EURUSD", volume=D("0.1"), price=D("1.1"))
    differing = Difference(
        kind="cost", ours="", brokers="1", policy="alert", position_id=ODD, order_ticket=LARGEST, deal=LARGEST
    )
    report = AccountReconciled(trigger="start", positions=1, orders=0, deals=1, differences=(differing,))
    account = f"account/{history.login}"
    history.commit([(account, ExternalDealObserved(deal=by_hand)), (account, report)])
    return history


async def test_the_tables_hold_the_tickets_and_agree_with_the_ledger(history):
    target, database = Target(path=engine_path()), fresh_database()
    sink = ClickHouseSink(target, history.ledger_id, database=database, past=past_of(history.records))
    await sink.open()
    for batch in batches_of(history.records, 100):
        await sink.write(batch)
    await sink.close()
    client = connect(target)

    def rows(sql: str) -> list[tuple]:
        return client.query(sql.replace("FROM ", f"FROM {database}.")).result_rows

    try:
        told = rows("SELECT ticket, deal, position_id FROM executions FINAL WHERE deal > 1000 ORDER BY deal")
        big = LARGEST - 1
        assert told == [(big, ODD, big), (ODD, LARGEST - 2, ODD), (big, LARGEST, big)]
        assert {one[0] for one in rows("SELECT position_id FROM positions FINAL")} >= {ODD, big}
        assert (LARGEST,) in rows("SELECT deal FROM order_audit_trail WHERE deal > 1000")
        (shown,) = rows("SELECT differences.deal, differences.position_id FROM reconciliations")
        assert [list(one) for one in shown] == [[LARGEST], [ODD]]
    finally:
        client.close()


def test_messages_carry_them_in_and_out(history):
    filled = next(one for one in reversed(history.records) if one.topic == "order.filled" and b"18446744" in one.state)
    told = orjson.loads(encode(outgoing(filled, decode(filled)).message))
    assert told["position_id"] == LARGEST - 1
    asked = {"order_id": "c-1", "action": "close_by", "position_id": LARGEST, "position_by_id": str(LARGEST - 1)}
    request = read_order(orjson.dumps(asked)).request
    assert (request.position_id, request.position_by_id) == (LARGEST, LARGEST - 1)
    word = {"by": "ann", "reason": "x", "order_id": "o-1", "resolution": "found", "order_ticket": LARGEST}
    assert api.read(orjson.dumps(word), api.Resolve).order_ticket == LARGEST
    for wrong in (0, LARGEST + 1):
        with pytest.raises(ValueError, match="order_ticket"):
            api.read(json.dumps(word | {"order_ticket": wrong}).encode(), api.Resolve)
