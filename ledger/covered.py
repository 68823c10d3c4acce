"""PURE: whether some events are what the seals over them say. It is no verification: the chain of the seals and their
signed heads are not looked at, so whoever rewrote a seal too is not found. It costs the batches of these events."""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from ledger.errors import LedgerError
from ledger.events import BatchSealed, Recorded, event_of
from ledger.seal import leaf_hash, merkle_root, seal_digest

MAX_BATCHES: Final = 200
MAX_BATCH: Final = 10_000  # a seal is looked for so far behind an event
_SEALED: Final = BatchSealed.topic()


class Source(Protocol):
    """What is asked of a store."""

    def read(self, after: int, limit: int) -> list[Recorded]: ...
    def scan(self, after: int) -> Iterator[Recorded]: ...


def problem_of(source: Source, events: Sequence[Recorded]) -> str:
    """What is wrong with the events of one stream, from its first on; empty when their seals hold, as far as the first
    `MAX_BATCHES` of these tell."""
    batch: dict[int, Recorded] = {}
    last = batches = 0
    for version, one in enumerate(events, 1):
        if one.version != version:
            return f"event {version} of {one.stream} is missing"
        if one.seq > last:
            if (batches := batches + 1) > MAX_BATCHES:
                return ""
            found = _batch_of(source, one.seq)
            if isinstance(found, str):
                return found
            batch = found
            last = max(batch)
        if batch.get(one.seq) != one:
            return f"event {one.seq} is not the one that its seal covers"
    return ""


def _batch_of(source: Source, seq: int) -> dict[int, Recorded] | str:
    """The events that are sealed together with this one, or why they are not."""
    sealed = None
    for recorded in source.scan(seq - 1):
        if recorded.topic == _SEALED:
            sealed = recorded
        if sealed is not None or recorded.seq > seq + MAX_BATCH:
            break
    if sealed is None:
        return f"event {seq} is under no seal"
    try:
        seal = event_of(sealed)
    except LedgerError:
        return f"the seal {sealed.seq} cannot be read"
    if not isinstance(seal, BatchSealed) or seal.digest != seal_digest(sealed) or seal.last != sealed.seq - 1:
        return f"the seal {sealed.seq} was changed"
    if not seal.last - MAX_BATCH < seal.first <= seq:
        return f"event {seq} is under no seal"
    found = source.read(seal.first - 1, seal.last - seal.first + 1)
    if merkle_root([leaf_hash(one) for one in found]).hex() != seal.root:
        return f"events {seal.first} to {seal.last} are not what the seal {sealed.seq} covers"
    return {one.seq: one for one in found}
