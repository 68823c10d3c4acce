"""Follows the account at the broker: what changes there becomes events, whoever changed it.

Deals of ours become fills, completed or corrected ones, other costs; working orders of ours are filled, changed,
cancelled or expire; deals that nobody of ours asked for (by hand, stop loss, take profit, stop-out, costs) stand on
the stream of the account. Looked at quickly after something that is awaited, else by interval, and never so often
that it keeps the terminal from orders.

Nothing is missed across a restart: deals are keyed by their ticket and looked at from a time on before which all are
in the ledger (`deals.Followed`). That time does not pass a deal that waits for the answer to its send.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

import structlog

from gateway.broker import Activity, Broker, Target, TerminalError
from gateway.config import Settings
from gateway.connection import Connection
from gateway.deals import Followed, Owners
from gateway.guarded import Guard
from gateway.submit import Submitter
from gateway.symbols import Symbols
from gateway.targets import target_of
from ledger.account_events import ExternalDealObserved
from ledger.commands import EndCounted, OrderCommand, RecordAnswer, RecordDeals, RecordModified, RecordOrderState
from ledger.errors import LedgerError
from ledger.events import account_stream
from ledger.fills import broker_utc
from ledger.order import WORKING, Order, Status
from ledger.order_events import Fill, OrderModified, RequestCompleted
from ledger.store import EventStore
from ledger.trade import WORKING_STATES, BrokerOrder, Deal
from ledger.values import order_hash
from ledger.writer import Cause, Executed, Ledger

log = structlog.get_logger()

CAUSE: Final = Cause(actor="broker")
TIGHT_S: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
CLOCK_BACK_MSC: Final = 3_600_000  # that the server's clock goes back at the end of summer time
LONG_OVERLAP_S: Final = 60.0  # after a start or a lost connection, beside the deadlines of the calls
SHARE: Final = 20  # by interval, at most one part in so many of the time goes into looking
TIGHT_SHARE: Final = 4
SAVE_EVERY_S: Final = 60.0
_REASONS: Final = {4: "stop loss", 5: "take profit", 6: "stop out", 7: "rollover", 8: "variation margin", 9: "split"}


class Sync:
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
    ) -> None:
        self._ledger, self._store, self._query, self._clock = ledger, store, query, clock
        self._settings, self._connection, self._submitter = settings, connection, submitter
        self._followed = Followed()
        self._owners = Owners(store)
        self._symbols = Symbols(query)
        self._changed_by: dict[int, str] = {}  # working orders that a request of ours changed
        self._positions: dict[int, str] = {}  # positions whose stops a request of ours changed
        self._wake = asyncio.Event()
        self._tight = 0
        self._long_overlap_s = LONG_OVERLAP_S + 2 * settings.call_deadline_s
        self._overlap_s = self._long_overlap_s
        self._saved = (0, 0.0)  # the time of the last DealsFollowed, and when it was written
        self._looked_in_s = self._offset_s  # the server's zone at the last look
        self._guard = Guard()
        self.lock = asyncio.Lock()  # held while what the account shows is taken up

    @property
    def failure(self) -> "asyncio.Future[BaseException]":
        return self._guard.failure

    async def start(self, after: Callable[[], None] | None = None) -> None:
        """Reads where to go on, calls `after`, then follows: what `after` starts looks at the account first."""
        ledger, offset_s = self._ledger, self._offset_s
        self._followed = await asyncio.to_thread(Followed.read, self._store, ledger.login, offset_s)
        created, is_first = await asyncio.to_thread(self._store.at, 1), not self._followed.through_msc
        if created is not None:
            self._followed.begin(created, offset_s, self._server_msc())
        if is_first:
            # Where it begins is known by the server's clock as it is seen now: another time ours may tell another.
            self._save()
        # The first look is saved at once: gateways that are killed one after the other must get on.
        self._saved = (self._followed.through_msc, -SAVE_EVERY_S)
        for order in ledger.open_orders.values():
            self._owners.know(order.order_id, order.order_ticket, order.position_id)
        for ticket, order_id in self._followed.named.items():
            self._owners.know(order_id, ticket)
        self._submitter.on_answer = self.answered
        self._submitter.closes.owners_of = self.owners_of
        self._connection.on_change(self._connection_changed)
        if after is not None:
            after()
        self._guard.start(self._run(), "sync")

    async def stop(self) -> None:
        await self._guard.stop()
        with contextlib.suppress(LedgerError):
            self._save()

    def poke(self) -> None:
        """Something is awaited: looks soon, and quickly again."""
        self._tight = 0
        self._wake.set()

    def answered(self, executed: Executed, command: OrderCommand) -> None:
        """An answer was recorded: what is in the ledger by it need not be looked for."""
        order = executed.order
        status = order.status
        self._owners.know(order.order_id, order.order_ticket if status in WORKING else 0, order.position_id)
        if isinstance(command, RecordAnswer):
            for deal in command.deals:
                self._followed.note(deal, order.order_id)
        awaited = status in WORKING
        for event in executed.events:
            if isinstance(event, Fill) and event.provisional:
                self._followed.provisional[event.deal] = self._server_msc() - 1_000
                awaited = True
            elif isinstance(event, RequestCompleted):
                self._acted(order)
                awaited = True
        if awaited:
            self.poke()

    def _acted(self, order: Order) -> None:
        """Its target has changed: who did that is told with the change."""
        target = target_of(order)
        if target is None:
            return
        if target.order_ticket:
            self._changed_by[target.order_ticket] = order.order_id
        elif target.position_id:
            self._positions[target.position_id] = order.order_id

    def _connection_changed(self, up: bool) -> None:
        if up:
            self._overlap_s = self._long_overlap_s
            self.poke()

    # --- looking ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        cost_s = 0.0
        while True:
            await self._pause(cost_s)
            if not self._connection.up:
                continue
            began = time.monotonic()
            try:
                async with self.lock:
                    await self._poll()
            except TerminalError as error:
                log.info("the account cannot be looked at now", error=str(error))
            cost_s = time.monotonic() - began
            if time.monotonic() - self._saved[1] >= SAVE_EVERY_S:
                self._save()

    def use(self, settings: Settings) -> None:
        self._settings = settings
        self._wake.set()

    async def _pause(self, cost_s: float) -> None:
        """Quickly for a while after `poke`, then by interval."""
        self._wake.clear()
        if self._tight >= len(TIGHT_S):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(self._settings.poll_interval_s, SHARE * cost_s)):
                    await self._wake.wait()
        if self._tight < len(TIGHT_S):
            await asyncio.sleep(max(TIGHT_S[self._tight], TIGHT_SHARE * cost_s))
            self._tight += 1

    async def _poll(self) -> None:
        if self._offset_s < self._looked_in_s:  # that was learnt a moment late: the usual overlap is too short for it
            self._overlap_s = self._long_overlap_s
        self._looked_in_s = self._offset_s
        working = [order for order in self._ledger.open_orders.values() if order.status in WORKING]
        since_msc = self._since_msc()
        activity = await self._query.activity(since_msc, orders=bool(working), rest=False)
        complete = await self._take_deals(activity.deals)
        await self._compare(working, activity)
        for position_id in list(self._positions):
            await self._take_stops(position_id)
        if complete:
            self._overlap_s = self._settings.deal_overlap_s
        # After a restart or a lost connection it is looked further back: what is known from then on stays known.
        kept_msc = self._followed.through_msc - round(self._long_overlap_s * 1000)
        self._followed.forget_before(min(since_msc, kept_msc), kept_msc - CLOCK_BACK_MSC)

    def _since_msc(self) -> int:
        followed = self._followed
        # A server that leaves summer time lives an hour twice: deals of the second come after those of the first.
        through = followed.through_msc
        if self._zone_s is not None:
            through = max(min(through, self._server_msc()), through - CLOCK_BACK_MSC)
        since = through - round(self._overlap_s * 1000)
        # A fill that only a result has told of waits for its deal, but not for ever.
        oldest = min(followed.provisional.values(), default=since)
        return max(min(since, oldest), since - 3_600_000, 1)

    # --- deals --------------------------------------------------------------------------------------------------

    async def _take_deals(self, deals: Iterable[Deal]) -> bool:
        """Records what is new. False when some of it waits for the answer to its send."""
        deals = tuple(deals)
        news = [deal for deal in deals if self._followed.is_news(deal)]
        owners = await self.owners_of(news)
        await self._ledger.load({one for one in owners.values() if one})
        through, waiting = self._followed.through_msc, None
        by_order: dict[str, list[Deal]] = {}
        for deal in news:
            owner = owners[deal.ticket]
            if not owner:
                if self._followed.is_external(deal.ticket) or self._followed.may_be_unrecorded(deal):
                    await self._external(deal)
            else:
                by_order.setdefault(owner, []).append(deal)
        for order_id, found in by_order.items():
            if not await self._own(order_id, found):
                first = min(deal.time_msc for deal in found)
                waiting = first if waiting is None else min(waiting, first)
        newest = max((deal.time_msc for deal in deals), default=through)
        if waiting is not None:
            newest = min(newest, waiting - 1)
            self.poke()
        self._followed.through_msc = max(through, newest)
        return waiting is None

    async def owners_of(self, rows: Sequence[Deal] | Sequence[BrokerOrder]) -> dict[int, str]:
        """By ticket the order of ours that a row belongs to; empty when it is none of ours. What a deal was recorded as
        it stays: an operator may name a broker's order whose deals were counted long before."""
        owners = {row.ticket: self._owners.of(row) for row in rows}
        for row in rows:
            if isinstance(row, Deal) and (known := self._followed.recorded_for(row.ticket)) is not None:
                owners[row.ticket] = known
        unknown = [row for row in rows if owners[row.ticket] is None]
        if unknown:
            self._owners.remember(await asyncio.to_thread(self._owners.look_up, unknown))
        told = {row.ticket: self._owners.of(row) or "" for row in unknown}
        return {ticket: told[ticket] if owner is None else owner for ticket, owner in owners.items()}

    async def _own(self, order_id: str, deals: list[Deal]) -> bool:
        """Records deals of an order. False while its answer, or the prober, must tell of them first."""
        symbol = await self._symbols.get(deals[0].symbol)
        await self._ledger.load([order_id])
        order = self._ledger.order(order_id)
        if order is None:
            return True
        if order.status is Status.UNKNOWN:
            self._submitter.prober.hasten([order_id])
            return False
        if order.status is Status.SENDING:
            return False
        command = RecordDeals(
            deals=tuple(deals), point=symbol.point if symbol else None, broker_utc_offset_s=self._offset_s
        )
        executed = self._ledger.execute(order_id, command, CAUSE)
        for deal in deals:
            self._followed.note(deal, order_id)
            self._owners.know(order_id, position_id=deal.position_id if not deal.entry else 0)
        if executed.events:
            log.info("deals", order_id=order_id, deals=[deal.ticket for deal in deals])
        return True

    async def _external(self, deal: Deal) -> None:
        if self._followed.is_external(deal.ticket):
            self._followed.note(deal, "")  # its costs changed: not ours to book
            return
        opener = await self._opener(deal.position_id) if deal.entry and deal.position_id else ""
        note = _REASONS.get(deal.reason, "")
        event = ExternalDealObserved(
            deal=deal,
            broker_time=broker_utc(deal.time_msc, self._offset_s),
            broker_utc_offset_s=self._offset_s,
            note=note,
            order_id=opener,
        )
        if not self._followed.is_external(deal.ticket):
            self._ledger.append(account_stream(self._ledger.login), event, CAUSE)
            self._followed.note(deal, "")

    async def _opener(self, position_id: int) -> str:
        """The order of ours that opened the position; empty when none did."""
        known = self._owners.of_position(position_id)
        if known is not None:
            return known
        view = await self._query.target(Target(position_id=position_id))
        opening = [deal for deal in view.deals if not deal.entry]
        owners = await self.owners_of(opening)
        opener = next((owners[deal.ticket] for deal in opening if owners[deal.ticket]), "")
        self._owners.opened(position_id, opener)
        return opener

    # --- working orders and stops ---------------------------------------------------------------------------------

    async def _compare(self, working: list[Order], activity: Activity) -> None:
        shown = {row.ticket: row for row in activity.orders}
        for order in working:
            ticket = order.order_ticket
            if not ticket or self._submitter.acting_on("order", ticket):
                continue  # who changes it is known when the request has its outcome
            row = shown.get(ticket) or await self._ended(ticket)
            if row is None or self._submitter.acting_on("order", ticket):
                continue
            command = RecordOrderState(order=row, by=self._changed_by.get(ticket, ""))
            executed = self._ledger.execute(order.order_id, command, CAUSE)
            if executed.order.status in WORKING and row.state not in WORKING_STATES:
                await self._settle(executed.order, row)
            if executed.order.status not in WORKING or any(isinstance(one, OrderModified) for one in executed.events):
                self._changed_by.pop(ticket, None)

    async def _ended(self, ticket: int) -> BrokerOrder | None:
        """The order in history, or working after all."""
        view = await self._query.target(Target(order_ticket=ticket))
        return view.image.order or view.history

    async def _settle(self, order: Order, row: BrokerOrder) -> None:
        """It has ended with deals that were not followed to it: an operator named it after they were made."""
        deals: dict[int, Deal] = {}
        for position_id in {row.position_id or row.ticket, row.position_by_id} - {0}:
            view = await self._query.target(Target(position_id=position_id))
            deals |= {deal.ticket: deal for deal in view.deals if deal.order == row.ticket}
        owners = await self.owners_of(tuple(deals.values()))
        recorded = {one: self._followed.recorded_for(one) for one in deals}
        counted: list[Deal] = []
        ours: list[Deal] = []
        for ticket, deal in sorted(deals.items()):
            marked = deal.magic >> 8 == order_hash(order.order_id)
            # What is too old to be known here, and does not say whose it is, was recorded as nobody's.
            before = recorded[ticket] is None and not self._followed.may_be_unrecorded(deal) and not marked
            elsewhere = owners[ticket] != order.order_id or before or deal.time_msc < self.created_msc
            (counted if elsewhere and order.deal(ticket) is None else ours).append(deal)
        if ours:
            await self._own(order.order_id, ours)
        if counted:
            self._owners.forget(row.ticket)
            self._followed.named.pop(row.ticket, None)
            self._ledger.execute(order.order_id, EndCounted(deals=tuple(counted)), CAUSE)

    async def _take_stops(self, position_id: int) -> None:
        """The stops of a position that a request of ours has changed, for the order that opened it."""
        by = self._positions[position_id]
        view = await self._query.target(Target(position_id=position_id))
        opener = await self._opener(position_id)
        position = view.image.position
        if self._positions.get(position_id) == by:
            del self._positions[position_id]
        if position is None or not opener:
            return
        await self._ledger.load([opener])
        if self._ledger.order(opener) is not None:
            self._ledger.execute(opener, RecordModified(position=position, by=by), CAUSE)

    # --- for an operator's word ---------------------------------------------------------------------------------------

    async def objection(self, order_id: str, ticket: int) -> str:
        """What speaks against it that the broker holds, or held, the order under this ticket; empty: nothing does.
        Raises TerminalError."""
        row = await self._ended(ticket)
        if row is None:
            return (
                f"the broker knows no order {ticket}: name the ticket of the order, not that of its deal or position "
                "(`order-ledger query orders` and `query history` show them)"
            )
        owner = (await self.owners_of([row]))[ticket]
        return f"order {ticket} at the broker is that of {owner}" if owner not in ("", order_id) else ""

    def named(self, order: Order) -> None:
        """An operator has told under which ticket the broker has the order."""
        self._followed.name(order.order_ticket, order.order_id)
        self._owners.know(order.order_id, order.order_ticket, order.position_id)
        self.poke()

    # --- for the reconciliation, which holds the lock ----------------------------------------------------------------

    @property
    def created_msc(self) -> int:
        """Deals from before it are not this ledger's business."""
        return self._followed.created_msc

    def since_msc(self, lookback_s: float) -> int:
        """From when on to compare deals: so far back, and at least as far as they are followed."""
        back = self._server_msc() - round(lookback_s * 1000)
        return max(min(self._since_msc(), back), self._followed.created_msc, 1)

    async def take_external(self, deal: Deal) -> bool:
        """Records a deal that nobody of ours asked for. False when it is in the ledger already."""
        known = self._followed.is_external(deal.ticket)
        await self._external(deal)
        return not known

    def taken(self, order: Order, command: OrderCommand) -> None:
        """What was recorded of an order need not be looked for."""
        if isinstance(command, RecordDeals):
            for deal in command.deals:
                self._followed.note(deal, order.order_id)
        self._owners.know(order.order_id, position_id=order.position_id)

    # --- common -------------------------------------------------------------------------------------------------

    @property
    def _offset_s(self) -> int:
        return self._zone_s or 0

    @property
    def _zone_s(self) -> int | None:
        return self._connection.account.server_utc_offset_s

    def _server_msc(self) -> int:
        return round(self._clock().timestamp() * 1000) + self._offset_s * 1000

    def _save(self) -> None:
        """Records where to go on, if there is anything new to say."""
        through, _ = self._saved
        if self._followed.through_msc > through:
            since = self._followed.through_msc - round(self._long_overlap_s * 1000)
            self._ledger.append(account_stream(self._ledger.login), self._followed.cursor(since), CAUSE)
        self._saved = (self._followed.through_msc, time.monotonic())
