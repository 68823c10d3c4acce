"""`/metrics`: what was counted, and how things stand at this moment, in Prometheus' text format."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway.health import Part
from gateway.metrics import Counts, Histogram, Metrics
from ledger.order import ENDED, Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPEN: Final = tuple(one.value for one in Status if one not in ENDED and one is not Status.NEW)
_PREFIX: Final = "order_ledger_"


class SinkReading(msgspec.Struct, frozen=True, kw_only=True):
    """Where a follower of the ledger stands; `lag` in events."""

    state: str
    position: int
    lag: int
    retries: int


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand at this moment."""

    sinks: Mapping[str, SinkReading]
    parts: Mapping[str, Part]
    open_orders: Mapping[str, int] = {}
    halts: Mapping[str, bool] = {}
    queues: Mapping[str, int] = {}
    reconnects: Mapping[str, int] = {}
    head_seq: int = 0
    epoch: int = 0
    ready: bool = False
    verified_seq: int = 0
    verified_at_s: float = 0.0
    verified_sound: bool = True


class Exposition(Collector):
    """`text` reads the counters and the readings; nothing is kept between two calls."""

    def __init__(self, version: str, metrics: Metrics | None, read: Callable[[], Readings]) -> None:
        """Without `metrics` only what stands without a ledger's writer is told: the sinks and the parts."""
        self._version, self._metrics, self._read = version, metrics, read
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        now = self._read()
        if self._metrics is not None:
            yield from self._counted(self._metrics)
            yield from self._standing(now)
        yield from self._followed(now)

    def _counted(self, counted: Metrics) -> Iterator[Metric]:
        yield _counter("events", "Events committed, by topic.", ("topic",), _one_label(counted.events))
        yield _counter(
            "order_outcomes", "Orders that ended, by how and by category.", ("outcome", "category"), counted.outcomes
        )
        yield _counter(
            "broker_answers", "Answers of the broker to order_send.", ("retcode", "verdict"), counted.answers
        )
        yield _histograms(
            "order_stage_seconds",
            "Time of an order from stage to stage, as its events were recorded.",
            ("stage",),
            {(stage,): histogram for stage, histogram in counted.stages.items()},
        )
        yield _histograms("broker_call_seconds", "From the call of order_send to its answer.", (), {(): counted.calls})
        yield _histograms(
            "commit_seconds", "One durable commit of the ledger, its fsync included.", (), {(): counted.commit_s}
        )
        yield _histograms("batch_events", "Events under one seal.", (), {(): counted.batch})
        yield _histograms(
            "slippage_pips",
            "Pips a fill was worse than the price asked for; below 0, better.",
            (),
            {(): counted.slippage},
        )
        yield _counter("fills", "Deals of our orders.", ("symbol", "side"), counted.fills)
        yield _counter("lots", "Volume of the deals of our orders, in lots.", ("symbol", "side"), counted.lots)
        yield _counter("alerts", "What a person must look at, by kind.", ("kind",), counted.alerts)
        yield _counter(
            "reconciliation_differences",
            "Differences between our view and the broker's, by class and what was done.",
            ("kind", "policy"),
            counted.differences,
        )

    def _standing(self, now: Readings) -> Iterator[Metric]:
        open_orders = {state: now.open_orders.get(state, 0) for state in _OPEN}
        yield _gauge("orders_open", "Orders that have not ended, by state.", ("state",), _one_label(open_orders))
        unresolved = now.open_orders.get(Status.UNKNOWN.value, 0)
        yield _gauge("unresolved_orders", "Orders whose outcome is unknown.", (), {(): unresolved})
        yield _gauge("queue_depth", "What waits, by queue.", ("queue",), _one_label(now.queues))
        yield _counter("reconnects", "Connections that were made again.", ("to",), _one_label(now.reconnects))
        yield _gauge("halted", "1 while this source halts trading.", ("source",), _one_label(now.halts))
        yield _gauge("head_seq", "The last event of the ledger.", (), {(): now.head_seq})
        yield _gauge("epoch", "Which writer of this ledger this is.", (), {(): now.epoch})
        yield _gauge(
            "verified_seq", "Up to where the ledger was last found sound; 0: not yet.", (), {(): now.verified_seq}
        )
        yield _gauge("verified_timestamp_seconds", "When that was; 0: not yet.", (), {(): now.verified_at_s})
        yield _gauge(
            "verification_sound",
            "0 when the last verification found a fault in the ledger.",
            (),
            {(): now.verified_sound},
        )

    def _followed(self, now: Readings) -> Iterator[Metric]:
        yield _gauge("build_info", "Always 1.", ("version",), {(self._version,): 1})
        lags = {name: one.lag for name, one in now.sinks.items()}
        yield _gauge("sink_lag_events", "Events the ledger holds and a sink does not.", ("sink",), _one_label(lags))
        following = {name: one.state == "following" for name, one in now.sinks.items()}
        yield _gauge("sink_following", "1 while a sink takes what it is given.", ("sink",), _one_label(following))
        positions = {name: one.position for name, one in now.sinks.items()}
        yield _gauge("sink_position", "The last event a sink holds.", ("sink",), _one_label(positions))
        retries = {name: one.retries for name, one in now.sinks.items()}
        yield _counter("sink_retries", "Failed attempts of a sink.", ("sink",), _one_label(retries))
        up = {name: one.state in ("up", "degraded", "off") for name, one in now.parts.items()}
        yield _gauge("dependency_up", "1 while a dependency works, or is switched off.", ("part",), _one_label(up))
        yield _gauge("ready", "1 while orders are taken.", (), {(): now.ready})


_Values = Mapping[tuple[str, ...], float]


def _one_label(values: Mapping[str, float]) -> _Values:
    return {(name,): value for name, value in values.items()}


def _counter(name: str, text: str, labels: Iterable[str], values: Counts | _Values) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=list(labels))
    for combination, value in (values.values if isinstance(values, Counts) else values).items():
        family.add_metric(combination, value)
    return family


def _gauge(name: str, text: str, labels: Iterable[str], values: _Values) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=list(labels))
    for combination, value in values.items():
        family.add_metric(combination, value)
    return family


def _histograms(name: str, text: str, labels: Iterable[str], values: Mapping[tuple[str, ...], Histogram]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, text, labels=list(labels))
    for combination, histogram in values.items():
        buckets, below = [], 0
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound is None else str(float(bound)), below))
        family.add_metric(combination, buckets, histogram.total)
    return family
