"""`verify` with heads, `prove`, and the stand-alone checker, on the ledger of a real service."""

import asyncio
import base64
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ledger.store import open_store
from tests.history import History
from tests.service import Listener, Service, market_order, run_cli, serving
from tests.signing import CHECKER, OTHER_KEY, heads_in, public_pem, sign, signed_history

ORDERS = ("alpha-1", "beta-2", "gamma-3")
BATCHES_SIGNED = {"SEAL_SIGN_EVERY_SEALS": "4"}


async def send(service: Service, *order_ids: str) -> None:
    async with Listener(service.info["nats_url"]) as listener:
        for order_id in order_ids:
            await listener.send(market_order(order_id))
            await listener.final(order_id)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a service that took three orders, signed, was killed, took one more and was stopped."""
    with serving(tmp_path_factory.mktemp("served") / "d", **BATCHES_SIGNED) as service:
        asyncio.run(send(service, *ORDERS))
        service.kill()
        service.start()
        asyncio.run(send(service, "delta-4"))
        service.stop()
        yield service.folder


@pytest.fixture
def folder(served: Path, tmp_path: Path) -> Path:
    """A copy of what proofs and verification need of it."""
    (tmp_path / "audit").mkdir()
    for name in ("ledger.db", "ledger.db-wal", "seal.pub.pem", "audit/seals.jsonl"):
        if (served / name).exists():
            shutil.copy(served / name, tmp_path / name)
    return tmp_path


def written(folder: Path, history: History) -> Path:
    store = open_store(f"sqlite:///{folder / 'ledger.db'}")
    store.insert(history.records)
    store.close()
    return folder


def verified(folder: Path, *flags: object) -> tuple[int, dict]:
    done = run_cli("verify", "--json", "--data", str(folder), *map(str, flags))
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def cut(folder: Path, after: int) -> None:
    connection = sqlite3.connect(folder / "ledger.db")
    with connection:
        connection.execute("DELETE FROM stored_events WHERE rowid > ?", (after,))
    connection.close()


def seals_of(folder: Path) -> list[int]:
    connection = sqlite3.connect(folder / "ledger.db")
    rows = connection.execute("SELECT rowid FROM stored_events WHERE topic = 'writer.batch_sealed'").fetchall()
    connection.close()
    return [row[0] for row in rows]


def proof_file(folder: Path, order_id: str) -> Path:
    done = run_cli("prove", order_id, "--data", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    path = folder / f"{order_id}.json"
    path.write_text(done.stdout)
    return path


def check(*arguments: object) -> "CompletedProcess[str]":
    """The stand-alone checker as anyone would call it: nothing of this project can be imported."""
    command = [sys.executable, "-I", "-S", str(CHECKER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", check=False)


# --- verify -----------------------------------------------------------------------------------------------------


def test_a_served_ledger_fits_its_heads_inside_and_beside_it(folder: Path):
    code, found = verified(folder)
    heads = found["heads"]
    assert (code, found["ok"], heads["one_key"]) == (0, True, True)
    assert heads["inside"] == heads["elsewhere"] > 1
    assert heads["signed_to"] == heads["witnessed_to"] > 20
    assert heads["file"] == str(folder / "audit" / "seals.jsonl")


def test_a_clean_stop_leaves_nothing_unsigned_but_the_signature_and_the_checkpoint(folder: Path):
    _, found = verified(folder)
    assert found["last_seq"] - found["heads"]["signed_to"] == 4


def test_heads_and_key_kept_elsewhere_are_taken(folder: Path, tmp_path: Path):
    kept = tmp_path / "kept.jsonl"
    (folder / "audit" / "seals.jsonl").rename(kept)
    code, found = verified(folder, "--heads", kept, "--key", folder / "seal.pub.pem")
    assert (code, found["heads"]["file"], found["heads"]["file_given"]) == (0, str(kept), True)
    (tmp_path / "other.pem").write_bytes(public_pem(OTHER_KEY))
    code, found = verified(folder, "--key", tmp_path / "other.pem")
    assert (code, found["first_bad_seq"]) == (2, 1)
    assert "none of those given" in found["problem"]


def test_a_tail_cut_at_a_seal_is_found_by_the_heads_and_only_by_them(folder: Path):
    end = seals_of(folder)[3]
    cut(folder, end)
    code, found = verified(folder)
    assert (code, found["first_bad_seq"], found["last_seq"]) == (2, end + 1, end)
    assert f"the ledger ends at seal {end}" in found["problem"]
    (folder / "audit" / "seals.jsonl").unlink()
    spoken = run_cli("verify", "--data", str(folder))
    assert spoken.returncode == 0
    assert "a cut at the end of a seal could not be seen: see --heads" in spoken.stdout


def test_a_rewritten_ledger_is_found_at_the_head_that_it_contradicts(tmp_path: Path):
    sound = signed_history(3)
    (tmp_path / "kept.jsonl").write_bytes(b"".join(heads_in(sound.records)))
    forged = signed_history(1)
    sign(forged.orders(3), OTHER_KEY)
    sign(forged.orders(3), OTHER_KEY)
    written(tmp_path, forged)
    assert verified(tmp_path)[0] == 0
    code, found = verified(tmp_path, "--heads", tmp_path / "kept.jsonl")
    first_head = json.loads(heads_in(sound.records)[0])["data"]["head_seq"]
    assert (code, found["first_bad_seq"]) == (2, first_head + 1)
    assert "rewritten" in found["problem"]


def test_a_person_is_told_who_signed_and_how_far(folder: Path):
    spoken = run_cli("verify", "--data", str(folder)).stdout.splitlines()
    assert [line.partition(":")[0] for line in spoken[:3]] == ["sound", "signed", "witnessed"]
    assert "(4 behind it), by key " in spoken[1]
    assert "a copy kept elsewhere shows more" in spoken[2]


def test_a_head_can_be_checked_by_hand_as_the_documents_say(folder: Path):
    page = (CHECKER.parent / "proofs.md").read_text()
    (script,) = re.findall(r"^```sh\n(tail .*?)^```", page, re.DOTALL | re.MULTILINE)
    shutil.copy(folder / "seal.pub.pem", folder / "audit")
    done = subprocess.run(["bash", "-ec", script], cwd=folder / "audit", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "Signature Verified Successfully")


# --- prove ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "code"), [(("--help",), 0), (("-h",), 0), ((), 1)])
def test_the_checker_tells_how_it_is_called_and_proves_nothing_by_that(asked: tuple[str, ...], code: int):
    told = check(*asked)
    assert (told.returncode, "PROVEN" in told.stdout + told.stderr) == (code, False)
    assert (told.stderr or told.stdout).startswith("python check_proof.py proof.json [trusted.pem …]")


@pytest.mark.parametrize("order_id", [*ORDERS, "delta-4"])
def test_an_order_is_proven_to_anyone_who_has_the_public_key(folder: Path, order_id: str):
    path = proof_file(folder, order_id)
    told = check(path, folder / "seal.pub.pem")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"PROVEN: 5 events of order {order_id} in ledger ")
    assert len(told.stdout.splitlines()) == 1


def test_a_proof_shows_what_history_shows_and_no_other_order(folder: Path):
    proof = json.loads(proof_file(folder, "beta-2").read_text())
    events = [json.loads(event["state"]) for segment in proof["segments"] for event in segment["events"]]
    history = json.loads(run_cli("history", "beta-2", "--json", "--data", str(folder)).stdout)
    assert [event["event_id"] for event in events] == [event["event_id"] for event in history]
    text = (folder / "beta-2.json").read_text()
    assert not [order_id for order_id in (*ORDERS, "delta-4") if order_id != "beta-2" and order_id in text]


def test_a_changed_proof_and_a_foreign_key_are_refused_in_one_line(folder: Path, tmp_path: Path):
    path = proof_file(folder, "beta-2")
    (tmp_path / "other.pem").write_bytes(public_pem(OTHER_KEY))
    changed = tmp_path / "changed.json"
    changed.write_text(path.read_text().replace("EURUSD", "EURUSX"))
    for arguments in ((changed,), (path, tmp_path / "other.pem")):
        told = check(*arguments)
        assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (1, "", 1)
        assert told.stderr.startswith("NOT PROVEN: ")


@pytest.mark.parametrize("content", [None, b"", b"no json", b"{}", b"[1]\n", b"\xff\xfe", b'{"segments": 7}\n'])
def test_a_file_that_is_no_proof_is_one_line(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "proof.json").write_bytes(content)
    told = check(tmp_path / "proof.json")
    assert (told.returncode, told.stdout, len(told.stderr.splitlines())) == (1, "", 1)
    assert told.stderr.startswith("NOT PROVEN: ")


def test_an_order_without_a_head_is_told_when_there_will_be_one(tmp_path: Path):
    history = signed_history(1)
    order_id = history.orders(1).records[-2].stream.partition("/")[2]
    written(tmp_path, history)
    done = run_cli("prove", order_id, "--data", str(tmp_path))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "stands under no signed head yet: no service runs here now" in done.stderr
    assert "within 60 s, every 1000 seals and when it stops" in done.stderr


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("prove", "nobody"), ("prove", "no id\n"), ("prove", "")])
def test_an_unknown_order_is_one_clear_line(folder: Path, arguments: tuple[str, ...]):
    done = run_cli(*arguments, "--data", str(folder))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize("command", [("verify",), ("prove", "alpha-1")], ids=lambda command: command[0])
def test_a_truncated_database_is_one_clear_line(folder: Path, command: tuple[str, ...]):
    connection = sqlite3.connect(folder / "ledger.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    os.truncate(folder / "ledger.db", (folder / "ledger.db").stat().st_size // 2)
    done = run_cli(*command, "--data", str(folder))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "ledger.db: " in done.stderr


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--heads", "missing.jsonl"), "cannot read missing.jsonl: No such file or directory"),
        (("--key", "missing.pem"), "cannot read missing.pem: No such file or directory"),
        (("--key", str(CHECKER)), "is no Ed25519 public key"),
        (("--heads", str(CHECKER)), "line 1 is no stored event"),
        (("--heads", os.devnull), "holds no head"),
    ],
    ids=str,
)
def test_a_file_that_verify_cannot_use_is_one_clear_line(folder: Path, flags: tuple[str, ...], problem: str):
    done = run_cli("verify", "--data", str(folder), *flags)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert problem in done.stderr


def test_a_bad_key_stops_the_start_in_one_line_that_does_not_show_it(tmp_path: Path):
    done = run_cli("serve", "--data", str(tmp_path), SEAL_KEY="hunter2-hunter2")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "SEAL_KEY is no Ed25519 private key" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_production_signs_with_a_key_that_is_given():
    done = run_cli("verify", MODE="production")
    assert "MODE=production takes no stand-in: SEAL_KEY holds the key" in done.stderr


def test_the_private_key_is_in_no_file_but_its_own(served: Path):
    body = (served / "seal.key").read_text().splitlines()[1]
    raw = base64.b64decode(body)[-32:]
    holders = {
        path.name
        for path in served.rglob("*")
        if path.is_file() and {form for form in (body.encode(), raw, raw.hex().encode()) if form in path.read_bytes()}
    }
    assert holders == {"seal.key"}
