"""Frames between processes of this machine: a u32 little-endian length and that many bytes.

Received into a buffer that is kept: to allocate one for each call costs more than the call.
"""

import socket
import struct
from collections import deque
from typing import Final

SIZE: Final = 1 << 16

_length_at = struct.Struct("<I").unpack_from


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + payload


class Frames:
    """The frames of one stream. Receive into `view`, then `take` what is complete."""

    def __init__(self, longest: int | None = None) -> None:
        self._buffer = bytearray(SIZE)
        self.view = memoryview(self._buffer)
        self._rest = bytearray()
        self._longest = longest
        self._ready: deque[bytes] = deque()

    def take(self, received: int) -> list[bytes]:
        """The frames that are complete with the next `received` bytes. Raises ValueError at one that is too long."""
        if not self._rest and received >= 4 and received == _length_at(self._buffer)[0] + 4:
            return [bytes(self.view[4:received])]
        self._rest += self.view[:received]
        frames = []
        while len(self._rest) >= 4:
            length: int = _length_at(self._rest)[0]
            if self._longest is not None and length > self._longest:
                raise ValueError("frame too long")
            if len(self._rest) < 4 + length:
                break
            frames.append(bytes(self._rest[4 : 4 + length]))
            del self._rest[: 4 + length]
        return frames

    def receive(self, sock: socket.socket) -> bytes:
        """Waits for the next frame. Raises EOFError at the end of the stream, OSError."""
        while not self._ready:
            received = sock.recv_into(self.view)
            if not received:
                raise EOFError("the connection was closed")
            frames = self.take(received)
            if len(frames) == 1:
                return frames[0]
            self._ready.extend(frames)
        return self._ready.popleft()
