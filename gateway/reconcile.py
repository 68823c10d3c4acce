"""Reconciliation: our view of the account against the broker's; at start, after a reconnect, by interval, on demand.

A difference counts once two looks a moment apart agree on it, so that what is on its way is none. While it runs
nothing else takes up what the account shows. It records facts and the report (`AccountReconciled`), and never trades.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from gateway.broker import Activity, Broker, Target, TerminalError
from gateway.config import Settings
from gateway.connection import Connection
from gateway.guarded import Guard
from gateway.requests import NETTING_MODES
from gateway.submit import Submitter
from gateway.symbols import Symbols
from gateway.sync import Sync
from gateway.view import VIEW_FILE, LedgerView
from ledger.account_events import AccountReconciled, Difference, SnapshotTaken
from ledger.errors import LedgerError
from ledger.events import account_stream, event_of
from ledger.order import WORKING
from ledger.reconcile import ALERT, Brokers, Finding, Ours, differences, values_of
from ledger.store import EventStore
from ledger.trade import BrokerOrder, Position
from ledger.writer import Cause, Ledger

log = structlog.get_logger()

CAUSE: Final = Cause(actor="gateway")
AGAIN_S: Final = 0.25  # between the two looks
ROUNDS: Final = 4  # deals, then orders, then what no deal explains
RETRY_S: Final = 1.0
FAR_BEHIND: Final = 5_000  # events
LAST_REPORT: Final = 2_000  # events of the account's stream that are searched for it


class Reconciler:
    """`failure` ends with the error that the service cannot survive."""

    def __init__(
        self,
        ledger: Ledger,
        store: EventStore,
        query: Broker,
        settings: Settings,
        clock: Callable[[], datetime],
        connection: Connection,
        submitter: Submitter,
        sync: Sync,
    ) -> None:
        self._ledger, self._store, self._query, self._clock = ledger, store, query, clock
        self._settings, self._connection, self._submitter, self._sync = settings, connection, submitter, sync
        self._symbols = Symbols(query)
        self._view = LedgerView(store, settings.data / VIEW_FILE)
        self._standing: tuple[Difference, ...] = ()
        self._snapshot: SnapshotTaken | None = None
        self._one = asyncio.Lock()
        self._wake = asyncio.Event()
        self._asked = "start"
        self._guard = Guard()

    @property
    def failure(self) -> "asyncio.Future[BaseException]":
        return self._guard.failure

    def start(self) -> None:
        """The first one runs at once."""
        self._standing = self._last_standing()
        self._connection.on_change(self._connection_changed)
        self._guard.start(self._run(), "reconciliation")

    async def stop(self) -> None:
        await self._guard.stop()

    def use(self, settings: Settings) -> None:
        """From the next run on, which is now when the interval is another."""
        before, self._settings = self._settings, settings
        if settings.sync_interval_minutes != before.sync_interval_minutes:
            self._wake.set()

    async def on_demand(self, cause: Cause) -> AccountReconciled:
        """Runs it now. Raises TerminalError, LedgerError."""
        return await self.run("demand", cause)

    async def run(self, trigger: str, cause: Cause = CAUSE) -> AccountReconciled:
        """The report, once it is durable. Raises TerminalError, LedgerError."""
        if await self._ledger.tail.head() - self._view.seq > FAR_BEHIND:
            async with self._one:
                await self._view.catch_up()  # what takes long keeps nobody from following the account
        async with self._one, self._sync.lock:
            return await self._reconcile(trigger, cause)

    def _connection_changed(self, up: bool) -> None:
        if up and self._settings.reconcile_on_disconnect:
            self._asked = "reconnect"
            self._wake.set()

    def _last_standing(self) -> tuple[Difference, ...]:
        stream = account_stream(self._ledger.login)
        last = self._store.last_version(stream)
        for recorded in reversed(self._store.stream(stream, max(last - LAST_REPORT, 0))):
            if recorded.topic == AccountReconciled.topic():
                event = event_of(recorded)
                assert isinstance(event, AccountReconciled)
                return (*event.standing, *(one for one in event.differences if one.policy == ALERT))
        return ()

    async def _run(self) -> None:
        while True:
            trigger, self._asked = self._asked, "interval"
            self._wake.clear()
            pause_s = self._settings.sync_interval_minutes * 60
            try:
                await self.run(trigger)
            except TerminalError as error:
                log.warning("the account cannot be reconciled now", trigger=trigger, error=str(error))
                pause_s = RETRY_S
                if self._asked == "interval":
                    self._asked = trigger
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s or None):
                    await self._wake.wait()

    # --- one reconciliation -------------------------------------------------------------------------------------

    async def _reconcile(self, trigger: str, cause: Cause) -> AccountReconciled:
        since_msc = self._sync.since_msc(self._settings.reconcile_lookback_s)
        found, activity = await self._look(since_msc)
        if found:
            await asyncio.sleep(AGAIN_S)
            again, activity = await self._look(since_msc)
            before = {one.difference for one in found}
            found = [one for one in again if one.difference in before]
        told = {_key(one.difference): one.difference for one in found}
        about = {number for one in found for number in _numbers(one.difference)}
        done: dict[Key, Difference] = {}
        for _ in range(ROUNDS):
            set_now: set[int] = set()
            repaired = [
                one for one in found if one.difference.policy != ALERT and await self._repair(one, cause, set_now)
            ]
            done |= {_key(one.difference): one.difference for one in repaired}
            if not repaired:
                break
            # What a repair leaves different is seen only now: a position that its deals do not explain.
            found = [one for one in (await self._look(since_msc))[0] if about & _numbers(one.difference)]
        left = {_key(one.difference) for one in found}
        touched = {number for one in done.values() for number in _numbers(one)}
        applied = [
            one
            if key in done or (key not in left and touched & _numbers(one))
            else msgspec.structs.replace(one, policy=ALERT)
            for key, one in (told | {key: one for key, one in done.items() if key not in told}).items()
        ]
        return await self._report(trigger, cause, applied, activity, since_msc)

    async def _look(self, since_msc: int) -> tuple[list[Finding], Activity]:
        activity = await self._query.activity(since_msc)
        await self._view.catch_up()
        view = self._view
        news = [deal for deal in activity.deals if view.deals.get(deal.ticket) != values_of(deal)]
        news = [deal for deal in news if deal.time_msc >= self._sync.created_msc]
        deal_owners = await self._sync.owners_of(news)
        rows = [*activity.orders, *(_opener(one) for one in activity.positions if one.identifier not in view.positions)]
        owners = await self._sync.owners_of(rows)
        stops = {one.identifier: (one.sl, one.tp) for one in activity.positions}
        wanted = {one for one in (*deal_owners.values(), *owners.values()) if one}
        for mine in view.positions.values():
            if mine.entry_order_id and stops.get(mine.position_id) != (mine.sl, mine.tp):
                wanted.add(mine.entry_order_id)
        await self._ledger.load(wanted)
        orders = {order.order_id: order for order in self._ledger.open_orders.values() if order.status in WORKING}
        orders |= {one: order for one in wanted if (order := self._ledger.order(one)) is not None}
        orders = {one: order for one, order in orders.items() if not self._moving(order.order_ticket)}
        shown = {row.ticket for row in activity.orders}
        gone = [one.order_ticket for one in orders.values() if one.status in WORKING and one.order_ticket not in shown]
        ended = [await self._ended(ticket) for ticket in gone if ticket]
        names = {one.symbol for one in activity.positions} | {deal.symbol for deal in news}
        symbols = {name: await self._symbols.get(name) for name in names if name}
        brokers = Brokers(
            positions=activity.positions,
            orders=activity.orders,
            ended=tuple(one for one in ended if one is not None),
            deals=tuple(news),
            deal_owners=deal_owners,
            owners=owners,
            points={name: one.point for name, one in symbols.items() if one is not None},
            netting=self._connection.account.margin_mode in NETTING_MODES,
            broker_utc_offset_s=self._connection.account.server_utc_offset_s or 0,
        )
        ours = Ours(positions=view.positions, tickets=view.tickets, deals=view.deals, orders=orders)
        found = differences(ours, brokers, self._settings.reconcile_policy)
        return [one for one in found if not self._acted_on(one.difference)], activity

    def _moving(self, ticket: int) -> bool:
        return bool(ticket) and bool(self._submitter.acting_on("order", ticket))

    def _acted_on(self, difference: Difference) -> bool:
        """A request of ours on it is under way: its answer tells."""
        acting_on = self._submitter.acting_on
        return bool(
            (difference.position_id and acting_on("position", difference.position_id))
            or (difference.order_ticket and acting_on("order", difference.order_ticket))
        )

    async def _ended(self, ticket: int) -> BrokerOrder | None:
        return (await self._query.target(Target(order_ticket=ticket))).history

    # --- what it records ------------------------------------------------------------------------------------------

    async def _repair(self, finding: Finding, cause: Cause, set_now: set[int]) -> bool:
        """Records the facts. False when nothing had to be. `set_now`: positions that were set in this round."""
        order_id = finding.difference.order_id
        recorded = False
        for deal in finding.external:
            recorded |= await self._sync.take_external(deal)
        if finding.external:
            return recorded
        if finding.command is not None and order_id:
            await self._ledger.load([order_id])
            executed = self._ledger.execute(order_id, finding.command, cause)
            await executed.durable
            if executed.events:
                self._sync.taken(executed.order, finding.command)
                return True
        position_id = finding.difference.position_id
        if finding.position is not None and position_id not in set_now:
            set_now.add(position_id)
            await self._ledger.append(account_stream(self._ledger.login), finding.position, cause)
        return finding.position is not None

    async def _report(
        self, trigger: str, cause: Cause, applied: Iterable[Difference], activity: Activity, since_msc: int
    ) -> AccountReconciled:
        known = set(self._standing)
        fresh = tuple(one for one in applied if one not in known)
        standing = tuple(one for one in applied if one in known)
        offset_s = self._connection.account.server_utc_offset_s or 0
        report = AccountReconciled(
            trigger=trigger,
            positions=len(activity.positions),
            orders=len(activity.orders),
            deals=len(activity.deals),
            differences=fresh,
            deals_since=datetime.fromtimestamp(since_msc / 1000, self._clock().tzinfo) - timedelta(seconds=offset_s),
            standing=standing,
        )
        stream = account_stream(self._ledger.login)
        await self._take_snapshot(activity, cause)
        await self._ledger.append(stream, report, cause)
        self._standing = (*standing, *(one for one in fresh if one.policy == ALERT))
        log.info("reconciled", trigger=trigger, differences=[one.kind for one in fresh], standing=len(standing))
        return report

    async def _take_snapshot(self, activity: Activity, cause: Cause) -> None:
        """The account as it was looked at, unless it is as it was."""
        account = await self._query.account()
        profit = sum((one.profit for one in activity.positions), start=account.equity * 0)
        snapshot = SnapshotTaken(
            currency=account.currency,
            balance=account.balance,
            equity=account.equity,
            margin=account.margin,
            margin_free=account.margin_free,
            profit=profit,
            positions=self._as_corrected(activity),
            working_orders=len(activity.orders),
        )
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            with contextlib.suppress(LedgerError):
                await self._ledger.append(account_stream(self._ledger.login), snapshot, cause)

    def _as_corrected(self, activity: Activity) -> tuple[Position, ...]:
        """Positions of the snapshot, without those whose stops or tickets it would correct although policy alerts."""
        held, tickets = self._view.positions, self._view.tickets
        return tuple(
            one
            for one in activity.positions
            if (mine := held.get(one.identifier)) is not None
            and (mine.sl, mine.tp) == (one.sl, one.tp)
            and tickets.get(one.identifier, one.identifier) == one.ticket
        )


def told(report: AccountReconciled) -> str:
    """In one line."""
    seen = f"{report.positions} positions, {report.orders} working orders and {report.deals} deals compared"
    if not report.differences:
        return seen + (f": nothing new, {len(report.standing)} stand" if report.standing else ": no difference")
    words = [f"{one.kind} ({one.policy}ed)" for one in report.differences]
    return f"{seen}: {', '.join(words)}"


def _opener(position: Position) -> BrokerOrder:
    """The order that opened it, as far as the position tells: on netting accounts another may have it by now."""
    return BrokerOrder(
        ticket=position.identifier, magic=position.magic, reason=position.reason, comment=position.comment
    )


Key = tuple[str, int, int, int]


def _key(difference: Difference) -> Key:
    """By which it is the same one, whatever its values are by now."""
    one = difference
    deal = one.deal if one.order_ticket or one.kind == "cost" else 0  # else it is only what explains a position
    return one.kind, one.position_id, one.order_ticket, deal


def _numbers(difference: Difference) -> set[int]:
    """Position and order, or the deal that has neither."""
    return {difference.position_id, difference.order_ticket} - {0} or {difference.deal}
