"""The README does what it says: its commands are run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import HubProcess
from tests.servers import free_port, need
from tests.service import Service, environment, serving, until

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


def indented(start: str) -> list[str]:
    """The commands of indented blocks that start so."""
    found = [line.strip() for line in README.splitlines() if line.startswith(f"    {start}")]
    return [re.sub(r"   +#.*", "", line) for line in found]


def told() -> list[str]:
    """What the tour says, one after the other, but for `make` and `serve`."""
    return [line for line in commands() if not line.startswith(("make", "order-ledger serve"))]


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


@pytest.fixture(scope="module")
def walked(tour):
    """The tour, and what was printed on it."""
    output = ""
    for command in told():
        done = shell(command, tour.folder.parent)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        output += done.stdout
    return tour, output


def test_the_commands_of_the_tour_work_one_after_the_other(walked):
    assert [line.split()[1] for line in told()[1:]] == [
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
    for expected in (
        "ord_12345: filled",
        "send_started",
        "fill_price",
        "sound",
        "as of 2099-12-31",
        "events.parquet: ",
    ):
        assert expected in walked[1]


def curl(line: str, **addresses: str) -> str:
    """What it prints, asked at the address where that part really is. `addresses`: by the port that is told."""
    need(shutil.which("curl"), "curl")
    for port, url in addresses.items():
        line = line.replace(f"http://127.0.0.1:{port[1:]}", url)
    done = subprocess.run(line.replace("curl ", "curl -sf ", 1), shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("line", [one for one in indented("curl") if ":8014/" in one])
def test_what_curl_is_told_to_ask_is_answered(walked, line):
    answer = curl(line, p8014=walked[0].info["http_url"])
    if line.endswith("/metrics"):
        assert "order_ledger_" in answer
    elif "ord_12345" in line:
        assert json.loads(answer)["state"]["status"] == "filled"
    elif "orders?" in line:
        assert "ord_12345" in {one["order_id"] for one in json.loads(answer)["orders"]}
    else:
        assert json.loads(answer)


def test_clickhouse_answers_curl_too(walked):
    (line,) = re.findall(r"`(curl [^`]*8123[^`]*)`", README)
    assert int(curl(line, p8123=walked[0].info["clickhouse_http"])) >= 1


async def test_the_hub_of_the_readme_changes_a_running_service(tmp_path):
    hub_line, serve_line = indented("order-ledger hub") + indented("CENTRAL_HUB_URL")
    assert serve_line == "CENTRAL_HUB_URL=http://127.0.0.1:7000 order-ledger serve --data tour"
    set_it, show_it = (one for one in indented("curl") if ":7000/" in one)
    assert hub_line == "order-ledger hub --nats nats://127.0.0.1:4222"
    port = free_port()  # instead of 4222
    hub = HubProcess(tmp_path, f"nats://127.0.0.1:{port}").start()
    try:
        with serving(tmp_path / "tour", CENTRAL_HUB_URL=hub.url, NATS_PORT=str(port)) as running:
            curl(set_it, p7000=hub.url)
            assert json.loads(curl(show_it, p7000=hub.url))["config"] == {
                "operational": {"limits": {"max_volume": 0.5}}
            }
            await until(lambda: '"changed":["limits.max_volume"]' in running.log())
    finally:
        hub.kill()


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


def test_after_a_stop_and_after_a_kill_the_tour_goes_on_where_it_was(walked):
    tour, _ = walked
    asked = [one for one in told() if one.split()[1] in ("history", "sql", "verify", "orders")]
    submit = next(one for one in told() if "submit" in one)
    for end in (tour.stop, tour.kill):
        end()
        tour.start()
        again = shell(f"{submit} --json", tour.folder.parent)
        assert json.loads(again.stdout)["duplicate"] is True
        output = "".join(shell(command, tour.folder.parent).stdout for command in asked)
        for expected in ("send_started", "fill_price", "sound", "ord_12345"):
            assert expected in output
