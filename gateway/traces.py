"""OpenTelemetry: a span for every order and one for every attempt at the broker, sent by OTLP over HTTP.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set. A `traceparent` on the order's message makes the span a child of the
sender's, and goes out again with every message about the order. Spans are made from the events of the ledger, a tenth
of a second after them, with the events' times: nothing on the way of an order waits for this, and an exporter that
fails loses spans, no order.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import structlog

from gateway.config import Settings
from gateway.health import SERVICE
from gateway.metrics import OUTCOMES
from ledger.events import Envelope, Recorded, decode
from ledger.tail import Tail

EVERY_S: Final = 0.1
AT_ONCE: Final = 512
IDLE_S: Final = 5.0
MAX_ORDERS: Final = 10_000  # whose spans are open; that of the oldest ends when there are more
CLOSE_S: Final = 1.0
WARN_EVERY_S: Final = 60.0
PATH: Final = "/v1/traces"
log = structlog.get_logger()


class TracesUnavailable(Exception):
    """The packages are not installed; the text says what to do."""


class _Order:
    """The open spans of an order: the whole, and the attempt that is under way."""

    __slots__ = ("attempt", "span")

    def __init__(self, span: Any) -> None:
        self.span: Any = span
        self.attempt: Any = None


class Traces:
    """`exporter`: an OpenTelemetry `SpanExporter`."""

    def __init__(self, exporter: Any, version: str, instance_id: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {"service.name": SERVICE, "service.version": version, "service.instance.id": instance_id}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("order-ledger", version)
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()
        self._orders: dict[str, _Order] = {}
        self._after = 0

    @classmethod
    def of(cls, settings: Settings, version: str) -> "Traces | None":
        """None when nothing is to be traced. Raises TracesUnavailable."""
        if not settings.otlp_url:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise TracesUnavailable(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: "
                "pip install 'order-ledger[otel]', or unset it"
            ) from None
        _say_ourselves_what_fails()
        url = settings.otlp_url.reveal().rstrip("/")
        return cls(OTLPSpanExporter(url if url.endswith(PATH) else url + PATH), version, settings.instance_id)

    async def follow(self, tail: Tail, after: int) -> None:
        """Traces for ever."""
        self._after = after
        while True:
            await tail.wait(self._after, IDLE_S)
            await asyncio.sleep(EVERY_S)
            await self.catch_up(tail)

    async def catch_up(self, tail: Tail) -> None:
        """Returns when all is traced that was committed before the call."""
        while records := await tail.read(self._after, AT_ONCE):
            self.take((one, decode(one)) for one in records if one.stream.startswith("order/"))
            self._after = records[-1].seq
            await asyncio.sleep(0)

    def close(self) -> None:
        """Sends what is left, for at most a second: an exporter that tries again and again is left behind. Spans of
        orders that go on are left out: their order does."""
        sending = threading.Thread(target=self._provider.shutdown, name="last traces", daemon=True)
        sending.start()
        sending.join(CLOSE_S)

    def take(self, batch: Iterable[tuple[Recorded, Envelope]]) -> None:
        """Begins and ends the spans that these events tell of. Orders that began before are not traced."""
        for recorded, envelope in batch:
            event: Any = envelope.data
            if recorded.topic == "order.requested":
                self._begin(recorded, envelope)
                continue
            order = self._orders.get(recorded.stream)
            if order is None:
                continue
            at_ns = _ns(envelope.recorded_at)
            match recorded.topic:
                case "order.send_started":
                    order.attempt = self._tracer.start_span(
                        "order_send",
                        context=self._trace.set_span_in_context(order.span),
                        kind=self._trace.SpanKind.CLIENT,
                        attributes={"order_ledger.attempt": event.attempt},
                        start_time=at_ns,
                    )
                case "order.broker_answered":
                    told = {"mt5.retcode": event.result.retcode, "mt5.retcode_name": event.retcode_name}
                    self._end_attempt(order, at_ns, told, failed=event.verdict not in ("success", "wait"))
                case "order.send_abandoned" | "order.outcome_unknown":
                    self._end_attempt(order, at_ns, {}, failed=True)
            order.span.add_event(recorded.topic, {"order_ledger.seq": recorded.seq}, at_ns)
            if recorded.topic in OUTCOMES:
                self._end(recorded, order, at_ns)

    def _begin(self, recorded: Recorded, envelope: Envelope) -> None:
        source, event = envelope.source, envelope.data
        request = getattr(event, "request", None)
        told = {
            "order_ledger.order_id": recorded.stream.removeprefix("order/"),
            "order_ledger.account": envelope.account,
            "order_ledger.correlation_id": envelope.correlation_id,
            "order_ledger.symbol": getattr(event, "symbol", ""),
            "order_ledger.action": request.action if request is not None else "",
            "messaging.system": "nats",
            "messaging.destination.name": source.subject if source is not None else "",
        }
        headers = {"traceparent": source.traceparent} if source is not None and source.traceparent else {}
        span = self._tracer.start_span(
            "order",
            context=self._propagator.extract(headers),
            kind=self._trace.SpanKind.CONSUMER,
            attributes={name: value for name, value in told.items() if value},
            start_time=_ns(envelope.recorded_at),
        )
        self._orders[recorded.stream] = _Order(span)
        if len(self._orders) > MAX_ORDERS:
            self._orders.pop(next(iter(self._orders))).span.end(_ns(envelope.recorded_at))

    def _end_attempt(self, order: _Order, at_ns: int, told: dict[str, Any], *, failed: bool) -> None:
        span, order.attempt = order.attempt, None
        if span is None:
            return
        span.set_attributes(told)
        if failed:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(at_ns)

    def _end(self, recorded: Recorded, order: _Order, at_ns: int) -> None:
        del self._orders[recorded.stream]
        outcome = OUTCOMES[recorded.topic]
        order.span.set_attribute("order_ledger.outcome", outcome)
        if outcome in ("rejected", "failed"):
            order.span.set_status(self._trace.StatusCode.ERROR)
        self._end_attempt(order, at_ns, {}, failed=True)
        order.span.end(at_ns)


def _ns(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6) * 1_000


class _Failures(logging.Handler):
    """What the exporter says of its failures may hold the URL, and with it a secret: only that it fails is told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0

    def emit(self, _: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if now_s >= self._quiet_until:
            self._quiet_until = now_s + WARN_EVERY_S
            log.warning("traces are lost: OTEL_EXPORTER_OTLP_ENDPOINT does not take them")


def _say_ourselves_what_fails() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    if not any(isinstance(one, _Failures) for one in theirs.handlers):
        theirs.addHandler(_Failures())
