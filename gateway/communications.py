"""`log_all_communications`: a line of the log for everything that was said to the broker and what it answered.

Each of it is an event of the ledger before it is a line here, so this follows the ledger and nothing waits for it. On a
terminal the lines are words; elsewhere JSON, with the event as it is stored.
"""

import asyncio
import sys
from typing import Final, TextIO

import orjson

from gateway.describe import describe
from gateway.logs import one_line, printable
from gateway.times import iso
from ledger.events import Envelope, Recorded, decode
from ledger.tail import Tail

EVERY_S: Final = 0.1
AT_ONCE: Final = 512
IDLE_S: Final = 5.0
SAID: Final = frozenset(
    {
        "order.checked",
        "order.send_started",
        "order.broker_answered",
        "order.send_abandoned",
        "order.outcome_unknown",
        "order.outcome_probed",
        "order.outcome_resolved",
        "account.connected",
        "account.disconnected",
        "account.login_refused",
        "account.external_deal_observed",
        "account.reconciled",
        "account.snapshot_taken",
    }
)


class CommunicationLog:
    def __init__(self, tail: Tail, after: int, out: TextIO | None = None) -> None:
        self._tail, self._after = tail, after
        self._out = out or sys.stderr
        self._until: int | None = None

    def end(self) -> None:
        """What is committed after this call is not logged."""
        self._until = self._tail.newest

    async def run(self) -> None:
        """Logs until it is ended, what was committed within a tenth of a second together."""
        while self._until is None or self._after < self._until:
            await self._tail.wait(self._after, IDLE_S)
            await asyncio.sleep(EVERY_S)
            await self.catch_up()

    async def catch_up(self) -> None:
        """Returns when all is logged that was committed before the call."""
        while records := await self._tail.read(self._after, AT_ONCE):
            last = self._until or records[-1].seq
            self._write([one for one in records if one.topic in SAID and one.seq <= last])
            self._after = records[-1].seq
            await asyncio.sleep(0)

    def _write(self, records: list[Recorded]) -> None:
        shown = words if self._out.isatty() else line
        if records:
            self._out.write("".join(shown(one, decode(one)) for one in records))
            self._out.flush()


def words(recorded: Recorded, envelope: Envelope) -> str:
    """The line of an event for a person."""
    correlation = f" correlation_id={envelope.correlation_id}" if envelope.correlation_id else ""
    told = f"{recorded.stream} {recorded.topic}: {describe(envelope.data)}{correlation}"
    return f"{iso(envelope.recorded_at)} [broker   ] {printable(told)}\n"


def line(recorded: Recorded, envelope: Envelope) -> str:
    """The line of an event: the names of every other line of the log, and the stored event behind them."""
    head = orjson.dumps(
        {
            "event": "broker",
            "level": "info",
            "timestamp": iso(envelope.recorded_at),
            "topic": recorded.topic,
            "order_id": recorded.stream[6:] if recorded.stream.startswith("order/") else None,
            "correlation_id": envelope.correlation_id or None,
        }
    )
    return one_line(f'{head[:-1].decode()},"stored":{recorded.state.decode()}}}') + "\n"
