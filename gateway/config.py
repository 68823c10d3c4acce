"""Settings: flags over environment over safe defaults, validated as one frozen value.

Every problem is reported at once, with the name of the variable. Secrets come from the environment only and are
kept in `Secret`, which prints as dots wherever it is formatted.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from gateway.simulated.faults import BadFaults, parse
from gateway.validate import Limits
from ledger.plan import Policy
from ledger.values import Refused, parse_decimal

DEFAULT_DATA: Final = "./.order-ledger"
OFF: Final = "off"


class ConfigurationError(Exception):
    """One line per problem."""


class Secret:
    """A text that never shows itself. `reveal()` is called where it is used, and nowhere else."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "••••" if self._text else "(none)"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the service runs by. `None` for a part means: the embedded one."""

    data: Path
    mode: str = "embedded"
    instance_id: str = "1"
    log_level: str = "info"
    real_time: str = "auto"

    nats_url: Secret | None = None
    nats_port: int = 4222
    nats_user: str = ""
    nats_password: Secret = Secret("")
    nats_token: Secret = Secret("")
    nats_nkey: Secret = Secret("")
    nats_creds: str = ""
    nats_tls_ca: str = ""
    nats_tls_cert: str = ""
    nats_tls_key: str = ""
    nats_monitor_url: Secret = Secret("")
    nats_news: str = "own"
    max_ack_pending: int = 2_000
    take_unaddressed: bool = True
    control: bool = False
    ledger_url: Secret
    kafka_brokers: str | None = None
    kafka_replication: int = 0  # of topics that are made: 0 is up to three, by the number of brokers
    clickhouse_url: Secret | None = None
    clickhouse_database: str = "suho_analytics"
    clickhouse_cluster: str = ""
    clickhouse_user: str = "default"
    clickhouse_password: Secret = Secret("")
    clickhouse_http_port: int = 8123

    terminal: str = "simulated"
    mt5_login: int = 0
    mt5_server: str = ""
    mt5_path: str = ""
    mt5_portable: bool = False  # the terminal keeps its data in its own folder
    mt5_password: Secret = Secret("")
    mt5linux_host: str = "127.0.0.1"
    mt5linux_port: int = 18812
    mt5linux_query_port: int = 0  # of a second server, which queries then do not share with sends; 0: the same one
    simulated_seed: int = 1
    simulated_faults: str = ""

    seal_key: Secret | None = None
    seal_sign_every_s: float = 60.0
    seal_sign_every_seals: int = 1_000

    policy: Policy = Policy()
    limits: Limits = Limits()
    halt: str = ""
    halt_cancel_orders: bool = False
    heartbeat_timeout_s: float = 0.0
    heartbeat_subject: str = "orders.heartbeat"
    slow_broker_s: Decimal = Decimal(1)
    slippage_report_pips: Decimal = Decimal(3)
    slippage_alert_pips: Decimal = Decimal(5)
    unresolved_alert_s: float = 60.0
    call_deadline_s: float = 10.0
    not_after_s: float = 2.0
    server_timeout_s: float = 5.0
    default_deviation_points: int = 20
    max_requests_per_s: int = 0  # to the terminal; 0: no limit
    auto_reconnect: bool = True
    reconnect_interval_s: float = 30.0
    connection_check_s: float = 1.0
    poll_interval_s: float = 1.0
    deal_overlap_s: float = 5.0

    @property
    def settle_s(self) -> float:
        """How long after the first complete probe an absence is proof: nothing can arrive any more."""
        return self.not_after_s + self.call_deadline_s + self.server_timeout_s + 0.5


def described(settings: Settings) -> dict[str, str]:
    """Every setting by its path, as text for the record. Of a secret only whether it is set; of a URL what may be
    shown."""
    found: dict[str, str] = {}
    for name in Settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Policy | Limits):
            found |= {f"{name}.{field}": _shown(getattr(value, field)) for field in value.__struct_fields__}
        elif isinstance(value, Secret):
            shown = safe_url(value.reveal()) if name.endswith("_url") else ""
            found[name] = shown if shown not in ("", "(unreadable)") else repr(value)
        elif value is not None:
            found[name] = str(value)
    return found


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def version_of(settings: Settings) -> tuple[str, str]:
    """The version of the settings that stands in every event (12 digits of their digest), and the digest: SHA-256
    over what `described` says, so the same settings have the same version everywhere."""
    text = "\n".join(f"{name}={value}" for name, value in sorted(described(settings).items()))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return digest[:12], digest


def _number(kind: type, low: float, high: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"must be a number, not {text[:40]!r}") from None
        if not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g}, not {text[:40]}")
        return value

    return read


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}, not {text[:40]!r}")
        return text.lower()

    return read


def _switch(text: str) -> bool:
    return _one_of("true", "false", "1", "0", "on", "off")(text) in ("true", "1", "on")


def _faults(text: str) -> str:
    """As the simulated terminal reads it, from the same environment."""
    try:
        parse(text)
    except BadFaults as error:
        raise ValueError(str(error)) from None
    return text


def _amount(low: str, high: str) -> Callable[[str], Decimal]:
    def read(text: str) -> Decimal:
        try:
            value = parse_decimal(text)
        except Refused:
            raise ValueError(f"must be a number, not {text[:40]!r}") from None
        if not Decimal(low) <= value <= Decimal(high):
            raise ValueError(f"must be from {low} to {high}, not {text[:40]}")
        return value

    return read


def _names(text: str) -> tuple[str, ...]:
    return tuple(one for one in (part.strip() for part in text.split(",")) if one)


def _file(text: str) -> str:
    """A file that the service can read; what is in it does not matter yet."""
    path = Path(text).expanduser()
    try:
        with path.open("rb"):
            return str(path)
    except (OSError, ValueError):
        raise ValueError(f"names {text[:200]!r}, which is no readable file") from None


def _subject(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", text):
        raise ValueError(f"must be one subject without wildcards, not {text[:60]!r}")
    return text


_port = _number(int, 0, 65535)
_seconds = _number(float, 0, 86_400)
_lots = _amount("0", "1000000")

# Environment variable -> (field, reader). The fields of Policy and Limits are reached by "policy." and "limits.".
VARIABLES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "MODE": ("mode", _one_of("embedded", "production")),
    "INSTANCE_ID": ("instance_id", str),
    "LOG_LEVEL": ("log_level", _one_of("debug", "info", "warning", "error")),
    "REAL_TIME": ("real_time", _one_of("auto", "on", "off")),
    "NATS_URL": ("nats_url", Secret),
    "NATS_PORT": ("nats_port", _port),
    "NATS_USER": ("nats_user", str),
    "NATS_PASSWORD": ("nats_password", Secret),
    "NATS_TOKEN": ("nats_token", Secret),
    "NATS_NKEY": ("nats_nkey", Secret),
    "NATS_CREDS": ("nats_creds", _file),
    "NATS_TLS_CA": ("nats_tls_ca", _file),
    "NATS_TLS_CERT": ("nats_tls_cert", _file),
    "NATS_TLS_KEY": ("nats_tls_key", _file),
    "NATS_MONITOR_URL": ("nats_monitor_url", Secret),
    "NATS_NEWS": ("nats_news", _one_of("own", "shared")),
    "MAX_ACK_PENDING": ("max_ack_pending", _number(int, 1, 100_000)),
    "TAKE_UNADDRESSED": ("take_unaddressed", _switch),
    "BROKER_CONTROL": ("control", _switch),
    "LEDGER_URL": ("ledger_url", Secret),
    "KAFKA_BROKERS": ("kafka_brokers", str),
    "KAFKA_REPLICATION_FACTOR": ("kafka_replication", _number(int, 0, 100)),
    "CLICKHOUSE_URL": ("clickhouse_url", Secret),
    "CLICKHOUSE_DATABASE": ("clickhouse_database", str),
    "CLICKHOUSE_CLUSTER": ("clickhouse_cluster", str),
    "CLICKHOUSE_USER": ("clickhouse_user", str),
    "CLICKHOUSE_PASSWORD": ("clickhouse_password", Secret),
    "CLICKHOUSE_HTTP_PORT": ("clickhouse_http_port", _port),
    "TERMINAL": ("terminal", _one_of("simulated", "native", "mt5linux")),
    "MT5_LOGIN": ("mt5_login", _number(int, 0, 2**63 - 1)),
    "MT5_SERVER": ("mt5_server", str),
    "MT5_PATH": ("mt5_path", str),
    "MT5_PORTABLE": ("mt5_portable", _switch),
    "MT5_PASSWORD": ("mt5_password", Secret),
    "MT5LINUX_HOST": ("mt5linux_host", str),
    "MT5LINUX_PORT": ("mt5linux_port", _number(int, 1, 65535)),
    "MT5LINUX_QUERY_PORT": ("mt5linux_query_port", _port),
    "SIMULATED_FAULTS": ("simulated_faults", _faults),
    "SIMULATED_SEED": ("simulated_seed", _number(int, 0, 2**63 - 1)),
    "SEAL_KEY": ("seal_key", Secret),
    "SEAL_SIGN_EVERY_S": ("seal_sign_every_s", _number(float, 0.1, 86_400)),
    "SEAL_SIGN_EVERY_SEALS": ("seal_sign_every_seals", _number(int, 1, 1_000_000)),
    "VALIDATE_BEFORE_SEND": ("policy.validate_before_send", _switch),
    "MAX_ORDER_AGE_S": ("policy.max_order_age_s", _seconds),
    "MAX_ORDER_LIFE_S": ("policy.max_order_life_s", _seconds),
    "MAX_RETRIES": ("policy.max_retries", _number(int, 0, 100)),
    "RETRY_DELAY_S": ("policy.retry_delay_s", _seconds),
    "PARK_RECHECK_S": ("policy.park_recheck_s", _number(float, 0.1, 86_400)),
    "RESEND_AFTER_PROVEN_ABSENCE": ("policy.resend_after_proven_absence", _switch),
    "LIMIT_SYMBOLS": ("limits.symbols", _names),
    "LIMIT_MIN_VOLUME": ("limits.min_volume", _lots),
    "LIMIT_MAX_VOLUME": ("limits.max_volume", _lots),
    "LIMIT_OPEN_POSITIONS": ("limits.open_positions", _number(int, 0, 1_000_000)),
    "LIMIT_ORDERS_PER_MINUTE": ("limits.orders_per_minute", _number(int, 0, 1_000_000)),
    "LIMIT_PRICE_COLLAR_PERCENT": ("limits.price_collar_percent", _amount("0", "100")),
    "LIMIT_REQUIRE_SL": ("limits.require_sl", _switch),
    "LIMIT_REQUIRE_TP": ("limits.require_tp", _switch),
    "LIMIT_DAILY_LOSS": ("limits.daily_loss", _amount("0", "9999999999")),
    "MAX_QUOTE_AGE_S": ("limits.max_quote_age_s", _seconds),
    "HALT": ("halt", str),
    "HALT_CANCEL_ORDERS": ("halt_cancel_orders", _switch),
    "HEARTBEAT_TIMEOUT_S": ("heartbeat_timeout_s", _seconds),
    "HEARTBEAT_SUBJECT": ("heartbeat_subject", _subject),
    "SLOW_BROKER_S": ("slow_broker_s", _amount("0", "600")),
    "SLIPPAGE_REPORT_PIPS": ("slippage_report_pips", _amount("0", "100000")),
    "SLIPPAGE_ALERT_PIPS": ("slippage_alert_pips", _amount("0", "100000")),
    "UNRESOLVED_ALERT_S": ("unresolved_alert_s", _seconds),
    "CALL_DEADLINE_S": ("call_deadline_s", _number(float, 0.1, 600)),
    "NOT_AFTER_S": ("not_after_s", _number(float, 0.1, 2)),
    "SERVER_TIMEOUT_S": ("server_timeout_s", _number(float, 0, 600)),
    "DEFAULT_DEVIATION_POINTS": ("default_deviation_points", _number(int, 0, 1_000_000)),
    "MAX_REQUESTS_PER_S": ("max_requests_per_s", _number(int, 0, 100_000)),
    "AUTO_RECONNECT": ("auto_reconnect", _switch),
    "RECONNECT_INTERVAL_S": ("reconnect_interval_s", _number(float, 0.1, 86_400)),
    "CONNECTION_CHECK_S": ("connection_check_s", _number(float, 0.05, 60)),
    "POLL_INTERVAL_S": ("poll_interval_s", _number(float, 0.05, 3_600)),
    "DEAL_OVERLAP_S": ("deal_overlap_s", _number(float, 1, 86_400)),
}


def load(flags: Mapping[str, str | None], env: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a command. `flags`: variable name (or `data`) → text, None where not given.

    Raises ConfigurationError with one line per problem.
    """
    given = {name: text for name, text in env.items() if name in VARIABLES and text != ""}
    given |= {name: text for name, text in flags.items() if name in VARIABLES and text is not None}
    if "CLICKHOUSE_URL" not in given and env.get("CLICKHOUSE_HOST"):
        given["CLICKHOUSE_URL"] = f"http://{env['CLICKHOUSE_HOST']}:{env.get('CLICKHOUSE_PORT') or '8123'}"
    data = Path(flags.get("data") or env.get("ORDER_LEDGER_DATA") or DEFAULT_DATA).expanduser().absolute()
    values: dict[str, Any] = {"data": data, "ledger_url": Secret(f"sqlite:///{data / 'ledger.db'}")}
    nested: dict[str, dict[str, Any]] = {"policy": {}, "limits": {}}
    problems = []
    for name, text in given.items():
        field, read = VARIABLES[name]
        try:
            value = read(text)
        except ValueError as error:
            problems.append(f"{name} {error}")
            continue
        group, _, inner = field.rpartition(".")
        (nested[group] if group else values)[inner] = value
    settings = Settings(**values, policy=Policy(**nested["policy"]), limits=Limits(**nested["limits"]))
    problems.extend(_objections(settings))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


def _objections(settings: Settings) -> list[str]:
    problems = []
    for one in settings.nats_url.reveal().split(",") if settings.nats_url else []:
        if not _is_readable(one.strip(), ("nats", "tls", "ws", "wss")):
            problems.append("NATS_URL must be nats://[user:password@]host[:port], or a comma list (encode / @ : in it)")
    if (settings.nats_tls_cert == "") != (settings.nats_tls_key == ""):
        problems.append("NATS_TLS_CERT and NATS_TLS_KEY belong together: name both files or neither")
    ways = {
        "NATS_USER": settings.nats_user,
        "NATS_TOKEN": settings.nats_token,
        "NATS_NKEY": settings.nats_nkey,
        "NATS_CREDS": settings.nats_creds,
    }
    if len(given := [name for name, value in ways.items() if value]) > 1:
        problems.append(f"{' and '.join(given)} are different ways to log in to NATS: set one of them")
    if settings.nats_password and not settings.nats_user:
        problems.append("NATS_PASSWORD needs NATS_USER")
    ledger_url = settings.ledger_url.reveal()
    if not ledger_url.startswith("sqlite:///") and not _is_readable(ledger_url, ("postgresql", "postgres")):
        problems.append(
            "LEDGER_URL must be sqlite:///file or postgresql://user:password@host/database (encode / @ : in it)"
        )
    clickhouse = settings.clickhouse_url.reveal() if settings.clickhouse_url else OFF
    if clickhouse != OFF and not _is_readable(clickhouse, ("http", "https")):
        problems.append(
            "CLICKHOUSE_URL must be http://[user:password@]host[:port], https://… or off (encode / @ : in it)"
        )
    if settings.terminal != "simulated":
        if not settings.mt5_login:
            problems.append(f"MT5_LOGIN is needed with TERMINAL={settings.terminal}")
        if not settings.mt5_server:
            problems.append(f"MT5_SERVER is needed with TERMINAL={settings.terminal}")
    if settings.terminal == "native" and not settings.mt5_path:
        problems.append("MT5_PATH is needed with TERMINAL=native: without it any terminal of this machine may answer")
    if settings.mode == "production":
        named = {
            "NATS_URL names the message bus": settings.nats_url is None,
            "LEDGER_URL names the ledger": settings.ledger_url.reveal().startswith(f"sqlite:///{settings.data}"),
            "KAFKA_BROKERS names the audit log (or off)": settings.kafka_brokers is None,
            "CLICKHOUSE_URL names the projections (or off)": settings.clickhouse_url is None,
            "TERMINAL names the broker's terminal": settings.terminal == "simulated",
            "SEAL_KEY holds the key that signs the ledger": settings.seal_key is None,
        }
        problems.extend(f"MODE=production takes no stand-in: {what}" for what, missing in named.items() if missing)
    return problems


def safe_url(url: str) -> str:
    """The URL without user, password and query, for people and logs; what cannot be read is not shown at all."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(unreadable)"
    if url == OFF:
        return url
    if not parts.scheme or not host or "@" in parts.path:
        return "(unreadable)"
    return urlunsplit((parts.scheme, f"{host}:{port}" if port else host, parts.path, "", ""))


def _is_readable(url: str, schemes: tuple[str, ...]) -> bool:
    return urlsplit(url).scheme in schemes and safe_url(url) != "(unreadable)"
