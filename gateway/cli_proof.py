"""`order-ledger verify` and `prove`: whether the ledger is what it was, and a proof of one order for anyone."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from gateway.cli_backup import Log
from gateway.cli_common import data_option, failures, json_option, print_json, settings_of
from gateway.config import Settings
from ledger.errors import LedgerError

if TYPE_CHECKING:
    from ledger.heads import HeadWitness
    from ledger.store import EventStore

HEADS_FILE: Final = "audit/seals.jsonl"


class Compared(Protocol):
    """What a comparison of the ledger with a log found; a struct of msgspec."""

    @property
    def ok(self) -> bool: ...


def verify_command(
    open_kafka: Callable[[Settings], Log],
    agree_kafka: Callable[["EventStore", Log, str], Sequence[Compared]],
    agreement: Callable[[Settings], list[dict[str, Any]]],
) -> click.Command:
    """`verify`. `open_kafka`: what Kafka holds; `agree_kafka`, `agreement`: the ledger against it, and ClickHouse."""

    @click.command()
    @click.option(
        "--heads", "heads_file", metavar="FILE", help="Signed heads kept elsewhere: seals.jsonl, or Kafka values."
    )
    @click.option(
        "--key", "key_files", metavar="PUB.pem", multiple=True, help="Public key that may have signed; repeatable."
    )
    @click.option(
        "--kafka", is_flag=True, help="Compare with what KAFKA_BROKERS hold, and take the signed heads from there."
    )
    @click.option("--clickhouse", is_flag=True, help="Compare every ClickHouse table with the ledger too.")
    @data_option
    @json_option
    def verify(
        heads_file: str | None,
        key_files: tuple[str, ...],
        kafka: bool,
        clickhouse: bool,
        data: str | None,
        as_json: bool,
    ) -> None:
        """Check every event, seal and signed head of the ledger. Exit code 0 only if all of them hold.

        With --kafka also that Kafka holds the same: every byte, in order, and every signed head. With --clickhouse
        also that every table holds what the ledger's events make of it.
        """
        settings = settings_of({"data": data})
        with failures():
            log = open_kafka(settings) if kafka else None
            found = verify_ledger(
                settings, progress=not as_json, heads_file=heads_file, key_files=key_files, log=log, agree=agree_kafka
            )
            tables = agreement(settings) if clickhouse and found["ok"] else []
        if clickhouse:
            found |= {"clickhouse": tables, "ok": found["ok"] and all(one["ok"] for one in tables)}
        if as_json:
            print_json(found)
        else:
            _print_verification(found)
            _print_tables(tables)
        sys.exit(0 if found["ok"] else 2)

    return verify


@click.command()
@click.argument("order_id")
@data_option
@json_option
def prove(order_id: str, data: str | None, as_json: bool) -> None:
    """Print a proof of one order: its events, and why they stood in the ledger when its head was signed.

    Always JSON. `python docs/check_proof.py` checks it without this program.
    """
    settings = settings_of({"data": data})
    with failures():
        proof = _proof_of(settings, order_id)
    sys.stdout.buffer.write(proof)


def verify_ledger(
    settings: Settings,
    *,
    progress: bool,
    heads_file: str | None = None,
    key_files: tuple[str, ...] = (),
    log: Log | None = None,
    agree: Callable[["EventStore", Log, str], Sequence[Compared]] = lambda *_: (),
) -> dict[str, Any]:
    """What `verify --json` prints, with a progress bar where asked for. `log`: compare with that, too, by `agree`.
    Raises LedgerError when nothing can be said."""
    import msgspec

    from gateway.show import open_ledger, progress_bar
    from ledger.heads import HeadWitness, read_heads
    from ledger.seal import verify as verify_events

    trusted = {_public_key(Path(name)) for name in key_files}
    path = Path(heads_file) if heads_file else settings.data / HEADS_FILE
    outside = None
    name: str | None = str(path)
    if log is not None and not heads_file:
        name = f"Kafka at {log.brokers}"
        ledger_id = _ledger_id(settings)
        outside = read_heads((one.state + b"\n" for one in log.heads(ledger_id)), name, trusted)
    elif heads_file or (settings.kafka_brokers is None and path.exists()):
        try:
            with path.open("rb") as lines:
                outside = read_heads(lines, str(path), trusted)
        except OSError as error:
            raise LedgerError(f"cannot read {path}: {error.strerror}") from None
        if heads_file and not outside:
            raise LedgerError(f"{path} holds no head: give a seals.jsonl, or values of the seals topic")
    witness = HeadWitness(outside or (), trusted)
    store = open_ledger(settings)
    began = time.perf_counter()
    try:
        head = store.head()
        total = head.seq if head else 0
        # A running service appends meanwhile. Its commits are whole, so the last page ends at a seal all the same;
        # leaving anything out would let a forged event hide there.
        with progress_bar("verifying", total, shown=progress) as advance:
            found = verify_events(advance(store.scan()), witness)
        compared = agree(store, log, found.ledger_id) if log is not None and found.ok and found.events else ()
    finally:
        store.close()
    took_s = max(time.perf_counter() - began, 1e-9)
    if found.ok and found.last_seq == 0:
        raise LedgerError(f"the ledger {store.name} is empty: nothing to verify")
    told = {"ok": found.ok and all(one.ok for one in compared)} | msgspec.structs.asdict(found)
    told |= {"ledger": store.name, "seconds": round(took_s, 3), "events_per_s": round(found.events / took_s)}
    if log is not None:
        told["kafka"] = [{"ok": one.ok} | msgspec.to_builtins(one) for one in compared]
    return told | {"heads": _heads(witness, name if outside is not None else None, given=bool(heads_file or log))}


def _ledger_id(settings: Settings) -> str:
    from gateway.show import open_ledger
    from ledger.events import LedgerCreated, event_of

    with contextlib.closing(open_ledger(settings)) as store:
        first = store.at(1)
        created = event_of(first) if first is not None else None
        if not isinstance(created, LedgerCreated):
            raise LedgerError(f"the ledger {store.name} does not begin with its creation: run verify without --kafka")
    return created.ledger_id


def _heads(witness: "HeadWitness", path: str | None, *, given: bool) -> dict[str, Any]:
    return {
        "inside": witness.inside,
        "elsewhere": witness.outside,
        "file": path,
        "file_given": given,
        "signed_to": witness.signed_to.seq,
        "witnessed_to": witness.witnessed_to.seq,
        "keys": list(witness.keys),
        "one_key": len(witness.keys) == 1,
    }


def _public_key(path: Path) -> str:
    from ledger.heads import read_public_key

    try:
        return read_public_key(path.read_bytes(), str(path))
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}") from None


def _print_verification(found: dict[str, Any]) -> None:
    from rich.markup import escape

    from gateway.show import console

    out = console()
    if found["first_bad_seq"] is not None:
        out.print(f"[red]NOT SOUND[/] from event {found['first_bad_seq']} on: {escape(found['problem'])}")
        out.print(
            f"{found['events']} events before it hold. Keep the file, and compare it with a backup or the audit log."
        )
        return
    out.print(
        f"[green]sound[/]: {found['events']} events under {found['seals']} seals, "
        f"checked in {found['seconds']} s ({found['events_per_s']} events/s)"
    )
    for line in _told_of_heads(found):
        out.print(escape(line))
    for one in found.get("kafka", ()):
        if one["ok"]:
            out.print(escape(f"{one['projection']}: {one['compared']} records, agrees with the ledger"))
        else:
            problem = one["difference"] or f"{one['behind']} records are missing at the end: does the mirror run?"
            out.print(f"[red]{escape(one['projection'])} DIFFERS[/]: {escape(problem)}")
    out.print(f"head {found['head']}", style="dim")


def _print_tables(tables: list[dict[str, Any]]) -> None:
    from gateway.show import console

    for one in tables:
        ledger, held = one["ledger"], one["held"]
        if one["ok"]:
            told = f"{held['rows']} rows, digest {held['digest'][:16]}…, agree with the ledger up to event {one['seq']}"
        else:
            told = f"[red]DIFFERS[/]: {held['rows']} rows, the ledger gives {ledger['rows']}; see order-ledger rebuild"
        console().print(f"clickhouse.{one['table']}: {told}", soft_wrap=True)


def _told_of_heads(found: dict[str, Any]) -> list[str]:
    heads = found["heads"]
    if not heads["keys"]:
        lines = ["signed: nothing yet"]
    else:
        keys = (
            f"key {heads['keys'][0]}" if heads["one_key"] else f"{len(heads['keys'])} keys: {', '.join(heads['keys'])}"
        )
        behind = found["last_seq"] - heads["signed_to"]
        count = _heads_in_words(heads["inside"])
        lines = [f"signed: {count}, up to event {heads['signed_to']} ({behind} behind it), by {keys}"]
    if heads["file"] is None:
        lines.append(
            "no head from elsewhere was compared, so a cut at the end of a seal could not be seen: see --heads"
        )
        return lines
    line = f"witnessed: {_heads_in_words(heads['elsewhere'])} in {heads['file']}, up to event {heads['witnessed_to']}"
    return [*lines, line if heads["file_given"] else f"{line}; a copy kept elsewhere shows more: --heads FILE"]


def _heads_in_words(count: int) -> str:
    return f"{count} head{'s' * (count != 1)}"


def _proof_of(settings: Settings, order_id: str) -> bytes:
    from gateway.client import running
    from gateway.show import open_ledger
    from ledger.proof import NotSignedYet, build_proof, proof_json
    from ledger.values import Refused, parse_order_id

    try:
        parse_order_id(order_id)
    except Refused as refused:
        raise LedgerError(str(refused)) from None
    store = open_ledger(settings)
    try:
        return proof_json(build_proof(store, order_id))
    except NotSignedYet as error:
        when = (
            f"within {settings.seal_sign_every_s:g} s, every {settings.seal_sign_every_seals} seals and when it stops"
        )
        who = "the service signs" if running(settings) else "no service runs here now; `order-ledger serve` signs"
        raise LedgerError(f"{error}: {who} {when}; try again then") from None
    finally:
        store.close()
