"""The broker's journal: an append-only file of effects. It survives `kill -9` of the broker, not power loss: no fsync.

One record per request, written with a single `write` before the reply: u32 length, u32 CRC-32 of the payload, the
payload (msgpack list of effects). A process that dies leaves at most one incomplete record at the end, which nobody
was told about: it is cut off. A complete record that does not match its CRC is damage, and the broker does not start.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from gateway.simulated.rows import Effect
from gateway.simulated.state import State

_HEADER: Final = struct.Struct("<II")
COMPACT_ABOVE_BYTES: Final = 16 * 1024 * 1024
COMPACT_BELOW: Final = 0.8  # of the effects: rewriting for less would cost more than it saves
_COMPACT_BATCH: Final = 1000  # effects in one record of a compacted journal

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Effect])


class JournalDamaged(Exception):
    """A complete record is not what was written."""


class JournalFailed(Exception):
    """A record could not be written whole. The broker must stop: the next start cuts the piece off."""


class Journal:
    """Opened by one process at a time: the broker holds its folder's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def replay(self, state: State) -> None:
        """Fills `state`, cuts an incomplete last record off, compacts a large file, and opens it for appending."""
        data = self.path.read_bytes() if self.path.exists() else b""
        good = effects = 0
        while good + _HEADER.size <= len(data):
            length, crc = _HEADER.unpack_from(data, good)
            payload = data[good + _HEADER.size : good + _HEADER.size + length]
            if len(payload) < length:
                break
            if zlib.crc32(payload) != crc:
                raise JournalDamaged(f"{self.path}: record at byte {good} does not match its checksum")
            record = _decoder.decode(payload)
            effects += len(record)
            state.apply(record)
            good += _HEADER.size + length
        if good > COMPACT_ABOVE_BYTES and state.effects_needed < effects * COMPACT_BELOW:
            self._compact(state)
        elif good < len(data):
            os.truncate(self.path, good)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)

    def append(self, effects: list[Effect]) -> None:
        record = _record(effects)
        try:
            written = os.write(self._fd, record)
        except OSError as error:
            raise JournalFailed(f"{self.path}: {error}") from error
        if written != len(record):
            raise JournalFailed(f"{self.path}: {written} of {len(record)} bytes written")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _compact(self, state: State) -> None:
        """Replaces the file by the shortest one with the same meaning."""
        fresh = self.path.with_suffix(".new")
        with open(fresh, "wb") as file:
            os.chmod(fresh, 0o600)
            for effects in _batches(state.as_effects()):
                file.write(_record(effects))
        os.replace(fresh, self.path)


def _record(effects: list[Effect]) -> bytes:
    payload = _encoder.encode(effects)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _batches(effects: Iterable[Effect]) -> Iterable[list[Effect]]:
    batch: list[Effect] = []
    for effect in effects:
        batch.append(effect)
        if len(batch) == _COMPACT_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
