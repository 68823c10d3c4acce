"""`order-ledger migrate | rebuild | positions`, and `verify --clickhouse`: the projections from the command line.

What writes ClickHouse goes through the process that runs the projections of the data folder, where one does.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli_common import Failure, data_option, failures, json_option, print_json, settings_of
from gateway.config import OFF, Settings
from ledger.errors import LedgerError, LedgerLocked

if TYPE_CHECKING:
    from ledger.positions import Position
    from projections.clickhouse import Target
    from projections.rebuild import Rebuilt
    from projections.settings import ProjectionSettings

_POLL_S = 0.2
_SILENT_S = 30.0


def projection_settings(settings: Settings) -> "ProjectionSettings":
    """What the projections of these settings are started with, as far as ClickHouse goes."""
    from projections.settings import EMBEDDED, ProjectionSettings

    url = settings.clickhouse_url.reveal() if settings.clickhouse_url else None
    return ProjectionSettings(
        ledger_url=settings.ledger_url.reveal(),
        data_dir=str(settings.data),
        clickhouse=url or EMBEDDED,
        clickhouse_user=settings.clickhouse_user,
        clickhouse_password=settings.clickhouse_password.reveal(),
        clickhouse_cluster=settings.clickhouse_cluster,
        database=settings.clickhouse_database,
    )


def _target(settings: Settings) -> "tuple[Target, str]":
    from projections.settings import target_of

    found = target_of(projection_settings(settings))
    if found is None:
        raise Failure(f"CLICKHOUSE_URL is {OFF}: there are no tables")
    return found


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Holds the lock of the one process that writes the projections. Raises LedgerLocked when one runs, LedgerError
    where nothing was ever served."""
    from filelock import FileLock, Timeout

    if not settings.data.is_dir():
        raise LedgerError(f"there is no folder {settings.data}: start `order-ledger serve`, or name it by --data")
    lock = FileLock(projection_settings(settings).lock_file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LedgerLocked(
            f"a service runs the projections in {settings.data}; it migrates at its start: stop it first"
        ) from None
    try:
        yield
    finally:
        lock.release()


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the statements that would run, and run none.")
@data_option
@json_option
def migrate(dry_run: bool, data: str | None, as_json: bool) -> None:
    """Bring the ClickHouse tables to the schema of this version. The embedded ones are migrated at each start."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from projections.clickhouse import connect, translated
    from projections.migrate import Place, plan
    from projections.migrate import migrate as run

    settings = settings_of({"data": data})
    with failures():
        target, database = _target(settings)
        place = Place(database=database, cluster=settings.clickhouse_cluster, server=not target.embedded)
        with _alone(settings) if target.embedded else contextlib.nullcontext():
            client = connect(target)
            try:
                applied = plan(client, place) if dry_run else run(client, place)
            except ClickHouseError as error:
                raise translated(error) from error
            finally:
                client.close()
    if as_json:
        print_json([{"name": one.name, "statements": one.statements, "left_out": one.left_out} for one in applied])
        return
    for one in applied:
        if dry_run:
            click.echo(f"-- {one.name}")
            click.echo("".join(f"{statement};\n\n" for statement in one.statements), nl=False)
        else:
            note = f", {one.left_out} statements for a server left out" if one.left_out else ""
            click.echo(f"applied {one.name}{note}")
    if not applied:
        click.echo(f"{database} is current")


@click.command()
@click.option("--check", is_flag=True, help="Only build and compare; leave the tables in use as they are.")
@data_option
@json_option
def rebuild(check: bool, data: str | None, as_json: bool) -> None:
    """Build all ClickHouse tables again from the ledger, compare them with those in use, and exchange them.

    Also while the service runs. Interrupted, the next one goes on where it stopped. Exit code 2 when a table differed.
    """
    from gateway.show import progress_bar

    settings = settings_of({"data": data})
    with failures():
        target, _ = _target(settings)
        with progress_bar("rebuilding", 0, shown=not as_json) as bar:
            found = _rebuild(settings, target, exchange=not check, advance=_advancing(bar))
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(found) | {"same": found.same})
    else:
        _print_rebuilt(found)
    raise SystemExit(0 if found.same else 2)


def _advancing(bar: Any) -> Callable[[int, int], bool]:
    def advance(done: int, of: int) -> bool:
        bar.at(done, of)
        return True

    return advance


def _rebuild(settings: Settings, target: "Target", *, exchange: bool, advance: Callable[[int, int], bool]) -> "Rebuilt":
    """By the process that runs the projections of this folder, or here when none does."""
    from ledger.store import last_seal, open_store
    from projections.rebuild import rebuild_alone

    try:
        with _alone(settings):
            store = open_store(settings.ledger_url.reveal(), readonly=True)
            try:
                if last_seal(store) is None:
                    raise LedgerError(f"the ledger {store.name} is empty: there is nothing to rebuild")
                return rebuild_alone(
                    store,
                    target,
                    _ledger_id(store),
                    database=settings.clickhouse_database,
                    cluster=settings.clickhouse_cluster,
                    url=settings.ledger_url.reveal(),
                    exchange=exchange,
                    advance=advance,
                )
            finally:
                store.close()
    except LedgerLocked:
        return _ask_for_rebuild(settings.data, exchange=exchange, advance=advance)


def _ask_for_rebuild(folder: Path, *, exchange: bool, advance: Callable[[int, int], bool]) -> "Rebuilt":
    from projections.request import Request, ask, asked, status

    waiting = asked(folder)
    request = waiting or Request(uuid.uuid4().hex, exchange)
    if waiting is None:
        ask(folder, request)
    heard_at = time.monotonic()
    last = None
    while True:
        told = status(folder)
        if told is not None and told.id == request.id:
            if told.state == "done" and told.result is not None:
                return told.result
            if told.state == "failed":
                raise LedgerError(f"the rebuild failed: {told.error}")
            advance(told.done, told.of)
        if told != last:
            last, heard_at = told, time.monotonic()
        if time.monotonic() - heard_at > _SILENT_S:
            raise LedgerError(
                f"the projections say nothing of the rebuild for {_SILENT_S:g} s: see log/projections.log. "
                "The request stays, the next start takes it up"
            )
        time.sleep(_POLL_S)


def _ledger_id(store: Any) -> str:
    from ledger.events import LedgerCreated, event_of

    first = store.at(1)
    created = event_of(first) if first is not None else None
    if not isinstance(created, LedgerCreated):
        raise LedgerError(f"the ledger {store.name} has no first event: run verify")
    return created.ledger_id


def _print_rebuilt(found: "Rebuilt") -> None:
    for one in found.tables:
        verdict = "identical" if one.same else f"DIFFERED: {one.was} rows were in use"
        click.echo(f"{one.table}: {one.rows} rows, {verdict}")
    resumed = f", going on from event {found.resumed_at}" if found.resumed_at else ""
    what = "the tables were exchanged" if found.exchanged else "nothing was changed"
    click.echo(f"rebuilt up to event {found.seq}{resumed}; {what}")


@click.command()
@click.option("--as-of", "as_of", metavar="TIME", help="Positions at that time (ISO 8601, UTC; a date is its end).")
@click.option(
    "--by",
    type=click.Choice(["recorded", "broker"]),
    default="recorded",
    show_default=True,
    help="What we knew then, or what had happened at the broker then as everything recorded since tells it.",
)
@click.option("--all", "everything", is_flag=True, help="Closed positions too.")
@data_option
@json_option
def positions(as_of: str | None, by: str, everything: bool, data: str | None, as_json: bool) -> None:
    """Positions as the ledger tells them, now or at any time. Reads the ledger itself, also while the service runs."""
    from gateway.times import iso, parse_as_of

    settings = settings_of({"data": data})
    with failures():
        moment = parse_as_of(as_of) if as_of is not None else datetime.max.replace(tzinfo=UTC)
        found = [one for one in _positions(settings, moment, by, shown=not as_json) if one.is_open or everything]
    if as_json:
        from gateway.holdings import shown

        rows = [shown(one) for one in found]
        print_json([{k: iso(v) if isinstance(v, datetime) else _text(v) for k, v in row.items()} for row in rows])
    else:
        _print_positions(found)


def _text(value: Any) -> Any:
    from decimal import Decimal

    return f"{value.normalize():f}" if isinstance(value, Decimal) else value


def _positions(settings: Settings, moment: datetime, by: str, *, shown: bool) -> "list[Position]":
    from gateway.holdings import positions_of
    from gateway.show import open_ledger, progress_bar

    store = open_ledger(settings)
    try:
        head = store.head()
        with progress_bar("reading", head.seq if head else 0, shown=shown) as advance:
            return positions_of(store, moment, by, advance)  # type: ignore[arg-type]  # click reads it as one of these
    finally:
        store.close()


def _print_positions(found: "list[Position]") -> None:
    from rich.table import Table

    from gateway.show_table import print_table
    from gateway.times import iso

    if not found:
        click.echo("no positions")
        return
    table = Table(box=None, pad_edge=False)
    for name, justify in (
        ("position", "right"), ("symbol", "left"), ("side", "left"), ("lots", "right"), ("entry", "right"),
        ("profit", "right"), ("costs", "right"), ("opened (UTC)", "left"), ("closed (UTC)", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # both are such words
    for one in found:
        costs = one.commission + one.fee + one.swap
        table.add_row(
            str(one.position_id), one.symbol, one.side, _text(one.volume), _text(one.entry_price),
            _text(one.realized_profit), _text(costs), iso(one.opened_at), iso(one.closed_at) if one.closed_at else "",
        )  # fmt: skip
    print_table(table)


def agreement(settings: Settings) -> list[dict[str, Any]]:
    """Every ClickHouse table against the digest of the rows that the ledger gives."""
    import msgspec
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from gateway.show import open_ledger
    from projections.agree import scan
    from projections.clickhouse import translated
    from projections.digest import agree_tables

    store = open_ledger(settings)
    try:
        with _reading(settings) as client:
            found = agree_tables(scan(store), store.streams, client, settings.clickhouse_database, _ledger_id(store))
    except ClickHouseError as error:
        raise translated(error) from error
    finally:
        store.close()
    return [msgspec.to_builtins(one) | {"ok": one.ok} for one in found]


@contextlib.contextmanager
def _reading(settings: Settings) -> Iterator[Any]:
    """A client that reads: of the server, of the running service's endpoint, or of the folder that nobody uses."""
    from urllib.parse import urlsplit

    from gateway.run_file import clickhouse_endpoint
    from projections.agree import open_readonly
    from projections.clickhouse import Target, connect

    target, _ = _target(settings)
    found = clickhouse_endpoint(settings.data)
    url = found[0] if target.embedded and found else None
    if target.embedded and not url:
        with open_readonly(settings.data) as client:
            yield client
        return
    parts = urlsplit(str(url))
    client = connect(target if not target.embedded else Target(host=parts.hostname or "", port=parts.port or 0))
    try:
        yield client
    finally:
        client.close()
