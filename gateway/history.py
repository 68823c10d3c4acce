"""The story of one order, from its stored events: what happened, what it says, and the state after it."""

from collections.abc import Iterator
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import msgspec
from rich.markup import escape
from rich.table import Table

from gateway.config import Settings
from gateway.describe import describe, targeted_by, targets_of
from gateway.show import console, open_ledger
from gateway.show_table import print_table
from gateway.times import iso, with_iso_times
from ledger.covered import problem_of
from ledger.errors import LedgerDamaged, LedgerError
from ledger.events import Envelope, Event, Recorded, decode, order_stream
from ledger.order import Order, evolve
from ledger.trade import ZERO
from ledger.values import Refused, parse_order_id, plain

_STEP: Final = Decimal("0.00000001")


def envelope_of(recorded: Recorded) -> Envelope:
    """The decoded event. Raises LedgerDamaged for bytes that are none, UnknownSchema for those of a newer version."""
    try:
        return decode(recorded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _damaged(recorded, str(error)) from None


def _damaged(recorded: Recorded, problem: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"event {recorded.seq} of {recorded.stream} cannot be read ({problem}): run `order-ledger verify`", recorded.seq
    )


class OrderFold:
    """One order, folded from its stored events in their order: its state, and what readers ask beside it.

    `first_at` and `last_at` tell when it began and was last heard of.
    """

    __slots__ = ("_deals", "_outcome", "first_at", "first_seq", "last_at", "order")

    def __init__(self, order_id: str) -> None:
        self.order = Order(order_id=order_id)
        self.first_seq = 0
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None
        self._outcome: Event | None = None
        self._deals: dict[int, tuple[Decimal, Decimal]] = {}

    def take(self, recorded: Recorded) -> Envelope:
        """Applies the next event and returns it. Raises LedgerDamaged, UnknownSchema."""
        envelope = envelope_of(recorded)
        event: Any = envelope.data
        try:
            self.order = evolve(self.order, event)
        except AssertionError:  # `evolve` knows the events of orders only
            raise _damaged(recorded, f"{event.topic()} is no event of an order") from None
        if self.first_at is None:
            self.first_seq, self.first_at = recorded.seq, envelope.recorded_at
        self.last_at = envelope.recorded_at
        if self.order.outcome_version == self.order.version:
            self._outcome = event
        # Whatever tells a deal with volume and price: a fill, or the correction of one.
        if hasattr(event, "deal") and hasattr(event, "price") and hasattr(event, "volume"):
            self._deals[event.deal] = (event.volume, event.price)
        return envelope

    @property
    def outcome(self) -> str:
        """The event that stands as the outcome so far, in words."""
        return "" if self._outcome is None else describe(self._outcome)

    @property
    def average_price(self) -> Decimal | None:
        """Of all deals, weighted by volume, at 8 decimals; None without a deal."""
        volume = sum((volume for volume, _ in self._deals.values()), ZERO)
        if not volume:
            return None
        paid = sum((volume * price for volume, price in self._deals.values()), ZERO)
        return plain((paid / volume).quantize(_STEP, ROUND_HALF_EVEN))

    @property
    def side(self) -> str:
        """`buy` or `sell`; empty for a request that names none."""
        return self.order.request.side if self.order.request else ""

    @property
    def action(self) -> str:
        return self.order.request.action if self.order.request else ""

    def state(self) -> dict[str, Any]:
        """The state for machines; amounts as text."""
        order, average = self.order, self.average_price
        return {
            "status": order.status.value,
            "open": order.is_open,
            "attempt": order.attempt,
            "volume": f"{order.volume:f}",
            "filled_volume": f"{order.filled_volume:f}",
            "remaining_volume": f"{order.remaining:f}",
            "average_price": None if average is None else f"{average:f}",
            "order_ticket": order.order_ticket,
            "deals": list(self._deals),
        }


class Step(msgspec.Struct, frozen=True):
    """An event of the order as stored and as read, and the state after it."""

    recorded: Recorded
    envelope: Envelope
    state: dict[str, Any]


class History:
    """The events of one order, oldest first; `fold` is where they lead. `later` counts the events after `as_of`."""

    def __init__(self, order_id: str, events: list[Recorded], as_of: datetime | None = None) -> None:
        self.order_id, self.as_of = order_id, as_of
        known = _until(events, as_of)
        self.later = len(events) - len(known)
        self.fold = OrderFold(order_id)
        self.steps = [Step(one, self.fold.take(one), self.fold.state()) for one in known]

    @property
    def targets(self) -> list[str]:
        """What this request acts on, as its events name it."""
        return list(dict.fromkeys(one for step in self.steps for one in targets_of(step.envelope.data)))

    @property
    def targeted_by(self) -> list[str]:
        """The requests that acted on this order, as its events name them."""
        found = (targeted_by(step.envelope.data) for step in self.steps)
        return [one for one in dict.fromkeys(found) if one and one != self.order_id]

    def as_json(self) -> list[dict[str, Any]]:
        """Each event decoded, with the state after it."""
        return [_step_json(step) for step in self.steps]


def history_of(settings: Settings, order_id: str, as_of: datetime | None = None) -> History:
    """The history of an order, up to `as_of`. Raises LedgerError for an unknown order."""
    return History(order_id, _stored(settings, order_id), as_of)


def raw_history(settings: Settings, order_id: str, as_of: datetime | None = None) -> list[bytes]:
    """The stored bytes of the same events, verbatim. Raises LedgerError for an unknown order."""
    return [one.state for one in _until(_stored(settings, order_id), as_of)]


def _stored(settings: Settings, order_id: str) -> list[Recorded]:
    try:
        parse_order_id(order_id)
    except Refused as refused:
        raise LedgerError(str(refused)) from None
    store = open_ledger(settings)
    try:
        found = store.stream(order_stream(order_id))
    finally:
        store.close()
    if not found:
        raise LedgerError(f"no order {order_id!r} in this ledger: check the id, or name its data folder by --data")
    return found


def unsound(settings: Settings, order_id: str) -> str:
    """What is wrong with the events of an order, as the seals over them tell; empty when they hold. Raises
    LedgerError for an unknown order."""
    store = open_ledger(settings)
    try:
        return problem_of(store, store.stream(order_stream(order_id)))
    finally:
        store.close()


def _until(events: list[Recorded], as_of: datetime | None) -> list[Recorded]:
    """The events that were recorded by then: up to the last one that says so. If the clock was set back in between,
    those before that one bear later times, but they were there."""
    if as_of is None:
        return events
    count = len(events)
    while count and recorded_at(events[count - 1]) > as_of:
        count -= 1
    return events[:count]


class _Time(msgspec.Struct):
    recorded_at: datetime


_time_decoder: Final = msgspec.json.Decoder(_Time)


def recorded_at(recorded: Recorded) -> datetime:
    """When the event was recorded; whatever its topic and version. Raises LedgerDamaged."""
    try:
        return _time_decoder.decode(recorded.state).recorded_at
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _damaged(recorded, str(error)) from None


def _step_json(step: Step) -> dict[str, Any]:
    recorded, envelope = step.recorded, step.envelope
    return {
        "seq": recorded.seq,
        "stream": recorded.stream,
        "version": recorded.version,
        "event_id": envelope.event_id,
        "recorded_at": iso(envelope.recorded_at),
        "topic": recorded.topic,
        "schema_version": envelope.schema_version,
        "account": envelope.account,
        "actor": envelope.actor,
        "source": msgspec.to_builtins(envelope.source),
        "correlation_id": envelope.correlation_id,
        "causation_id": envelope.causation_id,
        "config_version": envelope.config_version,
        "build": envelope.build,
        "data": with_iso_times(msgspec.to_builtins(envelope.data, builtin_types=(datetime,))),
        "told": describe(envelope.data),
        "state": step.state,
    }


# --- for people -------------------------------------------------------------------------------------------------


def print_history(history: History) -> None:
    out = console()
    for line in _header(history):
        out.print(line, soft_wrap=True)
    if not history.steps:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("seq", justify="right", style="dim", no_wrap=True)
    table.add_column("recorded (UTC)", no_wrap=True)
    table.add_column("+ms", justify="right", style="dim", no_wrap=True)
    table.add_column("event", style="bold", no_wrap=True)
    table.add_column("what", overflow="fold", min_width=30)
    table.add_column("state after", style="dim", no_wrap=True)
    first = history.steps[0].envelope.recorded_at
    one_day = len(_days(history)) == 1
    for step in history.steps:
        at = step.envelope.recorded_at
        table.add_row(
            str(step.recorded.seq),
            iso(at)[11:] if one_day else iso(at),
            f"{(at - first).total_seconds() * 1e3:.1f}",
            escape(step.recorded.topic.removeprefix("order.")),
            escape(describe(step.envelope.data)),
            step.state["status"],
        )
    print_table(table)


def _days(history: History) -> list[str]:
    return sorted({iso(step.envelope.recorded_at)[:10] for step in history.steps})


def _header(history: History) -> Iterator[str]:
    name, fold = escape(history.order_id), history.fold
    if history.as_of:
        later = f" ({history.later} later events are left out)" if history.later else ""
        yield f"[dim]as of {iso(history.as_of)}{later}[/]"
    if not history.steps:
        yield f"order {name}: nothing was recorded by then"
        return
    days = _days(history)
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    yield f"order [bold]{name}[/], {when}: [bold]{fold.order.status}[/]{_standing(fold)}"
    if history.targets:
        yield f"acts on {escape(', '.join(history.targets))}"
    if history.targeted_by:
        yield f"acted on by order {escape(', '.join(history.targeted_by))}"


def _standing(fold: OrderFold) -> str:
    order, average = fold.order, fold.average_price
    parts = []
    if order.volume:
        parts.append(" ".join(part for part in (fold.side or fold.action, f"{order.volume:f}", order.symbol) if part))
    if average is not None:
        parts.append(f"filled {order.filled_volume:f} at {average:f}")
    if order.attempt:
        parts.append(f"{order.attempt} attempt{'s' if order.attempt > 1 else ''}")
    if order.order_ticket:
        parts.append(f"order {order.order_ticket}")
    return "".join(f", {escape(part)}" for part in parts)
