"""A nats-server with JetStream for one test."""

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.servers import free_port, need, stop_process, wait_for_port


class NatsProcess:
    """Can be killed and started again on the same port and folder. `config`: more of the server's configuration."""

    def __init__(self, folder: Path, config: str = "") -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"nats://127.0.0.1:{self._port}"
        if "jetstream" not in config:
            config += f"\njetstream {{ store_dir: '{folder / 'js'}' }}\n"
        (folder / "nats.conf").write_text(config)
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        need(program, "nats-server")
        assert program is not None
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._folder / "nats.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self._folder / "nats.conf"), "-a", "127.0.0.1", "-p", str(self._port)],
                stdout=output,
                stderr=output,
            )
        wait_for_port(self._port, self._process, 10, log)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            stop_process(self._process, number)


@contextlib.contextmanager
def nats_server(folder: Path, config: str = "") -> Iterator[NatsProcess]:
    server = NatsProcess(folder, config)
    try:
        server.start()
        yield server
    finally:
        server.stop(signal.SIGKILL)
