"""One stored example of every event: what the stored bytes of this version mean, for ever.

    python -m tests.make_frozen_events

writes the files that are missing, as the writer would store them today. It never overwrites: a file that no longer
fits the code shows that events stored by an earlier version cannot be read any more, and the code has to give way.
"""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from ledger.account_events import AccountConnected, AccountDisconnected, MessageRejected
from ledger.events import BatchSealed, Checkpointed, Envelope, Event, LedgerCreated, Source, encode
from ledger.facts import OrderRequest, Raw
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    OrderChecked,
    OrderFailed,
    OrderFilled,
    OrderPartiallyFilled,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    SendAbandoned,
    SendStarted,
)
from ledger.trade import CheckResult, Deal, TradeRequest, TradeResult

FOLDER: Final = Path(__file__).parent / "data" / "events" / "v1"
_AT: Final = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
_RAW: Final = Raw(size=22, sha256="ab" * 32, text='{"note": "ünïcode \\n"}')
_REQUEST: Final = OrderRequest(
    order_id="ord_1",
    action="close",
    symbol="EURUSD",
    order_type="sell_stop_limit",
    volume=Decimal("0.3"),
    price=Decimal("1.10001"),
    stop_limit_price=Decimal("1.09"),
    sl=Decimal("1.2"),
    tp=Decimal("0.9"),
    deviation=20,
    filling="ioc",
    time_in_force="specified",
    expires_at="2026-03-02T00:00:00",
    position_id=901,
    position_by_id=902,
    order_ticket=903,
    target_order_id="ord_0",
    account="5001",
    magic=77,
    comment="ünïcode",
    timeframe="H1",
    valid_until=datetime(2026, 3, 1, 13, 0, tzinfo=UTC),
    created_at=datetime(2026, 3, 1, 11, 59, 59, 999999, UTC),
    correlation_id="corr-1",
    causation_id="cause-1",
    signal_id="signal-1",
    strategy_id="strategy-1",
    audit={"client_id": "c-1", "venue_mic": "XFRA"},
)
_TRADE_REQUEST: Final = TradeRequest(
    action=1,
    symbol="EURUSD",
    volume=Decimal("0.3"),
    type=1,
    price=Decimal("1.10001"),
    stoplimit=Decimal("1.09"),
    sl=Decimal("1.2"),
    tp=Decimal("0.9"),
    deviation=20,
    type_filling=1,
    type_time=2,
    expiration=1_772_409_600,
    magic=1877958915648434945,
    order=903,
    position=901,
    position_by=902,
    comment="ord_1.1a0fd9af1600b3.01",
)
_TRADE_RESULT: Final = TradeResult(
    retcode=10009,
    deal=7,
    order=900,
    volume=Decimal("0.3"),
    price=Decimal("1.10002"),
    bid=Decimal("1.10001"),
    ask=Decimal("1.10003"),
    comment="Request executed",
    request_id=5,
    retcode_external=1,
)
_DEAL: Final = Deal(
    ticket=7,
    order=900,
    time_msc=1_772_373_600_123,
    type=1,
    entry=1,
    magic=1877958915648434945,
    position_id=901,
    reason=3,
    volume=Decimal("0.3"),
    price=Decimal("1.10002"),
    commission=Decimal("-0.35"),
    swap=Decimal("-0.01"),
    profit=Decimal("12.5"),
    fee=Decimal("-0.02"),
    symbol="EURUSD",
    comment="ord_1.1a0fd9af1600b3.01",
    external_id="x-1",
)
_FILL: Final = {
    "symbol": "EURUSD",
    "side": "sell",
    "order_ticket": 900,
    "deal": 7,
    "position_id": 901,
    "volume": Decimal("0.3"),
    "price": Decimal("1.10002"),
    "filled_volume": Decimal("0.3"),
    "attempts": 2,
    "requested_price": Decimal("1.10001"),
    "point": Decimal("0.00001"),
    "commission": Decimal("-0.35"),
    "swap": Decimal("-0.01"),
    "fee": Decimal("-0.02"),
    "profit": Decimal("12.5"),
    "entry": 1,
    "reason": 3,
    "broker_time_msc": 1_772_373_600_123,
    "broker_utc_offset_s": 7200,
    "broker_time": datetime(2026, 3, 1, 12, 0, 0, 123000, UTC),
    "retcode": 10009,
    "retcode_name": "TRADE_RETCODE_DONE",
}

_EVENTS: Final[tuple[Event, ...]] = (
    OrderRequested(request=_REQUEST, content="cd" * 32, raw=_RAW, symbol="EURUSD", age_from=_AT, accepted=False),
    DuplicateReceived(number=100, standing_version=5, standing_topic="order.filled", status="filled"),
    ConflictReceived(content="ef" * 32, raw=_RAW, reasons=("volume: 'NaN' is not a decimal number",), symbol="EURUSD"),
    OrderRefused(reasons=("symbol is empty", "volume is missing"), category="malformed", symbol="EURUSD"),
    OrderStale(age_s=Decimal("30.001"), limit_s=Decimal("30.0"), symbol="EURUSD"),
    OrderChecked(
        passed=True,
        result=CheckResult(
            retcode=10019,
            balance=Decimal("10000.55"),
            equity=Decimal("10001"),
            profit=Decimal("0.45"),
            margin=Decimal("33.3"),
            margin_free=Decimal("9967.7"),
            margin_level=Decimal("30033.03"),
            comment="No money",
        ),
        retcode_name="TRADE_RETCODE_NO_MONEY",
        problem="no reply",
    ),
    SendStarted(attempt=1, request=_TRADE_REQUEST),
    BrokerAnswered(
        attempt=1,
        result=_TRADE_RESULT,
        retcode_name="TRADE_RETCODE_DONE",
        verdict="success",
        description="request completed",
        latency_s=Decimal("0.012345"),
    ),
    SendAbandoned(attempt=1, code=-10005, reason="no connection"),
    OutcomeUnknown(attempt=1, code=-10005, reason="no reply before the deadline", symbol="EURUSD"),
    OutcomeProbed(attempt=1, complete=True, found=False, reason="the terminal is not connected"),
    OutcomeResolved(attempt=1, resolution="found", by="probe", evidence="deal 7", order_ticket=900, symbol="EURUSD"),
    OrderPartiallyFilled(**_FILL, remaining_volume=Decimal("0.1"), provisional=True, raw=_DEAL),
    OrderFilled(**_FILL, remaining_volume=Decimal(0), provisional=True, raw=_DEAL),
    OrderRejected(
        symbol="EURUSD",
        retcode=10019,
        retcode_name="TRADE_RETCODE_NO_MONEY",
        category="fatal",
        description="not enough money",
        attempts=2,
        retriable=True,
        advice="add funds",
    ),
    OrderFailed(symbol="EURUSD", category="fatal", reason="proven absent", attempts=2, retriable=True),
    AnomalyDetected(kind="late_fill", detail="a deal after failed", symbol="EURUSD"),
    AccountConnected(
        login=5001,
        server="Demo",
        currency="EUR",
        margin_mode=2,
        balance=Decimal("10000.55"),
        equity=Decimal("10001"),
        terminal="simulated 5.0",
        broker_utc_offset_s=7200,
    ),
    AccountDisconnected(login=5001, server="Demo", reason="the terminal closed"),
    MessageRejected(reasons=("order_id is missing",), raw=_RAW, order_id="a/b", symbol="EURUSD"),
    LedgerCreated(ledger_id="ledger-a", login=5001, server="Demo"),
    Checkpointed(open_orders=("ord_1", "ord_2")),
    BatchSealed(epoch=3, first=40, last=41, checkpoint=30, root="12" * 32, previous="34" * 32, digest="56" * 32),
)
EXAMPLES: Final = {
    event.topic(): Envelope(
        seq=42,
        event_id="ledger-a:42",
        schema_version=1,
        recorded_at=_AT,
        account="5001",
        actor="client",
        source=Source(
            subject="orders.submitted.EURUSD", stream="ORDERS", stream_seq=9, caller="operator", traceparent="00-1-2-01"
        ),
        correlation_id="corr-1",
        causation_id="cause-1",
        config_version="config-1",
        build="1.0.0",
        data=event,
    )
    for event in _EVENTS
}


def path_of(topic: str) -> Path:
    return FOLDER / f"{topic}.json"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for topic, envelope in EXAMPLES.items():
        if not path_of(topic).exists():
            path_of(topic).write_bytes(encode(envelope))
            print(f"wrote {path_of(topic)}")


if __name__ == "__main__":
    main()
