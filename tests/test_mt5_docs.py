"""docs/mt5.md and the tests: every rule, fault, return code and error that is told is tried."""

import re
from pathlib import Path

import pytest

from gateway.simulated import constants, faults, structs

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "mt5.md").read_text()
TESTS = "\n".join(
    path.read_text()
    for pattern in ("unit/test_simulated_*.py", "integration/test_simulated_*.py", "integration/test_cli_sim.py")
    for path in sorted((ROOT / "tests").glob(pattern))
)


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def missing(names: set[str], pattern: str) -> list[str]:
    """Those that no test names."""
    return sorted(name for name in names if not re.search(pattern.format(re.escape(name)), TESTS))


def test_every_rule_has_a_test_that_names_it() -> None:
    told = re.findall(r"^- `\[(R\d+)\]`", section("Rules"), re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(re.findall(r"\[(R\d+)\]", TESTS)) <= set(told), "a test names a rule that is not told"
    assert missing(set(told), r"\[{}\]") == []


def test_every_fault_is_told_and_has_a_test_that_names_it() -> None:
    told = set(re.findall(r"`([a-z_]+)(?:=[a-z]+)?`", " ".join(re.findall(r"^\| (`.*?) \|", section("Faults"), re.M))))
    assert told == {*faults._VALUED, *faults._BARE}
    assert missing(told, r"\b{}\b") == []


def test_every_return_code_is_told_and_has_a_test_that_names_it() -> None:
    told = dict(re.findall(r"^\| (\d{5}) \| (\w+) \|", section("Return codes"), re.MULTILINE))
    known = {
        str(value): name.removeprefix("TRADE_RETCODE_")
        for name, value in vars(constants).items()
        if name.startswith("TRADE_RETCODE_")
    }
    assert told == known | {"10046": "HEDGE_PROHIBITED"}
    assert missing(set(told.values()), r'"{}"') == []


def test_every_error_is_told_and_has_a_test_that_names_it() -> None:
    told = set(re.findall(r"(-\d+)[ ,|]", section("Errors of a call")))
    assert told == {str(value) for name, value in vars(constants).items() if name.startswith("RES_E_")}
    assert missing(told, r"^    {}: ".replace("^", r"(?m:^)")) == []


def test_the_constants_and_structs_told_are_those_of_the_module() -> None:
    told = dict(re.findall(r"([A-Z][A-Z_0-9]+)=(-?\d+)", section("Constants")))
    assert told == {name: str(value) for name, value in vars(constants).items() if name.isupper()}
    listed = re.findall(r"^- \*\*(\w+)\*\* \((\d+)\): ((?:.|\n  )*)", section("Structs"), re.MULTILINE)
    assert len(listed) == 11
    for name, count, fields in listed:
        assert tuple(re.split(r",\s+", fields.strip())) == getattr(structs, name).__match_args__
        assert int(count) == getattr(structs, name).n_fields


@pytest.mark.parametrize("call", faults.CALLS)
def test_every_call_that_can_fail_is_told(call: str) -> None:
    assert re.search(rf"\b{call}\b", section("Faults"))
