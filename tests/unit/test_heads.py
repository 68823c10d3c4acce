"""Signed heads: what is signed, and what a witness finds that seals cannot show."""

import subprocess
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from ledger.errors import LedgerError
from ledger.events import HeadSigned, Recorded, decode, order_stream
from ledger.heads import HeadWitness, head_text, key_id, read_heads, read_public_key, sign_head, signature_holds
from ledger.seal import Verification, verify
from tests.history import BEGINNING, History, full_fill
from tests.signing import KEY, OTHER_KEY, head_of, heads_in, public_hex, public_pem, sign, signed_history

AT = datetime(2026, 3, 1, 12, 0, 0, 987654, UTC)
SOUND = signed_history()
OUTSIDE = heads_in(SOUND.records)
SIGNED_SEALS = [decode(one).data.head_seq for one in SOUND.records if one.topic == "writer.head_signed"]


def checked(
    records: list[Recorded], lines: list[bytes] | None = None, *trusted: str
) -> tuple[Verification, HeadWitness]:
    witness = HeadWitness(read_heads(OUTSIDE if lines is None else lines, "seals.jsonl", trusted), trusted)
    return verify(records, witness), witness


def test_the_signed_text_is_five_lines_of_whole_seconds():
    head = sign_head(KEY, "l1", 7, "ab" * 32, AT)
    text = head_text("l1", 7, "ab" * 32, head.signed_at)
    assert text.decode() == (
        f"order-ledger head v1\nledger l1\nseq 7\ndigest {'ab' * 32}\nsigned_at 2026-03-01T12:00:00Z\n"
    )
    assert head.key_id == key_id(bytes.fromhex(head.public_key))
    assert b"2026-03-01T12:00:00Z" in msgspec.json.encode(head)


def test_openssl_checks_the_signature(tmp_path: Path):
    head = sign_head(KEY, "l1", 7, "ab" * 32, AT)
    (tmp_path / "pub.pem").write_bytes(public_pem())
    (tmp_path / "head.txt").write_bytes(head_text("l1", 7, "ab" * 32, head.signed_at))
    (tmp_path / "sig.bin").write_bytes(bytes.fromhex(head.signature))
    command = "openssl pkeyutl -verify -pubin -inkey pub.pem -rawin -in head.txt -sigfile sig.bin"
    assert subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"head_seq": 8},
        {"head_digest": "ac" * 32},
        {"signed_at": BEGINNING},
        {"key_id": "0" * 16},
        {"public_key": public_hex(OTHER_KEY)},
        {"public_key": "no"},
        {"signature": "00" * 64},
        {"signature": ""},
    ],
    ids=str,
)
def test_a_signature_covers_every_field(changes: dict[str, object]):
    head = sign_head(KEY, "l1", 7, "ab" * 32, AT)
    assert signature_holds("l1", head)
    assert not signature_holds("l1", msgspec.structs.replace(head, **changes))
    assert not signature_holds("l2", head)


def test_a_sound_ledger_fits_the_heads_inside_and_elsewhere():
    found, witness = checked(SOUND.records, None, public_hex())
    assert (found.ok, found.last_seq) == (True, SOUND.records[-1].seq)
    assert (witness.inside, witness.outside, list(witness.keys)) == (3, 3, [head_of(SOUND).key_id])
    assert witness.signed_to.seq == witness.witnessed_to.seq == SIGNED_SEALS[-1]


@pytest.mark.parametrize(
    "end", [seq for seq in range(1, SIGNED_SEALS[-1]) if SOUND.records[seq - 1].topic.endswith("sealed")]
)
def test_a_tail_cut_at_any_seal_is_found_by_a_head_from_elsewhere_only(end: int):
    cut = SOUND.records[:end]
    assert checked(cut, [])[0].ok
    found, _ = checked(cut)
    assert (found.first_bad_seq, found.last_seq) == (end + 1, end)
    assert f"the ledger ends at seal {end}, but seal {SIGNED_SEALS[-1]} was signed on 2026-03-01" in found.problem


def rewritten(key: object = None) -> History:
    """The same ledger with a forged fill before the second round, sealed anew; signed with this key, where given."""
    history = signed_history(1)
    for number in range(2):
        if number == 0:
            history.commit([(order_stream("forged"), full_fill(price=Decimal("9.9")))])
        history.orders(2)
        if key is not None:
            sign(history, key)
    return history


@pytest.mark.parametrize("key", [None, OTHER_KEY, KEY], ids=["unsigned", "own_key", "stolen_key"])
def test_a_ledger_rewritten_with_all_its_seals_does_not_fit_a_head_from_elsewhere(key: object):
    forged = rewritten(key).records
    assert checked(forged, [])[0].ok
    found, _ = checked(forged)
    assert (found.first_bad_seq, found.last_seq) == (SIGNED_SEALS[0] + 1, SIGNED_SEALS[0])
    assert f"the seal {SIGNED_SEALS[1]} that was signed on" in found.problem


def test_a_rewritten_ledger_that_keeps_its_old_heads_contradicts_itself():
    history = signed_history(1)
    old = head_of(history)
    other = History().orders(1)
    other.commit([("writer", old)])
    found, _ = checked(other.records, [])
    assert (found.first_bad_seq, found.last_seq) == (1, 0)
    assert "does not fit the seal" in found.problem


def test_a_head_with_a_false_signature_puts_all_behind_the_last_good_head_in_doubt():
    history = signed_history(1)
    good = history.records[-1].seq
    history.orders(1)
    history.commit([("writer", msgspec.structs.replace(head_of(history), signature="00" * 64))])
    found, _ = checked(history.records, [])
    assert found.first_bad_seq == SIGNED_SEALS[0] + 1 < good
    assert "carries a signature that does not hold" in found.problem


def test_given_a_key_nothing_signed_by_another_counts():
    assert checked(signed_history().records, [], public_hex())[0].ok
    found, _ = checked(rewritten(OTHER_KEY).records, [], public_hex())
    assert found.first_bad_seq == SIGNED_SEALS[0] + 1
    assert "none of those given" in found.problem
    both, witness = checked(rewritten(OTHER_KEY).records, [], public_hex(), public_hex(OTHER_KEY))
    assert (both.ok, len(witness.keys)) == (True, 2)


def test_given_a_key_a_ledger_without_signatures_is_not_sound():
    found, _ = checked(History().orders(3).records, [], public_hex())
    assert (found.first_bad_seq, found.problem) == (1, "nothing in this ledger is signed by a key that was given")


def test_two_heads_for_one_seal_cannot_both_fit():
    fork = signed_history(2)
    assert head_of(fork).head_seq == SOUND.records[fork.records[-1].seq - 1].seq
    other = History(login=6002)
    for _ in range(2):
        sign(other.orders(2))
    found, _ = checked(SOUND.records, [*OUTSIDE, *heads_in(other.records)])
    assert found.first_bad_seq == 1


def test_heads_of_other_ledgers_in_a_shared_topic_are_passed_over():
    foreign = heads_in(signed_history(2, ledger_id="ledger-b").records)
    assert checked(SOUND.records, [*foreign, *OUTSIDE])[1].outside == 3
    found, _ = checked(SOUND.records, foreign)
    assert (found.first_bad_seq, found.problem) == (1, "none of the 2 heads from elsewhere is of this ledger, ledger-a")


def test_a_torn_last_line_is_left_out():
    assert len(read_heads([*OUTSIDE, OUTSIDE[0][:50]], "f")) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"not json\n", "f line 2 is no stored event"),
        (b"[" * 100_000 + b"\n", "f line 2 is no stored event"),
        (SOUND.records[0].state + b"\n", "f line 2 is a writer.ledger_created, not a head"),
        (OUTSIDE[1].replace(b'"signature":"', b'"signature":"0'), "f line 2 carries a signature that does not hold"),
        (heads_in(rewritten(OTHER_KEY).records)[-1], "f line 2 is signed by key .*, which was not given"),
    ],
    ids=["text", "deep", "other_event", "false_signature", "other_key"],
)
def test_a_line_that_is_no_head_is_named(line: bytes, problem: str):
    with pytest.raises(LedgerError, match=problem):
        read_heads([OUTSIDE[0], line], "f", (public_hex(),))


def test_a_public_key_is_read_from_pem_and_nothing_else():
    assert read_public_key(public_pem(), "pub.pem") == public_hex()
    for content in (b"", b"junk", public_pem()[:60]):
        with pytest.raises(LedgerError, match=r"pub\.pem is no Ed25519 public key"):
            read_public_key(content, "pub.pem")


def test_heads_are_events_that_can_be_read_back():
    stored = next(one for one in SOUND.records if one.topic == "writer.head_signed")
    data = decode(stored).data
    assert isinstance(data, HeadSigned)
    assert signature_holds("ledger-a", data)
