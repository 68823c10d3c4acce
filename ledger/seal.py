"""The batch seal: what makes a changed, removed, inserted or reordered event visible.

Every commit ends with one `BatchSealed` on the stream `writer`. It holds the Merkle root (RFC 9162, section 2.1)
over the events of the commit and the digest of the seal before, and closes with its own digest, which covers
every byte that stands before it. A leaf is the length-framed (seq, stream, version, topic, stored bytes): nothing
can move between two fields or two events unseen. All of it can be checked with SHA-256 alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from ledger.errors import LedgerError
from ledger.events import WRITER_STREAM, BatchSealed, LedgerCreated, Recorded, decode

GENESIS: Final = "0" * 64
_TAIL: Final = len('"}}')
_DIGEST: Final = 64


def _framed(recorded: Recorded, state: bytes) -> bytes:
    stream, topic = recorded.stream.encode(), recorded.topic.encode()
    return b"".join(
        (
            recorded.seq.to_bytes(8, "big"),
            len(stream).to_bytes(4, "big"),
            stream,
            recorded.version.to_bytes(8, "big"),
            len(topic).to_bytes(4, "big"),
            topic,
            len(state).to_bytes(4, "big"),
            state,
        )
    )


def leaf_hash(recorded: Recorded) -> bytes:
    """SHA-256 of 0x00 and the framed event."""
    return hashlib.sha256(b"\x00" + _framed(recorded, recorded.state)).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162 Merkle tree hash of leaf hashes; of none, SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    # Hashing level by level, carrying an odd last node upwards unchanged, gives the RFC's tree: its split at the
    # largest power of two below n leaves complete subtrees on the left.
    level = list(leaves)
    while len(level) > 1:
        nodes = [hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            nodes.append(level[-1])
        level = nodes
    return level[0]


def seal_digest(seal: Recorded) -> str:
    """The digest a stored seal must carry: over everything of it that stands before the digest itself."""
    return hashlib.sha256(b"\x02" + _framed(seal, seal.state[: -_DIGEST - _TAIL])).hexdigest()


def close_seal(seal: Recorded) -> Recorded:
    """The seal with its digest in place. Its state must have been encoded with `GENESIS` as digest."""
    closed = seal.state[: -_DIGEST - _TAIL] + seal_digest(seal).encode() + b'"}}'
    return Recorded(seal.seq, seal.stream, seal.version, seal.topic, closed)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found. `events`, `seals`, `last_seq` and `head` tell of what is proven. `first_bad_seq` is the
    event after that, the lowest that cannot be trusted, or None when everything holds."""

    events: int
    seals: int
    last_seq: int
    head: str
    ledger_id: str = ""
    first_bad_seq: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.first_bad_seq is None


class _Broken(Exception):
    """Which event contradicts the others. Suspicion falls on its whole batch: what was changed in it so that they
    contradict each other, only the seal could tell, and it cannot be reached any more."""


class _Verifier:
    """Folds stored events in their stored order; raises _Broken at the first contradiction."""

    def __init__(self) -> None:
        self.expected = 1
        self.versions: dict[str, int] = {}
        self.batch: list[Recorded] = []
        self.proven = 0
        self.seals = 0
        self.head = GENESIS
        self.epoch = 0
        self.ledger_id = ""

    def take(self, recorded: Recorded) -> None:
        seq = self.expected
        if recorded.seq != seq:
            raise _Broken(f"event {seq} is missing: {recorded.seq} stands in its place")
        version = self.versions.get(recorded.stream, 0) + 1
        if recorded.version != version:
            raise _Broken(
                f"event {seq} is version {recorded.version} of {recorded.stream}, {version} was expected",
            )
        try:
            envelope = decode(recorded)
        except (msgspec.MsgspecError, LedgerError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise _Broken(f"event {seq} cannot be read: {error}") from None
        data = envelope.data
        if data.topic() != recorded.topic:
            raise _Broken(f"event {seq} is stored as {recorded.topic}, but is {data.topic()}")
        if seq == 1:
            if not isinstance(data, LedgerCreated):
                raise _Broken("the ledger does not begin with its creation")
            self.ledger_id = data.ledger_id
        if envelope.event_id != f"{self.ledger_id}:{seq}":
            raise _Broken(f"event {seq} carries the id {envelope.event_id}")
        if isinstance(data, BatchSealed):
            self._seal(recorded, data)
        else:
            self.batch.append(recorded)
        self.versions[recorded.stream] = version
        self.expected += 1

    def _seal(self, recorded: Recorded, seal: BatchSealed) -> None:
        seq, first = recorded.seq, self.proven + 1
        if recorded.stream != WRITER_STREAM:
            raise _Broken(f"the seal {seq} stands on {recorded.stream}")
        if seal.digest != seal_digest(recorded) or not recorded.state.endswith(f'"{seal.digest}"}}}}'.encode()):
            raise _Broken(f"the seal {seq} was changed: its digest does not match its bytes")
        if seal.previous != self.head:
            raise _Broken(f"the seal {seq} does not continue the seal before it")
        if (seal.first, seal.last) != (first, seq - 1):
            raise _Broken(f"the seal {seq} covers {seal.first} to {seal.last}, not {first} to its own")
        if seal.epoch < self.epoch:
            raise _Broken(f"the seal {seq} is of epoch {seal.epoch}, after epoch {self.epoch}")
        if merkle_root([leaf_hash(one) for one in self.batch]).hex() != seal.root:
            raise _Broken(f"events {seal.first} to {seal.last} do not match their seal {seq}")
        self.head, self.epoch, self.proven = seal.digest, seal.epoch, seq
        self.seals += 1
        self.batch.clear()


def verify(records: Iterable[Recorded]) -> Verification:
    """Checks all events in stored order, from the first.

    Finds any changed, removed, inserted or reordered event, an unsealed tail, a gap in `seq` or in a stream.
    A cut at the end of a seal can only be found against a head kept elsewhere.
    """
    state = _Verifier()
    problem = ""
    try:
        for recorded in records:
            state.take(recorded)
        if state.batch:
            raise _Broken(f"events from {state.batch[0].seq} on carry no seal")
    except _Broken as broken:
        problem = str(broken)
    return Verification(
        events=state.proven,
        seals=state.seals,
        last_seq=state.proven,
        head=state.head,
        ledger_id=state.ledger_id,
        first_bad_seq=state.proven + 1 if problem else None,
        problem=problem,
    )


def batches(records: Iterable[Recorded]) -> Iterator[list[Recorded]]:
    """Cuts a run of events behind each seal; what follows the last seal is left out."""
    batch: list[Recorded] = []
    for recorded in records:
        batch.append(recorded)
        if recorded.topic == "writer.batch_sealed":
            yield batch
            batch = []
