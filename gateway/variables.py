"""The environment variables of the service: which field of the settings each is, and how its text is read.

A reader raises ValueError with what is wrong, without the name of the variable and without a secret.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from gateway.secret import Secret
from gateway.simulated.faults import BadFaults, parse
from ledger.reconcile import CLASSES
from ledger.values import Refused, parse_decimal

GATEWAY: Final = "gateway"
PROJECTIONS: Final = "projections"
MIRROR: Final = "mirror"
ROLES: Final = (GATEWAY, PROJECTIONS, MIRROR)


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


def _policies(text: str) -> dict[str, str]:
    """`class=policy,…` as `ledger.reconcile.CLASSES` has them."""
    found: dict[str, str] = {}
    problems = []
    for part in _names(text):
        kind, _, policy = part.partition("=")
        if kind not in CLASSES:
            problems.append(f"names {kind[:40]!r}: the classes are {', '.join(CLASSES)}")
        elif policy not in CLASSES[kind]:
            problems.append(f"must say {' or '.join(CLASSES[kind])} for {kind}, not {policy[:40]!r}")
        elif found.setdefault(kind, policy) != policy:
            problems.append(f"says both {found[kind]} and {policy} for {kind}")
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _roles(text: str) -> tuple[str, ...]:
    named = _names(text)
    if not named or not set(named) <= set(ROLES):
        raise ValueError(f"must be one or more of {', '.join(ROLES)}, not {text[:60]!r}")
    return tuple(one for one in ROLES if one in named)


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
    "LOG_ALL_COMMUNICATIONS": ("log_all_communications", _switch),
    "CENTRAL_HUB_URL": ("central_hub_url", Secret),
    "CENTRAL_HUB_API_KEY": ("central_hub_api_key", Secret),
    "CENTRAL_HUB_TIMEOUT_S": ("central_hub_timeout_s", _number(float, 0.1, 30)),
    "CENTRAL_HUB_POLL_S": ("central_hub_poll_s", _number(float, 0.1, 86_400)),
    "SERVICE_HOST": ("service_host", str),
    "SERVICE_PORT": ("service_port", _port),
    "ROLES": ("roles", _roles),
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
    "RETRY_MULTIPLIER": ("policy.retry_multiplier", _number(float, 1, 100)),
    "MAX_RETRY_DELAY_S": ("policy.max_retry_delay_s", _seconds),
    "RETRY_JITTER": ("policy.retry_jitter", _number(float, 0, 1)),
    "MAX_UNREACHED": ("policy.max_unreached", _number(int, 1, 1_000)),
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
    "AUDITOR_TOKENS": ("auditor_tokens", Secret),
    "OPERATOR_TOKENS": ("operator_tokens", Secret),
    "HTTP_REQUESTS_PER_S": ("http_requests_per_s", _number(float, 0.1, 100_000)),
    "VERIFY_EVERY_S": ("verify_every_s", _number(float, 0, 30 * 86_400)),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("otlp_url", Secret),
    "SYNC_INTERVAL_MINUTES": ("sync_interval_minutes", _number(float, 0, 1_440)),
    "RECONCILE_ON_DISCONNECT": ("reconcile_on_disconnect", _switch),
    "RECONCILE_LOOKBACK_S": ("reconcile_lookback_s", _number(float, 60, 604_800)),
    "RECONCILE_POLICY": ("reconcile_policy", _policies),
}
