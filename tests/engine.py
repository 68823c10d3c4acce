"""The embedded ClickHouse of a test run: a process can open one folder only, so every test gets its own database."""

import atexit
import itertools
import tempfile
from pathlib import Path
from typing import Any

from tests.servers import need

_count = itertools.count(1)
_folder: list[str] = []


def engine_path() -> str:
    """The folder that this process keeps open, so that reopening it in a test is quick."""
    try:
        import chdb
    except ImportError:
        need(False, "chDB (the extra `embedded`)")
        raise
    if not _folder:
        folder = tempfile.TemporaryDirectory(prefix="chdb-", ignore_cleanup_errors=True)
        connection: Any = chdb.connect(folder.name)
        atexit.register(folder.cleanup)
        atexit.register(connection.close)
        _folder.append(str(Path(folder.name).resolve()))
    return _folder[0]


def fresh_database() -> str:
    return f"test_{next(_count)}"
