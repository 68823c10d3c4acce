"""Runs a program that must not outlive its parent: `python guard.py LOCK COMMAND …`.

The parent holds the other end of stdin. When it closes, also because the parent was killed, the program is asked to
end, then made to. LOCK is held meanwhile, so that a successor starts only when the folder is free. Imports little:
it is a process that waits.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

from filelock import FileLock, Timeout

LOCK_WAIT_S = 10.0
END_WAIT_S = 2.0


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = FileLock(sys.argv[1])
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:
        print(f"another process still uses {os.path.dirname(sys.argv[1])}", file=sys.stderr)  # noqa: T201
        return 75
    program = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)

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
