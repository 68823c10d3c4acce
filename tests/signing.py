"""Ledgers with signed heads, for tests."""

import runpy
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ledger.events import WRITER_STREAM, HeadSigned, Recorded, decode
from ledger.heads import sign_head
from tests.history import BEGINNING, History

KEY = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"2" * 32)
CHECKER = Path(__file__).parents[1] / "docs" / "check_proof.py"


def public_hex(key: Ed25519PrivateKey = KEY) -> str:
    return key.public_key().public_bytes_raw().hex()


def public_pem(key: Ed25519PrivateKey = KEY) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def head_of(history: History, key: Ed25519PrivateKey = KEY) -> HeadSigned:
    """A signed head of the history as it ends now."""
    seal = history.records[-1]
    return sign_head(key, history.ledger_id, seal.seq, decode(seal).data.digest, BEGINNING)


def sign(history: History, key: Ed25519PrivateKey = KEY) -> History:
    """Appends a signed head, as the service does."""
    history.commit([(WRITER_STREAM, head_of(history, key))])
    return history


def signed_history(rounds: int = 3, orders: int = 2, **changes: object) -> History:
    """Rounds of orders, each with a signed head behind it."""
    history = History(**changes)
    for _ in range(rounds):
        sign(history.orders(orders))
    return history


def heads_in(records: list[Recorded]) -> list[bytes]:
    """The lines of a seals.jsonl of these events."""
    return [one.state + b"\n" for one in records if one.topic == "writer.head_signed"]


def checker() -> Callable[[str, list[bytes]], str]:
    """The function of the stand-alone checker, which is no module of this project."""
    return runpy.run_path(str(CHECKER))["check"]
