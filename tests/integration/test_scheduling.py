"""The order path goes before everything else on the machine, where the system allows that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.service import environment, serving

ALLOWED = """
import os
try:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
except OSError:
    print("no")
else:
    print("yes")
"""


def policies(service) -> dict[str, int]:
    """The scheduling policy of the service's processes, by what they run."""
    found = {"gateway": os.sched_getscheduler(service.pid)}
    folder = str(service.folder)
    for one in Path("/proc").iterdir():
        if not one.name.isdigit():
            continue
        try:
            words = (one / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = int((one / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        ours = parent == service.pid or any(word.startswith(folder) for word in words)
        for name in ("projections.process", "gateway.terminal_child", "gateway.simulated.broker"):
            if ours and name in words:
                found[name] = os.sched_getscheduler(int(one.name))
    return found


def test_the_path_of_an_order_is_preferred_and_the_projections_are_not(tmp_path):
    allowed = subprocess.run([sys.executable, "-c", ALLOWED], capture_output=True, text=True, check=True).stdout
    expected = os.SCHED_RR if allowed.strip() == "yes" else os.SCHED_OTHER
    with serving(tmp_path / "d", CLICKHOUSE_URL="off") as service:
        found = policies(service)
    assert found.pop("projections.process") == os.SCHED_OTHER
    assert found == dict.fromkeys(("gateway", "gateway.terminal_child", "gateway.simulated.broker"), expected)


def test_it_can_be_left_like_all_others(tmp_path):
    with serving(tmp_path / "d", CLICKHOUSE_URL="off", REAL_TIME="off") as service:
        assert set(policies(service).values()) == {os.SCHED_OTHER}


def test_what_is_demanded_and_not_allowed_is_one_line_with_the_remedy(tmp_path):
    without = [] if os.geteuid() else [shutil.which("setpriv") or "setpriv", "--bounding-set=-sys_nice"]
    command = [*without, sys.executable, "-m", "gateway.cli", "serve", "--data", str(tmp_path / "d")]
    done = subprocess.run(
        command, env=environment(REAL_TIME="on"), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "REAL_TIME=on is not allowed here" in done.stderr
    assert "Traceback" not in done.stderr
