"""The proof of an order, and the stand-alone checker: both must see every change."""

import json
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import LedgerDamaged, LedgerError
from ledger.events import Recorded, order_stream
from ledger.proof import NotSignedYet, Proof, audit_path, build_proof, problem_of, proof_json, root_by_path
from ledger.seal import merkle_root
from tests.history import History, partial_fill
from tests.signing import OTHER_KEY, checker, public_hex, sign

ORDER = "wanted"
CHECK = checker()
DER = bytes.fromhex("302a300506032b6570032100")
TRUSTED = [DER + bytes.fromhex(public_hex())]


class Events:
    """A ledger in memory, as a proof is built from."""

    def __init__(self, records: list[Recorded]) -> None:
        self.records = records

    def stream(self, stream: str) -> list[Recorded]:
        return [one for one in self.records if one.stream == stream]

    def at(self, seq: int) -> Recorded | None:
        return self.records[seq - 1]

    def read(self, after: int, limit: int) -> list[Recorded]:
        return self.records[after : after + limit]

    def scan(self, after: int) -> Iterator[Recorded]:
        return iter(self.records[after:])


def with_order(*gaps: int, signed: int = 100) -> History:
    """A ledger with one order of one event more than there are gaps; each gap is a number of commits of others, with a
    head after every `signed` of them and at the end."""
    history = History().orders(3)
    for number, gap in enumerate([*gaps, 0], 1):
        mine = (order_stream(ORDER), partial_fill(number))
        others = [(order_stream(f"other_{number}_{n}"), partial_fill(n)) for n in range(number + 1)]
        history.commit([*others, mine, *others[:1]] if number % 2 else [mine, *others])
        for n in range(gap):
            history.orders(1)
            if n % signed == signed - 1:
                sign(history)
    return sign(history.orders(1))


def proof_of(history: History) -> Proof:
    return build_proof(Events(history.records), ORDER)


PROOF = proof_of(with_order(2, 1, 0))
TEXT = proof_json(PROOF).decode()


def holds(text: str, trusted: list[bytes] | None = None) -> bool:
    try:
        return CHECK(text, trusted or []).startswith("PROVEN: ")
    except (SystemExit, Exception):
        return False


def changed(change: object) -> bool:
    """Whether the checker still accepts the proof after the change to its parsed form."""
    proof = json.loads(TEXT)
    change(proof)
    return holds(json.dumps(proof, indent=1, ensure_ascii=False) + "\n")


# --- inclusion paths --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.data())
def test_every_path_leads_to_the_root_and_no_other_leaf_does(size: int, data: st.DataObject):
    leaves = [number.to_bytes(32, "big") for number in range(size)]
    index, wrong = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    path, root = audit_path(leaves, index), merkle_root(leaves)
    assert root_by_path(leaves[index], index, size, path) == root
    assert len(path) <= (size - 1).bit_length()
    if wrong != index:
        assert root_by_path(leaves[wrong], index, size, path) != root
        assert root_by_path(leaves[index], wrong, size, path) != root


def test_a_path_of_another_length_leads_nowhere():
    leaves = [bytes([number]) * 32 for number in range(5)]
    path = audit_path(leaves, 1)
    assert root_by_path(leaves[1], 1, 5, path[:-1]) is None
    assert root_by_path(leaves[1], 1, 5, [*path, b"0" * 32]) is None
    assert root_by_path(leaves[1], 5, 5, path) is None


# --- what a proof holds -----------------------------------------------------------------------------------------


def test_a_proof_holds_by_both_checkers_and_says_what_it_proves():
    assert problem_of(PROOF) == ""
    told = CHECK(TEXT, TRUSTED)
    seal = PROOF.segments[-1].seals[-1].seq
    assert told.startswith(f"PROVEN: 4 events of order {ORDER} in ledger ledger-a, seal {seal} signed 2026-03-01T12:00")


def test_a_proof_holds_the_events_verbatim_and_nothing_of_other_orders():
    history = with_order(2, 1, 0)
    mine = [one.state.decode() for one in history.records if one.stream == order_stream(ORDER)]
    assert [event.state for segment in PROOF.segments for event in segment.events] == mine
    others = {one.stream.partition("/")[2] for one in history.records if one.stream.startswith("order/")} - {ORDER}
    assert len(others) > 5
    assert not [one for one in others if one in TEXT]
    topics = {json.loads(seal.state)["data"]["event"] for segment in PROOF.segments for seal in segment.seals}
    assert topics == {"writer.batch_sealed"}


def test_an_order_is_covered_by_the_head_that_comes_next_and_not_by_a_later_one():
    history = with_order(0)
    first = build_proof(Events(history.records), ORDER)
    for _ in range(3):
        sign(history.orders(5))
    assert build_proof(Events(history.records), ORDER) == first


def test_far_apart_events_get_a_chain_each_and_the_proof_stays_short():
    history = with_order(40, signed=5)
    proof = proof_of(history)
    assert [len(segment.events) for segment in proof.segments] == [1, 1]
    assert sum(len(segment.seals) for segment in proof.segments) < 15
    assert holds(proof_json(proof).decode(), TRUSTED)


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 6))
def test_any_order_can_be_proven(gaps: list[int], signed: int):
    proof = proof_of(with_order(*gaps, signed=signed))
    assert sum(len(segment.events) for segment in proof.segments) == len(gaps) + 1
    assert problem_of(proof) == ""


def test_an_unknown_order_and_one_without_a_head_are_named():
    with pytest.raises(LedgerError, match="no order 'nobody' in this ledger"):
        build_proof(Events(PROOF_HISTORY.records), "nobody")
    history = with_order(0)
    history.commit([(order_stream(ORDER), partial_fill(9))])
    with pytest.raises(NotSignedYet, match=f"event {len(history.records) - 1} of order {ORDER} stands under no signed"):
        proof_of(history)


PROOF_HISTORY = with_order(2, 1, 0)


@pytest.mark.parametrize("seq", range(1, len(PROOF_HISTORY.records) + 1))
def test_a_damaged_ledger_gives_no_false_proof(seq: int):
    records = list(PROOF_HISTORY.records)
    state = bytearray(records[seq - 1].state)
    state[len(state) // 2] ^= 1
    records[seq - 1] = msgspec.structs.replace(records[seq - 1], state=bytes(state))
    try:
        proof = build_proof(Events(records), ORDER)
    except (LedgerDamaged, NotSignedYet):
        return
    assert proof == PROOF or records[seq - 1].topic == "writer.ledger_created"


# --- tampering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0x01, 0x20])
def test_the_checker_finds_every_flipped_byte_of_the_file(mask: int):
    small = proof_json(proof_of(with_order(0))).decode()
    assert small.isascii()
    assert holds(small)
    unseen = [
        place
        for place in range(len(small))
        if holds(small[:place] + chr(ord(small[place]) ^ mask) + small[place + 1 :])
    ]
    assert unseen == []


def test_the_project_s_own_check_finds_every_flipped_byte_of_the_events():
    for number, segment in enumerate(PROOF.segments):
        for place, event in enumerate(segment.events):
            for at in range(len(event.state)):
                state = event.state[:at] + chr(ord(event.state[at]) ^ 1) + event.state[at + 1 :]
                events = list(segment.events)
                events[place] = msgspec.structs.replace(event, state=state)
                segments = list(PROOF.segments)
                segments[number] = msgspec.structs.replace(segment, events=tuple(events))
                assert problem_of(msgspec.structs.replace(PROOF, segments=tuple(segments)))


@pytest.mark.parametrize("event", range(3))
def test_an_event_left_out_before_the_last_is_missed(event: int):
    assert not changed(lambda proof: proof["segments"][0]["events"].pop(event))


def test_the_newest_event_left_out_is_not_seen_which_the_documents_say():
    assert changed(lambda proof: proof["segments"][0]["events"].pop())


@pytest.mark.parametrize("name", ["path", "state", "seq", "version", "topic"])
def test_exchanged_parts_of_two_events_are_found(name: str):
    def exchange(proof: dict) -> None:
        one, other = proof["segments"][0]["events"][:2]
        same = one[name] == other[name]
        one[name], other[name] = other[name], "order.filled" if same else one[name]

    assert not changed(exchange)


@pytest.mark.parametrize("change", ["shorter", "longer", "reversed", "upper case"])
def test_a_changed_path_is_found(change: str):
    def act(proof: dict) -> None:
        event = next(one for one in proof["segments"][0]["events"] if len(one["path"]) > 1)
        path = event["path"]
        event["path"] = {
            "shorter": path[:-1],
            "longer": [*path, path[0]],
            "reversed": path[::-1],
            "upper case": [one.upper() for one in path],
        }[change]

    assert not changed(act)


@pytest.mark.parametrize("place", range(len(PROOF.segments[0].seals)))
def test_a_missing_seal_is_found(place: int):
    assert not changed(lambda proof: proof["segments"][0]["seals"].pop(place))


@pytest.mark.parametrize("place", range(len(PROOF.segments[0].seals) - 1))
def test_exchanged_seals_are_found(place: int):
    def exchange(proof: dict) -> None:
        seals = proof["segments"][0]["seals"]
        seals[place], seals[place + 1] = seals[place + 1], seals[place]

    assert not changed(exchange)


def test_a_proof_of_another_order_or_ledger_cannot_be_renamed():
    assert not changed(lambda proof: proof.update(order_id="other"))
    assert not changed(lambda proof: proof.update(ledger_id="ledger-b"))


def test_a_head_signed_by_another_key_holds_only_where_that_is_not_asked():
    history = with_order(0)
    other = History().orders(3)
    other.records = history.records[:-2]
    other._digest, other._versions = history.records[-3].state[-67:-3].decode(), {"writer": history.records[-3].version}
    forged = proof_json(build_proof(Events(sign(other, OTHER_KEY).records), ORDER)).decode()
    assert holds(forged)
    assert not holds(forged, TRUSTED)
    assert holds(forged, [*TRUSTED, DER + OTHER_KEY.public_key().public_bytes_raw()])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 1}\n', "[" * 100_000])
def test_what_is_no_proof_is_refused(text: str):
    assert not holds(text)
