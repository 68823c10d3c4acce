"""Each embedded part replaced by a real server: the same service, the same answers."""

import asyncio
import contextlib
import subprocess
import sys

import orjson
import pytest

from gateway.config import load
from gateway.facade import FillHandler
from ledger.store import open_store
from tests.kafka_server import kafka_server
from tests.kafka_topic import read_topic
from tests.nats_server import nats_server
from tests.servers import postgres_server
from tests.service import Listener, market_order, run_cli, serving


@pytest.fixture
def nats_url(tmp_path):
    with nats_server(tmp_path) as server:
        yield server.url


async def fill(url: str, order_id: str) -> dict:
    async with Listener(url) as listener:
        await listener.send(market_order(order_id))
        subject, body = await listener.final(order_id)
    assert subject == "broker.fill.EURUSD"
    return body


async def test_a_nats_server_of_its_own(tmp_path, nats_url):
    with serving(tmp_path / "d", NATS_URL=nats_url) as service:
        await fill(nats_url, "real-1")
        assert not (service.folder / "nats").exists()
        assert f"{nats_url} (NATS_URL)" in service.output


async def test_a_ledger_in_postgresql(tmp_path):
    with postgres_server() as url, serving(tmp_path / "d", LEDGER_URL=url, CLICKHOUSE_URL="off") as service:
        await fill(service.info["nats_url"], "real-2")
        first = service.info["ledger_id"]
        assert service.stop() < 5
        service.environment["LEDGER_URL"] = url
        service.start()
        assert service.info["ledger_id"] == first
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "gateway.cli", "verify", "--json", "--data", str(service.folder)],
            capture_output=True,
            env=service.environment,
        )
        assert orjson.loads(done.stdout)["ok"]
        assert not (service.folder / "ledger.db").exists()


async def test_an_audit_log_in_apache_kafka(tmp_path):
    brokers = kafka_server().brokers
    with serving(tmp_path / "d", KAFKA_BROKERS=brokers, CLICKHOUSE_URL="off") as service:
        told = await fill(service.info["nats_url"], "real-3")
        handler = FillHandler(
            load({"data": str(service.folder)}, {"KAFKA_BROKERS": brokers, "CLICKHOUSE_URL": "off"}), timeout_s=30
        )
        assert await handler.archive_to_kafka(told) == told["event_id"]
        ledger_id = service.info["ledger_id"]
        async with asyncio.timeout(30):
            while True:
                held = await read_topic(brokers, "broker_communication_log")
                mine = [one for one in held if one.stream == "order/real-3"]
                if mine and mine[-1].topic == "order.filled":
                    break
        assert ledger_id.encode() in mine[-1].state
        assert not (service.folder / "audit").exists()
        running = await verified(service.folder, brokers)
        assert service.stop() < 5
    stopped = await verified(service.folder, brokers)
    for found in (running, stopped):
        assert (found["ok"], [(one["projection"], one["ok"]) for one in found["kafka"]]) == (True, AGREES)
    assert stopped["kafka"][0]["compared"] == stopped["events"]
    assert (stopped["heads"]["elsewhere"], stopped["heads"]["file"]) == (
        stopped["heads"]["inside"],
        f"Kafka at {brokers}",
    )
    restored = await asyncio.to_thread(
        run_cli, "restore", "--from-kafka", "--ledger", ledger_id, "--data", str(tmp_path / "r"), KAFKA_BROKERS=brokers
    )
    assert restored.returncode == 0, restored.stderr
    assert f"restored {stopped['events']} events" in restored.stdout
    assert events_of(tmp_path / "r") == events_of(service.folder)


AGREES = [("kafka.broker_communication_log", True), ("kafka.broker_communication_seals", True)]


async def verified(folder, brokers):
    done = await asyncio.to_thread(run_cli, "verify", "--kafka", "--json", "--data", str(folder), KAFKA_BROKERS=brokers)
    assert done.stdout, done.stderr
    return orjson.loads(done.stdout)


def events_of(folder):
    with contextlib.closing(open_store(f"sqlite:///{folder / 'ledger.db'}", readonly=True)) as store:
        return list(store.scan())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["restore"], "restore from one thing"),
        (["restore", "b", "--from-kafka"], "restore from one thing"),
        (["restore", "--from-kafka", "--audit", "a"], "--audit adds to a backup"),
        (["restore", "b", "--ledger", "x"], "give --from-kafka"),
        (["restore", "--from-kafka"], "KAFKA_BROKERS names no brokers"),
        (["verify", "--kafka"], "KAFKA_BROKERS names no brokers"),
        (["restore", "--from-audit-files", "nowhere"], "there is no folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_the_remedy(tmp_path, arguments, problem):
    done = run_cli(*arguments, "--data", str(tmp_path / "d"))
    assert done.returncode == 1
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_brokers_that_do_not_answer_are_one_line(tmp_path):
    done = run_cli("restore", "--from-kafka", "--data", str(tmp_path / "d"), KAFKA_BROKERS="127.0.0.1:9")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Kafka: " in done.stderr
