"""What every process started from this package gets and does not get."""

import gc
import os
import re
from pathlib import Path
from typing import Final

_SECRET: Final = re.compile(r"PASSWORD|SECRET|TOKEN|CREDENTIAL|HEADERS|KEY$|_URL$|SERVERS$|BROKERS$", re.IGNORECASE)


def child_environment() -> dict[str, str]:
    """This process's environment for a child of the same code, without anything that may hold a secret."""
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def tune_collector() -> None:
    """For a process that has started and now serves: what it drops is freed by its references, so a collection finds
    little and is only a pause. What was made until now is not looked at again."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
