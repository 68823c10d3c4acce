"""Signs the heads of the ledger while the service runs, and finds the key for it."""

import asyncio
import base64
import contextlib
import os
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gateway.guarded import cancelled
from gateway.secret import Secret
from ledger.errors import LedgerError
from ledger.events import WRITER_STREAM, BatchSealed, decode
from ledger.heads import BadKey, sign_head
from ledger.writer import Cause, Ledger

KEY_FILE: Final = "seal.key"
PUBLIC_FILE: Final = "seal.pub.pem"
_KEY_BYTES: Final = 32


def seal_key(folder: Path, given: Secret | None) -> Ed25519PrivateKey:
    """The key that is given (`SEAL_KEY`), else the one of the folder, made at its first use. Its public part is
    written beside it as `seal.pub.pem`. Raises BadKey."""
    try:
        key = _read(given.reveal().encode(), "SEAL_KEY") if given else _of_folder(folder / KEY_FILE)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        path = folder / PUBLIC_FILE
        if not path.exists() or path.read_bytes() != public:
            _write(path, public, 0o644)
    except OSError as error:
        raise BadKey(f"cannot read or write the key of the seals in {folder}: {error.strerror}") from None
    return key


def _of_folder(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        return key
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise BadKey(f"others can read the key {path}: run chmod 600 {path}, or replace it if someone may have")
    return _read(path.read_bytes(), str(path))


def _read(text: bytes, name: str) -> Ed25519PrivateKey:
    """A PEM text, or 32 bytes in hexadecimal or base64."""
    key: object = None
    # Nothing of the failure is passed on: it could quote the key.
    with contextlib.suppress(Exception):
        if b"-----BEGIN" in text:
            key = load_pem_private_key(text.strip(), None)
        else:
            key = Ed25519PrivateKey.from_private_bytes(_raw(text.strip()))
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise BadKey(
        f"{name} is no Ed25519 private key: give PEM without a password "
        "(openssl genpkey -algorithm ed25519), or its 32 bytes in hexadecimal or base64"
    )


def _raw(text: bytes) -> bytes:
    if len(text) == 2 * _KEY_BYTES:
        return bytes.fromhex(text.decode())
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def _write(path: Path, content: bytes, mode: int) -> None:
    """All or nothing, durably."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


class HeadSigner:
    """Signs the head every `every_s` seconds when something new was sealed, after every `every_seals` seals, and at
    `stop`. The statements become events of the ledger, so they reach whoever follows it."""

    def __init__(
        self,
        ledger: Ledger,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime],
        *,
        every_s: float,
        every_seals: int,
    ) -> None:
        self._ledger, self._key, self._clock = ledger, key, clock
        self._every_s, self._every_seals = every_s, every_seals
        self._seals = 0
        self._covered = 0
        self._many = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> "asyncio.Task[None]":
        """The task that signs; it ends only with a failure."""
        self._ledger.tail.on_commit(self._sealed)
        self._task = asyncio.create_task(self._run(), name="head-signer")
        return self._task

    async def stop(self) -> None:
        """Signs what is not signed yet. To be called when nothing else is appended any more."""
        await cancelled(self._task)
        # A ledger that has failed says so itself, and there is no telling what it holds.
        with contextlib.suppress(LedgerError):
            await self.sign()

    async def sign(self) -> None:
        """Signs the head now, unless nothing was sealed since the last time. Returns when the event is durable."""
        tail = self._ledger.tail
        head = await tail.head()
        self._seals = 0
        self._many.clear()
        seal = await tail.at(head) if head > self._covered else None
        if seal is None or not isinstance(data := decode(seal).data, BatchSealed):
            return
        signed = sign_head(self._key, self._ledger.ledger_id, head, data.digest, self._clock())
        committed = await self._ledger.append(WRITER_STREAM, signed, Cause(actor="writer"))
        # Its own commit, the event and a seal, needs no signature: an idle ledger must come to rest.
        self._covered = head + 2 if committed.first_seq == head + 1 else head

    def _sealed(self) -> None:
        self._seals += 1
        if self._seals >= self._every_seals:
            self._many.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._many.wait()
            try:
                await self.sign()
            except LedgerError:
                return  # the ledger's own failure ends the service
