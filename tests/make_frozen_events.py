"""Stored examples of every event in every version of its schema: what such bytes mean, for ever.

    python -m tests.make_frozen_events

writes the files that are missing, as the writer stores them (or stored them, for the folder of an older version). It
never overwrites: a file that no longer fits the code shows that events stored by an earlier version cannot be read any
more, and the code has to give way. A field that is new in an old event gets a file of its own, named `topic+what`.
"""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

from ledger.account_events import (
    AccountConnected,
    AccountDisconnected,
    AccountReconciled,
    AlertRaised,
    ConfigurationAccepted,
    ConfigurationRefused,
    ControlReceived,
    DealsFollowed,
    Difference,
    ExternalDealObserved,
    LoginRefused,
    MessageRejected,
    PositionCorrected,
    SnapshotTaken,
    TradingHalted,
    TradingResumed,
)
from ledger.events import (
    BatchSealed,
    Checkpointed,
    Envelope,
    Event,
    HeadSigned,
    LedgerCreated,
    Source,
    WriterTookOver,
    encode,
    schema_version,
)
from ledger.facts import OrderRequest, Raw
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    ConflictReceived,
    DuplicateReceived,
    FillCorrected,
    FillCostsChanged,
    OrderCancelled,
    OrderChecked,
    OrderExpired,
    OrderFailed,
    OrderFilled,
    OrderModified,
    OrderParked,
    OrderPartiallyFilled,
    OrderPlaced,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OrderStale,
    OutcomeProbed,
    OutcomeResolved,
    OutcomeUnknown,
    RequestCompleted,
    RetryScheduled,
    SendAbandoned,
    SendStarted,
)
from ledger.trade import BrokerOrder, CheckResult, Deal, Position, TargetImage, TradeRequest, TradeResult

FOLDER: Final = Path(__file__).parent / "data" / "events"
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
_BROKER_ORDER: Final = BrokerOrder(
    ticket=903,
    time_setup_msc=1_772_373_500_001,
    time_done_msc=1_772_373_600_002,
    time_expiration=1_772_409_600,
    type=7,
    type_time=2,
    type_filling=1,
    state=3,
    magic=1877958915648434945,
    position_id=901,
    position_by_id=902,
    reason=3,
    volume_initial=Decimal("0.3"),
    volume_current=Decimal("0.1"),
    price_open=Decimal("1.10001"),
    price_stoplimit=Decimal("1.09"),
    sl=Decimal("1.2"),
    tp=Decimal("0.9"),
    symbol="EURUSD",
    comment="ord_1.1a0fd9af1600b3.01",
    external_id="x-2",
)
_POSITION: Final = Position(
    ticket=905,
    identifier=901,
    time_msc=1_772_373_400_003,
    time_update_msc=1_772_373_600_004,
    type=1,
    magic=1877958915648434945,
    reason=3,
    volume=Decimal("0.3"),
    price_open=Decimal("1.10002"),
    price_current=Decimal("1.1001"),
    sl=Decimal("1.2"),
    tp=Decimal("0.9"),
    swap=Decimal("-0.01"),
    profit=Decimal("-2.4"),
    symbol="EURUSD",
    comment="ord_1.1a0fd9af1600b3.01",
    external_id="x-3",
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
    OrderStale(age_s=Decimal("300.001"), limit_s=Decimal("300.0"), symbol="EURUSD", cause="life"),
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
    RetryScheduled(
        attempt=1,
        delay_s=Decimal("4.567"),
        not_before=datetime(2026, 3, 1, 12, 0, 4, 690456, UTC),
        reason="requote",
        retcode=10004,
        retcode_name="TRADE_RETCODE_REQUOTE",
        symbol="EURUSD",
    ),
    OrderParked(
        attempt=1,
        recheck_s=Decimal("5.0"),
        not_before=datetime(2026, 3, 1, 12, 0, 5, 123456, UTC),
        reason="market is closed",
        retcode=10018,
        retcode_name="TRADE_RETCODE_MARKET_CLOSED",
        symbol="EURUSD",
    ),
    OutcomeUnknown(attempt=1, code=-10005, reason="no reply before the deadline", symbol="EURUSD"),
    OutcomeProbed(attempt=1, complete=True, found=False, reason="the terminal is not connected"),
    OutcomeResolved(attempt=1, resolution="found", by="probe", evidence="deal 7", order_ticket=900, symbol="EURUSD"),
    OrderPlaced(
        symbol="EURUSD",
        side="sell",
        order_ticket=903,
        order_type="sell_stop_limit",
        volume=Decimal("0.3"),
        price=Decimal("1.10001"),
        stop_limit_price=Decimal("1.09"),
        sl=Decimal("1.2"),
        tp=Decimal("0.9"),
        attempts=2,
        retcode=10008,
        retcode_name="TRADE_RETCODE_PLACED",
    ),
    OrderPartiallyFilled(**_FILL, remaining_volume=Decimal("0.1"), provisional=True, raw=_DEAL),
    OrderFilled(**_FILL, remaining_volume=Decimal(0), provisional=True, raw=_DEAL),
    FillCorrected(
        **_FILL,
        remaining_volume=Decimal("0.1"),
        provisional=True,
        raw=_DEAL,
        corrects=6,
        was_volume=Decimal("0.2"),
        was_price=Decimal("1.10001"),
    ),
    FillCostsChanged(
        deal=7,
        fill_version=6,
        commission=Decimal("-0.4"),
        swap=Decimal("-0.02"),
        fee=Decimal("-0.03"),
        profit=Decimal("12.45"),
        symbol="EURUSD",
    ),
    OrderModified(
        symbol="EURUSD",
        order_ticket=903,
        position_id=901,
        price=Decimal("1.10003"),
        stop_limit_price=Decimal("1.08"),
        sl=Decimal("1.3"),
        tp=Decimal("0.8"),
        expiration=1_772_413_200,
        by="ord_2",
    ),
    OrderCancelled(
        symbol="EURUSD",
        order_ticket=903,
        filled_volume=Decimal("0.1"),
        remaining_volume=Decimal("0.2"),
        reason="cancelled at the broker",
        by="ord_2",
    ),
    OrderExpired(symbol="EURUSD", order_ticket=903, filled_volume=Decimal("0.1"), remaining_volume=Decimal("0.2")),
    RequestCompleted(
        symbol="EURUSD",
        action="modify",
        order_ticket=903,
        position_id=901,
        target_order_id="ord_0",
        attempts=2,
        retcode=10009,
        retcode_name="TRADE_RETCODE_DONE",
    ),
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
    LoginRefused(login=5001, server="Demo", code=-6, reason="authorization failed"),
    ExternalDealObserved(
        deal=_DEAL,
        broker_time=datetime(2026, 3, 1, 12, 0, 0, 123000, UTC),
        broker_utc_offset_s=7200,
        note="by hand",
    ),
    DealsFollowed(through_msc=1_772_366_400_123, tickets=(7, 8), known_from_msc=1_772_366_338_123),
    TradingHalted(source="operator", reason="loss of the day", by="ann", cancel_orders=True),
    TradingResumed(source="operator", reason="checked", by="bob"),
    ControlReceived(
        command="halt", by="ann", reason="loss of the day", accepted=False, reasons=("by is missing",), raw=_RAW
    ),
    AlertRaised(kind="slow_broker", text="1.5 s to the broker", order_id="ord_1", symbol="EURUSD", about=41),
    ConfigurationAccepted(
        version="config-2",
        origin="hub",
        digest="78" * 32,
        changed=("policy.max_retries",),
        settings={"policy.max_retries": "3", "mode": "production"},
    ),
    ConfigurationRefused(version="config-3", origin="file", errors=("policy.max_retries: -1 is negative",)),
    AccountReconciled(
        trigger="reconnect",
        positions=2,
        orders=1,
        deals=5,
        differences=(
            Difference(
                kind="volume",
                ours="0.3",
                brokers="0.2",
                policy="adopt",
                order_id="ord_1",
                order_ticket=903,
                position_id=901,
                deal=7,
                symbol="EURUSD",
            ),
        ),
        deals_since=datetime(2026, 3, 1, 0, 0, tzinfo=UTC),
    ),
    PositionCorrected(position=_POSITION, kind="volume", order_id="ord_1"),
    SnapshotTaken(
        currency="EUR",
        balance=Decimal("10000.55"),
        equity=Decimal("9998.15"),
        margin=Decimal("33.3"),
        margin_free=Decimal("9964.85"),
        profit=Decimal("-2.4"),
        positions=(_POSITION,),
        working_orders=1,
    ),
    MessageRejected(reasons=("order_id is missing",), raw=_RAW, order_id="a/b", symbol="EURUSD"),
    LedgerCreated(ledger_id="ledger-a", login=5001, server="Demo"),
    Checkpointed(open_orders=("ord_1", "ord_2")),
    WriterTookOver(epoch=4, host="host-2", pid=4711, displaced="host-1:1234"),
    HeadSigned(
        head_seq=41,
        head_digest="56" * 32,
        signed_at=_AT,
        key_id="9a" * 8,
        public_key="bc" * 32,
        signature="de" * 64,
    ),
    BatchSealed(epoch=3, first=40, last=41, checkpoint=30, root="12" * 32, previous="34" * 32, digest="56" * 32),
)
# Examples of fields that came after the first version of an event was stored, or that exclude another value.
_MORE: Final[dict[str, Event]] = {
    "v1/account.deals_followed+named": DealsFollowed(through_msc=1_772_366_400_123, named=((900, "ord_1"),)),
    "v1/writer.checkpointed+halts": Checkpointed(
        open_orders=("ord_1",),
        halts=(TradingHalted(source="operator", reason="loss of the day", by="ann", cancel_orders=True),),
    ),
    "v1/account.halted+until": TradingHalted(
        source="limit", reason="loss of the day", until=datetime(2026, 3, 2, 0, 0, tzinfo=UTC)
    ),
    "v1/account.configuration_accepted+waiting": ConfigurationAccepted(
        version="config-4", origin="hub", digest="78" * 32, waiting=("call_deadline_s",)
    ),
    "v1/order.requested+ignored": OrderRequested(
        request=_REQUEST, content="cd" * 32, raw=_RAW, symbol="EURUSD", age_from=_AT, ignored=("stoploss", "note")
    ),
    "v1/order.send_started+before": SendStarted(
        attempt=2,
        request=_TRADE_REQUEST,
        before=TargetImage(
            position=_POSITION,
            position_by=Position(ticket=902, identifier=902, volume=Decimal("0.1"), symbol="EURUSD"),
            order=_BROKER_ORDER,
        ),
    ),
    "v1/order.outcome_resolved+evidence": OutcomeResolved(
        attempt=1,
        resolution="found",
        by="probe",
        evidence="deal 7",
        order_ticket=900,
        symbol="EURUSD",
        orders=(_BROKER_ORDER,),
        history=(BrokerOrder(ticket=900, state=4), BrokerOrder(ticket=904, state=2)),
        positions=(_POSITION,),
        deals=(_DEAL,),
    ),
    "v1/order.outcome_probed+settled": OutcomeProbed(
        attempt=1, complete=True, found=True, reason="position 901 changed, and no deal says by what", settled=True
    ),
    "v1/account.reconciled+standing": AccountReconciled(
        trigger="interval",
        positions=2,
        orders=1,
        deals=5,
        standing=(Difference(kind="order_unknown", ours="", brokers="buy 0.1", policy="alert", order_ticket=903),),
    ),
    "v1/account.external_deal_observed+order": ExternalDealObserved(deal=_DEAL, note="stop loss", order_id="ord_1"),
    "v1/inbox.message_rejected+hex": MessageRejected(
        reasons=("the message is not a JSON object",), raw=Raw(size=2, sha256="ab" * 32, text="fffe", encoding="hex")
    ),
}
# What an older version wrote. All of it fits today's struct, without the fields that came later.
_OLD: Final[dict[str, Event]] = {
    "v1/order.stale": OrderStale(age_s=Decimal("30.001"), limit_s=Decimal("30.0"), symbol="EURUSD"),
    "v1/order.stale+valid_until": OrderStale(age_s=Decimal("0.25"), limit_s=Decimal(0), symbol="EURUSD"),
}
# How that reads today.
_LIFTED: Final[dict[str, Event]] = {
    "v1/order.stale": OrderStale(age_s=Decimal("30.001"), limit_s=Decimal("30.0"), symbol="EURUSD", cause="age"),
    "v1/order.stale+valid_until": OrderStale(
        age_s=Decimal("0.25"), limit_s=Decimal(0), symbol="EURUSD", cause="valid_until"
    ),
}


def _stored(name: str, event: Event) -> Envelope:
    return Envelope(
        seq=42,
        event_id="ledger-a:42",
        schema_version=version_of(name),
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


def topic_of(name: str) -> str:
    """The topic of an example: `v1/order.send_started+before` is of `order.send_started`."""
    return name.partition("/")[2].partition("+")[0]


def version_of(name: str) -> int:
    return int(name.partition("/")[0].removeprefix("v"))


def current(topic: str) -> str:
    """The name of the example in today's version."""
    return f"v{schema_version(topic)}/{topic}"


def path_of(name: str, folder: Path = FOLDER) -> Path:
    return folder / f"{name}.json"


_ALL: Final = {current(event.topic()): event for event in _EVENTS} | _MORE | _OLD
# By name: what is stored, and what that means today.
EXAMPLES: Final = {name: _stored(name, event) for name, event in _ALL.items()}
READ: Final = EXAMPLES | {name: _stored(name, event) for name, event in _LIFTED.items()}


def main(folder: Path = FOLDER) -> None:
    for name, envelope in EXAMPLES.items():
        path = path_of(name, folder)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(envelope))
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
