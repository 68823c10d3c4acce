"""`order-ledger migrate`, `rebuild`, `positions` and `verify --clickhouse` where no service runs."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from ledger.events import event_of
from ledger.order_events import OrderFilled, OrderPartiallyFilled
from tests.history import BEGINNING, History
from tests.projection_process import stored
from tests.service import run_cli


@pytest.fixture
def history() -> History:
    return History().orders(1)


@pytest.fixture
def data(tmp_path: Path, history: History) -> Path:
    stored(tmp_path, history.records).close()
    return tmp_path


def told(data: Path, *arguments: str, code: int = 0) -> Any:
    done = run_cli(*arguments, "--json", "--data", str(data))
    assert done.returncode == code, done.stderr
    return orjson.loads(done.stdout)


def test_a_dry_run_tells_the_statements_and_changes_nothing(data: Path) -> None:
    names = [one["name"] for one in told(data, "migrate", "--dry-run")]
    assert names == sorted(path.name for path in Path("migrations/clickhouse").glob("*.sql"))
    assert [one["name"] for one in told(data, "migrate")] == names
    assert told(data, "migrate") == []


def test_a_rebuild_fills_empty_tables_and_verify_then_agrees(data: Path, history: History) -> None:
    told(data, "migrate")
    assert told(data, "rebuild", code=2)["same"] is False  # nothing was in use
    again = told(data, "rebuild")
    assert (again["same"], again["seq"]) == (True, len(history.records))
    assert run_cli("verify", "--clickhouse", "--data", str(data)).returncode == 0


@pytest.mark.parametrize("command", [["migrate"], ["migrate", "--dry-run"], ["rebuild"]])
def test_a_misspelt_folder_is_refused_and_not_made(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "misspelt"
    done = run_cli(*command, "--data", str(folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == f"order-ledger: there is no folder {folder}: start `order-ledger serve`, or name it by --data\n"
    )
    assert not folder.exists()


def test_positions_are_told_as_known_and_as_they_were(data: Path, history: History) -> None:
    fills = [one for one in map(event_of, history.records) if isinstance(one, OrderPartiallyFilled | OrderFilled)]
    now = told(data, "positions", "--all")
    assert [(one["position_id"], Decimal(one["volume"])) for one in now] == [(900, sum(one.volume for one in fills))]
    early = BEGINNING.isoformat()
    assert told(data, "positions", "--all", "--as-of", early, "--by", "recorded") == []
    late = ("positions", "--all", "--as-of", "2030-01-01", "--by")
    assert told(data, *late, "recorded") == now
    assert {one["position_id"] for one in told(data, *late, "broker")} == {one["position_id"] for one in now}
