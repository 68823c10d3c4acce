"""The batch seal: what makes a changed, removed, inserted or reordered event visible.

Every commit ends with one `BatchSealed` on the stream `writer`. It holds the Merkle root (RFC 9162, section 2.1)
over the events of the commit and the digest of the seal before, and closes with its own digest, which covers
every byte that stands before it. A leaf is the length-framed (seq, stream, version, topic, stored bytes): nothing
can move between two fields or two events unseen. All of it can be checked with SHA-256 alone.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from ledger.errors import LedgerError
from ledger.events import WRITER_STREAM, BatchSealed, HeadSigned, LedgerCreated, Recorded, decode

GENESIS: Final = "0" * 64
_TAIL: Final = len('"}}')
_DIGEST: Final = 64
_KIND_SEQ_LENGTH: Final = struct.Struct(">cQI")
_VERSION_LENGTH: Final = struct.Struct(">QI")
_LENGTH: Final = struct.Struct(">I")


def _hashed(kind: bytes, recorded: Recorded, state: bytes) -> "hashlib._Hash":
    stream, topic = recorded.stream.encode(), recorded.topic.encode()
    return hashlib.sha256(
        b"".join(
            (
                _KIND_SEQ_LENGTH.pack(kind, recorded.seq, len(stream)),
                stream,
                _VERSION_LENGTH.pack(recorded.version, len(topic)),
                topic,
                _LENGTH.pack(len(state)),
                state,
            )
        )
    )


def leaf_hash(recorded: Recorded) -> bytes:
    """SHA-256 of 0x00 and the framed event."""
    return _hashed(b"\x00", recorded, recorded.state).digest()


def merkle_parents(level: Sequence[bytes]) -> list[bytes]:
    """The next level of the tree: pairs hashed, an odd last node carried upwards unchanged.

    Repeated, it gives the RFC's tree: its split at the largest power of two below n leaves complete subtrees on the
    left.
    """
    nodes = [hashlib.sha256(b"\x01" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        nodes.append(level[-1])
    return nodes


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162 Merkle tree hash of leaf hashes; of none, SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = leaves
    while len(level) > 1:
        level = merkle_parents(level)
    return level[0]


def seal_digest(seal: Recorded) -> str:
    """The digest a stored seal must carry: over everything of it that stands before the digest itself."""
    return _hashed(b"\x02", seal, seal.state[: -_DIGEST - _TAIL]).hexdigest()


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


class Proven(NamedTuple):
    """How far a ledger is proven: the seq and the digest of a seal, and how many seals there are up to it."""

    seq: int = 0
    seals: int = 0
    digest: str = GENESIS


class Witness(Protocol):
    """Knows heads of the ledger, and is told what verification finds. Its methods raise HeadContradicts."""

    def sealed(self, ledger_id: str, proven: Proven) -> None:
        """A seal that fits all that stands before it; every one, in order."""
        ...

    def signed(self, ledger_id: str, head: HeadSigned) -> None:
        """A head among the events of the seal just told."""
        ...

    def ended(self, ledger_id: str, proven: Proven) -> None:
        """The ledger ends with this seal."""
        ...


class HeadContradicts(Exception):
    """A signed head and the ledger do not fit; `proven` is what can still be trusted."""

    def __init__(self, text: str, proven: Proven) -> None:
        super().__init__(text)
        self.proven = proven


class _Broken(Exception):
    """Which event contradicts the others. Suspicion falls on its whole batch: what was changed in it so that they
    contradict each other, only the seal could tell, and it cannot be reached any more."""


class _Verifier:
    """Folds stored events in their stored order; raises _Broken or HeadContradicts at the first contradiction."""

    def __init__(self, witness: Witness | None) -> None:
        self.expected = 1
        self.versions: dict[str, int] = {}
        self.batch: list[Recorded] = []
        self.heads: list[HeadSigned] = []
        self.proven = Proven()
        self.epoch = 0
        self.ledger_id = ""
        self.witness = witness

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
            if isinstance(data, HeadSigned):
                self.heads.append(data)
        self.versions[recorded.stream] = version
        self.expected += 1

    def _seal(self, recorded: Recorded, seal: BatchSealed) -> None:
        seq, first = recorded.seq, self.proven.seq + 1
        if recorded.stream != WRITER_STREAM:
            raise _Broken(f"the seal {seq} stands on {recorded.stream}")
        if seal.digest != seal_digest(recorded) or not recorded.state.endswith(f'"{seal.digest}"}}}}'.encode()):
            raise _Broken(f"the seal {seq} was changed: its digest does not match its bytes")
        if seal.previous != self.proven.digest:
            raise _Broken(f"the seal {seq} does not continue the seal before it")
        if (seal.first, seal.last) != (first, seq - 1):
            raise _Broken(f"the seal {seq} covers {seal.first} to {seal.last}, not {first} to its own")
        if seal.epoch < self.epoch:
            raise _Broken(f"the seal {seq} is of epoch {seal.epoch}, after epoch {self.epoch}")
        if merkle_root([leaf_hash(one) for one in self.batch]).hex() != seal.root:
            raise _Broken(f"events {seal.first} to {seal.last} do not match their seal {seq}")
        self.epoch = seal.epoch
        self.proven = Proven(seq, self.proven.seals + 1, seal.digest)
        self.batch.clear()
        if self.witness is not None:
            self.witness.sealed(self.ledger_id, self.proven)
            for head in self.heads:
                self.witness.signed(self.ledger_id, head)
        self.heads.clear()

    def end(self) -> None:
        if self.batch:
            raise _Broken(f"events from {self.batch[0].seq} on carry no seal")
        if self.witness is not None:
            self.witness.ended(self.ledger_id, self.proven)


def verify(records: Iterable[Recorded], witness: Witness | None = None) -> Verification:
    """Checks all events in stored order, from the first, and against the heads that the witness knows.

    Finds any changed, removed, inserted or reordered event, an unsealed tail, a gap in `seq` or in a stream.
    A cut at the end of a seal, and a ledger rewritten with all its seals, only a witness can find.
    """
    state = _Verifier(witness)
    problem = ""
    proven: Proven | None = None
    try:
        for recorded in records:
            state.take(recorded)
        state.end()
    except _Broken as broken:
        problem = str(broken)
    except HeadContradicts as contradiction:
        problem, proven = str(contradiction), contradiction.proven
    proven = proven or state.proven
    return Verification(
        events=proven.seq,
        seals=proven.seals,
        last_seq=proven.seq,
        head=proven.digest,
        ledger_id=state.ledger_id,
        first_bad_seq=proven.seq + 1 if problem else None,
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
