"""Queries and control over NATS and from the command line, on the whole service."""

import asyncio

import nats
import nats.errors
import orjson
import pytest

from gateway import interface as api
from gateway.proof import prove
from tests.service import Listener, Service, market_order, serving, until


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("control"), BROKER_CONTROL="on") as running:
        yield running


async def ask(service: Service, subject: str, body: dict | bytes | None = None, headers=None) -> tuple[str, dict]:
    """The error code (empty: none), and the body."""
    connection = await nats.connect(service.info["nats_url"])
    try:
        payload = body if isinstance(body, bytes) else orjson.dumps(body or {})
        reply = await connection.request(subject, payload, timeout=10, headers=headers)
        return (reply.headers or {}).get("Nats-Service-Error-Code", ""), orjson.loads(reply.data)
    finally:
        await connection.close()


async def fill(service: Service, order_id: str, **fields) -> dict:
    async with Listener(service.info["nats_url"]) as listener:
        await listener.send(market_order(order_id, **fields))
        return (await listener.final(order_id))[1]


def account_events(service: Service, topic: str) -> list[dict]:
    lines = service.cli("export").stdout.splitlines()
    return [one for one in map(orjson.loads, lines) if one["event"] == topic]


async def test_every_query_is_answered_by_what_the_broker_shows(service):
    filled = await fill(service, "query-1", sl=1.05)
    _, account = await ask(service, "broker.query.account")
    assert (account["account"], account["currency"], account["margin_mode"]) == ("5000001", "USD", "hedging")
    _, held = await ask(service, "broker.query.positions", {"symbol": "EURUSD"})
    (position,) = [one for one in held["positions"] if one["identifier"] == filled["position_id"]]
    assert (position["type"], position["volume"], position["sl"], position["tp"]) == (0, 0.01, 1.05, 0)
    assert (await ask(service, "broker.query.positions", {"symbol": "GBPUSD"}))[1]["positions"] == []
    assert (await ask(service, "broker.query.orders"))[1]["orders"] == []
    _, symbol = await ask(service, "broker.query.symbol", {"symbol": "EURUSD"})
    assert (symbol["symbol"]["volume_step"], symbol["symbol"]["point"]) == (0.01, 0.00001)
    _, tick = await ask(service, "broker.query.tick", {"symbol": "EURUSD"})
    assert tick["ask"] > tick["bid"]
    _, history = await ask(service, "broker.query.history", {"symbol": "EURUSD"})
    assert filled["deal"] in [one["ticket"] for one in history["deals"]]
    _, told = await ask(service, "broker.query.history", {"order_id": "query-1", "limit": 2})
    assert [one["data"]["event"] for one in told["events"]] == ["order.broker_answered", "order.filled"]
    assert told["truncated"] is True


@pytest.mark.parametrize(
    ("subject", "body", "code", "reason"),
    [
        ("broker.query.tick", {}, "400", "Object missing required field `symbol`"),
        ("broker.query.tick", {"symbol": "NOPE"}, "404", "symbol 'NOPE' is not known to the broker, or has no price"),
        ("broker.query.account", {"acount": "7"}, "400", "Object contains unknown field `acount`"),
        ("broker.query.account", b"[" * 5000, "400", None),
        ("broker.query.account", b"\xff\xfe", "400", None),
        (
            "broker.query.account",
            {"account": "4711"},
            "404",
            "no gateway of account '4711' has answered; this is 5000001",
        ),
        ("broker.query.history", {"order_id": "nobody"}, "404", "no order 'nobody' is in the ledger"),
        ("broker.query.history", {"since": "2026-01-01T00:00:00"}, "400", "since has no time zone"),
        ("broker.control.halt", {"reason": "x"}, "400", "Object missing required field `by`"),
        ("broker.control.halt", b"", "400", "Object missing required field `by`"),
        ("broker.control.resume", {"by": "ann", "reason": "x"}, "409", "there is no halt of an operator"),
        (
            "broker.control.resolve",
            {"by": "ann", "reason": "x", "order_id": "nobody", "resolution": "absent"},
            "404",
            "no order 'nobody' is in the ledger",
        ),
    ],
)
async def test_bad_input_is_answered_with_a_clear_error(service, subject, body, code, reason):
    found, told = await ask(service, subject, body)
    assert (found, told["code"]) == (code, code)
    assert reason is None or told["reasons"] == [reason]


async def test_a_control_call_is_an_event_with_its_caller_also_when_it_is_refused(service):
    before = len(account_events(service, "account.control_received"))
    await ask(service, "broker.control.halt", {"by": "ann"})
    await ask(service, "broker.control.halt", {"by": "ann", "reason": "drill"})
    await ask(service, "broker.control.resume", {"by": "bob", "reason": "done"})
    refused, halted, resumed = account_events(service, "account.control_received")[before:]
    assert (refused["data"].get("accepted", True), refused["data"]["raw"]["text"]) == (False, '{"by":"ann"}')
    assert (halted["data"]["command"], halted["data"]["by"], halted["data"]["reason"]) == ("halt", "ann", "drill")
    assert (resumed["actor"], resumed["source"]["caller"]) == ("operator", "bob")
    (event,) = [one for one in account_events(service, "account.halted") if one["data"]["reason"] == "drill"]
    assert event["source"] == {"subject": "broker.control.halt", "caller": "ann"}


async def test_a_halted_gateway_refuses_what_opens_and_tells_of_the_halt(service):
    async with Listener(service.info["nats_url"]) as listener:
        done = service.cli("halt", "--reason", "news", "--by", "ann", "--json")
        assert orjson.loads(done.stdout)["halts"] == [{"source": "operator", "reason": "news", "by": "ann"}]
        _, alert = await listener.wait_for(lambda subject, _: subject == "broker.alert.halted")
        assert (alert["kind"], alert["by"], alert["description"]) == ("halted", "ann", "news")
        await listener.send(market_order("halted-1"))
        _, told = await listener.final("halted-1")
        assert told["reasons"] == ["trading is halted: operator: news"]
        assert service.cli("resume", "--reason", "over").stdout == "the operator's halt is lifted\n"
        await listener.send(market_order("halted-2"))
        assert (await listener.final("halted-2"))[0] == "broker.fill.EURUSD"


async def test_the_service_describes_itself_with_schemas(service):
    connection = await nats.connect(service.info["nats_url"])
    try:
        reply = await connection.request("$SRV.INFO.mt5-connector", b"", timeout=5)
    finally:
        await connection.close()
    info = orjson.loads(reply.data)
    endpoints = {one["subject"]: one["metadata"] for one in info["endpoints"]}
    assert set(endpoints) == {f"broker.query.{one}" for one in api.QUERIES} | {
        f"broker.control.{one}" for one in api.CONTROLS
    }
    for metadata in endpoints.values():
        assert orjson.loads(metadata["request_schema"])["$defs"]
        assert orjson.loads(metadata["response_schema"])["$defs"]
    assert info["metadata"] == {"account": "5000001"}


async def test_close_all_gives_an_ordinary_order_for_each_position_and_the_same_id_none_twice(service):
    filled = await fill(service, "close-1")
    call = {"by": "ann", "reason": "end of day", "request_id": "eod-1"}
    _, first = await ask(service, "broker.control.close_all", call)
    wanted = f"close-all.eod-1.{filled['position_id']}"
    assert wanted in [one["order_id"] for one in first["orders"]]
    _, again = await ask(service, "broker.control.close_all", call)
    assert {one["order_id"]: one.get("known") for one in again.get("orders", ())}.get(wanted, True) is True
    events = orjson.loads(service.cli("history", wanted, "--json").stdout)
    assert [one["topic"] for one in events].count("order.requested") == 1


def test_queries_from_the_command_line_are_tables_or_json(service):
    account = orjson.loads(service.cli("query", "account", "--json").stdout)
    assert account["server"] == "OrderLedger-Sim"
    assert "OrderLedger-Sim" in service.cli("query", "account").stdout
    assert "1 lots" not in service.cli("query", "symbol", "EURUSD").stdout
    assert orjson.loads(service.cli("query", "tick", "EURUSD", "--json").stdout)["symbol"] == "EURUSD"
    missing = service.cli("query", "tick", "NOPE")
    assert missing.returncode == 1
    assert missing.stderr == "order-ledger: symbol 'NOPE' is not known to the broker, or has no price\n"


# --- off unless enabled, down, and without a gateway ----------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("guarded"), UNRESOLVED_ALERT_S="0") as running:
        yield running


async def test_control_is_off_unless_enabled_but_for_who_can_read_the_data_folder(guarded):
    body = orjson.dumps({"by": "mallory", "reason": "why not"})
    code, told = await ask(guarded, "broker.control.halt", body)
    assert (code, told["reasons"][0].partition(":")[0]) == ("403", "control is off")
    key = (guarded.folder / "control.key").read_bytes()
    proof = {api.PROOF_HEADER: prove(key, "broker.control.halt", body)}
    other = {api.PROOF_HEADER: prove(b"guessed", "broker.control.halt", body)}
    assert (await ask(guarded, "broker.control.halt", body, other))[0] == "403"
    assert (await ask(guarded, "broker.control.resume", body, proof))[0] == "403"  # of another subject
    assert (await ask(guarded, "broker.control.halt", body, proof))[0] == ""
    assert (await ask(guarded, "broker.control.halt", body, proof))[0] == "403"  # seen before
    assert guarded.cli("resume", "--reason", "a mistake").returncode == 0


async def test_while_the_terminal_is_cut_off_queries_say_not_connected(guarded):
    guarded.cli("sim", "cut", "30s")
    try:
        code, told = await ask(guarded, "broker.query.account")
        assert (code, told["reasons"]) == ("503", ["not connected: the terminal is not connected to its broker"])
        assert (await ask(guarded, "broker.query.tick", {"symbol": "EURUSD"}))[0] == "503"
    finally:
        guarded.cli("sim", "cut", "off")


async def test_an_operator_has_it_connected_again_or_is_told_why_not(guarded):
    assert guarded.cli("reconnect", "--reason", "drill").stdout == "connected to the broker\n"
    guarded.cli("sim", "cut", "30s")
    refused = guarded.cli("reconnect", "--reason", "drill")
    assert refused.stderr == "order-ledger: not connected: the terminal is not connected to its broker\n"
    guarded.cli("sim", "cut", "off")
    assert guarded.cli("reconnect", "--reason", "drill").returncode == 0
    calls = [one["data"] for one in account_events(guarded, "account.control_received")]
    assert [one["command"] for one in calls[-3:]] == ["reconnect"] * 3


def test_without_a_gateway_the_ledger_alone_is_changed_under_the_writers_lock(tmp_path):
    with serving(tmp_path) as service:
        asyncio.run(fill(service, "alone-1"))
        service.kill()
        halted = service.cli("halt", "--reason", "broken", "--by", "ann")
        assert halted.stdout.splitlines()[0] == "trading is halted"
        refused = service.cli("close-all", "--reason", "now")
        assert (refused.returncode, "no gateway runs" in refused.stderr) == (1, True)
        settled = service.cli("resolve", "alone-1", "--as", "absent", "--reason", "I looked")
        assert settled.stderr == "order-ledger: order alone-1 is filled: only an unknown outcome can be resolved\n"
        service.start()
        _, account = asyncio.run(ask(service, "broker.query.account"))
        assert account["halts"] == [{"source": "operator", "reason": "broken", "by": "ann"}]
        assert service.cli("verify").returncode == 0


async def test_an_operators_word_settles_an_unknown_outcome_with_who_and_why(tmp_path):
    # The reply is lost after the effect, and the broker shows no orders: evidence cannot decide.
    faults = "order_send:lost=-10002*1; orders_get:error=-1"
    with serving(tmp_path, SIMULATED_FAULTS=faults) as service:
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("word-1"))
            await listener.wait_for(lambda _, body: body.get("category") == "unknown")
            ticketless = service.cli("resolve", "word-1", "--as", "found", "--reason", "I see it")
            assert "order_ticket is missing" in ticketless.stderr
            settled = service.cli("resolve", "word-1", "--as", "abandoned", "--reason", "nobody knows", "--by", "ann")
            assert settled.stdout == "order word-1 is failed\n"
            _, told = await listener.final("word-1")
        assert (told["status"], told["category"]) == ("FAILED", "unknown")
        events = orjson.loads(service.cli("history", "word-1", "--json").stdout)
    (resolved,) = [one["data"] for one in events if one["topic"] == "order.outcome_resolved"]
    assert (resolved["by"], resolved["evidence"]) == ("operator", "ann: nobody knows")


async def test_an_order_made_by_hand_that_an_operator_names_is_counted_once_in_the_tables(tmp_path):
    with serving(tmp_path, SIMULATED_FAULTS="order_send:error=-10002*1", SERVER_TIMEOUT_S="60") as service:
        async with Listener(service.info["nats_url"]) as listener:
            await listener.send(market_order("word-1"))
            await listener.wait_for(lambda _, body: body.get("category") == "unknown")
            wrong = service.cli("resolve", "word-1", "--as", "found", "--ticket", "4711", "--reason", "I see it")
            assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
            assert wrong.stderr.startswith("order-ledger: the broker knows no order 4711: name the ticket")
            made = orjson.loads(service.cli("sim", "trade", "buy", "EURUSD", "0.01", "--json").stdout)
            await listener.wait_for(lambda _, body: body.get("event") == "account.external_deal_observed")
            service.cli("resolve", "word-1", "--as", "found", "--ticket", str(made["order"]), "--reason", "by hand")
            _, told = await listener.final("word-1")
        assert (told["status"], str(made["deal"]) in told["description"]) == ("CANCELLED", True)
        await until(lambda: service.cli("verify", "--clickhouse").returncode == 0)  # the tables follow
        counted = "SELECT deal, sum(fill_quantity) AS lots FROM executions FINAL GROUP BY deal"
        assert orjson.loads(service.cli("sql", counted, "--json").stdout) == [{"deal": made["deal"], "lots": 0.01}]
        held = "SELECT sum(quantity) AS lots FROM positions FINAL WHERE position_status = 'open'"
        assert orjson.loads(service.cli("sql", held, "--json").stdout) == [{"lots": 0.01}]
