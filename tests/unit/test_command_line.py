"""Wrong input on the command line that needs no service: one clear line with the remedy, and never a traceback."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway.cli import cli
from gateway.cli_common import Failure, failures


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sql", " "], "the query is empty"),
        (["halt", "--reason", ""], "--reason is empty"),
        (["resume", "--reason", "over", "--by", ""], "--by is empty"),
        (["query", "symbol"], "order-ledger query symbol EURUSD"),
        (["query", "tick"], "order-ledger query tick EURUSD"),
        (["hub", "--port", "99999"], "99999 is not in the range"),
        (["submit", "-", "--timeout", "-1"], "-1.0 is not in the range"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, arguments, env={"ORDER_LEDGER_DATA": str(tmp_path)})
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code in (1, 2)
    assert told in done.stderr


def test_a_field_that_no_order_has_is_named_before_the_order_is_published(tmp_path: Path) -> None:
    misspelt = '{"order_id":"o-1","symbol":"EURUSD","order_type":"buy","volume":0.1,"stoploss":1.05}'
    done = CliRunner().invoke(cli, ["submit", "-", "--data", str(tmp_path)], input=misspelt)
    assert done.stderr.splitlines()[0] == "order-ledger: no field of an order, without effect: 'stoploss'"


def test_what_this_user_may_not_read_is_named() -> None:
    with pytest.raises(Failure) as raised, failures():
        raise PermissionError(13, "Permission denied", "/data/audit/seals.jsonl")
    assert raised.value.format_message() == (
        "this user may not read or write /data/audit/seals.jsonl: run it as the user of the service"
    )


def test_a_file_in_place_of_the_data_folder_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    done = CliRunner().invoke(cli, ["serve", "--data", str(tmp_path / "data")])
    assert "a file stands in its place. Name another by --data" in done.stderr


@pytest.mark.parametrize("group", [cli, cli.commands["sim"], cli.commands["bench"]])
def test_the_list_of_commands_tells_each_in_a_whole_sentence(group: click.Group) -> None:
    told = CliRunner().invoke(group, ["--help"], terminal_width=80).output.partition("Commands:")[2]
    assert told
    assert "..." not in told


def test_whoever_interrupts_while_the_program_is_loaded_sees_one_line(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    script = "import gateway, sys; sys.path.insert(0, sys.argv.pop()); from gateway.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "order-ledger: interrupted\n")
