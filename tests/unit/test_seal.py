import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.events import BatchSealed, Recorded, decode, encode, seq_of
from ledger.seal import (
    GENESIS,
    Verification,
    batches,
    close_seal,
    leaf_hash,
    merkle_root,
    seal_digest,
    verify,
)
from tests.history import History

# --- the Merkle tree of RFC 9162, section 2.1.1 --------------------------------------------------------------------


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of leaf hashes, word by word as the RFC defines it."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01" + tree_hash(leaves[:split]) + tree_hash(leaves[split:]))


def test_the_root_is_the_rfc_s_for_every_size_up_to_300():
    leaves = [sha256(b"\x00" + bytes([n % 251, n // 251])) for n in range(300)]
    for size in range(301):
        assert merkle_root(leaves[:size]) == tree_hash(leaves[:size])


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=40))
def test_the_root_is_the_rfc_s_for_any_leaves(leaves):
    assert merkle_root(leaves) == tree_hash(leaves)


# The inputs and roots of the test vectors that came with Certificate Transparency.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("size", range(9))
def test_the_root_agrees_with_published_vectors(size):
    leaves = [sha256(b"\x00" + bytes.fromhex(one)) for one in INPUTS[:size]]
    assert merkle_root(leaves).hex() == ROOTS[size]


# --- what a leaf and a seal cover -----------------------------------------------------------------------------------

EVENT = Recorded(7, "order/a", 3, "order.failed", b'{"seq":7}')


@pytest.mark.parametrize(
    "other",
    [
        Recorded(8, "order/a", 3, "order.failed", b'{"seq":7}'),
        Recorded(7, "order/b", 3, "order.failed", b'{"seq":7}'),
        Recorded(7, "order/a", 4, "order.failed", b'{"seq":7}'),
        Recorded(7, "order/a", 3, "order.filled", b'{"seq":7}'),
        Recorded(7, "order/a", 3, "order.failed", b'{"seq":8}'),
        Recorded(7, "order/aorder", 3, ".failed", b'{"seq":7}'),
        Recorded(7, "order/a", 3, "order.failed{", b'"seq":7}'),
    ],
)
def test_a_leaf_covers_every_column_and_where_it_ends(other):
    assert leaf_hash(other) != leaf_hash(EVENT)


def test_a_seal_can_be_checked_with_sha_256_alone():
    seal = SOUND[-1]
    data = msgspec.json.decode(seal.state)["data"]
    before = seal.state[: seal.state.index(data["digest"].encode())]
    framed = (
        seal.seq.to_bytes(8, "big")
        + len(seal.stream).to_bytes(4, "big")
        + seal.stream.encode()
        + seal.version.to_bytes(8, "big")
        + len(seal.topic).to_bytes(4, "big")
        + seal.topic.encode()
        + len(before).to_bytes(4, "big")
        + before
    )
    assert data["digest"] == hashlib.sha256(b"\x02" + framed).hexdigest() == seal_digest(seal)


# --- verification (invariant I7) ------------------------------------------------------------------------------------

SOUND = History().orders(4).records  # seqs: 1 created, 2 its seal, then batches of 4 events and a seal
SEALS = [one.seq for one in SOUND if one.topic == "writer.batch_sealed"]


def first_of_batch(seq: int) -> int:
    """The lowest event that cannot be trusted when this one was touched: all before it is proven by seals."""
    return max((seal for seal in SEALS if seal < seq), default=0) + 1


def bad_seq(records: list[Recorded]) -> int | None:
    found = verify(records)
    assert found.ok == (found.problem == "")
    return found.first_bad_seq


def replaced(seq: int, **changes: object) -> list[Recorded]:
    return [msgspec.structs.replace(one, **changes) if one.seq == seq else one for one in SOUND]


def test_a_sound_ledger_verifies_whole():
    found = verify(SOUND)
    assert (found.ok, found.events, found.seals, found.last_seq) == (True, len(SOUND), len(SEALS), SOUND[-1].seq)
    assert found.ledger_id == "ledger-a"
    assert found.head == decode(SOUND[-1]).data.digest


def test_every_prefix_that_ends_with_a_seal_is_sound():
    for seal in SEALS:
        assert bad_seq(SOUND[:seal]) is None
    assert verify([]) == Verification(events=0, seals=0, last_seq=0, head=GENESIS)


def as_stored(records: list[Recorded]) -> list[Recorded]:
    """The seq as the store finds it: in the bytes, or the place where they stand when they cannot be read."""
    result = []
    for place, one in enumerate(records, 1):
        try:
            seq = seq_of(one.state)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            seq = place
        result.append(msgspec.structs.replace(one, seq=seq))
    return result


@pytest.mark.parametrize("seq", [1, 4, SEALS[1], SEALS[-1]], ids=["creation", "order", "seal", "last_seal"])
def test_every_single_flipped_byte_is_found(seq):
    event = SOUND[seq - 1]
    for position in range(len(event.state)):
        for mask in (0x01, 0x20, 0x80):
            state = bytearray(event.state)
            state[position] ^= mask
            assert bad_seq(as_stored(replaced(seq, state=bytes(state)))) == first_of_batch(seq), (position, mask)


@given(st.integers(1, len(SOUND)), st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_byte_of_any_event_is_found(seq, position, mask):
    state = bytearray(SOUND[seq - 1].state)
    state[position % len(state)] ^= mask
    assert bad_seq(as_stored(replaced(seq, state=bytes(state)))) == first_of_batch(seq)


def test_a_changed_amount_that_reads_well_puts_its_batch_in_doubt_and_nothing_before_it():
    state = SOUND[8].state.replace(b'"price":"1.10002"', b'"price":"9.10002"')
    assert state != SOUND[8].state
    found = verify(replaced(9, state=state))
    assert (found.first_bad_seq, found.last_seq, found.events) == (8, 7, 7)
    assert found.problem == "events 8 to 11 do not match their seal 12"
    assert found.head == decode(SOUND[6]).data.digest


@pytest.mark.parametrize("moved", [1, 10, 100])
def test_bytes_moved_between_neighbouring_events_are_found(moved):
    left, right = SOUND[3], SOUND[4]
    records = list(SOUND)
    records[3] = msgspec.structs.replace(left, state=left.state[:-moved])
    records[4] = msgspec.structs.replace(right, state=left.state[-moved:] + right.state)
    assert bad_seq(as_stored(records)) == 3


def test_exchanged_data_of_two_events_is_found():
    records = list(SOUND)
    records[3] = msgspec.structs.replace(SOUND[3], state=SOUND[3].state.replace(b'"deal":1', b'"deal":2'))
    records[4] = msgspec.structs.replace(SOUND[4], state=SOUND[4].state.replace(b'"deal":2', b'"deal":1'))
    assert records[3] != SOUND[3]
    assert records[4] != SOUND[4]
    assert bad_seq(records) == 3


@pytest.mark.parametrize("seq", range(1, len(SOUND)))
def test_a_deleted_event_is_missed(seq):
    found = verify(SOUND[: seq - 1] + SOUND[seq:])
    assert found.first_bad_seq == first_of_batch(seq)
    assert found.problem == f"event {seq} is missing: {seq + 1} stands in its place"


def test_a_deleted_batch_is_missed_at_its_first_event():
    assert bad_seq(SOUND[:7] + SOUND[12:]) == 8


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_tail_without_its_seal_is_found_from_its_first_event(cut):
    assert len(SOUND) - cut >= SEALS[-2]
    expected = None if len(SOUND) - cut == SEALS[-2] else SEALS[-2] + 1
    assert bad_seq(SOUND[: len(SOUND) - cut]) == expected


@pytest.mark.parametrize("after", range(len(SOUND) + 1))
def test_an_inserted_event_is_found(after):
    foreign = msgspec.structs.replace(SOUND[max(after - 1, 0)], stream="order/foreign", version=1)
    assert bad_seq([*SOUND[:after], foreign, *SOUND[after:]]) == first_of_batch(after + 1)


def renumbered(records: list[Recorded]) -> list[Recorded]:
    """Dense again, in the bytes too, as a careful forger would have it."""
    result = []
    for place, one in enumerate(records, 1):
        state = one.state.replace(b'"seq":%d,' % one.seq, b'"seq":%d,' % place)
        state = state.replace(b'"ledger-a:%d"' % one.seq, b'"ledger-a:%d"' % place)
        result.append(msgspec.structs.replace(one, seq=place, state=state))
    return result


def test_an_inserted_or_removed_event_is_found_although_all_behind_it_is_renumbered():
    foreign = msgspec.structs.replace(SOUND[3], stream="order/foreign", version=1)
    assert bad_seq(renumbered([*SOUND[:4], foreign, *SOUND[4:]])) == 3
    assert bad_seq(renumbered(SOUND[:10] + SOUND[11:])) == 8
    assert bad_seq(renumbered(SOUND)) is None


@pytest.mark.parametrize(("one", "other"), [(3, 4), (4, 5), (3, 12), (6, 7), (9, 10), (9, 14), (1, 2)])
def test_two_swapped_events_are_found(one, other):
    records = list(SOUND)
    records[one - 1], records[other - 1] = SOUND[other - 1], SOUND[one - 1]
    assert bad_seq(records) == first_of_batch(one)
    assert bad_seq(renumbered(records)) == first_of_batch(one)


@pytest.mark.parametrize("seq", [1, 3, 4, SEALS[1], SEALS[-1]])
@pytest.mark.parametrize(
    "changes",
    [
        {"stream": "order/other", "version": 1},
        {"stream": "order/other"},
        {"stream": ""},
        {"version": 9},
        {"version": 0},
        {"topic": "order.failed"},
        {"topic": "order.teleported"},
        {"topic": ""},
    ],
    ids=repr,
)
def test_a_changed_column_is_found(seq, changes):
    assert bad_seq(replaced(seq, **changes)) == first_of_batch(seq)


def resealed(seq: int, **changes: object) -> list[Recorded]:
    """By a forger who knows how seals are made, but leaves the seals behind it."""
    envelope = decode(SOUND[seq - 1])
    data = msgspec.structs.replace(envelope.data, digest=GENESIS, **changes)
    state = encode(msgspec.structs.replace(envelope, data=data))
    return [*SOUND[: seq - 1], close_seal(msgspec.structs.replace(SOUND[seq - 1], state=state)), *SOUND[seq:]]


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({"root": "00" * 32}, 3),
        ({"previous": "00" * 32}, 3),
        ({"first": 2}, 3),
        ({"last": 9}, 3),
        ({"epoch": 0}, 3),
        ({"epoch": 2}, SEALS[1] + 1),
        ({"checkpoint": 1}, SEALS[1] + 1),
    ],
    ids=repr,
)
def test_a_forged_seal_does_not_fit_its_batch_or_the_seal_behind_it(changes, bad):
    assert bad_seq(resealed(SEALS[1], **changes)) == bad


def test_a_batch_that_is_forged_with_its_seal_breaks_the_chain_behind_it():
    state = SOUND[8].state.replace(b'"price":"1.10002"', b'"price":"9.10002"')
    forged = replaced(9, state=state)
    root = merkle_root([leaf_hash(one) for one in forged[7:11]]).hex()
    seal = resealed(12, root=root)[11]
    assert bad_seq([*forged[:11], seal]) is None
    assert bad_seq([*forged[:11], seal, *SOUND[12:]]) == 13


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 9}, "event 15 is version 9 of order/ord_2_3, 2 was expected"),
        ({"stream": "order/x"}, "event 15 is version 2 of order/x, 1 was expected"),
        ({"topic": "order.failed"}, "event 15 is stored as order.failed, but is order.partially_filled"),
    ],
    ids=repr,
)
def test_what_contradicts_itself_is_found_even_under_a_seal_that_fits(changes, problem):
    """The last seal can be forged with its batch; the events must still make sense together."""
    forged = replaced(15, **changes)
    root = merkle_root([leaf_hash(one) for one in forged[12:-1]]).hex()
    found = verify([*forged[:-1], resealed(SEALS[-1], root=root)[-1]])
    assert found.first_bad_seq == 13
    assert problem in found.problem


def test_a_second_ledger_pasted_behind_is_found_at_its_first_event():
    other = History(ledger_id="ledger-b").orders(1).records
    assert bad_seq(SOUND + other) == len(SOUND) + 1


def test_an_event_of_another_ledger_in_its_exact_place_is_found():
    other = History(ledger_id="ledger-b").orders(4).records
    found = verify(SOUND[:3] + other[3:4] + SOUND[4:])
    assert (found.first_bad_seq, found.problem) == (3, "event 4 carries the id ledger-b:4")


@pytest.mark.parametrize("state", [b"", b"\x00", b"null", b"[" * 100_000, b'{"seq":4}', b"\xff" * 50])
def test_bytes_that_are_no_event_are_found_and_never_stop_the_verification(state):
    found = verify(as_stored(replaced(4, state=state)))
    assert found.first_bad_seq == 3
    assert found.problem.startswith("event 4 cannot be read: ")


def test_a_ledger_that_does_not_begin_with_its_creation_is_bad_from_the_start():
    assert bad_seq(SOUND[2:]) == bad_seq(renumbered(SOUND[2:])) == 1
    assert bad_seq(renumbered(SOUND[1:])) == 1


def test_batches_end_with_their_seals_and_leave_an_open_tail_out():
    found = list(batches(SOUND[:-1]))
    assert [batch[-1].seq for batch in found] == SEALS[:-1]
    assert all(isinstance(decode(batch[-1]).data, BatchSealed) for batch in found)
