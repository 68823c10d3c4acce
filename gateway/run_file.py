"""What a running process writes about itself into its data folder, so that commands find it: `run.json` of the gateway,
`run.projections.json` and `run.mirror.json` of processes that have only those roles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

GATEWAYS: Final = "run.json"
PROJECTIONS: Final = "run.projections.json"


def write_run_file(path: Path, content: Mapping[str, Any]) -> None:
    """In one step: whoever reads it meanwhile sees all of it, or what was there before."""
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    scratch.replace(path)


def read_run_file(path: Path) -> dict[str, Any] | None:
    """None when no process wrote one, or it cannot be read."""
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return found


def clickhouse_endpoint(folder: Path) -> tuple[str, str] | None:
    """URL and database of the embedded engine's endpoint, whichever process of this data folder serves it; None when
    none does."""
    for name in (GATEWAYS, PROJECTIONS):
        found = read_run_file(folder / name)
        if found is not None and found.get("clickhouse_http"):
            return str(found["clickhouse_http"]), str(found["clickhouse_database"])
    return None
