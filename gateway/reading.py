"""Asks the reader's process. It is started at the first question and again after it failed or took too long."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import msgspec
import structlog

from gateway.embedded import end
from gateway.processes import child_environment
from gateway.reader import Question, ReaderSettings, Reply

ANSWER_S: Final = 20.0
STOP_S: Final = 0.5
MAX_WAITING: Final = 16
MAX_ANSWER: Final = 64 * 1024 * 1024
log = structlog.get_logger()


class ReaderBusy(Exception):
    """Too many questions wait already."""


class ReaderFailed(Exception):
    """The process ended, or gave no answer in time."""


class Reader:
    """One question at a time, so that reading takes one processor at most, and the orders have the rest."""

    def __init__(self, settings: ReaderSettings, log_file: Path, *, answer_s: float | None = ANSWER_S) -> None:
        self._settings, self._log_file, self._answer_s = settings, log_file, answer_s
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def ask(self, question: Question) -> Reply:
        """Raises ReaderBusy, ReaderFailed."""
        if self._waiting >= MAX_WAITING:
            raise ReaderBusy(f"{MAX_WAITING} questions wait already")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._ask(question)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end(process, STOP_S)

    async def _ask(self, question: Question) -> Reply:
        answered = False
        try:
            process = self._process or await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(msgspec.json.encode(question) + b"\n")
            async with asyncio.timeout(self._answer_s):
                await process.stdin.drain()
                line = await process.stdout.readline()
            if not line:
                raise ReaderFailed(f"the reader ended: see {self._log_file.name}")
            answered = True
            return msgspec.json.decode(line, type=Reply)
        except TimeoutError:
            raise ReaderFailed(f"no answer within {self._answer_s:g} s: ask for less") from None
        except (OSError, ValueError) as error:  # ValueError: an answer beyond MAX_ANSWER
            raise ReaderFailed(f"the reader failed: {error}") from None
        finally:
            if not answered and self._process is not None:
                # Whatever it is about, the next question is not to get its answer; also when the asker has gone.
                self._process.kill()
                self._process = None

    async def _started(self) -> asyncio.subprocess.Process:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gateway.reader",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=child_environment(),
                start_new_session=True,
                limit=MAX_ANSWER,
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(self._settings) + b"\n")
        self._process = process
        return process
