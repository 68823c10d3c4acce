"""A real mt5linux server: rpyc's classic server, whose MetaTrader5 is the simulated module.

mt5linux starts its server by `rpyc.cli.rpyc_classic.ClassicServer.run()`, in a Python under Wine; so does this.
`python -m tests.mt5linux_server FOLDER --host 127.0.0.1 --port PORT`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gateway.processes import child_environment
from tests.servers import free_port, stop_process, wait_for_port

ROOT = Path(__file__).parents[1]


class BridgeServer:
    """`folder` is the simulated broker's."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mt5linux_server", str(folder), "--host", "127.0.0.1", "-p", str(self.port)],
            stdout=self._log,
            stderr=self._log,
            env=child_environment(),
            cwd=ROOT,
        )
        wait_for_port(self.port, self.process, 20, Path(self._log.name))

    def stop(self) -> None:
        """Halts it where it is; returns when it stands."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        return Path(self._log.name).read_text()

    def close(self) -> None:
        stop_process(self.process, signal.SIGKILL)
        self._log.close()


@contextlib.contextmanager
def bridge_server(folder: Path) -> Iterator[BridgeServer]:
    server = BridgeServer(folder)
    try:
        yield server
    finally:
        server.close()


def main() -> None:
    from rpyc.cli.rpyc_classic import ClassicServer

    from gateway.simulated.terminal import load

    sys.modules["MetaTrader5"] = load(Path(sys.argv.pop(1)))
    ClassicServer.run()


if __name__ == "__main__":
    main()
