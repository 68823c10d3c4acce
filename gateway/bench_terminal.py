"""`order-ledger bench terminal`: what a call to the terminal costs, in this process, through its child, eight at once.

Everything here is real but the market: the simulated terminal's broker is a process of its own that judges, executes
and keeps each order before it answers. Each send opens a position; nothing is left behind.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from gateway.bench import BenchRefused, Machine, Meter, Spread, machine, median, spread, work_folder
from gateway.broker import Answered, Checked, Send
from gateway.elapsed import elapsed_s
from gateway.mt5 import Mt5Session
from gateway.processes import tune_collector
from gateway.simulated.link import stop_broker
from gateway.terminal import BATCH, TerminalProcess
from gateway.terminal_child import TerminalSettings, load_module
from ledger.trade import ACTION_DEAL, TradeRequest

ROUNDS: Final = 3
WARM_UP: Final = 200
PACE_S: Final = 0.01
_LIMIT_S: Final = 3600.0  # not_after of a send that is only measured

T = TypeVar("T")
Call = Callable[[list[Send]], Awaitable[None]]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`calls` for each figure and round; `paced` calls at 100 a second, 0 for none."""

    calls: int
    paced: int
    folder: Path | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """`wait`: of one call, or of eight handed over together."""

    where: str
    call: str
    at_once: int
    wait: Spread
    requests_per_s: float


class TerminalResult(msgspec.Struct, frozen=True, kw_only=True):
    """`hop`: a message of 200 bytes to another process and back, which a call through the child needs twice."""

    machine: Machine
    hop: Spread
    rounds: int
    figures: list[Figure]


def bench_terminal(plan: Plan, meter: Meter) -> TerminalResult:
    """Raises BenchRefused, TerminalError."""
    with work_folder(plan.folder) as folder:
        settings = TerminalSettings(folder=str(folder))
        tune_collector()
        try:
            meter.begin("a bare hop", 1)
            hop = bare_hop(plan.calls)
            figures = _in_process(settings, plan, meter)
            figures += asyncio.run(_through_the_child(settings, plan, meter))
        finally:
            stop_broker(settings.broker_folder)
    return TerminalResult(machine=machine(), hop=hop, rounds=ROUNDS, figures=figures)


def bare_hop(calls: int) -> Spread:
    """Round trips over a socket to a process that sends everything back."""
    import multiprocessing

    ours, theirs = socket.socketpair()
    echo = multiprocessing.get_context("spawn").Process(target=_echo, args=(theirs,), daemon=True)
    echo.start()
    theirs.close()
    try:
        message, into, times = bytes(200), bytearray(200), []
        for _ in range(calls):
            began = time.perf_counter()
            ours.sendall(message)
            ours.recv_into(into)
            times.append(time.perf_counter() - began)
    finally:
        ours.close()
        echo.join(5)
    return spread(times[min(WARM_UP, calls // 2) :])


def _echo(sock: socket.socket) -> None:
    into = bytearray(200)
    while received := sock.recv_into(into):
        sock.sendall(into[:received])


def _request(number: int) -> TradeRequest:
    return TradeRequest(
        action=ACTION_DEAL, symbol="EURUSD", volume=Decimal("0.01"), magic=number + 1, comment=f"bench-{number}"
    )


def _batches(count: int, size: int) -> list[list[Send]]:
    not_after = elapsed_s() + _LIMIT_S
    sends = [Send(_request(number), not_after) for number in range(count * size)]
    return [sends[start : start + size] for start in range(0, len(sends), size)]


def _right(outcomes: list[T], kind: type[T]) -> None:
    if not all(isinstance(outcome, kind) for outcome in outcomes):
        raise BenchRefused(f"the simulated terminal did not answer: {outcomes[0]!r}")


def _figure(where: str, call: str, at_once: int, rounds: list[list[float]], pause_s: float = 0.0) -> Figure:
    waits = [wait for times in rounds for wait in times]
    speed = median([at_once * len(times) / (sum(times) + pause_s * len(times)) for times in rounds], 0)
    return Figure(where=where, call=call, at_once=at_once, wait=spread(waits), requests_per_s=speed)


def _in_process(settings: TerminalSettings, plan: Plan, meter: Meter) -> list[Figure]:
    session = Mt5Session(load_module(settings), login=settings.login)
    session.connect()
    calls: dict[str, Callable[[Send], Any]] = {
        "tick": lambda _: session.tick("EURUSD"),
        "order_check": lambda send: session.check(send.request),
        "order_send": session.send,
    }
    figures = []
    for name, call in calls.items():
        meter.begin(f"{name} in this process", plan.calls * ROUNDS)
        rounds = []
        for _ in range(ROUNDS):
            times = []
            for [send] in _batches(WARM_UP + plan.calls, 1):
                began = time.perf_counter()
                call(send)
                times.append(time.perf_counter() - began)
            rounds.append(times[WARM_UP:])
            meter.step(plan.calls)
        figures.append(_figure("in process", name, 1, rounds))
    session.close()
    return figures


async def _through_the_child(settings: TerminalSettings, plan: Plan, meter: Meter) -> list[Figure]:
    terminal = TerminalProcess(settings)
    await terminal.connect()

    async def tick(_: list[Send]) -> None:
        await terminal.tick("EURUSD")

    async def check(batch: list[Send]) -> None:
        _right(await terminal.check([send.request for send in batch]), Checked)

    async def send(batch: list[Send]) -> None:
        _right(await terminal.send(batch), Answered)

    async def measured(name: str, call: Call, at_once: int = 1) -> Figure:
        meter.begin(f"{name} through the child, {at_once} at once", plan.calls * ROUNDS)
        rounds = []
        for _ in range(ROUNDS):
            batches = _batches(WARM_UP + plan.calls // at_once, at_once)
            rounds.append((await _timed(call, batches))[WARM_UP:])
            meter.step(plan.calls)
        return _figure("through the child", name, at_once, rounds)

    try:
        figures = [
            await measured("tick", tick),
            await measured("order_check", check),
            await measured("order_send", send),
            await measured("order_check", check, BATCH),
            await measured("order_send", send, BATCH),
        ]
        if plan.paced:
            meter.begin("order_send at 100/s", plan.paced)
            times = await _timed(send, _batches(plan.paced, 1), PACE_S)
            figures.append(_figure("through the child, 100/s", "order_send", 1, [times], PACE_S))
    finally:
        await terminal.close()
    return figures


async def _timed(call: Call, batches: list[list[Send]], pause_s: float = 0.0) -> list[float]:
    times = []
    for batch in batches:
        began = time.perf_counter()
        await call(batch)
        times.append(time.perf_counter() - began)
        if pause_s:
            await asyncio.sleep(pause_s)
    return times
