"""What the projections are started with. It may hold secrets: it travels over a pipe and is never logged."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from projections.clickhouse import Target
from projections.follower import SinkRefused

OFF = "off"
EMBEDDED = "embedded"


class ProjectionSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`clickhouse`: `embedded`, `off` or `http(s)://[user:password@]host[:port][/database]`; `clickhouse_cluster`: the
    name of its cluster, if the tables are to be replicated. `kafka`: `off` or a comma
    list of brokers; `kafka_options` are security settings by the names of the `KAFKA_` environment variables, in
    lower case without that prefix (`security_protocol`, `sasl_mechanism`, `sasl_username`, `sasl_password`,
    `ssl_cafile`, `ssl_certfile`, `ssl_keyfile`, `ssl_password`). `audit_dir`: empty = no audit files. `http_port`: of
    the read-only endpoint of the embedded engine, 0 = any free one."""

    ledger_url: str
    data_dir: str
    clickhouse: str = EMBEDDED
    clickhouse_user: str = ""
    clickhouse_password: str = ""
    database: str = "suho_analytics"
    clickhouse_cluster: str = ""
    migrate_at_start: bool = True
    http_host: str = "127.0.0.1"
    http_port: int = 0
    kafka: str = OFF
    kafka_options: dict[str, str] = {}
    kafka_replication: int = 0
    audit_dir: str = ""
    log_level: str = "info"
    nice: int = 5
    patience_s: float = 2.0
    stop_s: float = 3.0
    clickhouse_interval_s: float = 0.05
    clickhouse_lag_s: float = 0.2
    clickhouse_calm_s: float = 1.0
    clickhouse_few_events: int = 500
    audit_interval_s: float = 0.1
    audit_calm_s: float = 1.0
    audit_few_events: int = 1_000
    kafka_interval_s: float = 0.05

    def __repr__(self) -> str:
        return f"ProjectionSettings(data_dir={self.data_dir!r}, database={self.database!r})"

    @property
    def engine_dir(self) -> Path:
        """Folder of the embedded ClickHouse."""
        return Path(self.data_dir) / "clickhouse"

    @property
    def lock_file(self) -> Path:
        """Held by the one process that writes projections in this data folder."""
        return Path(self.data_dir) / "projections.lock"

    @property
    def lock_files(self) -> list[Path]:
        """What a process holds that writes what these settings name, in the order to take them."""
        mirrors = self.kafka != OFF or self.audit_dir != ""
        return [self.lock_file] * (self.clickhouse != OFF) + [Path(self.data_dir) / "mirror.lock"] * mirrors


def kafka_options(environment: Mapping[str, str]) -> dict[str, str]:
    """The security settings in an environment: `KAFKA_SASL_USERNAME` and the like, in lower case without `KAFKA_`.
    What else begins so belongs to other programs; of these families every name counts, so that none is mistyped."""
    prefix = "KAFKA_"
    families = ("SASL_", "SSL_", "SECURITY_", "CLIENT_")
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in environment.items()
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(families) and value
    }


def target_of(settings: ProjectionSettings) -> tuple[Target, str] | None:
    """Where ClickHouse is and the database there; None when it is off. Raises SinkRefused for another URL."""
    if settings.clickhouse in (OFF, ""):
        return None
    if settings.clickhouse == EMBEDDED:
        return Target(path=str(settings.engine_dir)), settings.database
    try:
        url = urlsplit(settings.clickhouse)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SinkRefused("CLICKHOUSE_URL must be http://host:port, https://host:port, embedded or off")
    secure = url.scheme == "https"
    target = Target(
        host=url.hostname,
        port=port or (8443 if secure else 8123),
        user=settings.clickhouse_user or unquote(url.username or "default"),
        password=settings.clickhouse_password or unquote(url.password or ""),
        secure=secure,
    )
    return target, url.path.strip("/") or settings.database
