"""What the service's own processes are started with, from its settings."""

import os
from pathlib import Path

from gateway.config import OFF, Settings
from gateway.terminal_child import TerminalSettings
from gateway.variables import MIRROR, PROJECTIONS
from projections.settings import EMBEDDED, ProjectionSettings, kafka_options


def projection_settings(settings: Settings, http_port: int) -> ProjectionSettings:
    """As far as the roles go; `http_port`: of the read-only endpoint of the embedded engine."""
    clickhouse = settings.clickhouse_url.reveal() if settings.clickhouse_url else EMBEDDED
    audit = audit_folder(settings)
    return ProjectionSettings(
        ledger_url=settings.ledger_url.reveal(),
        data_dir=str(settings.data),
        clickhouse=clickhouse if PROJECTIONS in settings.roles else OFF,
        clickhouse_user=settings.clickhouse_user,
        clickhouse_password=settings.clickhouse_password.reveal(),
        clickhouse_cluster=settings.clickhouse_cluster,
        database=settings.clickhouse_database,
        http_port=http_port,
        kafka=(settings.kafka_brokers or OFF) if MIRROR in settings.roles else OFF,
        kafka_options=kafka_options(os.environ),
        kafka_replication=settings.kafka_replication,
        audit_dir=str(audit) if audit is not None else "",
        log_level=settings.log_level,
    )


def audit_folder(settings: Settings) -> Path | None:
    """Where this process keeps the audit log in files; None when it does not."""
    return settings.data / "audit" if MIRROR in settings.roles and not settings.kafka_brokers else None


def terminal_settings(settings: Settings, folder: Path) -> TerminalSettings:
    """Of the trading terminal; the one for queries differs in role and port. `folder` holds a simulated one."""
    return TerminalSettings(
        folder=str(folder),
        kind=settings.terminal,  # type: ignore[arg-type]  # config reads it as one of these
        login=settings.mt5_login,
        server=settings.mt5_server,
        path=settings.mt5_path,
        portable=settings.mt5_portable,
        bridge_host=settings.mt5linux_host,
        bridge_port=settings.mt5linux_port,
        timeout_s=settings.call_deadline_s,
        call_deadline_s=settings.call_deadline_s,
        seed=settings.simulated_seed,
        simulated_faults=settings.simulated_faults,
        restart=settings.auto_reconnect,
        reconnect_interval_s=settings.reconnect_interval_s,
    )
