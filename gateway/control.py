"""`broker.control.*`: what an operator may order. Every call is an event before it has any effect, with who and why;
a call that is refused is one, too."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from gateway import interface as api
from gateway.broker import Activity, TerminalError
from gateway.errands import Errand, Errands, cancel_order, close_position, withdraw_order
from gateway.halts import OPERATOR, Halts
from gateway.queries import Declined, halts_of
from gateway.reconcile import told
from gateway.sync import Sync
from gateway.times import iso
from ledger.account_events import AccountReconciled, ControlReceived
from ledger.commands import ResolveOutcome
from ledger.errors import LedgerError
from ledger.events import Source, account_stream
from ledger.intake import raw_of
from ledger.order import IDLE, Order, Status
from ledger.trade import ACTION_MODIFY, ACTION_REMOVE, ACTION_SLTP
from ledger.values import order_hash, shorten
from ledger.writer import Cause, Committed, Ledger

# Requests that leave no order of their own at the broker.
_TARGETED: Final = frozenset({ACTION_SLTP, ACTION_MODIFY, ACTION_REMOVE})


class Control:
    """What changes only the ledger works without the rest: `errands`, `open_now`, `take`, `reconcile` and `reconnect`
    belong to a running gateway. `open_now` tells what is open at the broker; `take` drives an order on that has
    changed; `reconcile` compares our view with the broker's and tells what it found; `reconnect` connects to the broker
    again and tells why that failed, if it did; `sync` follows the account, and knows which orders the broker has."""

    def __init__(
        self,
        ledger: Ledger,
        halts: Halts,
        clock: Callable[[], datetime],
        *,
        errands: Errands | None = None,
        open_now: Callable[[], Awaitable[Activity]] | None = None,
        take: Callable[[str, Cause], None] | None = None,
        reconcile: Callable[[Cause], Awaitable[AccountReconciled]] | None = None,
        reconnect: Callable[[], Awaitable[str]] | None = None,
        sync: Sync | None = None,
    ) -> None:
        self._ledger, self._halts, self._clock = ledger, halts, clock
        self._errands, self._open_now, self._take, self._reconcile = errands, open_now, take, reconcile
        self._reconnect, self._sync = reconnect, sync

    async def call(self, command: str, payload: bytes, subject: str, *, enabled: bool = True) -> api.ControlAnswer:
        """Records the call and does it. Raises Declined; what was refused is recorded all the same."""
        asked: api.Ordered | None = None
        reasons: tuple[str, ...] = ()
        try:
            asked = api.read(payload, api.CONTROLS[command])
        except ValueError as error:
            reasons = (str(error),)
        code = "400"
        if not enabled:
            code, reasons = "403", ("control is off: set BROKER_CONTROL=on, or use the command line of this gateway",)
        cause, event_id = await self._record(command, asked, payload, subject, reasons)
        if reasons or asked is None:
            raise Declined(code, *reasons)
        try:
            report: AccountReconciled | None = None
            orders: list[Errand] = []
            if isinstance(asked, api.Reconcile):
                report = await self._compare(cause)
                described = told(report)
            else:
                described, orders = await self._do(asked, cause)
        except TerminalError as error:
            raise Declined("503", f"not connected: {error}") from None
        return api.ControlAnswer(
            account=str(self._ledger.login),
            as_of=iso(self._clock()),
            command=command,
            event_id=event_id,
            description=described,
            orders=tuple(
                api.GivenOrder(order_id=one.order_id, status=one.status, known=one.known, reasons=one.reasons)
                for one in orders
            ),
            halts=halts_of(self._ledger),
            reconciled=api.Reconciled(
                positions=report.positions,
                orders=report.orders,
                deals=report.deals,
                differences=report.differences,
                standing=report.standing,
            )
            if report is not None
            else None,
        )

    async def _record(
        self, command: str, asked: api.Ordered | None, payload: bytes, subject: str, reasons: tuple[str, ...]
    ) -> tuple[Cause, str]:
        by = asked.by if asked is not None else ""
        cause = Cause(actor="operator", source=Source(subject=subject[:256], caller=by))
        received = ControlReceived(
            command=command,
            by=by,
            reason=asked.reason if asked is not None else "",
            accepted=not reasons,
            reasons=reasons,
            raw=raw_of(payload),
        )
        try:
            committed = await self._ledger.append(account_stream(self._ledger.login), received, cause)
        except LedgerError as error:
            raise Declined("503", str(error)) from None
        return cause, f"{self._ledger.ledger_id}:{committed.first_seq}"

    async def _do(self, asked: api.Ordered, cause: Cause) -> tuple[str, list[Errand]]:
        match asked:
            case api.Halt():
                future = self._halts.halt(OPERATOR, asked.reason, cause, by=asked.by, cancel_orders=asked.cancel_orders)
                await _durable(future)
                return "trading is halted" if future else "trading was halted already, for the same reason", []
            case api.Resume():
                future = self._halts.resume(OPERATOR, asked.reason, cause, by=asked.by)
                if future is None:
                    raise Declined("409", f"there is no halt of an operator{self._others()}")
                await _durable(future)
                return f"the operator's halt is lifted{self._others()}", []
            case api.CloseAll():
                return await self._close_all(asked, cause)
            case api.Reconnect():
                return await self._connect_again(), []
            case api.Resolve():
                return await self._resolve(asked, cause), []
            case _:
                raise Declined("501", f"{type(asked).__name__} cannot be done")

    async def _compare(self, cause: Cause) -> AccountReconciled:
        if self._reconcile is None:
            raise Declined("503", "no gateway runs: start `order-ledger serve`, the broker is asked through it")
        return await self._reconcile(cause)

    async def _connect_again(self) -> str:
        if self._reconnect is None:
            raise Declined("503", "no gateway runs: start `order-ledger serve`, it connects to the broker")
        if problem := await self._reconnect():
            raise Declined("503", f"not connected: {problem}")
        return "connected to the broker"

    def _others(self) -> str:
        halted = self._ledger.account.halted
        return f"; still halted by {halted}" if halted else ""

    async def _close_all(self, asked: api.CloseAll, cause: Cause) -> tuple[str, list[Errand]]:
        if self._errands is None or self._open_now is None:
            raise Declined("503", "no gateway runs: start `order-ledger serve`, positions are closed through it")
        activity = await self._open_now()
        mark = asked.request_id or uuid.uuid4().hex[:16]
        unsent = [
            order
            for order in self._ledger.open_orders.values()
            if order.status in IDLE and order.action == "open" and asked.symbol in (None, order.symbol)
        ]
        closing = [
            close_position(f"close-all.{mark}.{one.identifier}", one.identifier, one.symbol)
            for one in activity.positions
            if asked.symbol in (None, one.symbol)
        ]
        cancelling = []
        if asked.cancel_orders:  # what was not sent yet first: it would open behind the closes
            cancelling = [
                withdraw_order(f"cancel-all.{mark}.{order_hash(one.order_id):014x}", one.order_id, one.symbol)
                for one in unsent
            ]
            cancelling += [
                cancel_order(f"cancel-all.{mark}.{one.ticket}", one.ticket, one.symbol)
                for one in activity.orders
                if asked.symbol in (None, one.symbol)
            ]
        given = await self._errands.give([*cancelling, *closing], cause)
        refused = sum(bool(one.reasons) for one in given)
        told = f"{len(closing)} closes and {len(cancelling)} cancels given" + (
            f", {refused} refused" if refused else ""
        )
        if unsent and not asked.cancel_orders:
            told += f"; {len(unsent)} orders are not sent yet and may still open: halt, or cancel_orders"
        return told, given

    async def _resolve(self, asked: api.Resolve, cause: Cause) -> str:
        await self._ledger.load([asked.order_id])
        order = self._ledger.order(asked.order_id)
        if order is None or order.status is Status.NEW:
            raise Declined("404", f"no order {asked.order_id!r} is in the ledger")
        if order.status is not Status.UNKNOWN:
            raise Declined(
                "409", f"order {order.order_id} is {order.status.value}: only an unknown outcome can be resolved"
            )
        if asked.resolution == "found" and not asked.order_ticket and not _is_targeted(order):
            raise Declined("400", "order_ticket is missing: under which ticket was it found?")
        if asked.resolution != "found" and asked.order_ticket:
            raise Declined("400", f"order_ticket does not belong to {asked.resolution}")
        if asked.order_ticket and self._sync is None:
            raise Declined("503", "no gateway runs: start `order-ledger serve`, the ticket is looked up at the broker")
        command = ResolveOutcome(
            resolution=asked.resolution,
            reason=shorten(f"{asked.by}: {asked.reason}", 256),
            order_ticket=asked.order_ticket or 0,
        )
        if asked.order_ticket and self._sync is not None:
            async with self._sync.lock:  # its deals are nobody's until it is named
                if problem := await self._sync.objection(order.order_id, asked.order_ticket):
                    raise Declined("409", problem)
                executed = self._ledger.execute(order.order_id, command, cause)
                self._sync.named(executed.order)
        else:
            executed = self._ledger.execute(order.order_id, command, cause)
        await executed.durable
        if self._take is not None and executed.order.is_open:
            self._take(order.order_id, cause)
        return f"order {order.order_id} is {executed.order.status.value}"


def _is_targeted(order: Order) -> bool:
    return order.sent is not None and order.sent.action in _TARGETED


async def _durable(future: "asyncio.Future[Committed] | None") -> Any:
    return await future if future is not None else None
