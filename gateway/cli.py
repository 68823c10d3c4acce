"""`order-ledger …`: parses, calls, prints. Tables for people, `--json` for machines, one clear line for an error."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from gateway import cli_control, cli_ledger, cli_projections, cli_proof
from gateway.cli_backup import backup, restore_command
from gateway.cli_bench import bench
from gateway.cli_chaos import chaos
from gateway.cli_common import Commands, Failure, data_option, failures, json_option, print_json, settings_of
from gateway.cli_doctor import doctor
from gateway.cli_sim import sim
from gateway.config import OFF, Settings
from gateway.secret import Secret

if TYPE_CHECKING:
    from gateway.show import Answer


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("order-ledger"), prog_name="order-ledger")
def cli() -> None:
    """Event-sourced order ledger and MetaTrader 5 gateway."""


@cli.command()
@data_option
@click.option(
    "--nats-port", metavar="PORT", help="Preferred port of the bundled nats-server (NATS_PORT; 0 = any free)."
)
@click.option(
    "--clickhouse-port", metavar="PORT", help="Preferred port of the read-only ClickHouse endpoint (0 = any)."
)
@click.option("--service-port", metavar="PORT", help="Port of the HTTP interface (SERVICE_PORT; 0 = any free).")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="LOG_LEVEL.")
@click.option("--roles", metavar="LIST", help="Which parts to be: gateway,projections,mirror (ROLES; default all).")
@click.option(
    "--take-over",
    is_flag=True,
    help="Go on although another writer holds the ledger: that one is fenced and stops.",
)
@click.option(
    "--standby",
    is_flag=True,
    help="Wait while another gateway writes the ledger, and go on in its place when it ends.",
)
def serve(
    data: str | None,
    nats_port: str | None,
    clickhouse_port: str | None,
    service_port: str | None,
    log_level: str | None,
    roles: str | None,
    take_over: bool,
    standby: bool,
) -> None:
    """Take orders until stopped. Without configuration everything it needs runs under the data folder."""
    flags = {
        "data": data,
        "NATS_PORT": nats_port,
        "CLICKHOUSE_HTTP_PORT": clickhouse_port,
        "SERVICE_PORT": service_port,
        "LOG_LEVEL": log_level,
        "ROLES": roles,
    }
    if take_over and standby:
        raise Failure("--standby waits for the other gateway, --take-over displaces it: name one of them")
    settings = settings_of(flags)
    from gateway.app import serve as run
    from gateway.logs import set_up_logging

    set_up_logging(settings.log_level)

    def say(line: str) -> None:
        click.echo(line)
        sys.stdout.flush()

    with failures():
        asyncio.run(run(flags, say, take_over=take_over, standby=standby))
    say("stopped")


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=7000, show_default=True, help="The port (0 = any free).")
@click.option("--file", "path", default="./hub.json", show_default=True, help="Where its configurations are kept.")
@click.option("--nats", "nats_url", default="", envvar="NATS_URL", help="Where changes are told (NATS_URL).")
def hub(host: str, port: int, path: str, nats_url: str) -> None:
    """A small Central Hub for local use: GET and POST /api/v1/config/{service}, changes over NATS.

    With CENTRAL_HUB_API_KEY set, requests need it as X-API-Key.
    """
    import nats.errors

    from gateway.hub_server import hub_server

    async def run() -> None:
        key = os.environ.get("CENTRAL_HUB_API_KEY", "")
        async with hub_server(Path(path), host, port, nats_url, key) as (url, _):
            click.echo(f"READY on {url}")
            sys.stdout.flush()
            stop = asyncio.Event()
            for name in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(NotImplementedError):
                    asyncio.get_running_loop().add_signal_handler(name, stop.set)
            await stop.wait()

    try:
        asyncio.run(run())
    except (OSError, ValueError, nats.errors.Error) as error:
        raise Failure(f"the hub cannot run: {type(error).__name__}: {error}. Check --port, --file and --nats") from None


@cli.command()
@click.argument("file", type=click.File("rb"))
@data_option
@json_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the outcome.",
)
def submit(file: Any, data: str | None, as_json: bool, timeout_s: float) -> None:
    """Publish the order in FILE (- for standard input), wait for its outcome and print it.

    Exit code 0 when the order was filled, works at the broker, or did what it was to do; 3 when it ended otherwise,
    1 when there was no outcome in time.
    """
    from gateway.client import NoAnswer, submit_order
    from gateway.show import GOOD, print_outcome
    from ledger.intake import read_order

    async def published() -> dict[str, Any]:
        try:
            return await submit_order(settings, payload, timeout_s)
        except asyncio.CancelledError:
            name = order.order_id or "ORDER_ID"
            raise NoAnswer(f"interrupted: a published order goes on, see `order-ledger history {name}`") from None

    payload = file.read()
    if not payload.strip():
        raise Failure(f"{file.name} is empty: there is no order to submit")
    settings = settings_of({"data": data})
    order = read_order(payload)
    if order.ignored:
        names = ", ".join(map(repr, order.ignored))
        click.echo(f"order-ledger: no field of an order, without effect: {names}", err=True)
    with failures():
        outcome = asyncio.run(published())
    if as_json:
        print_json(outcome)
    else:
        print_outcome(outcome)
    sys.exit(0 if outcome.get("event") in GOOD else 3)


@cli.command()
@click.argument("query")
@data_option
@json_option
def sql(query: str, data: str | None, as_json: bool) -> None:
    """Ask ClickHouse, read only: tables orders, executions, positions …; docs/clickhouse.md names them all.

    A query with its own FORMAT is printed as ClickHouse answers it.
    """
    from gateway.run_file import clickhouse_endpoint
    from gateway.show import ask_http, print_answer

    settings = settings_of({"data": data})
    found = clickhouse_endpoint(settings.data)
    asked = "JSONCompact"
    if not query.strip():
        raise Failure('the query is empty: write one such as "SELECT * FROM orders"')
    with failures():
        if settings.clickhouse_url == Secret(OFF):
            raise Failure("CLICKHOUSE_URL is off: there is nothing to ask")
        if settings.clickhouse_url is not None:
            user, password = settings.clickhouse_user, settings.clickhouse_password.reveal()
            url = settings.clickhouse_url.reveal()
            answer = ask_http(
                url, query, database=settings.clickhouse_database, format=asked, user=user, password=password
            )
        elif found is not None:
            answer = ask_http(found[0], query, database=found[1], format=asked)
        else:
            answer = _ask_folder(settings, query, asked)
        print_answer(answer, asked, as_json=as_json)


@cli.command()
@click.option("--keep", metavar="DIR", help="Keep the data in DIR (must be new or empty).")
@json_option
def demo(keep: str | None, as_json: bool) -> None:
    """See it work: some 20 orders through the whole service, in a temporary folder on free ports."""
    from gateway.demo import run_demo

    with failures():
        agreed = run_demo(Path(keep).absolute() if keep else None, as_json=as_json, agree=_agree)
    sys.exit(0 if agreed else 2)


def _agree(settings: Settings) -> tuple[bool, list[str]]:
    """Whether ClickHouse and the audit files hold what the ledger holds, and a line for each comparison."""
    import clickhouse_connect

    from gateway.client import running
    from gateway.show import open_ledger
    from projections.agree import agree_audit, agree_clickhouse

    found = running(settings) or {}
    url = urlsplit(str(found["clickhouse_http"]))
    store = open_ledger(settings)
    client = clickhouse_connect.get_client(host=url.hostname or "", port=url.port or 0)
    try:
        results = [
            *agree_clickhouse(store, client, str(found["clickhouse_database"]), str(found["ledger_id"])),
            agree_audit(store, Path(str(found["audit_dir"]))),
        ]
    finally:
        client.close()
        store.close()
    lines = []
    for one in results:
        verdict = "agrees with the ledger" if one.ok else f"DIFFERS: {one.difference or f'{one.behind} missing'}"
        lines.append(f"{one.projection}: {one.held} records, {verdict}")
    return all(one.ok for one in results), lines


def _ask_folder(settings: Settings, query: str, asked: str) -> "Answer":
    """The query on the embedded ClickHouse of a folder that no service uses."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from gateway.client import NoAnswer
    from gateway.show import Answer
    from projections.agree import open_readonly

    with open_readonly(settings.data) as client:
        client.database = settings.clickhouse_database
        try:
            body = client.raw_query(query, fmt=asked)
        except ClickHouseError as error:
            raise NoAnswer(str(error)) from None
    return Answer(body, asked)


def _read_audit(folder: Path) -> Any:
    from projections.audit_files import read_audit

    return read_audit(folder)


def _open_kafka(settings: Settings) -> Any:
    if settings.kafka_brokers in (None, OFF):
        raise Failure("KAFKA_BROKERS names no brokers: there is no log in Kafka to read")
    from projections.kafka_log import KafkaLog
    from projections.settings import kafka_options

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it logs is raised as well
    return KafkaLog(str(settings.kafka_brokers), options=kafka_options(os.environ))


def _agree_kafka(store: Any, log: Any, ledger_id: str) -> Any:
    from projections.agree_kafka import agree_kafka

    return agree_kafka(store, log, ledger_id)


cli.add_command(bench)
cli.add_command(chaos)
cli.add_command(cli_ledger.history)
cli.add_command(cli_ledger.orders)
cli.add_command(cli_ledger.export)
cli.add_command(backup)
cli.add_command(restore_command(_read_audit, _open_kafka))
cli.add_command(cli_proof.verify_command(_open_kafka, _agree_kafka, cli_projections.agreement))
cli.add_command(cli_projections.migrate)
cli.add_command(cli_projections.rebuild)
cli.add_command(cli_projections.positions)
cli.add_command(cli_proof.prove)
cli.add_command(sim)
cli.add_command(doctor)
for command in (
    cli_control.halt,
    cli_control.resume,
    cli_control.close_all,
    cli_control.reconcile,
    cli_control.reconnect,
    cli_control.resolve,
    cli_control.query,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script."""
    try:
        cli(standalone_mode=True)
    except BrokenPipeError:
        # The reader of our output is gone (`… | head`): nothing is left to say.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
