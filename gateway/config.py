"""Settings: flags over environment over Central Hub over TOML file over safe defaults, as one frozen value.

Every problem is reported at once, with the name of the variable or its path in the document. Secrets come from the
environment only and are kept in `Secret`, which prints as dots wherever it is formatted.
"""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec

from gateway.documents import Place, places, read_document
from gateway.http_guard import is_loopback, parse_tokens
from gateway.secret import Secret
from gateway.settings_table import ABOUT
from gateway.validate import Limits
from gateway.variables import ROLES, VARIABLES
from ledger.plan import Policy

DEFAULT_DATA: Final = "./.order-ledger"
CONFIG_FILE: Final = "config.toml"
SERVICE: Final = "mt5-connector"
SERVICE_PORT: Final = 8014
OFF: Final = "off"


class ConfigurationError(Exception):
    """One line per problem."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the service runs by. `None` for a part means: the embedded one."""

    data: Path
    mode: str = "embedded"
    instance_id: str = "1"
    log_level: str = "info"
    log_all_communications: bool = False

    central_hub_url: Secret = Secret("")
    central_hub_api_key: Secret = Secret("")
    central_hub_timeout_s: float = 3.0
    central_hub_poll_s: float = 300.0
    service_host: str = "127.0.0.1"
    service_port: int = SERVICE_PORT
    roles: tuple[str, ...] = ROLES
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
    sync_interval_minutes: float = 5.0  # between two reconciliations; 0: only at start, after a reconnect, on demand
    reconcile_on_disconnect: bool = True
    reconcile_lookback_s: float = 3_600.0  # deals are compared at least so far back: costs may be booked late
    reconcile_policy: dict[str, str] = {}  # by class of difference, where it is not the default

    auditor_tokens: Secret = Secret("")
    operator_tokens: Secret = Secret("")
    http_requests_per_s: float = 50.0
    verify_every_s: float = 0.0

    otlp_url: Secret | None = None

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
            found[name] = _shown(value)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={one}" for name, one in sorted(value.items()))
    return ",".join(value) if isinstance(value, tuple) else str(value)


def version_of(settings: Settings) -> tuple[str, str]:
    """The version of the settings that stands in every event (12 digits of their digest), and the digest: SHA-256
    over what `described` says, so the same settings have the same version everywhere."""
    text = "\n".join(f"{name}={value}" for name, value in sorted(described(settings).items()))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return digest[:12], digest


class Loaded(NamedTuple):
    """Settings, and for each variable that was given who gave it: `flags`, `environment`, `hub` or `file`. `notes`:
    what stands in the hub's document beside ours and is left to others."""

    settings: Settings
    origins: dict[str, str]
    notes: tuple[str, ...] = ()


def load(flags: Mapping[str, str | None], env: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a command. `flags`: variable name (or `data`, `config`) → text, None where not given.

    Raises ConfigurationError with one line per problem.
    """
    return layered(flags, env).settings


def layered(
    flags: Mapping[str, str | None], env: Mapping[str, str] = os.environ, hub: Mapping[str, Any] | None = None
) -> Loaded:
    """The settings with the hub's document, where it was asked for. Raises ConfigurationError, a line per problem."""
    data = Path(flags.get("data") or env.get("ORDER_LEDGER_DATA") or DEFAULT_DATA).expanduser().absolute()
    problems: list[str] = []
    known = _places()
    file = read_document(_toml(flags, env, data, problems), known)
    ours = read_document(hub or {}, known, section="operational")
    problems += [f"in the configuration file: {one}" for one in file.problems] + ours.problems
    texts = {name: (text, "environment") for name, text in env.items() if name in VARIABLES and text != ""}
    if "CLICKHOUSE_URL" not in texts and env.get("CLICKHOUSE_HOST"):
        address = f"http://{env['CLICKHOUSE_HOST']}:{env.get('CLICKHOUSE_PORT') or '8123'}"
        texts["CLICKHOUSE_URL"] = (address, "environment")
    texts |= {name: (text, "flags") for name, text in flags.items() if name in VARIABLES and text is not None}
    given = {name: (value, "file") for name, value in file.values.items()}
    given |= {name: (value, "hub") for name, value in ours.values.items()}
    for name, (text, origin) in texts.items():
        try:
            given[name] = (VARIABLES[name][1](text), origin)
        except ValueError as error:
            problems.append(f"{name} {error}")
    values: dict[str, Any] = {"data": data, "ledger_url": Secret(f"sqlite:///{data / 'ledger.db'}")}
    nested: dict[str, dict[str, Any]] = {"policy": {}, "limits": {}}
    for name, (value, _) in given.items():
        group, _, inner = VARIABLES[name][0].rpartition(".")
        (nested[group] if group else values)[inner] = value
    settings = Settings(**values, policy=Policy(**nested["policy"]), limits=Limits(**nested["limits"]))
    problems.extend(_objections(settings, complete=hub is not None or not settings.central_hub_url))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Loaded(settings, {name: origin for name, (_, origin) in given.items()}, ours.notes)


def _toml(
    flags: Mapping[str, str | None], env: Mapping[str, str], data: Path, problems: list[str]
) -> Mapping[str, Any]:
    """The document of the configuration file: the one that is named (`--config`, `ORDER_LEDGER_CONFIG`), else
    `config.toml` in the data folder where there is one."""
    named = flags.get("config") or env.get("ORDER_LEDGER_CONFIG") or ""
    path = Path(named).expanduser() if named else data / CONFIG_FILE
    try:
        return tomllib.loads(path.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError):
        if named:
            problems.append(f"the configuration file {path} does not exist")
    except (OSError, ValueError, RecursionError) as error:
        if not named and not _may_enter(data):
            problems.append(
                f"this user may not enter the data folder {data}: run it as the user of the service, or name another "
                "by --data"
            )
            return {}
        reason = getattr(error, "strerror", None) or str(error)
        problems.append(f"the configuration file {path} cannot be read: {reason}")
    return {}


def _may_enter(folder: Path) -> bool:
    try:
        os.stat(f"{folder}/.")
    except PermissionError:
        return False
    except OSError:
        pass  # it is not there, or no folder: others say so
    return True


def _places() -> dict[str, Place]:
    """Where each setting stands in a document, and how its value is read."""
    return places({name: (KINDS[field], read, ABOUT[name].path(field)) for name, (field, read) in VARIABLES.items()})


def _kinds() -> dict[str, type]:
    """The type of every setting, those of a group by `group.name`."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(Settings).items():
        kind = (
            next((one for one in get_args(hint) if one is not type(None)), hint)
            if type(None) in get_args(hint)
            else hint
        )
        if issubclass(getattr(kind, "__origin__", kind), msgspec.Struct):
            found |= {f"{name}.{inner}": inner_kind for inner, inner_kind in get_type_hints(kind).items()}
        else:
            found[name] = kind
    return found


KINDS: Final = _kinds()


def _objections(settings: Settings, *, complete: bool) -> list[str]:
    """What does not fit together. `complete`: nothing more is to be heard from the hub."""
    problems = []
    if settings.central_hub_url and not _is_readable(settings.central_hub_url.reveal(), ("http", "https")):
        problems.append("CENTRAL_HUB_URL must be http://host[:port] or https://host[:port]")
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
    problems.extend(_objections_to_http(settings))
    if settings.otlp_url and not _is_readable(settings.otlp_url.reveal(), ("http", "https")):
        problems.append("OTEL_EXPORTER_OTLP_ENDPOINT must be http://host:4318 or https://…")
    if settings.terminal != "simulated" and complete:
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


def _objections_to_http(settings: Settings) -> list[str]:
    problems = []
    tokens = {"AUDITOR_TOKENS": settings.auditor_tokens, "OPERATOR_TOKENS": settings.operator_tokens}
    for name, value in tokens.items():
        try:
            parse_tokens(value.reveal())
        except ValueError as error:
            problems.append(f"{name} {error}")
    if not is_loopback(settings.service_host) and not any(tokens.values()):
        problems.append(
            f"SERVICE_HOST={settings.service_host[:80]!r} is reached from other machines: "
            "set OPERATOR_TOKENS or AUDITOR_TOKENS, or keep to 127.0.0.1"
        )
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
