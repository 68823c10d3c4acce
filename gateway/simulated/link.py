"""Between a terminal and its broker: command numbers, frames, the broker's address, finding or starting it.

A frame is a u32 little-endian length and a msgpack array: `[command, arguments]` one way, `[command, status, value]`
back, where status is 1 or the `last_error` code the call fails with, and value then perhaps its text. TCP on
127.0.0.1, and a Unix socket where there are such; the token in `broker.json` (mode 0600) keeps other users of the
machine out.
"""

import os
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Final

import msgspec
from filelock import FileLock, Timeout

from gateway.frames import Frames, frame
from gateway.processes import child_environment

HELLO: Final = 1
LOGIN: Final = 2
STOP: Final = 3
CONTROL: Final = 4
INITIALIZE: Final = 5
ACCOUNT: Final = 10
SYMBOLS: Final = 11
SYMBOL: Final = 12
TICK: Final = 13
TOTALS: Final = 14
TERMINAL: Final = 15
BOOK: Final = 16
CHART: Final = 17
ORDERS: Final = 20
POSITIONS: Final = 21
HISTORY_ORDERS: Final = 22
HISTORY_DEALS: Final = 23
CALC_MARGIN: Final = 30
CALC_PROFIT: Final = 31
ORDER_CHECK: Final = 160  # the package's own numbers for these two
ORDER_SEND: Final = 161

OK: Final = 1
START_TIMEOUT_S: Final = 15.0
_START_ATTEMPTS: Final = 3

# Kept so that a broker which ends before this process is reaped.
_started: "Final[list[subprocess.Popen[bytes]]]" = []

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode


class Address(msgspec.Struct, frozen=True):
    """The content of broker.json. `token` admits a client."""

    port: int
    token: str
    pid: int
    path: str = ""  # of a Unix socket, twice as fast as TCP, where the system has them

    def __repr__(self) -> str:
        return f"Address(port={self.port}, pid={self.pid})"


class BrokerUnreachable(Exception):
    """No broker answered, or none could be started."""


class LinkBroken(Exception):
    """The connection failed. `code` is the last_error of it: -10001 when the request did not go out completely,
    -10002 when no reply came, -10000 when the reply was another call's, -10005 when none came in time."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Link:
    """One blocking connection: a call is a request and its reply."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._frames = Frames()

    def call_within(self, timeout_s: float, command: int, arguments: Any) -> tuple[int, Any]:
        """As `call`, but waits no longer than that."""
        self.socket.settimeout(timeout_s)
        try:
            return self.call(command, arguments)
        finally:
            self.socket.settimeout(None)

    def call(self, command: int, arguments: Any = None) -> tuple[int, Any]:
        """Status and value. Raises LinkBroken, also when the reply belongs to another command."""
        try:
            self.socket.sendall(frame(encode((command, arguments))))
        except OSError as error:
            raise LinkBroken(str(error), -10001) from None
        try:
            answered, status, value = decode(self._frames.receive(self.socket))
        except TimeoutError as error:
            raise LinkBroken(str(error), -10005) from None
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise LinkBroken(str(error), -10002) from None
        if answered != command:
            raise LinkBroken(f"reply to command {answered}, not {command}", -10000)
        return status, value

    def close(self) -> None:
        self.socket.close()


def address_path(folder: Path) -> Path:
    return folder / "broker.json"


def socket_path(folder: Path) -> str:
    """Of the broker's Unix socket, or "" where there are none or the name would be too long for one."""
    path = str(folder.resolve() / "broker.sock")
    return path if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) < 100 else ""


def read_address(folder: Path) -> Address | None:
    try:
        return msgspec.json.decode(address_path(folder).read_bytes(), type=Address)
    except (OSError, msgspec.DecodeError):
        return None


def try_connect(folder: Path, timeout_s: float = 1.0) -> Link | None:
    """A link to the folder's running broker, or None. Whoever else has taken its old port does not know the token."""
    address = read_address(folder)
    if address is None:
        return None
    try:
        sock = _open(address, timeout_s)
    except OSError:
        return None
    link = Link(sock)
    try:
        status, pid = link.call(HELLO, (address.token, os.getpid()))
    except LinkBroken:
        link.close()
        return None
    if status != OK or pid != address.pid:
        link.close()
        return None
    sock.settimeout(None)
    return link


def _open(address: Address, timeout_s: float) -> socket.socket:
    if address.path and hasattr(socket, "AF_UNIX"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.path)
        except OSError:
            sock.close()
        else:
            return sock
    sock = socket.create_connection(("127.0.0.1", address.port), timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ensure_broker(folder: Path, seed: int = 1, *, options: tuple[str, ...] = ()) -> Link:
    """A link to the folder's broker, which is started if none runs. `seed` and `options` (arguments of
    `gateway.simulated.broker`) count only when the folder is new. Raises BrokerUnreachable.

    Any number of processes may call this at once: one of them starts the broker, the others wait for it.
    """
    if link := try_connect(folder):
        return link
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        with FileLock(folder / "start.lock", timeout=START_TIMEOUT_S, poll_interval=0.01, fallback_to_soft=False):
            for _ in range(_START_ATTEMPTS):
                if link := try_connect(folder):
                    return link
                process = _start(folder, seed, options)
                while process.poll() is None and time.monotonic() < deadline:
                    if link := try_connect(folder):
                        return link
                    time.sleep(0.005)
    except Timeout:
        pass
    raise BrokerUnreachable(f"no simulated broker could be started in {folder}: see broker.log there")


def share_cpu(folder: Path) -> None:
    """Keeps this process and the folder's broker on one CPU, where the system can; which one depends on the folder.

    The two take turns. On one CPU a call needs no other one to wake, which takes longer than the call itself.
    """
    address = read_address(folder)
    if address is None or not hasattr(os, "sched_setaffinity"):
        return
    try:
        allowed = sorted(os.sched_getaffinity(os.getppid()))  # this process may be kept on one already
        cpu = allowed[zlib.crc32(os.fsencode(folder.resolve())) % len(allowed)]
        for pid in (os.getpid(), address.pid):
            os.sched_setaffinity(pid, {cpu})
    except OSError:  # not allowed here, or the broker has just ended: it is slower, no more
        pass


def stop_broker(folder: Path) -> None:
    """Ends the folder's broker, if one runs, and returns when it has. Its state stays."""
    address, link = read_address(folder), try_connect(folder)
    if link is not None:
        try:
            link.call(STOP)
        finally:
            link.close()
    if (folder / "broker.lock").exists():
        with FileLock(folder / "broker.lock", timeout=START_TIMEOUT_S, poll_interval=0.01, fallback_to_soft=False):
            pass
    for process in _started:
        if address is not None and process.pid == address.pid:
            process.wait(START_TIMEOUT_S)  # it has let go of the folder: it is about to end
    _reap()


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


def _start(folder: Path, seed: int, options: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gateway.simulated.broker", "--dir", str(folder), "--seed", str(seed), *options]
    _reap()
    with open(folder / "broker.log", "ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=child_environment(),
            start_new_session=True,
        )
    _started.append(process)
    return process
