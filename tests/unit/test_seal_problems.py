"""How a verification says what is wrong: one sentence for each contradiction."""

import msgspec

from ledger.events import Recorded, decode, encode
from ledger.seal import GENESIS, close_seal, verify
from tests.history import History

SOUND = History().orders(2).records
FIRST, SECOND = [one.seq for one in SOUND if one.topic == "writer.batch_sealed"][:2]


def resealed(seq: int, **changes: object) -> list[Recorded]:
    """By someone who knows how seals are made; what follows is cut."""
    envelope = decode(SOUND[seq - 1])
    data = msgspec.structs.replace(envelope.data, digest=GENESIS, **changes)
    state = encode(msgspec.structs.replace(envelope, data=data))
    return [*SOUND[: seq - 1], close_seal(msgspec.structs.replace(SOUND[seq - 1], state=state))]


def problem(records: list[Recorded]) -> str:
    found = verify(records)
    assert not found.ok
    return found.problem


def test_a_ledger_without_its_creation():
    begun_later = msgspec.structs.replace(SOUND[2], seq=1, version=1)
    assert problem([begun_later]) == "the ledger does not begin with its creation"


def test_an_unsealed_tail():
    assert problem(SOUND[: SECOND - 1]) == f"events from {FIRST + 1} on carry no seal"


def test_a_seal_on_another_stream():
    moved = msgspec.structs.replace(SOUND[FIRST - 1], stream="order/a", version=1)
    assert problem([*SOUND[: FIRST - 1], moved]) == f"the seal {FIRST} stands on order/a"


def test_a_changed_seal():
    state = SOUND[SECOND - 1].state.replace(b'"root":"', b'"root":"00')
    changed = msgspec.structs.replace(SOUND[SECOND - 1], state=state)
    text = f"the seal {SECOND} was changed: its digest does not match its bytes"
    assert problem([*SOUND[: SECOND - 1], changed]) == text


def test_a_seal_that_does_not_continue_the_one_before():
    assert problem(resealed(SECOND, previous="11" * 32)) == f"the seal {SECOND} does not continue the seal before it"


def test_a_seal_of_another_range():
    text = f"the seal {SECOND} covers 2 to {SECOND - 1}, not {FIRST + 1} to its own"
    assert problem(resealed(SECOND, first=2)) == text


def test_a_seal_of_an_earlier_epoch():
    assert problem(resealed(SECOND, epoch=0)) == f"the seal {SECOND} is of epoch 0, after epoch 1"


def test_a_first_seal_may_be_of_any_epoch():
    assert verify(resealed(FIRST, epoch=0)).ok
