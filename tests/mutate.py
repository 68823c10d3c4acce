"""Tests the tests of the domain: `make mutate`. Changes one thing at a time in the pure modules and runs their tests;
a change that no test notices is printed. What stays of them is explained in docs/mutation.md.

Exit code 1 when less than 95 % of the changes are noticed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

AIM = 0.95
STATS = Path("mutants") / "mutmut-cicd-stats.json"


def mutmut(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments], capture_output=True, text=True, check=True
    ).stdout


def survivors() -> list[str]:
    lines = [line.strip().partition(": ") for line in mutmut("results").splitlines()]
    return [name for name, _, result in lines if result in ("survived", "no tests", "suspicious")]


def change(name: str) -> str:
    """The lines of a change, without the heading of the diff."""
    shown = mutmut("show", name).splitlines()
    return "\n".join(line for line in shown if line[:1] in ("-", "+") and line[:3] not in ("---", "+++"))


def main(processes: str) -> int:
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", processes], check=True)
    mutmut("export-cicd-stats")
    left = survivors()
    for name in left:
        print(f"\n{name}\n{change(name)}")
    stats = json.loads(STATS.read_text())
    share = (stats["killed"] + stats["timeout"]) / stats["total"]
    print(f"\n{stats['total']} changes: {share:.1%} noticed ({stats['timeout']} by their time), {len(left)} not")
    return 0 if share >= AIM else 1


if __name__ == "__main__":
    sys.exit(main(os.environ.get("PROCESSES", "2")))
