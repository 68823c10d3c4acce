"""`order-ledger serve`, from outside: one order's way through all real parts, bad input, start and stop."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from filelock import FileLock

from ledger.store import open_store
from tests.service import Listener, Service, market_order, run_cli, serving, until


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


def topics(service: Service, order_id: str) -> list[str]:
    return [event["topic"] for event in orjson.loads(service.cli("history", order_id, "--json").stdout)]


def rows_of(service: Service, query: str, at_least: int = 1) -> list[dict]:
    """The rows, once there are enough of them: the projection follows by a fraction of a second."""
    deadline = time.monotonic() + 10
    while True:
        rows = orjson.loads(service.cli("sql", query, "--json").stdout)
        if len(rows) >= at_least or time.monotonic() > deadline:
            return rows


async def test_a_market_order_is_filled_and_told_everywhere(service):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order("way-1", price=1.08, sl=1.05, tp=1.11, correlation_id="corr-7"))
        subject, fill = await listener.final("way-1")
        _, accepted = await listener.wait_for(lambda s, b: s == "broker.order.EURUSD" and b["order_id"] == "way-1")
    assert subject == "broker.fill.EURUSD"
    assert (fill["volume"], fill["symbol"], fill["side"], fill["status"]) == (0.01, "EURUSD", "buy", "FILLED")
    assert fill["correlation_id"] == "corr-7"
    assert accepted["status"] == "PENDING"
    assert topics(service, "way-1") == [
        "order.requested",
        "order.checked",
        "order.send_started",
        "order.broker_answered",
        "order.filled",
    ]
    (row,) = rows_of(service, "SELECT * FROM executions WHERE order_id = 'way-1'")
    assert (row["fill_price"], row["deal"], row["execution_id"]) == (fill["price"], fill["deal"], fill["event_id"])
    (count,) = rows_of(service, "SELECT count() AS n FROM order_events WHERE order_id = 'way-1'")
    assert int(count["n"]) == 5
    audited = [
        orjson.loads(line)
        for path in sorted((service.folder / "audit").glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
    assert [one["headers"]["topic"] for one in audited if one["key"] == "order/way-1"] == topics(service, "way-1")


async def test_a_rejection_names_retcode_and_category(service):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order("reject-1", symbol="XAUUSD", volume=1000), "XAUUSD")
        subject, error = await listener.final("reject-1")
    assert subject == "broker.error.XAUUSD"
    assert (error["retcode"], error["retcode_name"], error["category"]) == (10019, "NO_MONEY", "fatal")
    assert error["status"] == "REJECTED"


async def test_what_the_symbol_does_not_allow_is_refused_before_the_broker_with_every_reason(service):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order("refused-1", volume="0.015", sl=1.15))
        subject, error = await listener.final("refused-1")
    assert (subject, error["category"], len(error["reasons"])) == ("broker.error.EURUSD", "refused", 2)
    assert topics(service, "refused-1") == ["order.requested", "order.refused"]


async def test_a_repeated_order_is_answered_again_and_not_sent_again(service):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order("twice-1"))
        _, first = await listener.final("twice-1")
        await listener.send(market_order("twice-1", volume="0.010"))
        subject, again = await listener.wait_for(lambda _, b: b["order_id"] == "twice-1" and b.get("duplicate"))
    assert subject == "broker.fill.EURUSD"
    assert (again["deal"], again["price"]) == (first["deal"], first["price"])
    assert topics(service, "twice-1").count("order.send_started") == 1


async def test_the_same_id_with_other_content_is_a_conflict(service):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order("other-1"))
        await listener.final("other-1")
        await listener.send(market_order("other-1", volume=0.02))
        subject, error = await listener.wait_for(lambda _, b: b.get("category") == "conflict")
    assert (subject, error["order_id"]) == ("broker.error.EURUSD", "other-1")
    assert topics(service, "other-1").count("order.send_started") == 1


BAD_MESSAGES = {
    "not JSON": b"buy EURUSD",
    "an array": b"[1, 2]",
    "a number": b"7",
    "nothing": b"",
    "no UTF-8": b'\xff\xfe{"order_id": "x"}',
    "no order_id": orjson.dumps({"symbol": "EURUSD", "order_type": "buy", "volume": 1}),
    "oversized order_id": orjson.dumps(market_order("x" * 65)),
    "order_id with a slash": orjson.dumps(market_order("order/1")),
    "order_id that is a number": orjson.dumps(market_order("x") | {"order_id": 7}),
    "deep nesting": b"[" * 5000,
}
BAD_ORDERS = {
    "unknown symbol": {"symbol": "NOSUCH"},
    "symbol with blanks": {"symbol": "EUR USD"},
    "symbol with dots": {"symbol": "EUR..USD"},
    "symbol of 5,000 characters": {"symbol": "E" * 5000},
    "symbol of wildcards": {"symbol": "*.>"},
    "no symbol": {"symbol": None},
    "volume zero": {"volume": 0},
    "volume negative": {"volume": -0.01},
    "volume NaN": {"volume": "NaN"},
    "volume with underscore": {"volume": "1_000"},
    "volume a list": {"volume": [1]},
}


@pytest.mark.parametrize("what", BAD_MESSAGES)
async def test_a_message_that_is_no_order_leaves_an_event_and_an_answer(service, what):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(BAD_MESSAGES[what])
        _, error = await listener.wait_for(lambda _, b: b.get("category") == "malformed" and not b.get("order_id"))
        await listener.send(market_order(f"after-{what.replace(' ', '-').replace(',', '')}"))
        _, fill = await listener.wait_for(lambda s, _: s.startswith("broker.fill."))
    assert error["event"] == "inbox.message_rejected"
    assert error["reasons"]
    assert fill["status"] == "FILLED"


@pytest.mark.parametrize("what", BAD_ORDERS)
async def test_an_order_with_a_bad_value_is_refused_and_the_next_one_works(service, what):
    order_id = f"bad-{what.replace(' ', '-').replace(',', '')}"
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order(order_id, **BAD_ORDERS[what]))
        subject, error = await listener.final(order_id)
        await listener.send(market_order(f"after-{order_id}"))
        _, fill = await listener.final(f"after-{order_id}")
    assert subject.startswith("broker.error.")
    assert error["category"] in ("malformed", "refused")
    assert topics(service, order_id)[-1] == "order.refused"
    assert fill["status"] == "FILLED"


async def test_a_number_with_a_huge_exponent_is_refused_at_once(service):
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(orjson.dumps(market_order("huge-1")).replace(b"0.01", b"1e400"))
        _, error = await listener.final("huge-1", timeout_s=3)
    assert error["category"] == "malformed"


async def test_a_payload_of_one_megabyte_is_refused_by_its_size(service):
    payload = orjson.dumps(market_order("mega-1", comment="x" * (1_000_000 - 120)))
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(payload)
        _, error = await listener.final("mega-1")
    assert error["category"] == "malformed"
    event = orjson.loads(service.cli("history", "mega-1", "--json").stdout)[0]
    assert event["data"]["raw"]["size"] == len(payload)
    assert "text" not in event["data"]["raw"]


def test_submit_prints_the_outcome_of_an_order(service):
    done = service.cli("submit", "-", stdin=orjson.dumps(market_order("cli-1")).decode())
    assert done.returncode == 0, done.stderr
    assert "cli-1: filled: buy 0.01 EURUSD" in done.stdout
    refused = service.cli("submit", "-", "--json", stdin=orjson.dumps(market_order("cli-2", volume=0)).decode())
    assert refused.returncode == 3
    assert orjson.loads(refused.stdout)["category"] == "refused"


def test_submit_does_not_wait_for_the_fill_of_an_order_that_works_at_the_broker(service):
    order = market_order("cli-limit", order_type="buy_limit", price=1.0)
    for again in ("", " (again: a duplicate)"):
        done = service.cli("submit", "-", stdin=orjson.dumps(order).decode())
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"cli-limit: placed{again}: buy limit 0.01 EURUSD at 1, order ")
    cancel = orjson.dumps({"order_id": "cli-cancel", "action": "cancel", "target_order_id": "cli-limit"}).decode()
    done = service.cli("submit", "-", stdin=cancel)
    assert (done.returncode, done.stdout) == (0, "cli-cancel: completed: 10009 DONE: cancel\n")


def test_an_order_without_an_outcome_in_time_is_told_with_what_is_known_of_it(service):
    service.cli("sim", "market", "GBPUSD", "quoting=off")
    try:
        order = orjson.dumps(market_order("cli-parked", symbol="GBPUSD")).decode()
        done = service.cli("submit", "-", "--timeout", "1", stdin=order)
    finally:
        service.cli("sim", "market", "GBPUSD", "quoting=on")
    assert done.returncode == 1
    assert "no outcome of order cli-parked within 1 s, it goes on (order." in done.stderr
    assert done.stderr.endswith("see `order-ledger history cli-parked`\n")


async def test_who_interrupts_a_submit_is_told_that_the_order_goes_on(service, tmp_path):
    service.cli("sim", "market", "GBPUSD", "quoting=off")
    order = tmp_path / "order.json"
    order.write_bytes(orjson.dumps(market_order("cli-int", symbol="GBPUSD")))
    command = [sys.executable, "-m", "gateway.cli", "submit", str(order), "--data", str(service.folder)]
    waiting = subprocess.Popen(  # noqa: ASYNC220
        command, env=service.environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert await until(lambda: service.cli("history", "cli-int").returncode == 0, 30)
        waiting.send_signal(signal.SIGINT)
        _, told = waiting.communicate(timeout=30)
    finally:
        waiting.kill()
        service.cli("sim", "market", "GBPUSD", "quoting=on")
    assert waiting.returncode == 1
    assert told == "order-ledger: interrupted: a published order goes on, see `order-ledger history cli-int`\n"


def test_an_empty_file_is_no_order_and_is_not_published(service):
    done = service.cli("submit", "-", stdin=" \n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "order-ledger: <stdin> is empty: there is no order to submit\n"


@pytest.mark.parametrize("order_id", ["a/b", "", "x" * 200])
def test_submit_prints_at_once_why_an_order_id_is_none(service, order_id):
    done = service.cli("submit", "-", "--timeout", "20", "--json", stdin=orjson.dumps({"order_id": order_id}).decode())
    assert done.returncode == 3
    told = orjson.loads(done.stdout)
    assert (told["category"], told.get("order_id")) == ("malformed", None)
    assert any("order_id" in one for one in told["reasons"])


def test_history_of_an_unknown_order_is_one_clear_line(service):
    done = service.cli("history", "nobody")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no order 'nobody'" in done.stderr


def test_sql_refuses_to_write(service):
    done = service.cli("sql", "INSERT INTO executions SELECT * FROM executions")
    assert done.returncode == 1
    assert "readonly" in done.stderr.lower()


def test_sql_prints_any_format_as_it_comes(service):
    assert service.cli("sql", "SELECT 1 AS one FORMAT CSVWithNames").stdout == '"one"\n1\n'


def test_verify_of_a_running_service_finds_it_sound(service):
    found = orjson.loads(service.cli("verify", "--json").stdout)
    assert found["ok"]
    assert found["events"] > 10


def test_a_second_service_on_the_same_folder_says_so_and_exits(service):
    done = run_cli("serve", "--data", str(service.folder))
    assert done.returncode == 1
    assert f"another order-ledger serves {service.folder} (process {service.pid})" in done.stderr
    assert service.cli("verify").returncode == 0


async def test_a_second_start_continues_where_the_first_stopped(tmp_path):
    with serving(tmp_path / "d") as service:
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("before-1"))
            await listener.final("before-1")
        url, ledger_id = service.info["nats_url"], service.info["ledger_id"]
        assert service.stop() < 5
        assert not (service.folder / "run.json").exists()
        service.start()
        assert (service.info["nats_url"], service.info["ledger_id"]) == (url, ledger_id)
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("before-1"))
            _, again = await listener.wait_for(lambda _, b: b.get("duplicate"))
            await listener.send(market_order("after-1"))
            await listener.final("after-1")
        assert again["status"] == "FILLED"
        assert orjson.loads(service.cli("verify", "--json").stdout)["ok"]
        service.stop()
        # Without a service the folder itself is asked.
        answer = service.cli("sql", "SELECT order_id FROM executions ORDER BY order_id", "--json")
        assert [row["order_id"] for row in orjson.loads(answer.stdout)] == ["after-1", "before-1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_within_five_seconds_of_a_signal(tmp_path, number):
    with serving(tmp_path / "d") as service:
        began = time.monotonic()
        service.process.send_signal(number)
        output, _ = service.process.communicate(timeout=20)
        assert time.monotonic() - began < 5
        assert service.process.returncode == 0
        assert output.decode().endswith("stopped\n")


async def test_a_stop_under_load_leaves_no_intent_without_its_answer(tmp_path):
    with serving(tmp_path / "d") as service:
        async with Listener(service.info["nats_url"]) as listener:
            for number in range(60):
                await listener.send(market_order(f"load-{number}"))
            await listener.wait_for(lambda subject, _: subject.startswith("broker.fill."))
            assert await asyncio.to_thread(service.stop) < 5
        topics = stored_topics(service)
        assert topics.count("order.send_started") == topics.count("order.broker_answered") > 0
        assert topics[-2:] == ["writer.checkpointed", "writer.batch_sealed"]


async def test_a_consumer_that_somebody_deleted_is_set_up_again(tmp_path):
    with serving(tmp_path / "d") as service:
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("before-1"))
            await listener.final("before-1")
            await listener.connection.jetstream().delete_consumer("ORDERS", f"order-ledger-{service.info['login']}")
            await listener.send(market_order("after-1"))
            await listener.final("after-1")
        assert stored_topics(service).count("order.send_started") == 2


async def test_projections_that_were_killed_come_back_and_catch_up(tmp_path):
    with serving(tmp_path / "d") as service:
        (projections,) = children(service.pid, "projections.process")
        os.kill(projections, signal.SIGKILL)
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("meanwhile-1"))
            await listener.final("meanwhile-1")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            answer = service.cli("sql", "SELECT order_id FROM executions", "--json")
            if "meanwhile-1" in answer.stdout:
                break
        assert "meanwhile-1" in answer.stdout
        assert "started again" in service.log()


def test_no_second_message_bus_starts_beside_one_whose_guard_was_killed(tmp_path):
    with serving(tmp_path / "d") as service:
        (guard,) = children(service.pid, "guard.py")
        (server,) = children(guard, "nats-server")
        os.kill(guard, signal.SIGKILL)
        service.process.communicate(timeout=20)
        assert service.process.returncode == 1
        try:
            done = run_cli("serve", "--data", str(service.folder))
            assert done.returncode == 1
            assert "nats-server did not start" in done.stderr
        finally:
            os.kill(server, signal.SIGKILL)


def stored_topics(service: Service) -> list[str]:
    store = open_store(f"sqlite:///{service.folder / 'ledger.db'}", readonly=True)
    try:
        return [one.topic for one in store.scan()]
    finally:
        store.close()


def children(pid: int, wanted: str) -> list[int]:
    """Processes started by this one whose command line holds the text."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if wanted in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


def test_nothing_of_it_is_left_when_it_was_killed(tmp_path):
    with serving(tmp_path / "d") as service:
        service.kill()
        # Every part holds a lock while it lives: the trading terminal, the bus, the projections.
        for lock in ("nats/lock", "projections.lock", "serve.lock", "ledger.db.lock"):
            with FileLock(service.folder / lock, timeout=10):
                pass


def test_an_unreachable_message_bus_is_one_clear_line(tmp_path):
    done = run_cli("serve", "--data", str(tmp_path), NATS_URL="nats://user:hunter2@127.0.0.1:1")
    assert done.returncode == 1
    assert "cannot reach NATS at nats://127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "settings",
    [
        {"NATS_URL": "gw:hunter2@127.0.0.1:1"},
        {"NATS_URL": "nats://gw:12/hunter2@127.0.0.1"},
        {"NATS_URL": "nats://gw:hunter2/x@127.0.0.1"},
        {"NATS_URL": "nats://127.0.0.1:1,gw:hunter2@127.0.0.1:1"},
        {"LEDGER_URL": "postgresql://u:hunter2/x@127.0.0.1/db"},
        {"LEDGER_URL": "postgresql://u:hunter2@127.0.0.1:1/db"},
        {"CLICKHOUSE_URL": "http://u:hunter2/x@127.0.0.1:1"},
    ],
    ids=str,
)
def test_an_address_with_a_password_never_shows_it(tmp_path, settings):
    done = run_cli("serve", "--data", str(tmp_path), **settings)
    assert done.returncode == 1
    assert "hunter2" not in done.stderr + done.stdout
    assert done.stderr.startswith("order-ledger: ")
    assert "Traceback" not in done.stderr


def test_a_clickhouse_that_does_not_answer_is_named_without_its_password(tmp_path):
    done = run_cli("sql", "SELECT 1", "--data", str(tmp_path), CLICKHOUSE_URL="http://u:hunter2@127.0.0.1:1")
    assert done.returncode == 1
    assert "http://127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr


def test_wrong_settings_are_all_named_at_once(tmp_path):
    done = run_cli("serve", "--data", str(tmp_path), MODE="productive", MAX_ORDER_AGE_S="soon")
    assert done.returncode == 1
    assert "MODE must be one of" in done.stderr
    assert "MAX_ORDER_AGE_S must be a number" in done.stderr


def test_production_takes_no_stand_in(tmp_path):
    done = run_cli("serve", "--data", str(tmp_path), MODE="production")
    assert done.returncode == 1
    for part in ("NATS_URL", "LEDGER_URL", "KAFKA_BROKERS", "CLICKHOUSE_URL", "TERMINAL"):
        assert part in done.stderr


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_cli("serve", "--data", str(tmp_path / "file" / "folder"))
    assert done.returncode == 1
    assert done.stderr.startswith("order-ledger: cannot create the data folder")
    assert os.linesep not in done.stderr.strip()
