"""Alerts: what a person must look at. Each is an event, an error-level log line and a message `broker.alert.{kind}`.

Where an event of the ledger already says it (a halt, an anomaly, a displaced writer) that event is the alert;
`AlertRaised` is for the rest: a slow broker, slippage, an outcome that stays unknown, a projection that stopped, a
ledger that was tampered with. What repeats is told at once and then at intervals, with how often it happened: a storm
must not become one of its own.
"""

import asyncio
from typing import Any, Final

import msgspec
import structlog

from gateway.config import Settings
from gateway.messages import outgoing
from gateway.slippage import pips_worse
from gateway.watch import Watch
from ledger.account_events import AccountReconciled, AlertRaised, TradingHalted, TradingResumed
from ledger.errors import LedgerError
from ledger.events import Envelope, Recorded, WriterTookOver, account_stream
from ledger.order import UNRESOLVED, Status
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    DealFact,
    OrderFilled,
    OrderPartiallyFilled,
    OutcomeUnknown,
)
from ledger.values import plain
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

EVERY_S: Final = 10.0
SLOW_BROKER: Final = "slow_broker"
SLIPPAGE: Final = "slippage"
SINK_STOPPED: Final = "sink_stopped"
TAMPER: Final = "tamper"
_ALERTS: Final = (AccountReconciled, AlertRaised, AnomalyDetected, TradingHalted, WriterTookOver)


class _Repeated(msgspec.Struct):
    """What happened again since it was last told: how often, and the latest of it."""

    count: int = 0
    latest: AlertRaised | None = None
    correlation_id: str = ""


class Alerts:
    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger, self._settings = ledger, settings
        self._stream = account_stream(ledger.login)
        self._quiet: dict[tuple[str, str], _Repeated] = {}
        self._told_unresolved: set[tuple[str, int]] = set()

    def use(self, settings: Settings) -> None:
        self._settings = settings

    def start(self, watch: Watch) -> None:
        """Call it before `watch` starts. Outcomes that are unknown already get their time, too."""
        for kind in (*_ALERTS, TradingResumed):
            watch.on(kind.topic(), self._log)
        watch.on(BrokerAnswered.topic(), self._answered)
        watch.on(OrderFilled.topic(), self._filled)
        watch.on(OrderPartiallyFilled.topic(), self._filled)
        watch.on(OutcomeUnknown.topic(), self._unknown)
        watch.on(AnomalyDetected.topic(), self._anomaly)
        for order in self._ledger.open_orders.values():
            if order.status in (Status.UNKNOWN, Status.SENDING):
                self._ask_later(order.order_id, order.attempt)

    def projections_changed(self, status: dict[str, Any]) -> None:
        """What the projections' process says of itself."""
        if status.get("status") in ("sink_stopped", "failed"):
            self.sink_stopped(*(str(status.get(name) or "") for name in ("sink", "error", "remedy")))

    def sink_stopped(self, sink: str, error: str, remedy: str = "") -> None:
        text = f"{sink}: {error}" + (f" ({remedy})" if remedy else "")
        self.raise_(AlertRaised(kind=SINK_STOPPED, text=text))

    def tampered(self, first_bad_seq: int, problem: str) -> None:
        """A verification found that the ledger is not what was sealed."""
        remedy = "halt, and compare with what is kept elsewhere: `order-ledger verify`"
        text = f"the ledger cannot be trusted from event {first_bad_seq} on: {problem} ({remedy})"
        self.raise_(AlertRaised(kind=TAMPER, text=text, about=first_bad_seq))

    def raise_(self, alert: AlertRaised, *, about: str = "", correlation_id: str = "") -> None:
        """At once, or, when the same kind (of the same `about`) was told within `EVERY_S`, together with others."""
        key = (alert.kind, about)
        if key in self._quiet:
            repeated = self._quiet[key]
            repeated.count += 1
            repeated.latest, repeated.correlation_id = alert, correlation_id
            return
        self._quiet[key] = _Repeated()
        asyncio.get_running_loop().call_later(EVERY_S, self._speak_again, key)
        self._append(alert, correlation_id)

    def _speak_again(self, key: tuple[str, str]) -> None:
        repeated = self._quiet.pop(key)
        if repeated.latest is not None:
            times = f" (the latest of {repeated.count})" if repeated.count > 1 else ""
            alert = msgspec.structs.replace(repeated.latest, text=repeated.latest.text + times)
            self.raise_(alert, about=key[1], correlation_id=repeated.correlation_id)

    def _append(self, alert: AlertRaised, correlation_id: str = "") -> None:
        try:
            self._ledger.append(self._stream, alert, Cause(actor="gateway", correlation_id=correlation_id))
        except LedgerError:
            # Nothing can be recorded any more, and the service is about to say why: the line alone remains.
            fields = {"kind": alert.kind, "text": alert.text, "order_id": alert.order_id or None}
            log.error("alert", **fields, correlation_id=correlation_id or None, recorded=False)  # noqa: TRY400

    # --- what the ledger tells ----------------------------------------------------------------------------------

    def _log(self, recorded: Recorded, envelope: Envelope) -> None:
        told = outgoing(recorded, envelope)
        if told is None:
            return
        message = told.message
        fields = {
            "kind": message.kind,
            "text": message.description,
            "order_id": message.order_id or None,
            "symbol": message.symbol or None,
            "source": message.source,
            "by": message.by,
            "event_id": message.event_id,
            "correlation_id": message.correlation_id or None,
        }
        say = log.warning if isinstance(envelope.data, TradingResumed) else log.error
        say("alert", **{name: value for name, value in fields.items() if value is not None})

    def _answered(self, recorded: Recorded, envelope: Envelope) -> None:
        event, limit_s = envelope.data, self._settings.slow_broker_s
        assert isinstance(event, BrokerAnswered)
        if limit_s and event.latency_s > limit_s:
            text = f"the broker took {event.latency_s:f} s to answer, more than {plain(limit_s)} s"
            alert = AlertRaised(kind=SLOW_BROKER, text=text, order_id=_order(recorded), about=recorded.seq)
            self.raise_(alert, correlation_id=envelope.correlation_id)

    def _filled(self, recorded: Recorded, envelope: Envelope) -> None:
        event = envelope.data
        assert isinstance(event, DealFact)
        pips = pips_worse(event)
        if pips is None:
            return
        settings, order_id = self._settings, _order(recorded)
        text = f"{event.side} {plain(event.volume)} {event.symbol} was dealt {pips:f} pips worse than asked for"
        if settings.slippage_alert_pips and pips > settings.slippage_alert_pips:
            alert = AlertRaised(kind=SLIPPAGE, text=text, order_id=order_id, symbol=event.symbol, about=recorded.seq)
            self.raise_(alert, about=event.symbol, correlation_id=envelope.correlation_id)
        elif settings.slippage_report_pips and pips > settings.slippage_report_pips:
            correlated = {"correlation_id": envelope.correlation_id} if envelope.correlation_id else {}
            log.warning("slippage", text=text, order_id=order_id, deal=event.deal, **correlated)

    def _unknown(self, recorded: Recorded, envelope: Envelope) -> None:
        assert isinstance(envelope.data, OutcomeUnknown)
        self._ask_later(_order(recorded), envelope.data.attempt, envelope.correlation_id)

    def _anomaly(self, recorded: Recorded, envelope: Envelope) -> None:
        assert isinstance(envelope.data, AnomalyDetected)
        order = self._ledger.order(_order(recorded))
        if envelope.data.kind == UNRESOLVED and order is not None:
            self._told_unresolved.add((order.order_id, order.attempt))

    def _ask_later(self, order_id: str, attempt: int, correlation_id: str = "") -> None:
        delay_s = self._settings.unresolved_alert_s
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._still_unknown, order_id, attempt, correlation_id)

    def _still_unknown(self, order_id: str, attempt: int, correlation_id: str) -> None:
        order, key = self._ledger.order(order_id), (order_id, attempt)
        if order is None or order.status is not Status.UNKNOWN or order.attempt != attempt:
            self._told_unresolved.discard(key)
            return
        if key in self._told_unresolved:
            return
        self._told_unresolved.add(key)
        text = (
            f"attempt {attempt} has been unknown for {self._settings.unresolved_alert_s:g} s: "
            f"look at the broker, then `order-ledger resolve {order_id} --as found|absent|abandoned`"
        )
        self._append(AlertRaised(kind=UNRESOLVED, text=text, order_id=order_id, symbol=order.symbol), correlation_id)


def _order(recorded: Recorded) -> str:
    return recorded.stream.removeprefix("order/")
