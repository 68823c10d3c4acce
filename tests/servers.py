"""Real servers for tests: started on free loopback ports in fresh folders, stopped at the end.

Where a program is missing, tests that need it are skipped with the reason; with REQUIRE_SERVERS=1, as in CI, they
fail instead, so that nothing goes untested unseen.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def need(condition: object, what: str) -> None:
    """Skips the test unless the condition holds; fails it where servers are required."""
    if condition:
        return
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(f"needs {what}, and REQUIRE_SERVERS=1", pytrace=False)
    pytest.skip(f"needs {what}")


def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", timeout_s: float, log: Path) -> None:
    """Returns when something listens there. Raises RuntimeError when the process ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not come up on port {port}:\n{log.read_text(errors='replace')[-2000:]}")


def stop_process(process: "subprocess.Popen[bytes]", number: int, timeout_s: float = 15.0) -> None:
    """Ends a process that we started, by force if it does not obey."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def postgres_programs() -> tuple[str, str] | None:
    """`initdb` and `postgres`, from PATH or where distributions put them; None when there is none."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *_newest_first("/usr/lib/postgresql")]
    for folder in folders:
        initdb, server = Path(folder, "initdb"), Path(folder, "postgres")
        if os.access(initdb, os.X_OK) and os.access(server, os.X_OK):
            return str(initdb), str(server)
    return None


def _newest_first(root: str) -> list[str]:
    found = [path for path in Path(root).glob("*/bin") if path.parent.name.replace(".", "").isdigit()]
    return [str(path) for path in sorted(found, key=lambda path: -float(path.parent.name))]


class PostgresServer:
    """A PostgreSQL in a folder of its own, that a test may kill, stop for a while and start again."""

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        programs = postgres_programs()
        need(programs, "PostgreSQL (initdb and postgres in PATH or /usr/lib/postgresql)")
        assert programs is not None
        initdb, self._program = programs
        self._folder, self._log, self._fsync = folder, folder / "log", fsync
        account = _server_account()
        self._identity: dict[str, Any] = (
            {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        )
        self._process: subprocess.Popen[bytes] | None = None
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        self._data, self._port = folder / "data", free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        command = [initdb, "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]
        made = subprocess.run([*command, "--no-sync"], capture_output=True, cwd=folder, check=False, **self._identity)
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr.decode(errors='replace')[-2000:]}")

    def start(self) -> None:
        """Starts it and waits until it answers queries."""
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on" if self._fsync else "off",
            "max_connections": "50",
            "shared_buffers": "32MB",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, "-D", str(self._data), "-p", str(self._port), *arguments],
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
                **self._identity,
            )
        wait_for_port(self._port, self._process, 20.0, self._log)
        _wait_for_queries(self.url, 20.0)

    def stop(self) -> None:
        if self._process is not None:
            stop_process(self._process, signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of every process of it, as a power failure would end them."""
        assert self._process is not None
        parent = self._process.pid
        self._process.send_signal(signal.SIGSTOP)  # so that it makes no more of them
        while _status(parent)[0] not in "TZ":
            time.sleep(0.001)
        processes = self._processes()
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while any(_status(pid)[0] not in "XZ" for pid in processes):  # until then they hold the shared memory
            time.sleep(0.001)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While this lasts it answers nothing: connections stay as they are."""
        stopped: list[int] = []
        try:
            for pid in reversed(self._processes()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        """Its process ids, those of the children first."""
        assert self._process is not None
        parent = self._process.pid
        others = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        return [*(pid for pid in others if _status(pid)[1] == parent), parent]


def _status(pid: int) -> tuple[str, int]:
    """State and parent of a process, as Linux tells them; ("X", 0) when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


@contextlib.contextmanager
def postgres_process(*, fsync: bool = True) -> Iterator[PostgresServer]:
    """A fresh PostgreSQL that runs; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server: PostgresServer | None = None
    try:
        server = PostgresServer(folder, fsync=fsync)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgres_server(fsync: bool = True) -> Iterator[str]:
    """A fresh PostgreSQL; its URL (user `postgres`, database `postgres`, loopback only, no password)."""
    with postgres_process(fsync=fsync) as server:
        yield server.url


def _wait_for_queries(url: str, timeout_s: float) -> None:
    import psycopg

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _server_account() -> "pwd.struct_passwd | None":
    """PostgreSQL refuses to run as root: then another account of this machine."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("needs an account other than root for PostgreSQL")
