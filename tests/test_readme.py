"""The README does what it says: its commands are run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import Service, environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def shell(command: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment() | {"PATH": path}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The service of the README's tour."""
    folder = tmp_path_factory.mktemp("readme")
    service = Service(folder / "tour")
    try:
        yield service.start()
    finally:
        service.end()


def test_make_demo_shows_that_everything_agrees():
    assert commands()[0] == "make demo"
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "demo"], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything agrees" in done.stdout
    assert "clickhouse.executions: 13 records, agrees with the ledger" in done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_make_knows_the_commands_it_is_told_of(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_serve_stands_in_the_readme_as_the_tour_starts_it():
    assert "order-ledger serve --data tour" in commands()


def test_the_commands_of_the_tour_work_one_after_the_other(tour):
    told = [line for line in commands() if not line.startswith(("make", "order-ledger serve"))]
    assert [line.split()[1] for line in told[1:]] == [
        "submit",
        "history",
        "sql",
        "verify",
        "history",
        "orders",
        "export",
        "halt",
        "query",
        "resume",
        "reconcile",
        "doctor",
        "backup",
        "restore",
        "restore",
    ]
    output = ""
    for command in told:
        done = shell(command, tour.folder.parent)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        output += done.stdout
    for expected in (
        "ord_12345: filled",
        "send_started",
        "fill_price",
        "sound",
        "as of 2099-12-31",
        "events.parquet: ",
    ):
        assert expected in output


def test_the_python_client_of_the_readme_gets_its_fill(tour):
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tour.folder.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "broker.order.EURUSD" in done.stdout
    assert "broker.fill.EURUSD" in done.stdout
    assert '"order_id":"ord_67890"' in done.stdout


def test_the_variables_of_the_readme_exist():
    from gateway.variables import VARIABLES

    named = set(re.findall(r"^\| `([A-Z_]+)`", README, re.MULTILINE))
    assert named
    assert named <= set(VARIABLES)
