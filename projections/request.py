"""How a command asks the projections of a data folder for a rebuild, and hears of it: by two files in that folder.

The process that holds `projections.lock` is the only one that may write the embedded ClickHouse, so it does the work.
The request stays until it is done: a process that was stopped or killed in between is followed by one that goes on.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from projections.rebuild import Rebuild, Rebuilt, Stopped

REQUEST: Final = "rebuild.request"
STATUS: Final = "rebuild.status"
LOOK_EVERY_S: Final = 0.5
_TELL_EVERY_S: Final = 0.2
log = structlog.get_logger()


class Request(msgspec.Struct, frozen=True):
    """`id` tells the answer to this request from that to an earlier one."""

    id: str
    exchange: bool = True


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """`state`: running, done or failed."""

    id: str
    state: str
    done: int = 0
    of: int = 0
    result: Rebuilt | None = None
    error: str = ""


def ask(folder: Path, request: Request) -> None:
    """Leaves the request for the process of the folder."""
    _write(folder / REQUEST, request)


def asked(folder: Path) -> Request | None:
    """The request that waits in the folder. One that cannot be read is removed."""
    path = folder / REQUEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Request)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError:
        log.exception("the request for a rebuild cannot be read", path=str(path))
        path.unlink(missing_ok=True)
        return None


def status(folder: Path) -> Status | None:
    """What the process said last."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / STATUS).read_bytes(), type=Status)
    return None


def done(folder: Path, told: Status) -> None:
    """The end of a request: its answer stays, the request goes."""
    _write(folder / STATUS, told)
    (folder / REQUEST).unlink(missing_ok=True)


def _write(path: Path, value: msgspec.Struct) -> None:
    scratch = path.with_suffix(path.suffix + ".tmp")
    scratch.write_bytes(msgspec.json.encode(value))
    scratch.replace(path)


class RebuildService:
    """Does what is asked for in a folder, one request at a time. `start` makes a rebuild from how to hold the sink and
    where to tell its progress; `hold` runs something in the thread of the sink, between two of its batches."""

    def __init__(
        self,
        folder: Path,
        start: Callable[[Callable[[Callable[[], None]], None], Callable[[int, int], bool]], Rebuild],
        hold: Callable[[Callable[[], None]], Coroutine[Any, Any, None]],
    ) -> None:
        self._folder, self._start, self._hold = folder, start, hold
        self._stopping = False
        self._told_at = 0.0

    async def run(self) -> None:
        """Looks for requests until cancelled."""
        while True:
            request = asked(self._folder)
            if request is not None:
                await self._rebuild(request)
            await asyncio.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        """A rebuild that runs ends at its next batch; the request stays."""
        self._stopping = True

    async def _rebuild(self, request: Request) -> None:
        loop = asyncio.get_running_loop()

        def hold(work: Callable[[], None]) -> None:
            asyncio.run_coroutine_threadsafe(self._hold(work), loop).result()

        def advance(position: int, of: int) -> bool:
            now = time.monotonic()
            if now - self._told_at >= _TELL_EVERY_S:
                self._told_at = now
                _write(self._folder / STATUS, Status(request.id, "running", position, of))
            return not self._stopping

        log.info("rebuilding the tables", exchange=request.exchange)
        try:
            found = await asyncio.to_thread(self._start(hold, advance).run, exchange=request.exchange)
        except Stopped:
            log.info("the rebuild was stopped, it goes on at the next start")
        except Exception as error:  # whatever it is, the tables in use go on
            log.exception("the rebuild failed")
            done(self._folder, Status(request.id, "failed", error=" ".join(str(error).split())[:500]))
        else:
            log.info("rebuilt", seq=found.seq, same=found.same)
            done(self._folder, Status(request.id, "done", found.seq, found.seq, found))
