"""The shape of the project: who may import whom, what stays pure, what may stand at the top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ledger", "projections", "gateway")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {"ledger": {"ledger"}, "projections": {"ledger", "projections"}, "gateway": {"ledger", "gateway"}}
# The only ones of the gateway that may see the projections.
COMPOSE = {
    "gateway/app.py",
    "gateway/bench_projections.py",
    "gateway/cli.py",
    "gateway/cli_projections.py",
    "gateway/facade.py",
    "gateway/parts.py",
}

# The pure core: no I/O, no clock, no randomness. What each of these may import besides itself.
PURE = {
    "ledger/values.py": {"hashlib", "re", "decimal", "functools", "typing"},
    "ledger/trade.py": {"decimal", "typing", "msgspec"},
    "ledger/facts.py": {"datetime", "decimal", "typing", "msgspec"},
    "ledger/order_events.py": {"datetime", "decimal", "msgspec"},
    "ledger/account_events.py": {"datetime", "decimal", "msgspec", "typing"},
    "ledger/events.py": {"collections", "datetime", "decimal", "typing", "msgspec"},
    "ledger/intake.py": {"hashlib", "datetime", "decimal", "typing", "msgspec"},
    "ledger/commands.py": {"datetime", "decimal", "msgspec"},
    "ledger/order.py": {"datetime", "decimal", "enum", "itertools", "types", "typing", "msgspec"},
    "ledger/account.py": {"typing", "msgspec"},
    "ledger/evidence.py": {"typing", "msgspec"},
    "ledger/fills.py": {"collections", "datetime", "decimal", "typing"},
    "ledger/outcomes.py": set(),
    "ledger/positions.py": {"collections", "datetime", "decimal", "typing", "msgspec"},
    "ledger/trace.py": {"collections", "datetime", "decimal", "typing", "msgspec"},
    "ledger/book.py": {"collections", "datetime", "decimal", "typing", "msgspec"},
    "ledger/decide.py": {"datetime", "decimal", "typing", "msgspec"},
    "ledger/plan.py": {"datetime", "decimal", "typing", "msgspec"},
    "ledger/seal.py": {"hashlib", "struct", "collections", "typing", "msgspec"},
    "ledger/heads.py": {"hashlib", "collections", "datetime", "typing", "msgspec", "cryptography"},
    "ledger/proof.py": {"json", "bisect", "collections", "typing", "msgspec"},
    "ledger/covered.py": {"collections", "typing"},
    "ledger/errors.py": set(),
    "projections/rows.py": {"collections", "datetime", "decimal", "typing", "msgspec"},
    "projections/units.py": {"collections", "datetime", "decimal", "typing"},
    "projections/tables.py": {"array", "collections", "itertools", "typing", "msgspec"},
    "gateway/messages.py": {"datetime", "decimal", "typing", "msgspec"},
    "gateway/times.py": {"datetime", "typing", "msgspec"},
    "gateway/describe.py": {"collections", "datetime", "decimal", "typing", "msgspec"},
    "gateway/retcodes.py": {"enum", "typing", "msgspec"},
    "gateway/broker.py": {"collections", "decimal", "typing", "msgspec"},
    "gateway/requests.py": {"datetime", "decimal", "typing"},
    "gateway/targets.py": {"collections", "decimal", "typing"},
    "gateway/answers.py": {"datetime", "decimal", "typing"},
    "gateway/validate.py": {"collections", "datetime", "decimal", "fnmatch", "typing", "msgspec"},
}
FORBIDDEN_CALLS = {"now", "utcnow", "today", "time", "monotonic", "uuid4", "random", "open", "print", "input"}
TOP = {
    "pyproject.toml",
    "ledger",
    "projections",
    "gateway",
    "tests",
    "migrations",
    "README.md",
    "docs",
    "deploy",
    ".ci",
    ".gitignore",
    "Makefile",
    "requirements.lock",
    "CHANGELOG.md",
    "LICENSE",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Every module name a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_inwards(path):
    package = name(path).split("/")[0]
    allowed = set(PACKAGES) if name(path) in COMPOSE else MAY_IMPORT[package]
    ours = {one.split(".")[0] for one in imported(path)} & set(PACKAGES)
    assert ours <= allowed, f"{name(path)} may not import {ours - allowed}"
    assert "tests" not in {one.split(".")[0] for one in imported(path)}


@pytest.mark.parametrize("module", PURE)
def test_the_core_is_pure(module):
    path = ROOT / module
    foreign = {one.split(".")[0] for one in imported(path)} - set(PACKAGES)
    assert foreign <= PURE[module], f"{module} imports {foreign - PURE[module]}"
    for one in imported(path):
        if one.split(".")[0] in PACKAGES:
            assert one.replace(".", "/") + ".py" in PURE, f"{module} imports {one}, which is not pure"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in FORBIDDEN_CALLS, f"{module}:{node.lineno} calls {called}"


def test_only_mt5_speaks_metatrader():
    speakers = {name(path) for path in MODULES if any(one.startswith("MetaTrader5") for one in imported(path))}
    assert speakers <= {"gateway/mt5.py", "gateway/terminal_child.py"}


def test_only_what_belongs_there_stands_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in listed.splitlines()} <= TOP


def test_modules_stay_small_enough_to_be_held_in_the_head():
    long = {name(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) > 500}
    assert not long


def test_the_terminal_child_starts_without_what_it_does_not_need():
    code = "import sys, gateway.terminal_child; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"asyncio", "nats", "aiohttp", "numpy", "clickhouse_connect", "eventsourcing"}
