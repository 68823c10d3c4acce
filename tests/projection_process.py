"""Starts the projections as the gateway does: settings and wake-ups on stdin, one line of JSON per status on stdout."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from ledger.events import Recorded
from ledger.store import EventStore, open_store

ROOT = Path(__file__).resolve().parent.parent


class ProjectionProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.last: dict[str, Any] = {}

    @classmethod
    async def start(cls, folder: Path, **settings: Any) -> "ProjectionProcess":
        whole = {
            "ledger_url": ledger_url(folder),
            "data_dir": str(folder),
            "audit_dir": str(folder / "audit"),
        } | settings
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "projections.process",
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        started = cls(process)
        started.send(json.dumps(whole).encode() + b"\n")
        return started

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    async def until(self, status: str, timeout_s: float = 20) -> dict[str, Any]:
        """The next line of that status; what comes before it is read over."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout_s):
            while line := await self.process.stdout.readline():
                found: dict[str, Any] = json.loads(line)
                self.last = found
                if found["status"] == status:
                    return found
        raise AssertionError(f"the process ended without {status}, last {self.last}")

    async def until_at(self, seq: int, timeout_s: float = 20) -> None:
        """Returns when all sinks hold the ledger up to `seq`."""
        while True:
            found = self.last if "sinks" in self.last else await self.until("lag", timeout_s)
            if all(sink["position"] >= seq for sink in found["sinks"]):
                return
            self.last = {}

    async def stop(self) -> int:
        """Closes stdin, as the end of the parent would."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), 10)


def ledger_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.db'}"


def stored(folder: Path, records: list[Recorded]) -> EventStore:
    """A store that holds the records; left open, as a running gateway leaves it."""
    store = open_store(ledger_url(folder))
    store.insert(records)
    return store
