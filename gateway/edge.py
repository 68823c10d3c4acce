"""What surrounds the orders: validation, limits, halts, alerts, queries and control. Composition only."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from nats.aio.client import Client

from gateway.admission import Admission
from gateway.alerts import Alerts
from gateway.broker import Broker
from gateway.config import Settings
from gateway.connection import Connection
from gateway.control import Control
from gateway.errands import Errands
from gateway.halts import DeadMansSwitch, Halts
from gateway.microservice import MicroService
from gateway.overdue import Overdue
from gateway.proof import Proofs, key_of
from gateway.queries import Queries
from gateway.risk import RiskWatch
from gateway.submit import Submitter
from gateway.sync import Sync
from gateway.watch import Watch
from ledger.account_events import AccountReconciled
from ledger.store import EventStore
from ledger.writer import Cause, Ledger


class Edge:
    """Started before orders are taken up, so that none is sent unjudged; listens once they are. `link` is the
    connection to the broker. `reconcile`: compares our view with the broker's and tells what it found."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        store: EventStore,
        query: Broker,
        submitter: Submitter,
        link: Connection,
        connection: Client,
        clock: Callable[[], datetime],
        version: str,
        reconcile: Callable[[Cause], Awaitable[AccountReconciled]] | None = None,
        sync: Sync | None = None,
    ) -> None:
        self._settings, self._connection = settings, connection
        self._watch = Watch(ledger.tail)
        self.alerts = Alerts(ledger, settings)
        errands = Errands(ledger, submitter, clock)
        self.halts = Halts(ledger, errands, settings)

        def offset_s() -> int | None:
            return link.account.server_utc_offset_s

        self._overdue = Overdue(ledger, submitter, self.alerts, clock)
        self._risk = RiskWatch(query, ledger, self.halts, settings.limits, clock, offset_s)
        self._admission = Admission(
            query,
            settings.limits,
            clock,
            margin_mode=link.account.margin_mode,
            server_utc_offset_s=offset_s,
            risk=self._risk,
        )
        submitter.judge_by(self._admission.objections)
        self._switch = DeadMansSwitch(self.halts, settings.heartbeat_timeout_s, settings.heartbeat_subject)
        queries = Queries(ledger, store, query, clock, connection.max_payload)
        self.control = Control(
            ledger,
            self.halts,
            clock,
            errands=errands,
            open_now=queries.open_now,
            take=submitter.take,
            reconcile=reconcile,
            reconnect=link.reconnect,
            sync=sync,
        )
        self._service = MicroService(
            connection,
            queries,
            self.control,
            Proofs(key_of(settings.data)),
            login=ledger.login,
            version=version,
            control_enabled=settings.control,
            unaddressed=settings.take_unaddressed,
        )

    async def start(self) -> "list[asyncio.Task[Any]]":
        """The tasks whose end the service cannot survive."""
        self.alerts.start(self._watch)
        tasks: list[asyncio.Task[Any]] = [self.halts.start(self._watch), await self._watch.start()]
        tasks.append(await self._risk.start())
        tasks.append(self._overdue.start())
        if self._settings.heartbeat_timeout_s:
            tasks.append(await self._switch.start(self._connection))
        return tasks

    def use(self, settings: Settings) -> None:
        """Limits, halts and alerts by these settings from now on."""
        self.alerts.use(settings)
        self._risk.use(settings.limits)
        self._admission.use(settings.limits)
        self.halts.apply_configuration(settings)

    async def listen(self) -> None:
        await self._service.start()

    async def close(self) -> None:
        """Answers no more requests."""
        await self._service.stop()

    async def stop(self) -> None:
        for part in (self._overdue, self._switch, self._risk, self.halts, self._watch):
            await part.stop()
