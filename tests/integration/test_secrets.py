"""I8: no secret in any output. The demo's orders, with a mark in every setting that is a secret."""

import asyncio
import base64
import subprocess
from pathlib import Path
from typing import get_args, get_type_hints
from urllib.parse import quote

import nats
import orjson
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.client import order_id_of
from gateway.config import Settings, described, load
from gateway.demo import samples
from gateway.secret import Secret
from gateway.variables import VARIABLES
from tests.nats_logins import USER as SEED
from tests.nats_logins import public
from tests.nats_server import nats_server
from tests.servers import postgres_server
from tests.service import STOP_S, Service, run_cli

KEY = Ed25519PrivateKey.generate().private_bytes_raw()
# What reaches nothing, so that errors are told: of these the text is most likely to hold what it should not.
AWAY = "127.0.0.1:1"
MARKS = {
    name: f"Mark-{name.lower().replace('_', '-')}-7fQ2"
    for name in (
        "MT5_PASSWORD", "NATS_PASSWORD", "NATS_TOKEN", "NATS_URL", "NATS_MONITOR_URL", "CLICKHOUSE_PASSWORD",
        "CLICKHOUSE_URL", "KAFKA_SASL_PASSWORD", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS",
        "AUDITOR_TOKENS", "OPERATOR_TOKENS", "LEDGER_URL", "CENTRAL_HUB_URL", "CENTRAL_HUB_API_KEY",
    )
}  # fmt: skip
BASE = {
    "SEAL_KEY": KEY.hex(),
    "MT5_PASSWORD": MARKS["MT5_PASSWORD"],
    "NATS_MONITOR_URL": f"http://u:{MARKS['NATS_MONITOR_URL']}@{AWAY}/?t={MARKS['NATS_MONITOR_URL']}",
    "CLICKHOUSE_URL": f"http://u:{MARKS['CLICKHOUSE_URL']}@{AWAY}",
    "CLICKHOUSE_PASSWORD": MARKS["CLICKHOUSE_PASSWORD"],
    "KAFKA_BROKERS": AWAY,
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "gateway",
    "KAFKA_SASL_PASSWORD": MARKS["KAFKA_SASL_PASSWORD"],
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:{MARKS['OTEL_EXPORTER_OTLP_ENDPOINT']}@{AWAY}",
    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={MARKS['OTEL_EXPORTER_OTLP_HEADERS']}",
    "CENTRAL_HUB_URL": f"http://u:{MARKS['CENTRAL_HUB_URL']}@{AWAY}",
    "CENTRAL_HUB_API_KEY": MARKS["CENTRAL_HUB_API_KEY"],
    "AUDITOR_TOKENS": MARKS["AUDITOR_TOKENS"],
    "OPERATOR_TOKENS": MARKS["OPERATOR_TOKENS"],
    "BROKER_CONTROL": "on",
    "LOG_ALL_COMMUNICATIONS": "on",
    "LOG_LEVEL": "debug",
}
USER, TOKEN = MARKS["NATS_PASSWORD"], MARKS["NATS_TOKEN"]
IN_URL = MARKS["NATS_URL"]
# The ways to log in to NATS exclude each other.
LOGINS = {
    "user": (f"authorization {{ user: gw, password: '{USER}' }}", {"NATS_USER": "gw", "NATS_PASSWORD": USER}),
    "token": (f"authorization {{ token: '{TOKEN}' }}", {"NATS_TOKEN": TOKEN}),
    "url": (f"authorization {{ user: gw, password: '{IN_URL}' }}", {}),
    "nkey": (f"authorization {{ users: [ {{ nkey: {public(SEED)} }} ] }}", {"NATS_NKEY": SEED.decode()}),
}


ASKED = (
    "broker.query.account", "broker.query.positions", "$SRV.INFO.mt5-connector", "$SRV.STATS.mt5-connector",
)  # fmt: skip
PATHS = (
    "/health", "/readyz", "/metrics", "/openapi.json", "/api/v1/orders", "/api/v1/orders/demo-01",
    "/api/v1/orders/demo-01?stored=true", "/api/v1/positions", "/api/v1/verification",
)  # fmt: skip
DOCTOR = (["doctor", "--json"], ["doctor", "--checklist"])
COMMANDS = (["verify", "--json"], ["orders", "--json"], ["history", "demo-01", "--json"], ["sql", "SELECT 1"])


def shapes(secret: str | bytes) -> set[bytes]:
    """The secret as it may stand in a text: itself, encoded, in hexadecimal."""
    plain = secret if isinstance(secret, bytes) else secret.encode()
    found = {
        plain,
        plain.hex().encode(),
        base64.b64encode(plain).rstrip(b"="),
        base64.urlsafe_b64encode(plain).rstrip(b"="),
    }
    return found | ({quote(secret, safe="").encode()} if isinstance(secret, str) else set())


SEARCHED = {name: shapes(mark) for name, mark in MARKS.items()}
SEARCHED |= {"SEAL_KEY": shapes(KEY), "NATS_NKEY": shapes(SEED.decode())}


def leaks(data: bytes) -> set[str]:
    return {name for name, found in SEARCHED.items() if any(one in data for one in found)}


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arguments(group: int) -> bytes:
    """The command lines of the service's processes."""
    found = b""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text().rpartition(")")[2].split()
            if group in (int(status[1]), int(status[2])) or int(process.name) == group:
                found += (process / "cmdline").read_bytes() + b"\n"
        except (OSError, ValueError):
            continue
    return found


async def talk(url: str, login: dict[str, str]) -> bytes:
    """Sends the demo's orders and asks; everything that was said on NATS until all of them had their outcome."""
    heard, waiting, done = [], {order_id_of(one.payload) for one in samples()} - {None}, asyncio.Event()

    async def take(message):
        heard.append(message.subject.encode() + repr(message.headers).encode() + message.data)
        if message.subject.startswith("broker."):
            told = orjson.loads(message.data or b"{}")
            if told.get("final"):
                waiting.discard(told.get("order_id"))
        if not waiting:
            done.set()

    options = {"user": login.get("NATS_USER"), "password": login.get("NATS_PASSWORD"), "token": login.get("NATS_TOKEN")}
    options |= {"nkeys_seed_str": login.get("NATS_NKEY")}
    connection = await nats.connect(url, **{name: value for name, value in options.items() if value})
    try:
        await connection.subscribe(">", cb=take)
        await connection.flush()
        for sample in samples():
            await connection.jetstream().publish("orders.submitted.EURUSD", sample.payload)
        for subject in ASKED:
            await connection.request(subject, b"", timeout=10)
        async with asyncio.timeout(30):
            await done.wait()
    finally:
        await connection.close()
    return b"\n".join(heard)


@pytest.mark.parametrize("login", LOGINS)
def test_no_secret_is_in_any_file_event_message_log_answer_or_argument(tmp_path, login):
    config, settings = LOGINS[login]
    (tmp_path / "nats").mkdir()
    with nats_server(tmp_path / "nats", config) as server:
        url = server.url.replace("//", f"//gw:{IN_URL}@") if login == "url" else server.url
        folder = tmp_path / "data"
        service = Service(folder, **BASE, **settings, NATS_URL=url)
        try:
            service.start()
            seen = {"output": service.output.encode(), "arguments": arguments(service.pid)}
            seen["messages"] = asyncio.run(talk(url, settings))
            for path in PATHS:
                for name in (None, "AUDITOR_TOKENS", "OPERATOR_TOKENS"):
                    headers = {"Authorization": f"Bearer {MARKS[name]}"} if name else {}
                    answer = requests.get(service.info["http_url"] + path, headers=headers, timeout=20)
                    seen[f"HTTP {path} {name}"] = repr(dict(answer.headers)).encode() + answer.content
            for command in COMMANDS + (DOCTOR if login == "user" else ()):
                done = told(service, *command)
                seen[" ".join(command)] = done.stdout.encode() + done.stderr.encode()
            assert service.stop() < STOP_S
            seen["log"] = service.log().encode()
        finally:
            service.end()
        files = every_file(folder) | every_file(tmp_path / "nats" / "js")
        assert any(b"account.configuration_accepted" in data for name, data in files.items() if "ledger.db" in name)
        assert b"order.broker_answered" in seen["log"]
        found = {where: leaks(data) for where, data in (seen | files).items()}
        assert {where: names for where, names in found.items() if names} == {}


def told(service: Service, *command: str) -> subprocess.CompletedProcess:
    """A command with the secrets in its environment too."""
    kept = {name: text for name, text in service.environment.items() if name in VARIABLES or name.startswith("KAFKA_")}
    return run_cli(*command, "--data", str(service.folder), **kept)


def test_the_password_of_the_ledgers_database_is_nowhere_either(tmp_path):
    with postgres_server() as url:
        secret = url.replace("@", f":{MARKS['LEDGER_URL']}@", 1) if ":" not in url[13:].split("@")[0] else url
        service = Service(tmp_path / "data", LEDGER_URL=secret, OPERATOR_TOKENS=MARKS["OPERATOR_TOKENS"])
        try:
            service.start()
            seen = {"output": service.output.encode(), "arguments": arguments(service.pid)}
            headers = {"Authorization": f"Bearer {MARKS['OPERATOR_TOKENS']}"}
            for path in ("/health", "/api/v1/orders", "/api/v1/verification"):
                answer = requests.get(service.info["http_url"] + path, headers=headers, timeout=20)
                assert answer.status_code == 200
                seen[path] = answer.content
            done = told(service, "verify", "--json")
            assert done.returncode == 0, done.stderr
            seen["verify"] = done.stdout.encode() + done.stderr.encode()
            seen |= every_file(service.folder)
            service.stop()
        finally:
            service.end()
    assert {where: names for where, data in seen.items() if (names := leaks(data))} == {}


def test_every_secret_setting_is_given_with_its_mark_and_searched_for():
    """A new one needs its mark above."""
    hints = get_type_hints(Settings)
    fields = {name for name, hint in hints.items() if Secret in (hint, *get_args(hint))}
    secrets = {variable for variable, (field, _) in VARIABLES.items() if field in fields}
    assert len(secrets) == len(fields)
    given = BASE | {"NATS_URL": IN_URL, "LEDGER_URL": MARKS["LEDGER_URL"]}
    for _, login in LOGINS.values():
        given |= login
    outside = {"KAFKA_SASL_PASSWORD", "OTEL_EXPORTER_OTLP_HEADERS"}  # of clients that read the environment themselves
    assert {name: name in leaks(given[name].encode()) for name in secrets | outside} == dict.fromkeys(
        secrets | outside, True
    )


def test_no_setting_that_sounds_like_a_secret_is_anything_else():
    words = ("password", "token", "secret", "key", "credential")
    named = {name for name in get_type_hints(Settings) if any(word in name for word in words)}
    fields = {field for field, read in VARIABLES.values() if read is Secret}
    assert named - fields == {"nats_tls_key"}  # the name of a file


def test_a_wrong_setting_is_told_without_the_secret():
    bad = {
        "NATS_URL": f"http://u:{IN_URL}@h", "LEDGER_URL": f"mysql://u:{IN_URL}@h", "CLICKHOUSE_URL": f"x://u:{IN_URL}@h",
        "OPERATOR_TOKENS": "Mark-short", "OTEL_EXPORTER_OTLP_ENDPOINT": f"ftp://{IN_URL}", "MODE": "production",
    }  # fmt: skip
    done = run_cli("serve", **bad)
    assert done.returncode != 0
    assert leaks((done.stdout + done.stderr).encode()) == set()
    assert "Mark-" not in done.stdout + done.stderr


def test_a_secret_of_the_settings_does_not_show_in_what_is_recorded():
    settings = load({}, BASE | {"LEDGER_URL": f"postgresql://u:{IN_URL}@h/d?password={IN_URL}"})
    assert leaks(repr((settings, described(settings))).encode()) == set()
