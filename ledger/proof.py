"""The proof of one order: its events word for word, and why they stood in the ledger when a head was signed.

Each event has its RFC 9162 inclusion path to its seal, the seals chain up to a signed head. Of other events there is
nothing but hashes. A long chain is kept short by the next head: events that are far apart get a segment each.
`docs/check_proof.py` checks the same without this project.
"""

import json
from bisect import bisect
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec

from ledger.errors import LedgerDamaged, LedgerError
from ledger.events import WRITER_STREAM, BatchSealed, HeadSigned, LedgerCreated, Recorded, event_of, order_stream
from ledger.heads import HEAD, is_signed, text_of
from ledger.seal import leaf_hash, merkle_parents, seal_digest

FORMAT: Final = "order-ledger proof v1"
_SEALED: Final = BatchSealed.topic()
_SIGNED: Final = HeadSigned.topic()


class NotSignedYet(LedgerError):
    """No signed head stands behind the order's newest event."""


class Source(Protocol):
    """Where the events are read from: an `EventStore`."""

    def stream(self, stream: str) -> list[Recorded]: ...
    def at(self, seq: int) -> Recorded | None: ...
    def read(self, after: int, limit: int) -> list[Recorded]: ...
    def scan(self, after: int) -> Iterator[Recorded]: ...


class ProvenEvent(msgspec.Struct, frozen=True):
    """An event of the order. `path`: hexadecimal, from the leaf upwards."""

    seq: int
    version: int
    topic: str
    state: str
    path: tuple[str, ...]


class ChainedSeal(msgspec.Struct, frozen=True):
    seq: int
    version: int
    state: str


class ProofHead(msgspec.Struct, frozen=True):
    """`text` is what was signed; key and signature are Ed25519, hexadecimal."""

    text: str
    public_key: str
    signature: str


class Segment(msgspec.Struct, frozen=True):
    """Events of the order, all seals from that of the first of them to the head's, and the head."""

    events: tuple[ProvenEvent, ...]
    seals: tuple[ChainedSeal, ...]
    head: ProofHead


class Proof(msgspec.Struct, frozen=True):
    """All events of the order, in as few segments as the distances between them allow."""

    format: str
    ledger_id: str
    order_id: str
    segments: tuple[Segment, ...]


def proof_json(proof: Proof) -> bytes:
    """The one form a proof is written in: another byte anywhere is another proof."""
    return json.dumps(msgspec.to_builtins(proof), indent=1, ensure_ascii=False).encode() + b"\n"


# --- inclusion (RFC 9162, section 2.1.3) ------------------------------------------------------------------------


def audit_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The nodes that lead from leaf `index` to the root, lowest first."""
    path = []
    level = leaves
    while len(level) > 1:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        level, index = merkle_parents(level), index // 2
    return path


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root of a tree of `size` leaves that the path leads to; None when it does not have the right length."""
    if not 0 <= index < size:
        return None
    steps = list(reversed(path))
    node = leaf
    while size > 1:
        if index ^ 1 < size:
            if not steps:
                return None
            other = steps.pop()
            node = merkle_parents([other, node] if index % 2 else [node, other])[0]
        index, size = index // 2, (size + 1) // 2
    return None if steps else node


# --- build ------------------------------------------------------------------------------------------------------


def build_proof(source: Source, order_id: str) -> Proof:
    """The proof of all events of the order that are stored now, checked.

    Raises LedgerError for an unknown order, NotSignedYet, and LedgerDamaged when the ledger does not hold together.
    """
    waiting = source.stream(order_stream(order_id))
    if not waiting:
        raise LedgerError(f"no order {order_id!r} in this ledger: check the id, or name its data folder by --data")
    first = source.at(1)
    created = event_of(first) if first is not None else None
    if not isinstance(created, LedgerCreated):
        raise LedgerDamaged("the ledger does not begin with its creation: run verify", 1)
    segments = []
    while waiting:
        segment, waiting = _segment(source, created.ledger_id, order_id, waiting)
        segments.append(segment)
    proof = Proof(FORMAT, created.ledger_id, order_id, tuple(segments))
    problem = problem_of(proof)
    if problem:
        raise LedgerDamaged(f"order {order_id} cannot be proven: {problem}: run verify", segments[0].events[0].seq)
    return proof


def _segment(source: Source, ledger_id: str, order_id: str, waiting: list[Recorded]) -> tuple[Segment, list[Recorded]]:
    """What the next signed head covers of the waiting events, and the rest of them."""
    seals, head = _chain(source, waiting[0], order_id)
    covered = [one for one in waiting if one.seq < head.head_seq]
    if [one.seq for one in waiting] != sorted({one.seq for one in waiting}):
        raise LedgerDamaged(f"the events of order {order_id} are out of order: run verify", waiting[0].seq)
    seqs = [one.seq for one in seals]
    events: list[ProvenEvent] = []
    place, leaves, start = -1, [b""], 0
    for one in covered:
        if bisect(seqs, one.seq) != place:  # several events of an order often share a commit
            place = bisect(seqs, one.seq)
            start, leaves = _leaves(source, seals[place])
        if not start <= one.seq < start + len(leaves):
            raise LedgerDamaged(f"event {one.seq} is not under the seal {seqs[place]}: run verify", one.seq)
        path = tuple(node.hex() for node in audit_path(leaves, one.seq - start))
        events.append(ProvenEvent(one.seq, one.version, one.topic, _text(one), path))
    chain = tuple(ChainedSeal(one.seq, one.version, _text(one)) for one in seals)
    signed = ProofHead(text_of(ledger_id, head).decode(), head.public_key, head.signature)
    return Segment(tuple(events), chain, signed), waiting[len(covered) :]


def _leaves(source: Source, seal: Recorded) -> tuple[int, list[bytes]]:
    """The seq of the first event under the seal, and the leaf hashes of all."""
    sealed = event_of(seal)
    if not isinstance(sealed, BatchSealed) or not 0 < sealed.first <= sealed.last == seal.seq - 1:
        raise LedgerDamaged(f"the seal {seal.seq} cannot be read: run verify", seal.seq)
    found = source.read(sealed.first - 1, seal.seq - sealed.first)
    return sealed.first, [leaf_hash(one) for one in found]


def _chain(source: Source, oldest: Recorded, order_id: str) -> tuple[list[Recorded], HeadSigned]:
    """The seals from that of the event to the next signed head, and the head."""
    seals: list[Recorded] = []
    for one in source.scan(max(oldest.seq - 1, 0)):
        if one.topic == _SEALED:
            seals.append(one)
        elif one.topic == _SIGNED and seals:
            head = event_of(one)
            if isinstance(head, HeadSigned) and head.head_seq >= seals[0].seq:
                chain = [seal for seal in seals if seal.seq <= head.head_seq]
                if chain[-1].seq != head.head_seq:
                    raise LedgerDamaged(f"the head {one.seq} stands for no seal: run verify", one.seq)
                return chain, head
    raise NotSignedYet(f"event {oldest.seq} of order {order_id} stands under no signed head yet")


def _text(recorded: Recorded) -> str:
    try:
        return recorded.state.decode()
    except UnicodeDecodeError as error:
        raise LedgerDamaged(f"event {recorded.seq} cannot be read ({error}): run verify", recorded.seq) from None


# --- check ------------------------------------------------------------------------------------------------------


def problem_of(proof: Proof) -> str:
    """Why the proof does not hold; empty when it does. Whose key signed is left to the reader."""
    if proof.format != FORMAT:
        return f"it is no {FORMAT}"
    stream = order_stream(proof.order_id)
    version = seq = 0
    for segment in proof.segments:
        for one in segment.events:
            if one.version != version + 1 or one.seq <= seq:
                return f"event {one.seq} does not follow event {seq} of the order"
            version, seq = one.version, one.seq
        problem = _problem_in(segment, stream, proof.ledger_id)
        if problem:
            return problem
    return "" if version else "it holds no event"


def _problem_in(segment: Segment, stream: str, ledger_id: str) -> str:
    seals: list[BatchSealed] = []
    for chained in segment.seals:
        stored = Recorded(chained.seq, WRITER_STREAM, chained.version, _SEALED, chained.state.encode())
        seal = event_of(stored)
        if not isinstance(seal, BatchSealed) or seal.digest != seal_digest(stored) or seal.last != chained.seq - 1:
            return f"the seal {chained.seq} was changed"
        if seals and (seal.previous != seals[-1].digest or seal.first != seals[-1].last + 2):
            return f"the seal {chained.seq} does not continue the seal before it"
        seals.append(seal)
    if not seals:
        return "a head without seals"
    lasts = [seal.last for seal in seals]
    for one in segment.events:
        place = bisect(lasts, one.seq - 1)
        if place == len(seals):
            return f"event {one.seq} is under no seal"
        seal = seals[place]
        leaf = leaf_hash(Recorded(one.seq, stream, one.version, one.topic, one.state.encode()))
        path = [bytes.fromhex(node) for node in one.path]
        root = root_by_path(leaf, one.seq - seal.first, seal.last - seal.first + 1, path)
        if root is None or root.hex() != seal.root:
            return f"event {one.seq} is not what its seal covers"
    begin = f"{HEAD}\nledger {ledger_id}\nseq {segment.seals[-1].seq}\ndigest {seals[-1].digest}\nsigned_at "
    if not segment.head.text.startswith(begin):
        return f"the signed head is not the seal {segment.seals[-1].seq}"
    if not is_signed(segment.head.text.encode(), segment.head.public_key, segment.head.signature):
        return "the signature of the head does not hold"
    return ""
