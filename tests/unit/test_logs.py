"""The log: lines that nobody can forge, and no secret in any of them."""

import io
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway.communications import line, words
from gateway.config import Settings
from gateway.logs import printable, safe, set_up_logging
from gateway.secret import Secret
from ledger.events import decode
from tests.history import History

MARK = "hunter2-and-more"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged():
    """Logs one line to a file or a screen, and gives what was written."""

    def write(event: str, *, screen: bool = False, level: str = "info", **fields: Any) -> str:
        out = Screen() if screen else io.StringIO()
        set_up_logging("info", out)
        getattr(structlog.get_logger(), level)(event, **fields)
        return out.getvalue()

    yield write
    structlog.reset_defaults()


class Nested(msgspec.Struct):
    password: Secret


def test_a_line_is_json_with_time_level_and_what_it_is_about(logged):
    found = orjson.loads(logged("order sent", order_id="o-1", correlation_id="c-7", level="warning"))
    assert (found["event"], found["level"]) == ("order sent", "warning")
    assert (found["order_id"], found["correlation_id"]) == ("o-1", "c-7")
    assert datetime.fromisoformat(found["timestamp"]).tzinfo is UTC or found["timestamp"].endswith("Z")


@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        Secret(MARK),
        {"deep": [{"er": (Secret(MARK),)}]},
        Nested(Secret(MARK)),
        [Nested(Secret(MARK))],
        {Secret(MARK): 1},
        Settings(data="x", ledger_url=Secret(f"postgresql://u:{MARK}@h/d"), mt5_password=Secret(MARK)),  # type: ignore[arg-type]
    ],
    ids=["bare", "nested", "struct", "list", "key", "settings"],
)
def test_a_secret_shows_as_dots_wherever_it_stands(logged, screen, value):
    written = logged("settings", screen=screen, value=value)
    assert MARK not in written
    assert "•" in written or "\\u2022" in written


def test_an_exception_is_written_and_its_secret_is_not(logged):
    try:
        raise ValueError(f"refused: {Secret(MARK)}")
    except ValueError as error:
        written = logged("failed", level="error", exc_info=error)
    assert "ValueError: refused: ••••" in orjson.loads(written)["exception"]


@given(st.text())
def test_no_text_ends_a_line_or_controls_the_terminal(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize("evil", ['o\n{"event": "forged"}', "\x1b[2J\x1b[31mred", "a\r\nb", "\u2028x", "\x85"])
def test_a_hostile_name_stays_on_its_line(logged, screen, evil):
    written = logged("order", screen=screen, order_id=evil)
    assert len(written.splitlines()) == 1
    assert "\x1b[2J" not in written
    if not screen:
        assert orjson.loads(written)["order_id"] == evil


DEEP: Any = 1
for _ in range(12):
    DEEP = {1: DEEP}


@pytest.mark.parametrize("value", [2**80, "\ud800", b"bytes", Decimal("1.50"), DEEP])
def test_whatever_is_logged_the_line_is_not_lost(logged, value):
    assert "odd" in orjson.loads(logged("odd", value=value))["event"]


LEAVES = st.none() | st.integers() | st.text() | st.builds(Secret, st.just(MARK))


@given(st.recursive(LEAVES, lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_what_is_made_safe_holds_no_secret(value):
    assert MARK not in repr(safe(value))


def test_every_word_with_the_broker_is_a_line_with_its_order_and_the_stored_event():
    record = next(one for one in History().orders(1).records if one.stream.startswith("order/"))
    found = orjson.loads(line(record, decode(record)))
    assert (found["event"], found["level"], found["topic"]) == ("broker", "info", record.topic)
    assert found["order_id"] == record.stream.removeprefix("order/")
    assert found["stored"] == orjson.loads(record.state)
    assert found["order_id"] in words(record, decode(record))


def test_lines_of_the_service_go_to_standard_error_alone():
    code = "import structlog, gateway.logs as logs; logs.set_up_logging('info'); structlog.get_logger().info('x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, orjson.loads(done.stderr)["event"]) == ("", "x")
