"""The child process under kills, hangs and orphanhood. A stopped broker (SIGSTOP) is a terminal that hangs."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from gateway.broker import Answered, NotSent, TerminalError, Unknown
from gateway.elapsed import elapsed_s
from gateway.processes import child_environment
from gateway.simulated.link import TOTALS, BrokerUnreachable, ensure_broker, read_address, try_connect
from gateway.terminal import TerminalProcess, TerminalStatus
from gateway.terminal_child import TerminalSettings
from tests.simulated import LOGIN, SERVER, broker_in, buy, send

ROOT = Path(__file__).parents[2]
Make = Callable[..., Awaitable[TerminalProcess]]


class Watched(TerminalProcess):
    """Lets a test wait for a status."""

    def __init__(self, settings: TerminalSettings, password: str = "") -> None:
        self.seen: asyncio.Queue[TerminalStatus] = asyncio.Queue()
        super().__init__(settings, password, on_change=self.seen.put_nowait)

    async def until(self, state: str) -> TerminalStatus:
        async with asyncio.timeout(15):
            while (status := await self.seen.get()).state != state:
                pass
        return status


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with broker_in(tmp_path / "broker"):
        yield tmp_path


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Callable[..., Awaitable[Watched]]]:
    made: list[Watched] = []

    async def make(*, connect: bool = True, password: str = "any", **changes: object) -> Watched:
        fields = {"folder": str(folder), "login": LOGIN, "server": SERVER, "call_deadline_s": 5.0} | changes
        terminal = Watched(TerminalSettings(**fields), password)  # type: ignore[arg-type]
        made.append(terminal)
        if connect:
            await terminal.connect()
            await terminal.until("connected")
        return terminal

    yield make
    for terminal in made:
        await terminal.close()


@contextmanager
def hanging_broker(folder: Path) -> Iterator[None]:
    address = read_address(folder / "broker")
    assert address is not None
    os.kill(address.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(address.pid, signal.SIGCONT)


async def ended(pid: int) -> None:
    """Returns when the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await asyncio.wait_for(over.wait(), 10)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from gateway.terminal import TerminalProcess
    from gateway.terminal_child import TerminalSettings
    from tests.simulated import LOGIN, SERVER, buy, send

    async def main(folder: str) -> None:
        terminal = TerminalProcess(TerminalSettings(folder=folder, login=LOGIN, server=SERVER))
        await terminal.connect()
        print(terminal.pid, flush=True)
        sys.stdin.readline()
        batch = asyncio.create_task(terminal.send([send(buy(magic=100 + n), within_s=60) for n in range(8)]))
        await asyncio.sleep(0)
        print("handed to the child", flush=True)
        await batch

    asyncio.run(main(sys.argv[1]))
    """
)


async def test_a_child_whose_parent_was_killed_sends_nothing_it_had_not_begun(folder: Path, make: Make) -> None:
    pipe = asyncio.subprocess.PIPE
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(folder), stdin=pipe, stdout=pipe, env=child_environment(), cwd=ROOT
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    with hanging_broker(folder):
        parent.stdin.write(b"go\n")
        await parent.stdout.readline()
        await asyncio.sleep(0.05)  # the child begins the first and waits for the broker; nothing shows that
        parent.kill()
        await ended(child)
    await parent.wait()
    terminal = await make()
    found = await terminal.find(range(100, 108), [], 3600)
    assert found.complete
    assert {deal.magic for deal in found.deals} <= {100}


async def test_a_child_ends_when_its_parent_does_also_while_it_waits_for_the_lock(folder: Path, make: Make) -> None:
    await make()
    waiting = await make(connect=False)
    task = asyncio.create_task(waiting.connect())
    await waiting.until("connecting")
    await asyncio.wait({task}, timeout=0.3)
    assert not task.done()
    await waiting.close()
    with pytest.raises(TerminalError):
        await task


async def test_a_child_ignores_the_signals_that_are_meant_for_its_parent(make: Make) -> None:
    terminal = await make()
    pid = terminal.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    await terminal.account()
    assert terminal.pid == pid


async def test_what_waited_in_the_child_past_its_time_is_not_sent(folder: Path, make: Make) -> None:
    terminal = await make()
    with hanging_broker(folder):
        task = asyncio.create_task(terminal.send([send(buy(1)), send(buy(2), within_s=0.05)]))
        await asyncio.wait({task}, timeout=0.2)
    first, second = await task
    assert isinstance(first, Answered)
    assert second == NotSent(0, "not_after passed")
    assert (await terminal.find([2], [], 60)).deals == ()


async def test_the_second_trading_child_of_a_login_waits_for_the_first_to_end(make: Make) -> None:
    first, second = await make(), await make(connect=False)
    task = asyncio.create_task(second.connect())
    done, _ = await asyncio.wait({task}, timeout=0.5)
    assert not done
    await first.close()
    assert (await task).login == LOGIN


async def test_a_trading_child_that_does_not_get_the_lock_in_time_says_who_has_it(make: Make) -> None:
    await make()
    second = await make(connect=False, lock_wait_s=0.1, restart=False)
    with pytest.raises(TerminalError, match=r"another process trades account 5000001.*\.lock"):
        await second.connect()


async def test_a_query_child_needs_no_lock_and_does_not_send(make: Make) -> None:
    await make()
    query = await make(role="query")
    assert await query.symbol("EURUSD") is not None
    [outcome] = await query.send([send(buy())])
    assert isinstance(outcome, NotSent)


async def test_past_the_deadline_the_first_is_unknown_those_behind_it_were_not_sent_and_the_child_is_replaced(
    folder: Path, make: Make
) -> None:
    terminal = await make(call_deadline_s=0.3)
    before = terminal.pid
    with hanging_broker(folder):
        outcomes = await terminal.send([send(buy(magic)) for magic in (1, 2, 3)])
    assert [type(outcome) for outcome in outcomes] == [Unknown, NotSent, NotSent]
    assert "0.3 s" in outcomes[0].text
    await terminal.until("connected")
    assert terminal.pid != before
    found = await terminal.find([1, 2, 3], [], 60)
    assert found.complete
    assert {deal.magic for deal in found.deals} <= {1}


async def test_what_was_answered_before_a_hang_is_kept_though_the_batch_was_not_completed(
    folder: Path, make: Make
) -> None:
    terminal = await make(call_deadline_s=0.3)
    link = ensure_broker(folder / "broker")
    for _ in range(100):
        batch = asyncio.create_task(terminal.send([send(buy(magic)) for magic in range(1, 9)]))
        _, (_, _, before) = link.call(TOTALS)
        await asyncio.sleep(0)
        while link.call(TOTALS)[1][2] == before:
            pass
        with hanging_broker(folder):
            outcomes = await batch
        if not isinstance(outcomes[-1], Answered):
            break  # the broker was stopped within the batch
    link.close()
    kinds = [type(outcome) for outcome in outcomes]
    first_missing = kinds.index(Unknown)
    assert set(kinds[:first_missing]) <= {Answered}
    assert set(kinds[first_missing + 1 :]) <= {NotSent}
    await terminal.until("connected")


async def test_a_child_that_is_killed_in_a_call_leaves_that_one_unknown_and_what_waited_unsent(
    folder: Path, make: Make
) -> None:
    terminal = await make()
    assert terminal.pid is not None
    with hanging_broker(folder):
        begun = asyncio.create_task(terminal.send([send(buy(1)), send(buy(2))]))
        waiting = asyncio.create_task(terminal.send([send(buy(3))]))
        check = asyncio.create_task(terminal.check([buy(4)]))
        await asyncio.wait({begun}, timeout=0.1)
        os.kill(terminal.pid, signal.SIGKILL)
        assert [type(outcome) for outcome in await begun] == [Unknown, NotSent]
        assert [type(outcome) for outcome in await waiting] == [NotSent]
        assert [type(outcome) for outcome in await check] == [NotSent]
    await terminal.until("connected")
    assert {deal.magic for deal in (await terminal.find([1, 2, 3], [], 60)).deals} <= {1}


async def test_while_the_child_is_away_nothing_is_sent_and_questions_fail(folder: Path, make: Make) -> None:
    terminal = await make(restart=False)
    assert terminal.pid is not None
    os.kill(terminal.pid, signal.SIGKILL)
    await terminal.until("down")
    assert [type(outcome) for outcome in await terminal.send([send(buy())] * 9)] == [NotSent] * 9
    with pytest.raises(TerminalError, match="down"):
        await terminal.tick("EURUSD")
    assert not (await terminal.find([1], [], 60)).complete
    assert (await terminal.connect()).login == LOGIN


async def test_a_caller_that_gives_up_does_not_shift_the_answers_of_others(folder: Path, make: Make) -> None:
    terminal = await make()
    with hanging_broker(folder):
        begun = asyncio.create_task(terminal.send([send(buy(1))]))
        dropped = asyncio.create_task(terminal.send([send(buy(2))]))
        symbol = asyncio.create_task(terminal.symbol("GBPUSD"))
        await asyncio.wait({begun}, timeout=0.1)
        begun.cancel()
        dropped.cancel()
    found = await symbol
    assert found is not None
    assert found.name == "GBPUSD"
    assert {deal.magic for deal in (await terminal.find([1, 2], [], 60)).deals} == {1}


async def test_a_killed_broker_comes_back_with_every_order_deal_and_position(folder: Path, make: Make) -> None:
    terminal = await make()
    outcomes = await terminal.send([send(buy(magic)) for magic in range(1, 30)])
    tickets = [outcome.result.order for outcome in outcomes if isinstance(outcome, Answered)]
    await terminal.send([send(buy(1, type=1, position=tickets[0]))])
    before, account = await terminal.find(range(1, 30), [], 60), await terminal.account()
    address = read_address(folder / "broker")
    assert address is not None
    os.kill(address.pid, signal.SIGKILL)
    [outcome] = await terminal.send([send(buy(99))])
    assert isinstance(outcome, Unknown)
    await terminal.until("connected")
    after = await terminal.find(range(1, 30), [], 60)
    assert (after.history, after.deals) == (before.history, before.deals)
    assert [row.ticket for row in after.positions] == [row.ticket for row in before.positions]
    assert (await terminal.account()).balance == account.balance
    assert (await terminal.find([99], [], 60)).deals == ()


async def test_the_password_is_in_no_argument_environment_log_or_text(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT5_PASSWORD", "hunter2")
    terminal = await make(password="hunter2")
    assert terminal.pid is not None
    address = read_address(folder / "broker")
    assert address is not None
    assert "hunter2" not in repr(terminal)
    assert not holding(b"hunter2", terminal.pid, address.pid, folder)


def holding(secret: bytes, one: int, other: int, folder: Path) -> list[Path]:
    shown = [Path(f"/proc/{pid}/{what}") for pid in (one, other) for what in ("cmdline", "environ")]
    stored = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in (*shown, *stored) if secret in path.read_bytes()]


async def test_a_broker_without_clients_ends_by_itself_and_keeps_its_state(make: Make, folder: Path) -> None:
    terminal = await make(simulated_options=("--idle-exit-s", "0.2"))
    await terminal.send([send(buy(1))])
    address = read_address(folder / "broker")
    assert address is not None
    await terminal.close()
    await ended(address.pid)
    assert read_address(folder / "broker") is None
    again = await make()
    assert len((await again.find([1], [], 60)).deals) == 1


def test_many_processes_that_need_a_broker_at_once_get_the_same_one(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gateway.simulated.link import *\n"
        "link = ensure_broker(Path(sys.argv[1])); print(read_address(Path(sys.argv[1])).pid)"
    )
    command = [sys.executable, "-c", code, str(folder / "broker")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment()) for _ in range(5)]
    pids = {process.communicate(timeout=30)[0] for process in started}
    assert len(pids) == 1
    assert pids != {b""}


def test_a_broker_that_cannot_start_is_an_error_that_names_its_log(folder: Path) -> None:
    place = folder / "broker"
    place.mkdir()
    (place / "journal.bin").write_bytes(b"\x01\x00\x00\x00\x00\x00\x00\x00x")
    with pytest.raises(BrokerUnreachable, match=r"broker\.log"):
        ensure_broker(place)
    assert "JournalDamaged" in (place / "broker.log").read_text()
    (place / "journal.bin").unlink()


def test_a_broker_address_is_private_and_a_stranger_without_the_token_is_not_answered(folder: Path) -> None:
    link = ensure_broker(folder / "broker")
    path = folder / "broker" / "broker.json"
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text()
    path.write_text(token.replace('"token":"', '"token":"0'))
    with FileLock(folder / "broker" / "start.lock"):
        assert try_connect(folder / "broker") is None
    path.write_text(token)
    link.close()


def test_the_child_starts_without_the_heavy_libraries() -> None:
    code = "import sys, gateway.terminal_child, gateway.simulated.terminal; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, env=child_environment(), check=True)
    loaded = set(output.stdout.decode().split())
    assert not loaded & {"asyncio", "numpy", "pandas", "aiohttp", "nats", "eventsourcing", "clickhouse_connect"}


def test_time_limits_mean_the_same_moment_in_every_process() -> None:
    """`not_after` crosses a process boundary: the clock must be the machine's."""
    code = "from gateway.elapsed import elapsed_s; print(elapsed_s())"
    before = elapsed_s()
    other = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert before < other < elapsed_s()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU can be chosen here")
async def test_the_children_and_their_simulated_broker_share_a_cpu_and_nobody_else_is_kept_on_it(
    folder: Path, make: Make
) -> None:
    ours = os.sched_getaffinity(0)
    terminal, query = await make(), await make(role="query")
    address = read_address(folder / "broker")
    assert address is not None
    assert terminal.pid is not None
    assert query.pid is not None
    shared = os.sched_getaffinity(terminal.pid)
    assert len(shared) == 1
    assert shared <= ours
    assert os.sched_getaffinity(address.pid) == os.sched_getaffinity(query.pid) == shared
    assert os.sched_getaffinity(0) == ours
