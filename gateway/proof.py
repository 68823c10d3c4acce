"""How the command line shows the gateway that it may control it: it can read the gateway's data folder.

The key lies there, readable by its owner alone. A call carries the time and an HMAC-SHA256 over time, subject and
body; each counts once, within half a minute. What is seen on the wire can thus be neither repeated nor changed.
"""

import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

FILE: Final = "control.key"
VALID_S: Final = 30.0


def key_of(data: Path) -> bytes:
    """The key of a data folder; made when there is none. Raises OSError."""
    path = data / FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_hex(32).encode()
        file.write(key)
    return key


def prove(key: bytes, subject: str, body: bytes, now_s: float | None = None) -> str:
    """The value of the header."""
    at = f"{time.time() if now_s is None else now_s:.6f}"
    return f"{at} {_digest(key, at, subject, body)}"


def _digest(key: bytes, at: str, subject: str, body: bytes) -> str:
    return hmac.new(key, b"\n".join((at.encode(), subject.encode(), body)), "sha256").hexdigest()


class Proofs:
    """Judges proofs, each once."""

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._key, self._clock = key, clock
        self._seen: OrderedDict[str, float] = OrderedDict()

    def accepts(self, proof: str, subject: str, body: bytes) -> bool:
        at, _, digest = proof.partition(" ")
        if not hmac.compare_digest(digest.encode(), _digest(self._key, at, subject, body).encode()):
            return False
        now = self._clock()
        while self._seen and next(iter(self._seen.values())) < now - 2 * VALID_S:
            self._seen.popitem(last=False)
        if abs(now - float(at)) > VALID_S or digest in self._seen:
            return False
        self._seen[digest] = now
        return True
