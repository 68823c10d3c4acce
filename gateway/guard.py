"""Runs a program that must not outlive its parent: `python guard.py LOCK COMMAND …`.

The parent holds the other end of stdin. When it closes, also because the parent was killed, the program is asked to
end, then made to. LOCK is held meanwhile, by the program too, so
that a successor starts only when the folder is free. Imports little:
it is a process that waits.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

LOCK_WAIT_S = 10.0
END_WAIT_S = 2.0


def take_lock(path: str) -> int | None:
    """A descriptor that holds the lock as long as any process has it open; None when it stays taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl
    except ImportError:  # Windows: the port of the program says whether one runs already
        return descriptor
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = take_lock(sys.argv[1])
    if lock is None:
        print(f"another process still uses {os.path.dirname(sys.argv[1])}", file=sys.stderr)  # noqa: T201
        return 75
    # The program has the lock too: if this guard is killed, nobody starts a second one beside it.
    inherited = (lock,) if os.name == "posix" else ()
    program = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, pass_fds=inherited)

    def wait_for_parent() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        program.terminate()
        try:
            program.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    return program.wait()


if __name__ == "__main__":
    sys.exit(main())
