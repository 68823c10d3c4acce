"""The child's loop in this process: its parent's end of the sockets belongs to the test."""

import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec
import pytest

from gateway import terminal_child
from gateway.broker import NotSent, Outcome, Send, TerminalError
from gateway.mt5 import Mt5Session
from gateway.terminal_child import Parent, Reply, SendAll, TerminalSettings, load_module
from tests.simulated import buy
from tests.unit.test_mt5 import Scripted, connected, result


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Parent, socket.socket, socket.socket]]:
    def leave(code: int = 0) -> NoReturn:
        raise Left

    monkeypatch.setattr(terminal_child, "leave", leave)
    (ours, calls), (notes, evidence) = socket.socketpair(), socket.socketpair()
    with ours, calls, notes, evidence:
        yield Parent(calls, evidence), ours, notes


def batch(count: int) -> SendAll:
    return SendAll(tuple(Send(buy(magic), 1e12) for magic in range(1, count + 1)))


def read(sock: socket.socket) -> list[Outcome | None]:
    data, outcomes = sock.recv(65536), []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        outcomes.append(msgspec.msgpack.decode(data[4:end], type=Reply[Outcome]).value)
        data = data[end:]
    return outcomes


def answer(parent: Parent, session: Mt5Session, call: SendAll, *, may_send: bool = True) -> None:
    terminal_child._answer(parent, session, call, may_send=may_send)


def test_of_a_batch_the_last_outcome_is_the_reply_and_the_others_are_noted_before(
    ends: tuple[Parent, socket.socket, socket.socket],
) -> None:
    parent, ours, notes = ends
    answer(parent, connected(Scripted(order_send=result(deal=0))), batch(3))
    assert len(read(notes)) == 2
    assert len(read(ours)) == 1


def test_once_the_parent_is_gone_no_further_send_of_the_batch_begins(
    ends: tuple[Parent, socket.socket, socket.socket],
) -> None:
    parent, ours, notes = ends

    def parent_dies(*_: Any) -> Any:
        ours.close()
        return result(deal=0)

    module = Scripted(order_send=parent_dies)
    with pytest.raises(Left):
        answer(parent, connected(module), batch(3))
    assert len(module.called("order_send")) == 1
    assert len(read(notes)) == 1


def test_a_query_child_sends_nothing(ends: tuple[Parent, socket.socket, socket.socket]) -> None:
    parent, ours, _ = ends
    module = Scripted(order_send=result())
    answer(parent, connected(module), batch(1), may_send=False)
    assert isinstance(read(ours)[0], NotSent)
    assert module.called("order_send") == []


def test_a_child_without_a_parent_ends_instead_of_waiting(ends: tuple[Parent, socket.socket, socket.socket]) -> None:
    parent, ours, _ = ends
    ours.close()
    with pytest.raises(Left):
        parent.receive()


@pytest.mark.parametrize(("kind", "library"), [("native", "MetaTrader5"), ("mt5linux", "rpyc")])
def test_a_terminal_that_is_not_installed_is_an_error(kind: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    with pytest.raises(TerminalError):
        load_module(TerminalSettings(folder="unused", kind=kind))


def test_each_terminal_and_account_has_its_own_lock() -> None:
    one = TerminalSettings(folder="f", login=1, server="S")
    same = TerminalSettings(folder="f", login=1, server="S", role="query", seed=9)
    others = [msgspec.structs.replace(one, **change) for change in ({"login": 2}, {"server": "T"}, {"path": "p"})]
    assert one.lock_path == same.lock_path
    assert len({one.lock_path, *(other.lock_path for other in others)}) == 4
