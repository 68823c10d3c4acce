"""The HTTP interface: who may ask what, what it answers, and what hostile requests do to it."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from random import Random

import pytest

from gateway.config import SERVICE_PORT, ConfigurationError, load
from gateway.embedded import StartFailed
from gateway.health import Part
from gateway.http import MAX_CONNECTIONS
from gateway.http_guard import FAILURES_ALLOWED
from ledger.account_events import TradingResumed
from ledger.errors import LedgerFenced
from ledger.store import open_store
from ledger.writer import Ledger
from tests.http_server import AUDITOR, OPERATOR, TOKENS, http_server
from tests.ledgers import CAUSE, clock, write_ledger

READ = ["/api/v1/orders", "/api/v1/orders/o-0", "/api/v1/positions", "/api/v1/verification"]
OPEN = ["/health", "/livez", "/openapi.json"]
REFUSED = {"nobody": 401, "a wrong token": 401, "an ended token": 401}
# Everybody but those of `REFUSED`, by what is asked: who gets which status.
MAY = {
    **{path: {"auditor": 200, "operator": 200, "both": 200} for path in READ},
    "/api/v1/orders/o-0?stored=true": {"auditor": 200, "operator": 403, "both": 200},
    "/metrics": {"auditor": 403, "operator": 200, "both": 200},
    "POST /api/v1/verification": {"auditor": 202, "operator": 202, "both": 202},
    **{path: {"nobody": 200, "auditor": 200, "operator": 200, "both": 200} for path in OPEN},
    "/readyz": {"nobody": 503, "auditor": 503, "operator": 503, "both": 503},  # without the rest of the service
}
CELLS = [(what, who, status) for what, row in MAY.items() for who, status in (REFUSED | row).items()]


@pytest.fixture
async def folder(tmp_path):
    random = Random(7)
    await write_ledger(tmp_path, 16, clock(random, set_back=False), random)
    return tmp_path


async def test_the_table_of_who_may_do_what(folder):
    wrong = {}
    for who in dict.fromkeys(who for _, who, _ in CELLS):
        mine = [(what, status) for what, one, status in CELLS if one == who]
        for start in range(0, len(mine), FAILURES_ALLOWED):
            async with http_server(folder, **TOKENS) as http:
                for what, status in mine[start : start + FAILURES_ALLOWED]:
                    method, _, path = what.rpartition(" ")
                    found = await http.ask(path, who, method or "GET")
                    if found[0] != status:
                        wrong[what, who] = found
    assert not wrong


async def test_an_order_is_shown_as_the_ledger_holds_it(folder):
    async with http_server(folder) as http:
        status, found = await http.ask("/api/v1/orders/o-1?stored=true")
        assert status == 200
        assert found["state"]["status"] == "filled"
        assert [event["version"] for event in found["events"]] == list(range(1, len(found["events"]) + 1))
        assert '"order.requested"' in found["events"][0]["stored"]
        middle = found["events"][2]["recorded_at"]
        status, then = await http.ask(f"/api/v1/orders/o-1?as_of={middle}")
        assert (len(then["events"]), then["later_events"]) == (3, len(found["events"]) - 3)
        assert (await http.ask("/api/v1/orders/no-such"))[0] == 404


async def test_the_pages_of_orders_hold_every_order_once(folder):
    async with http_server(folder) as http:
        seen, path = [], "/api/v1/orders?limit=5"
        while path:
            _, page = await http.ask(path)
            seen += [one["order_id"] for one in page["orders"]]
            path = page["next"] and f"/api/v1/orders?limit=5&before={page['next']}"
        assert sorted(seen) == sorted(f"o-{number}" for number in range(16))
        _, unknown = await http.ask("/api/v1/orders?state=unknown&open=true")
        assert {one["state"] for one in unknown["orders"]} == {"unknown"}
        assert (await http.ask("/api/v1/orders?since=2026-03-02&until=2026-02-27"))[0] == 400


async def test_positions_now_and_as_of(folder):
    async with http_server(folder) as http:
        _, now = await http.ask("/api/v1/positions")
        assert now["positions"]
        assert all(one["symbol"] == "EURUSD" and one["closed_at"] is None for one in now["positions"])
        _, before = await http.ask("/api/v1/positions?as_of=2026-02-28")
        assert before["positions"] == []
        _, one = await http.ask("/api/v1/positions?limit=1&by=broker")
        assert (one["by"], len(one["positions"]), one["truncated"]) == ("broker", 1, len(now["positions"]) > 1)
        assert one["positions"][0]["deals"] > 1


async def test_a_verification_names_the_first_bad_event(folder):
    import sqlite3

    async with http_server(folder) as http:
        assert (await http.ask("/api/v1/verification"))[1]["state"] == "never"
        assert (await http.ask("/api/v1/verification", method="POST"))[1]["state"] == "running"
        assert (await http.ask("/api/v1/verification", method="POST"))[0] == 409
        assert (await verified(http))["state"] == "sound"
    with sqlite3.connect(folder / "ledger.db") as database:
        database.execute("UPDATE stored_events SET state = replace(state, '2026-', '2025-') WHERE rowid = 3")
    database.close()
    async with http_server(folder) as http:
        told: list[int] = []
        http.observation.when_not_sound(lambda seq, _: told.append(seq))
        await http.ask("/api/v1/verification", method="POST")
        found = await verified(http)
        assert (found["state"], found["result"]["ok"]) == ("not_sound", False)
        assert found["result"]["first_bad_seq"] == 3
        assert told == [3]


async def verified(http):
    async with asyncio.timeout(20):
        while (found := (await http.ask("/api/v1/verification"))[1])["state"] == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return found


async def test_before_the_parts_are_there_it_lives_and_says_what_it_waits_for(tmp_path):
    async with http_server(tmp_path) as http:
        assert (await http.ask("/livez"))[0] == 200
        assert (await http.ask("/health"))[1]["status"] == "starting"
        status, found = await http.ask("/readyz")
        assert (status, found["waiting_for"]) == (503, ["ledger", "nats", "broker"])
        status, problem = await http.ask("/api/v1/orders")
        assert (status, problem["title"]) == (503, "Service Unavailable")


async def test_without_its_ledger_it_is_not_ready_and_says_why(tmp_path):
    async def writer(*, take_over: bool) -> Ledger:
        store = open_store(f"sqlite:///{tmp_path / 'ledger.db'}")
        look = clock(Random(7), set_back=False)
        return await Ledger.open(store, login=7, server="Demo", clock=look, build="test", take_over=take_over)

    async with http_server(tmp_path) as http:
        ledger, health = await writer(take_over=False), http.observation.health
        await http.observation.follow(ledger)
        for name in ("nats", "broker"):
            health.watch(name, lambda: Part(state="up", needed=True))
        health.taking_orders = True
        assert (await http.ask("/readyz"))[0] == 200
        other = await writer(take_over=True)
        with pytest.raises(LedgerFenced):
            await ledger.append("account/7", TradingResumed(source="operator"), CAUSE)
        status, found = await http.ask("/readyz")
        assert (status, found["status"], found["waiting_for"]) == (503, "unhealthy", ["ledger"])
        found = (await http.ask("/health"))[1]
        assert "another writer committed" in found["parts"]["ledger"]["detail"]
        for one in (ledger, other):
            await one.close()


async def test_whoever_has_no_token_learns_only_whether_it_works(tmp_path):
    async with http_server(tmp_path, INSTANCE_ID="desk-7", **TOKENS) as http:
        _, shown = await http.ask("/health")
        assert (shown["instance_id"], shown["account"], shown["ledger_id"]) == ("", None, None)
        assert {part["detail"] for part in shown["parts"].values()} == {""}
        assert (await http.ask("/health", "operator"))[1]["instance_id"] == "desk-7"


# --- hostile ----------------------------------------------------------------------------------------------------


async def test_after_ten_wrong_tokens_none_is_looked_at_any_more(tmp_path):
    async with http_server(tmp_path, **TOKENS) as http:
        for _ in range(FAILURES_ALLOWED):
            assert (await http.ask("/api/v1/verification", "a wrong token"))[0] == 401
        assert (await http.ask("/api/v1/verification", "a wrong token"))[0] == 429
        status, problem = await http.ask("/api/v1/verification", "auditor")
        assert (status, problem["detail"]) == (429, "too many wrong tokens")
        assert (await http.ask("/livez"))[0] == 200  # for which none is needed


async def test_who_asks_too_often_is_told_when_to_ask_again(tmp_path):
    async with http_server(tmp_path, HTTP_REQUESTS_PER_S="1") as http:
        answers = [await http.get("/livez") for _ in range(3)]
        assert [one.split(b" ")[1] for one in answers] == [b"200", b"200", b"429"]
        assert b"Retry-After: 1" in answers[2]
        assert b"Connection: close" in answers[2]


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/orders/../../../health",
        "/api/v1/orders/..%2f..%2f..%2fetc%2fpasswd",
        "/api/v1/orders/%2e%2e",
        "/api/v1/orders/o-0%00",
        "/api/v1/orders/o-0%0a%0dX:1",
        "/api/v1/orders/o-0;x=1",
        "/api/v1/orders/o-0/",
        "/api/v1/orders/%ff%fe",
        "/api/v1/orders/%zz",
        "/api/v1/orders/" + "a" * 65,
        "//health",
        "/HEALTH",
        "/..",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../etc/passwd",
        "*",
        "/?x=" + "y" * 8_000,
        "/api/v1/orders?limit=1%00",
        "/api/v1/orders?state=filled'--",
        "/api/v1/orders?symbol=" + "%0a" * 65,
    ],
)
async def test_no_path_leads_anywhere_else(folder, target):
    async with http_server(folder, **TOKENS) as http:
        answer = await http.get(target, f"Authorization: Bearer {AUDITOR}")
        status = int(answer.split(b" ")[1])
        assert 400 <= status < 500, answer
        assert b"root:" not in answer
        assert (await http.ask("/livez"))[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/verification HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 5_000 + b"\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["huge header", "many headers", "huge target", "negative", "two lengths", "TLS", "zeros", "HTTP/9.9", "HTTP/2"],
)
async def test_what_is_no_request_is_refused_and_the_server_goes_on(tmp_path, data):
    async with http_server(tmp_path) as http:
        answer = await http.raw(data)
        assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:200]
        assert (await http.ask("/livez"))[0] == 200


async def test_a_token_that_is_no_text_is_refused(tmp_path):
    async with http_server(tmp_path, **TOKENS) as http:
        answer = await http.get("/api/v1/orders", "Authorization: Bearer \udcff\udcfe")
        assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))


async def test_a_web_page_cannot_reach_loopback_by_a_name_of_its_own(tmp_path):
    async with http_server(tmp_path) as http:
        for host in ("evil.example", "127.0.0.1.evil.example:8014", "gateway"):
            answer = await http.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://127.0.0.1.evil.example"])
async def test_a_page_of_another_machine_can_ask_for_nothing(tmp_path, origin):
    async with http_server(tmp_path) as http:
        assert (await http.ask("/api/v1/verification", method="POST", Origin=origin))[0] == 403
        assert (await http.ask("/livez", Origin="http://localhost:3000"))[0] == 200


@pytest.mark.parametrize(("method", "path"), [("PUT", "/api/v1/orders"), ("DELETE", "/health"), ("OPTIONS", "/livez")])
async def test_another_method_is_told_which_may_be_used(tmp_path, method, path):
    async with http_server(tmp_path) as http:
        status, problem = await http.ask(path, method=method)
        assert (status, problem["status"]) == (405, 405)


async def test_connections_that_never_ask_do_not_keep_others_out_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.http.IDLE_S", 0.2)
    monkeypatch.setattr("gateway.http.LOOK_S", 0.05)
    async with http_server(tmp_path) as http:
        port = int(http.url.rpartition(":")[2])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_CONNECTIONS + 1)]
        for _, writer in held:
            writer.write(b"GET /livez HT")
        assert (await http.ask("/livez"))[0] == 503
        async with asyncio.timeout(10):
            for reader, writer in held:
                assert await reader.read() == b""
                writer.close()
        assert (await http.ask("/livez"))[0] == 200


# --- where it listens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "gateway.example"])
def test_beyond_loopback_it_does_not_listen_without_tokens(host):
    with pytest.raises(ConfigurationError, match="set OPERATOR_TOKENS or AUDITOR_TOKENS"):
        load({}, {"SERVICE_HOST": host})
    assert load({}, {"SERVICE_HOST": host} | TOKENS).service_host == host


def test_a_token_that_is_easy_to_guess_is_refused_and_not_shown():
    with pytest.raises(ConfigurationError, match="OPERATOR_TOKENS must be") as refused:
        load({}, {"OPERATOR_TOKENS": "hunter2"})
    assert "hunter2" not in str(refused.value)


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # by another program already
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


async def test_the_usual_port_gives_way_where_it_is_taken(tmp_path):
    with taken(SERVICE_PORT):
        async with http_server(tmp_path, SERVICE_PORT=str(SERVICE_PORT)) as http:
            assert not http.url.endswith(f":{SERVICE_PORT}")
            assert (await http.ask("/livez"))[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_port_that_is_taken_is_a_clear_error(tmp_path, host):
    async with http_server(tmp_path) as http:
        port = http.url.rpartition(":")[2]
        named = {"SERVICE_HOST": host, "SERVICE_PORT": port, "OPERATOR_TOKENS": OPERATOR}
        with pytest.raises(StartFailed, match=f"cannot listen on SERVICE_HOST {host}, SERVICE_PORT {port}"):
            async with http_server(tmp_path, **named):
                pass
