"""Signed heads: statements that the ledger up to a seal has a certain digest, checkable by anyone.

What is signed is a text of five lines, so that `openssl` can check it. Copies kept outside the ledger (Kafka, the
file seals.jsonl) witness what the ledger once was: a cut or rewritten one does not fit them.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ledger.errors import LedgerError
from ledger.events import Envelope, HeadSigned
from ledger.seal import HeadContradicts, Proven

HEAD: Final = "order-ledger head v1"


class BadKey(LedgerError):
    """A key that cannot be used; the text names where it came from and never shows it."""


def head_text(ledger_id: str, seq: int, digest: str, signed_at: datetime) -> bytes:
    """The bytes that are signed: the head of the ledger is seal `seq` with `digest`."""
    at = signed_at.isoformat().replace("+00:00", "Z")
    return f"{HEAD}\nledger {ledger_id}\nseq {seq}\ndigest {digest}\nsigned_at {at}\n".encode()


def text_of(ledger_id: str, head: HeadSigned) -> bytes:
    return head_text(ledger_id, head.head_seq, head.head_digest, head.signed_at)


def key_id(public_key: bytes) -> str:
    """The name of a key: the first 16 hexadecimal digits of SHA-256 of the 32 bytes of its public part."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def sign_head(key: Ed25519PrivateKey, ledger_id: str, seq: int, digest: str, at: datetime) -> HeadSigned:
    """The signed statement, of whole seconds. `at` must be in UTC."""
    at = at.replace(microsecond=0)
    public = key.public_key().public_bytes_raw()
    return HeadSigned(
        head_seq=seq,
        head_digest=digest,
        signed_at=at,
        key_id=key_id(public),
        public_key=public.hex(),
        signature=key.sign(head_text(ledger_id, seq, digest, at)).hex(),
    )


def is_signed(text: bytes, public_key: str, signature: str) -> bool:
    """Whether the Ed25519 signature over the text holds; key and signature in lower hexadecimal."""
    try:
        public, signed = bytes.fromhex(public_key), bytes.fromhex(signature)
        Ed25519PublicKey.from_public_bytes(public).verify(signed, text)
    except (ValueError, InvalidSignature):
        return False
    return (public.hex(), signed.hex()) == (public_key, signature)


def signature_holds(ledger_id: str, head: HeadSigned) -> bool:
    """Whether the head was signed by the key it names, for this ledger."""
    return is_signed(text_of(ledger_id, head), head.public_key, head.signature) and head.key_id == key_id(
        bytes.fromhex(head.public_key)
    )


def read_public_key(pem: bytes, name: str) -> str:
    """The Ed25519 key in a PEM file, as hexadecimal. Raises BadKey, which calls the file `name`."""
    try:
        key = load_pem_public_key(pem)
    except Exception:  # cryptography does not say all that it raises
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise BadKey(f"{name} is no Ed25519 public key: give the seal.pub.pem of the service that signed")
    return key.public_bytes_raw().hex()


class OutsideHead(msgspec.Struct, frozen=True, order=True, gc=False):
    """A head from outside the ledger, its signature checked."""

    seq: int
    digest: str
    signed_at: str
    ledger_id: str
    key_id: str


def read_heads(lines: Iterable[bytes], name: str, trusted: Collection[str] = ()) -> list[OutsideHead]:
    """The heads in a file of stored `writer.head_signed` events, one a line, in order of seq; a torn last line is
    left out. `trusted`: public keys in hexadecimal, any if empty.

    Raises LedgerError, with `name` and line, for what is no head or is not signed as it should be.
    """
    decoder = msgspec.json.Decoder(Envelope)
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            envelope = decoder.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            if not line.endswith(b"\n"):
                break
            raise LedgerError(f"{where} is no stored event: give a seals.jsonl, or values of the seals topic") from None
        head, ledger_id = envelope.data, envelope.event_id.rpartition(":")[0]
        if not isinstance(head, HeadSigned):
            raise LedgerError(f"{where} is a {head.topic()}, not a head: give a seals.jsonl, or values of the topic")
        if not signature_holds(ledger_id, head):
            raise LedgerError(f"{where} carries a signature that does not hold: this copy was changed, use another")
        if trusted and head.public_key not in trusted:
            raise LedgerError(f"{where} is signed by key {head.key_id}, which was not given: add it by --key, if known")
        signed_at = f"{head.signed_at:%Y-%m-%d %H:%M:%S} UTC"
        found.append(OutsideHead(head.head_seq, head.head_digest, signed_at, ledger_id, head.key_id))
    return sorted(found)


class HeadWitness:
    """Compares a ledger under verification with the heads inside it and with those kept outside (a `seal.Witness`).

    `trusted`: the public keys, in hexadecimal, that may have signed; any if empty, and then the heads inside prove
    nothing against someone who rewrites the ledger and signs it with a key of his own. After verification `inside`
    and `outside` count the heads that fit, `keys` holds the ids of their keys, `signed_to` and `witnessed_to` the
    last seal that any head, and any outside head, stands for.
    """

    def __init__(self, outside: Iterable[OutsideHead] = (), trusted: Collection[str] = ()) -> None:
        self._given, self._trusted = list(outside), trusted
        self._waiting: deque[OutsideHead] | None = None
        self._recent: deque[Proven] = deque()
        self.inside = self.outside = 0
        self.keys: dict[str, None] = {}
        self.signed_to = self.witnessed_to = Proven()

    def sealed(self, ledger_id: str, proven: Proven) -> None:
        self._recent.append(proven)
        waiting = self._of(ledger_id)
        while waiting and waiting[0].seq <= proven.seq:
            head = waiting[0]
            if (head.seq, head.digest) != (proven.seq, proven.digest):
                raise HeadContradicts(
                    f"the seal {head.seq} that was signed on {head.signed_at} and is witnessed elsewhere is not in "
                    "this ledger: it was rewritten",
                    self.signed_to if self._trusted else self.witnessed_to,
                )
            waiting.popleft()
            self.outside += 1
            self.keys[head.key_id] = None
            self.signed_to = self.witnessed_to = proven

    def signed(self, ledger_id: str, head: HeadSigned) -> None:
        # A head never goes back behind the one before it: what is older need not be kept.
        while self._recent and self._recent[0].seq < head.head_seq:
            self._recent.popleft()
        proven = self._recent[0] if self._recent else Proven()
        problem = ""
        if not signature_holds(ledger_id, head):
            problem = "carries a signature that does not hold"
        elif self._trusted and head.public_key not in self._trusted:
            problem = f"is signed by key {head.key_id}, which is none of those given"
        elif (head.head_seq, head.head_digest) != (proven.seq, proven.digest):
            problem = "does not fit the seal: the ledger was rewritten"
        if problem:
            raise HeadContradicts(f"the head inside the ledger for seal {head.head_seq} {problem}", self.signed_to)
        self.inside += 1
        self.keys[head.key_id] = None
        self.signed_to = max(self.signed_to, proven)

    def ended(self, ledger_id: str, proven: Proven) -> None:
        waiting = self._of(ledger_id)
        if waiting:
            last = waiting[-1]
            raise HeadContradicts(
                f"the ledger ends at seal {proven.seq}, but seal {last.seq} was signed on {last.signed_at} and is "
                "witnessed elsewhere: the end was cut off",
                proven,
            )
        if self._trusted and not self.keys:
            raise HeadContradicts("nothing in this ledger is signed by a key that was given", Proven())

    def _of(self, ledger_id: str) -> deque[OutsideHead]:
        """The outside heads of this ledger: a topic may hold those of several."""
        if self._waiting is None:
            self._waiting = deque(one for one in self._given if one.ledger_id == ledger_id or not ledger_id)
            if self._given and not self._waiting:
                raise HeadContradicts(
                    f"none of the {len(self._given)} heads from elsewhere is of this ledger, {ledger_id}", Proven()
                )
        return self._waiting
