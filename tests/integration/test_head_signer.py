"""The key of the seals, and the signer on a real ledger."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from gateway.config import load
from gateway.heads import HeadSigner, seal_key
from gateway.secret import Secret
from ledger.account_events import AccountDisconnected
from ledger.events import HeadSigned, account_stream, decode
from ledger.heads import HeadWitness, read_public_key
from ledger.seal import verify
from ledger.store import EventStore, open_store
from ledger.writer import Cause, Ledger
from tests.signing import KEY, public_hex

RAW = KEY.private_bytes_raw()
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
LOCKED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
ELLIPTIC = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
CAUSE = Cause(actor="test")
FACT = AccountDisconnected(login=5001, server="Demo", reason="test")

# --- the key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [PEM.decode(), f"\n{PEM.decode()}\n", RAW.hex(), RAW.hex().upper(), base64.b64encode(RAW).decode()],
    ids=["pem", "pem_with_blanks", "hex", "upper_hex", "base64"],
)
def test_a_key_may_come_as_pem_hexadecimal_or_base64(tmp_path: Path, text: str):
    key = seal_key(tmp_path, load({"data": str(tmp_path)}, {"SEAL_KEY": text}).seal_key)
    assert key.private_bytes_raw() == RAW
    assert read_public_key((tmp_path / "seal.pub.pem").read_bytes(), "") == public_hex()
    assert not (tmp_path / "seal.key").exists()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "ab" * 31,
        "zz" * 32,
        base64.b64encode(RAW[:31]).decode(),
        PEM.decode()[:80],
        LOCKED.decode(),
        ELLIPTIC.decode(),
    ],
    ids=["short", "31_bytes", "no_hex", "31_bytes_base64", "cut_pem", "with_password", "other_kind"],
)
def test_a_bad_key_is_one_line_that_does_not_show_it(tmp_path: Path, text: str):
    with pytest.raises(Exception, match="SEAL_KEY is no Ed25519 private key: give PEM without a password") as failure:
        seal_key(tmp_path, Secret(text))
    assert "\n" not in str(failure.value)
    assert text == "x" or text not in str(failure.value)
    assert failure.value.__context__ is None  # its traceback could quote the key
    assert not (tmp_path / "seal.pub.pem").exists()


def test_a_folder_gets_a_key_of_its_own_that_only_its_owner_can_read_and_keeps_it(tmp_path: Path):
    first = seal_key(tmp_path, None)
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seal.key", "seal.pub.pem"]
    assert seal_key(tmp_path, None).private_bytes_raw() == first.private_bytes_raw()


def test_a_key_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path):
    seal_key(tmp_path, None)
    (tmp_path / "seal.key").chmod(0o640)
    with pytest.raises(Exception, match=r"others can read the key .*seal\.key: run chmod 600"):
        seal_key(tmp_path, None)


@pytest.mark.parametrize("content", [b"", b"junk", PEM[:60]])
def test_an_unreadable_key_file_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "seal.key").write_bytes(content)
    (tmp_path / "seal.key").chmod(0o600)
    with pytest.raises(Exception, match=r"seal\.key is no Ed25519 private key"):
        seal_key(tmp_path, None)


def test_a_torn_creation_is_made_good(tmp_path: Path):
    (tmp_path / "seal.key.tmp").write_bytes(b"half")
    assert isinstance(seal_key(tmp_path, None), Ed25519PrivateKey)
    assert not (tmp_path / "seal.key.tmp").exists()


def test_a_folder_that_is_none_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="cannot read or write the key of the seals in"):
        seal_key(tmp_path / "file", None)


# --- the signer -------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    return open_store(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
async def ledger(store: EventStore) -> AsyncIterator[Ledger]:
    found = await Ledger.open(store, login=5001, server="Demo", clock=lambda: datetime.now(UTC), build="test")
    yield found
    await found.close()


def signer_of(ledger: Ledger, *, every_s: float = 86_400, every_seals: int = 1_000_000) -> HeadSigner:
    return HeadSigner(ledger, KEY, lambda: datetime.now(UTC), every_s=every_s, every_seals=every_seals)


def heads_of(store: EventStore) -> list[HeadSigned]:
    """The heads in the ledger, after a witness has checked them."""
    witness = HeadWitness(
        trusted=[public_hex()] if any(one.topic == HeadSigned.topic() for one in store.scan()) else []
    )
    found = verify(store.scan(), witness)
    assert found.ok, found.problem
    return [decode(one).data for one in store.scan() if one.topic == HeadSigned.topic()]


async def commit(ledger: Ledger) -> None:
    await ledger.append(account_stream(5001), FACT, CAUSE)


async def until_signed(ledger: Ledger, store: EventStore, count: int) -> None:
    async with asyncio.timeout(20):
        while len(heads_of(store)) < count:
            await ledger.tail.wait(await ledger.tail.head(), 1)


async def test_the_head_is_signed_after_so_many_seals(ledger: Ledger, store: EventStore):
    signer = signer_of(ledger, every_seals=3)
    task = signer.start()
    for _ in range(3):
        assert heads_of(store) == []
        await commit(ledger)
    await until_signed(ledger, store, 1)
    assert heads_of(store)[0].head_seq == 8
    assert not task.done()
    await signer.stop()


async def test_the_head_is_signed_after_so_much_time_and_an_idle_ledger_comes_to_rest(
    ledger: Ledger, store: EventStore
):
    signer = signer_of(ledger, every_s=0.1)
    signer.start()
    await until_signed(ledger, store, 1)
    await commit(ledger)
    await until_signed(ledger, store, 2)
    head = await ledger.tail.head()
    await signer.sign()
    await signer.stop()
    assert (await ledger.tail.head(), len(heads_of(store))) == (head, 2)


async def test_stopping_signs_what_is_not_signed_and_only_that(ledger: Ledger, store: EventStore):
    signer = signer_of(ledger)
    signer.start()
    await commit(ledger)
    await signer.stop()
    assert [one.head_seq for one in heads_of(store)] == [4]
    await signer.stop()
    assert len(heads_of(store)) == 1


async def test_what_is_sealed_together_with_a_signature_is_signed_next_time(ledger: Ledger, store: EventStore):
    signer = signer_of(ledger)
    before = asyncio.ensure_future(signer.sign())
    await asyncio.sleep(0)
    waiting = ledger.append(account_stream(5001), FACT, CAUSE)
    await asyncio.gather(before, waiting)
    await signer.sign()
    last = heads_of(store)[-1]
    assert last.head_seq > (await waiting).first_seq


async def test_a_failed_ledger_ends_the_signer_quietly(ledger: Ledger, store: EventStore):
    signer = signer_of(ledger)
    signer.start()
    await ledger.close()
    await signer.stop()


async def test_the_private_key_is_in_no_event_and_no_setting_that_is_shown(
    ledger: Ledger, store: EventStore, tmp_path: Path
):
    settings = load({"data": str(tmp_path)}, {"SEAL_KEY": RAW.hex()})
    signer = signer_of(ledger)
    await signer.sign()
    shown = repr(settings) + "".join(one.state.decode() for one in store.scan())
    assert len(heads_of(store)) == 1
    assert not [form for form in (RAW.hex(), base64.b64encode(RAW).decode(), PEM.decode()) if form in shown]
