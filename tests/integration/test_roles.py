"""`serve --roles`: the gateway, the tables and the audit log each as a process of its own."""

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest
import requests

from tests.servers import postgres_server
from tests.service import Listener, Service, environment, market_order, run_cli, until


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@contextlib.contextmanager
def running(*services: Service) -> Iterator[tuple[Service, ...]]:
    try:
        yield tuple(one.start() for one in services)
    finally:
        for one in services:
            one.end()


@contextlib.asynccontextmanager
async def account(folder: Path, login: int) -> AsyncIterator[None]:
    """The simulated broker of a data folder, with this account."""
    broker = folder / "terminal" / "broker"
    broker.mkdir(parents=True)
    command = [sys.executable, "-m", "gateway.simulated.broker", "--dir", str(broker), "--login", str(login)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: ASYNC220  # it returns at once
        await until((broker / "broker.json").exists)
        yield
        process.terminate()


async def fill(gateway: Service, *names: str) -> None:
    async with Listener(gateway.info["nats_url"]) as listener:
        for name in names:
            await listener.send(market_order(name))
        for name in names:
            _, told = await listener.final(name)
            assert told["status"] == "FILLED"


def about(service: Service, role: str) -> dict:
    return orjson.loads((service.folder / f"run.{role}.json").read_bytes())


def ask(url: str, path: str) -> requests.Response:
    return requests.get(url + path, timeout=20)


def rows(service: Service) -> list[str]:
    """The orders that have an execution, as the tables tell."""
    done = service.cli("sql", "SELECT order_id FROM executions FINAL ORDER BY order_id", "--json")
    assert done.returncode == 0, done.stderr
    return [row["order_id"] for row in orjson.loads(done.stdout)]


def audited(folder: Path) -> int:
    return sum(one.read_bytes().count(b'"topic":"order.filled"') for one in folder.glob("audit/*.jsonl"))


async def test_each_role_is_a_process_and_orders_are_taken_while_the_others_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    roles = (Service(folder, "--roles", role) for role in ("gateway", "projections", "mirror"))
    with running(*roles) as (gateway, projections, mirror):
        assert gateway.info["clickhouse_http"] is None
        assert f"follows the ledger {folder / 'ledger.db'}" in projections.output
        await fill(gateway, "o-1")
        await until(lambda: rows(gateway) == ["o-1"])
        await until(lambda: audited(folder) == 1)
        projections.kill()
        mirror.kill()
        await fill(gateway, "o-2")
        projections.start()
        mirror.start()
        await until(lambda: rows(gateway) == ["o-1", "o-2"])
        await until(lambda: audited(folder) == 2)
        for service, role, part in ((projections, "projections", "clickhouse"), (mirror, "mirror", "audit")):
            url = about(service, role)["http_url"]
            health = ask(url, "/health").json()
            assert (health["status"], health["parts"][part]["state"]) == ("healthy", "up")
            assert ask(url, "/readyz").status_code == 200
            assert f'order_ledger_sink_following{{sink="{part}"}} 1.0' in ask(url, "/metrics").text
        parts = ask(gateway.info["http_url"], "/health").json()["parts"]
        assert {parts[name]["state"] for name in ("clickhouse", "audit")} == {"off"}
        assert gateway.cli("verify").returncode == 0
        for service in (mirror, projections, gateway):
            assert service.stop() < 5
        assert not list(folder.glob("run*.json"))


async def test_accounts_share_a_database_server_and_a_message_bus_each_with_its_tables_elsewhere(
    tmp_path: Path, postgres: str
) -> None:
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        for name in ("one", "other"):
            connection.execute(f"CREATE DATABASE {name}")
    ledgers = [f"{postgres.rsplit('/', 1)[0]}/{name}" for name in ("one", "other")]
    shared = {"NATS_NEWS": "shared"}
    first = Service(tmp_path / "one", "--roles", "gateway", LEDGER_URL=ledgers[0], **shared)
    async with account(first.folder, 71), account(tmp_path / "other", 72):
        with running(first):
            shared |= {"NATS_URL": first.info["nats_url"], "TAKE_UNADDRESSED": "off"}
            second = Service(tmp_path / "other", "--roles", "gateway", LEDGER_URL=ledgers[1], **shared)
            tables = Service(tmp_path / "tables", "--roles", "projections", LEDGER_URL=ledgers[1])
            with running(second, tables):
                async with Listener(first.info["nats_url"]) as listener:
                    await listener.send(market_order("a-1"))
                    message = orjson.dumps(market_order("b-1"))
                    await listener.connection.jetstream().publish("orders.account.72.EURUSD", message)
                    assert [(await listener.final(name))[1]["account"] for name in ("a-1", "b-1")] == ["71", "72"]
                await until(lambda: rows(tables) == ["b-1"])


def test_projections_that_find_no_ledger_say_what_is_to_be_started(tmp_path: Path) -> None:
    done = run_cli("serve", "--data", str(tmp_path / "d"), "--roles", "projections")
    assert done.returncode == 1
    assert "start the gateway before the projections" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_process_of_the_same_role_on_a_folder_ends_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with running(Service(folder, "--roles", "gateway"), Service(folder, "--roles", "mirror")) as (gateway, mirror):
        done = run_cli("serve", "--data", str(folder), "--roles", "mirror")
        assert about(mirror, "mirror")["pid"] == mirror.pid
        mirror.stop()
        assert list(folder.glob("run.*json")) == [folder / "run.json"]
        gateway.stop()
    assert done.returncode == 1
    assert "another process writes the projections" in done.stderr


def test_a_second_process_ends_also_where_the_first_has_more_roles(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with running(Service(folder, "--roles", "gateway,mirror")):
        done = run_cli("serve", "--data", str(folder), "--roles", "mirror")
    assert done.returncode == 1
    assert "another process writes the projections" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--roles", "gateway,kitchen"), "ROLES must be one or more of gateway, projections, mirror"),
        (("--roles", ","), "ROLES must be one or more of gateway, projections, mirror"),
        (("--roles", "mirror", "--standby"), "name gateway among --roles"),
    ],
)
def test_roles_that_make_no_service_are_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = run_cli("serve", "--data", str(tmp_path / "d"), *arguments)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_environment_names_the_roles_too(tmp_path: Path) -> None:
    assert "ROLES" not in environment()
    done = run_cli("serve", "--data", str(tmp_path / "d"), ROLES="cook")
    assert "ROLES must be one or more of" in done.stderr
