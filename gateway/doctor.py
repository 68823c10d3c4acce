"""`order-ledger doctor`: from what was found to what is wrong and what to do about it. Pure.

First every dependency, then the five troubles of the service with each thing to look at: the connection to the broker
fails, orders are rejected as invalid (10013), fills are not told, positions differ, the broker is slow.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.config import Settings
from gateway.doctor_facts import Found
from ledger.account_events import (
    AccountDisconnected,
    AccountReconciled,
    AlertRaised,
    ConfigurationRefused,
    ExternalDealObserved,
    LoginRefused,
)
from ledger.order_events import (
    AnomalyDetected,
    BrokerAnswered,
    OrderFilled,
    OrderParked,
    OrderPartiallyFilled,
    OrderRefused,
    OrderRejected,
    OrderRequested,
    OutcomeUnknown,
    SendStarted,
)

INVALID: Final = (10013, 10014, 10015, 10016, 10018, 10030)
STOPS: Final = re.compile(r"(sl|tp)\b|.*\((sl|tp)\)$")  # a reason of our own validation
PENDING_TYPES: Final = 2  # MetaTrader's order types from here on are pending ones
OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """`trouble`: what it is looked at for; `status`: ok, warning or failed; `found`: the reason in words; `remedy`:
    what to do, where something is."""

    trouble: str
    name: str
    status: str
    found: str
    remedy: str = ""


class _Trouble:
    def __init__(self, trouble: str) -> None:
        self._trouble = trouble

    def check(self, name: str, bad: str, good: str, remedy: str, *, warning: bool = False) -> Check:
        """`bad`: what is wrong, empty when nothing is."""
        status = OK if not bad else WARNING if warning else FAILED
        return Check(trouble=self._trouble, name=name, status=status, found=bad or good, remedy=remedy if bad else "")


def diagnose(settings: Settings, found: Found) -> list[Check]:
    """Every check, in the order a person goes through them."""
    return [
        *_dependencies(settings, found),
        *_connection(settings, found),
        *_rejected(found),
        *_fills(found),
        *_positions(settings, found),
        *_latency(settings, found),
    ]


def _dependencies(settings: Settings, found: Found) -> Iterator[Check]:
    check = _Trouble("dependencies").check
    yield check("data folder", found.data_error, str(settings.data), "name it with --data, or make it writable")
    yield check("service", found.service_error, "runs", f"start `order-ledger serve --data {settings.data}`")
    yield check(
        "NATS", found.nats_error, _took(found.echo_s), "is the server up, is NATS_URL right, does the login fit?"
    )
    yield check(
        "ledger",
        found.ledger_error,
        f"{len(found.events)} newest events read",
        "name its folder by --data, or run `order-ledger verify`",
    )
    yield check("broker", found.broker_error, _took(found.broker_s), "see the trouble `connection failing` below")
    yield check(
        "ClickHouse",
        found.clickhouse_error,
        found.clickhouse or "not asked: no service runs",
        "is the server up, is CLICKHOUSE_URL right? Orders go on, rows follow",
        warning=True,
    )
    yield check(
        "Kafka",
        found.kafka_error,
        found.kafka,
        "are the brokers up, is KAFKA_BROKERS right? Orders go on, the audit log follows",
        warning=True,
    )
    yield check(
        "Central Hub",
        found.hub_error,
        found.hub or "none is configured",
        "is it up, is CENTRAL_HUB_URL right? The service goes on with its last good configuration",
        warning=True,
    )

    yield check("configuration", *_configuration(found), warning=True)


def _configuration(found: Found) -> tuple[str, str, str]:
    """What is wrong with what the hub said last, what is well, and what to do."""
    last, in_force = next(reversed(found.configurations), None), found.configuration
    told = "nothing on record" if in_force is None else f"version {in_force.version} of {in_force.origin}"
    if isinstance(last, ConfigurationRefused):
        remedy = "correct it at the hub; until then the service goes on with the one before"
        return f"what the hub says is refused: {'; '.join(last.errors[:3])}", told, remedy
    waiting = in_force.waiting if in_force is not None else ()
    return (f"changed, but not in force: {', '.join(waiting)}" if waiting else ""), told, "restart the service"


def _connection(settings: Settings, found: Found) -> Iterator[Check]:
    check = _Trouble("connection failing").check
    yield check(
        "terminal running",
        found.broker_error,
        f"{settings.terminal} terminal answers",
        "start the MetaTrader 5 terminal (MT5_PATH), or wait for the gateway to restart it",
    )
    refused = [event for _, event in found.of(LoginRefused)]
    wrong = refused[-1].reason if refused and found.broker_error else ""
    account = found.account or {}
    if account and settings.mt5_login and str(settings.mt5_login) != str(account.get("account")):
        wrong = f"the gateway serves {account.get('account')}, MT5_LOGIN is {settings.mt5_login}"
    if account and settings.mt5_server and settings.mt5_server != account.get("server"):
        wrong = f"the gateway is on {account.get('server')}, MT5_SERVER is {settings.mt5_server}"
    yield check(
        "server and login",
        wrong,
        f"account {account.get('account', '?')} on {account.get('server', '?')}",
        "set MT5_LOGIN and MT5_SERVER as the broker names them, then restart",
    )
    unset = settings.terminal != "simulated" and not settings.mt5_password
    yield check(
        "MT5_PASSWORD",
        "MT5_PASSWORD is not set here" if unset else "",
        "is set" if settings.mt5_password else "not needed by the simulated terminal",
        "set MT5_PASSWORD in the environment of the service",
    )
    lost = [event.reason for _, event in found.of(AccountDisconnected, LoginRefused)]
    yield check(
        "terminal's log",
        f"lost {_count(len(lost), 'time')} lately, last: {lost[-1]}" if lost else "",
        "no loss lately",
        "read the log of the service and the terminal's Journal tab at that time",
        warning=not found.broker_error,
    )
    yield check(
        "by hand",
        found.broker_error,
        "`order-ledger query account` answers",
        "log in by hand in the terminal: what it says there is the broker's own word",
    )


def _rejected(found: Found) -> Iterator[Check]:
    check = _Trouble("orders rejected with 10013").check
    rejected = [event for event in found.lately(OrderRejected) if event.retcode in INVALID]
    count = f"{_count(len(rejected), 'order')} lately; last: {rejected[-1].description}" if rejected else ""
    requests = [event.request for event in found.lately(OrderRequested) if event.request is not None]
    asked = {request.symbol for request in requests}
    unknown = sorted(
        name for name in asked & found.symbols.keys() if "not known" in found.symbols[name].get("error", "")
    )
    yield check(
        "symbol names",
        f"the broker does not know {', '.join(unknown)}" if unknown else "",
        "all known",
        "use the broker's own names (EURUSD, not EUR/USD): see its Market Watch",
    )
    yield check(
        "volume",
        _bad_volumes(requests, found.symbols),
        "within the broker's limits",
        "keep the volume within volume_min and volume_max, in steps of volume_step: `order-ledger query symbol X`",
    )
    near = [event.description for event in rejected if event.retcode == 10016]
    near += [reason for event in found.lately(OrderRefused) for reason in event.reasons if STOPS.match(reason)]
    yield check(
        "SL and TP",
        f"{_count(len(near), 'objection')} to stops, the last: {near[-1]}" if near else "",
        "none refused for its stops",
        "keep them trade_stops_level points from the price, SL on the losing side: `order-ledger query symbol X`",
    )
    closed = [event.symbol for event in found.lately(OrderRejected, OrderParked) if event.retcode == 10018]
    yield check(
        "market hours",
        f"the market of {', '.join(sorted(set(closed)))} was closed" if closed else "",
        "no order came outside them",
        "trade within the sessions of the symbol, or use a pending order",
        warning=True,
    )
    limited = sorted(name for name, one in found.symbols.items() if one.get("trade_mode", 4) != 4)
    yield check(
        "broker's restrictions",
        f"trading in {', '.join(limited)} is restricted by the broker" if limited else count,
        "none seen",
        "compare the order with `order-ledger query symbol X` (trade_mode, filling_mode, order_mode), ask the broker",
    )


def _bad_volumes(requests: list[Any], symbols: dict[str, dict[str, Any]]) -> str:
    bad = []
    for request in requests:
        symbol = symbols.get(request.symbol, {})
        if request.action != "open" or request.volume is None or "volume_min" not in symbol:
            continue
        low, high, step = (Decimal(str(symbol[name])) for name in ("volume_min", "volume_max", "volume_step"))
        if not low <= request.volume <= high or (step and request.volume % step):
            bad.append(
                f"{request.order_id} asked for {request.volume} lots of {request.symbol} ({low} to {high} by {step})"
            )
    return bad[-1] if bad else ""


def _fills(found: Found) -> Iterator[Check]:
    check = _Trouble("fills are not told").check
    fills = [recorded.seq for recorded, _ in found.of(OrderFilled, OrderPartiallyFilled)]
    behind = bool(fills) and found.published_seq < fills[-1] and not found.nats_error
    yield check(
        "NATS publishing",
        f"fill {fills[-1]} of the ledger is not on its subject" if behind else found.nats_error,
        "the newest fill is out" if fills else "no fill lately",
        "look for `outbox` in the log of the service; restart it",
    )
    consumer = found.consumer
    deaf = found.consumer_error or ("" if consumer else "no gateway consumes the stream ORDERS")
    if consumer and not consumer["waiting"] and consumer["pending"]:
        deaf = f"{consumer['pending']} orders wait and nobody pulls them"
    yield check(
        "orders are taken",
        found.nats_error or deaf,
        "the gateway waits for orders",
        "start or restart `order-ledger serve`",
    )
    unknown = {recorded.stream for recorded, _ in found.of(OutcomeUnknown)} - {
        recorded.stream for recorded, envelope in found.events
        if envelope.data.topic() in ("order.outcome_resolved", "order.failed", "order.filled", "order.placed")
    }  # fmt: skip
    yield check(
        "trade results",
        f"the outcome of {_count(len(unknown), 'order')} is unknown" if unknown else "",
        "every send has its outcome",
        "see `order-ledger orders`, then `order-ledger resolve ORDER_ID`",
    )
    yield check(
        "NATS by hand",
        "" if found.echo_s is not None else found.nats_error or "no echo",
        _took(found.echo_s),
        "try `nats sub 'broker.>'` with the login of the service",
    )
    stopped = [event.text for _, event in found.of(AlertRaised) if event.kind == "sink_stopped"]
    odd = [f"{event.kind}: {event.detail}" for _, event in found.of(AnomalyDetected)]
    yield check(
        "errors in handling",
        (stopped or odd or [""])[-1],
        "none lately",
        "read the log of the service at that time",
        warning=not stopped,
    )


def _positions(settings: Settings, found: Found) -> Iterator[Check]:
    check = _Trouble("positions differ").check
    reports = [event for _, event in found.of(AccountReconciled)]
    last = reports[-1] if reports else None
    differing = [*last.differences, *last.standing] if last else []
    yield check(
        "position sync",
        "it has not run yet"
        if last is None
        else "; ".join(
            f"{one.kind} {one.symbol} {one.position_id or one.order_ticket} ({one.policy})" for one in differing[:5]
        ),
        "the last one found no difference",
        "run `order-ledger reconcile`",
        warning=all(one.policy != "alert" for one in differing),
    )
    missing = [one for report in reports for one in report.differences if one.kind == "fill_missing" and one.order_id]
    yield check(
        "fills recorded",
        f"{_count(len(missing), 'fill')} came in by reconciliation only" if missing else "",
        "all came by themselves",
        "look at POLL_INTERVAL_S and at the connection at that time",
        warning=True,
    )
    yield check("positions API", found.positions_error or found.broker_error, "answers", "see `connection failing`")
    minutes = float(found.in_force("sync_interval_minutes", settings.sync_interval_minutes))
    rare = (
        "reconciliation by interval is off" if not minutes else f"every {minutes:g} minutes only" if minutes > 5 else ""
    )
    yield check("interval", rare, f"every {minutes:g} minutes", "set SYNC_INTERVAL_MINUTES to 5 or less", warning=True)
    by_hand = [event for _, event in found.of(ExternalDealObserved) if event.deal.symbol and event.deal.reason < 4]
    yield check(
        "trades by hand",
        f"{_count(len(by_hand), 'deal')} lately that nobody here asked for, last {by_hand[-1].deal.ticket}"
        if by_hand
        else "",
        "none lately",
        "find who trades on this account: by hand, or another program by its magic",
        warning=True,
    )


def _latency(settings: Settings, found: Found) -> Iterator[Check]:
    check = _Trouble("high latency to the broker").check
    limit = Decimal(found.in_force("slow_broker_s", settings.slow_broker_s)) or Decimal(1)
    asked = (
        f"a query took {found.broker_s:.2f} s" if found.broker_s is not None and found.broker_s > float(limit) else ""
    )
    yield check(
        "network",
        found.broker_error or asked,
        _took(found.broker_s),
        "ping the broker's server from this machine",
        warning=not found.broker_error,
    )
    remote = settings.terminal == "mt5linux" and settings.mt5linux_host not in ("127.0.0.1", "localhost", "::1")
    yield check(
        "terminal's place",
        f"the terminal is on {settings.mt5linux_host}" if remote else "",
        "on this machine",
        "put terminal and gateway on one server near the broker",
        warning=True,
    )
    kinds = {recorded.stream: event.request.type for recorded, event in found.of(SendStarted)}
    taken: dict[str, list[Decimal]] = {"market": [], "pending": []}
    for recorded, event in found.of(BrokerAnswered):
        taken["pending" if kinds.get(recorded.stream, 0) >= PENDING_TYPES else "market"].append(event.latency_s)
    times = sorted(taken["market"] + taken["pending"])
    slow = [one for one in times if one > limit]
    told = (
        f"p50 {times[len(times) // 2]:.3f} s, worst {times[-1]:.3f} s of {len(times)} answers"
        if times
        else "no answer lately"
    )
    yield check(
        "response times",
        f"{len(slow)} answers took more than {limit} s: {told}" if slow else "",
        told,
        "compare with other hours; tell the broker the times, `order-ledger history` has them",
    )
    halves = {name: sorted(some)[len(some) // 2] for name, some in taken.items() if some}
    gap = len(halves) == 2 and halves["market"] > 2 * halves["pending"] and halves["market"] > limit / 2
    words = ", ".join(f"{name} p50 {value:.3f} s" for name, value in halves.items())
    yield check(
        "limit or market",
        words if gap else "",
        words or "nothing to compare",
        "use limit orders where the price matters more than the moment",
        warning=True,
    )
    bad = len(slow) > max(len(times) // 10, 2)
    yield check(
        "broker",
        "it is slow most of the time" if bad else "",
        "fast enough",
        "consider another server or broker",
        warning=True,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _took(seconds: float | None) -> str:
    return "not asked" if seconds is None else f"answers within {seconds:.3f} s"
