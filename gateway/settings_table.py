"""What each setting means, where it stands in a document, and when a change of it takes effect.

One row per variable of `config.VARIABLES`; the reference in `docs/settings.md` is written from it. The section
`operational` is what the Central Hub may set; everything else stands under `service` in the TOML file alone, since
where the service keeps its data and whom it obeys is not to be changed from outside. Secrets stand in no document.
"""

from typing import Final

import msgspec


class About(msgspec.Struct, frozen=True):
    """`at`: the path in the section `operational`; empty: under `service`, by the name of the field. `hot`: a change
    takes effect without a restart."""

    help: str
    at: str = ""
    hot: bool = False

    def path(self, field: str) -> str:
        return f"operational.{self.at}" if self.at else f"service.{field}"


ABOUT: Final[dict[str, About]] = {
    # --- the service
    "MODE": About("`embedded` runs what is not named itself; `production` refuses every stand-in"),
    "INSTANCE_ID": About("tells instances of the service apart"),
    "SERVICE_HOST": About("the address the service listens on and is registered with"),
    "SERVICE_PORT": About("the port of the service, 0 for any that is free"),
    "LOG_LEVEL": About(
        "`debug`, `info`, `warning` or `error`; the projections' own log follows at the next start",
        "logging.level",
        hot=True,
    ),
    # --- Central Hub
    "CENTRAL_HUB_URL": About("the hub that holds the section `operational`; empty: no hub"),
    "CENTRAL_HUB_API_KEY": About("sent to the hub as `X-API-Key`"),
    "CENTRAL_HUB_TIMEOUT_S": About("how long an answer of the hub is waited for, also at the start"),
    "CENTRAL_HUB_POLL_S": About("how often the hub is asked again; its messages arrive at once"),
    # --- message bus
    "NATS_URL": About("the message bus, a comma list for a cluster; empty: the bundled nats-server"),
    "NATS_PORT": About("preferred port of the bundled nats-server, 0 for any"),
    # --- ledger and projections
    "LEDGER_URL": About("`sqlite:///file` or `postgresql://user:password@host/database`; empty: in the data folder"),
    "KAFKA_BROKERS": About(
        "the audit log in Kafka, `host:port` or a comma list, or `off`; empty: files under `audit/`"
    ),
    "CLICKHOUSE_URL": About("the ClickHouse of the projections, or `off`; empty: ClickHouse inside the process"),
    "CLICKHOUSE_DATABASE": About("the database of the projections"),
    "CLICKHOUSE_USER": About("the user at ClickHouse"),
    "CLICKHOUSE_PASSWORD": About("the password at ClickHouse"),
    "CLICKHOUSE_HTTP_PORT": About("preferred port of the read-only endpoint of the embedded ClickHouse, 0 for any"),
    "SEAL_KEY": About("the Ed25519 key that signs the ledger's heads; empty: one made in the data folder"),
    "SEAL_SIGN_EVERY_S": About("the head is signed at least this often while events come"),
    "SEAL_SIGN_EVERY_SEALS": About("and after this many commits"),
    # --- terminal
    "TERMINAL": About("`simulated`, `native` (Windows) or `mt5linux`"),
    "MT5_LOGIN": About("the trading account", "mt5_connection.login"),
    "MT5_SERVER": About("the trade server, as the terminal names it", "mt5_connection.server"),
    "MT5_PATH": About("the terminal's program, `terminal64.exe`", "mt5_connection.terminal_path"),
    "MT5_PASSWORD": About("the password of the trading account"),
    "CALL_DEADLINE_S": About("deadline of the connection and of every call", "mt5_connection.timeout_seconds"),
    "NOT_AFTER_S": About("a request that did not reach the terminal's program within this is not sent any more"),
    "SERVER_TIMEOUT_S": About("how long the broker's server may take over a request after the terminal gave it on"),
    "SIMULATED_SEED": About("the seed of the simulated market"),
    "SIMULATED_FAULTS": About("faults of the simulated terminal, to rehearse an outage"),
    # --- orders
    "VALIDATE_BEFORE_SEND": About(
        "ask the broker (`order_check`) before an order is sent", "order_settings.validate_before_send", hot=True
    ),
    "MAX_RETRIES": About(
        "how often an order is sent again after an answer that may be better next time",
        "order_settings.max_retries",
        hot=True,
    ),
    "RETRY_DELAY_S": About("the wait before the first retry", "order_settings.retry_delay_seconds", hot=True),
    "RETRY_MULTIPLIER": About(
        "each further wait is longer by this factor", "order_settings.retry_multiplier", hot=True
    ),
    "MAX_RETRY_DELAY_S": About("the longest wait before a retry", "order_settings.max_retry_delay_seconds", hot=True),
    "RETRY_JITTER": About(
        "the part of a wait that varies by order and attempt", "order_settings.retry_jitter", hot=True
    ),
    "MAX_UNREACHED": About(
        "attempts that did not reach the broker before an order is given up", "order_settings.max_unreached", hot=True
    ),
    "PARK_RECHECK_S": About(
        "how often an order that cannot be traded now is tried again", "order_settings.park_recheck_seconds", hot=True
    ),
    "MAX_ORDER_AGE_S": About(
        "an order older than this is not sent for the first time, 0 for no limit",
        "order_settings.max_order_age_seconds",
        hot=True,
    ),
    "MAX_ORDER_LIFE_S": About(
        "retries and parked orders end after this, 0 for no limit", "order_settings.max_order_life_seconds", hot=True
    ),
    "RESEND_AFTER_PROVEN_ABSENCE": About(
        "send an order again that provably did not arrive", "order_settings.resend_after_proven_absence", hot=True
    ),
    "DEFAULT_DEVIATION_POINTS": About(
        "the deviation of a market order that names none", "order_settings.deviation_points", hot=True
    ),
    # --- connection
    "AUTO_RECONNECT": About(
        "connect again after a lost connection; else orders are parked until an operator does",
        "error_handling.auto_reconnect",
    ),
    "RECONNECT_INTERVAL_S": About(
        "the longest wait between two tries to connect", "error_handling.reconnect_interval_seconds"
    ),
    "LOG_ALL_COMMUNICATIONS": About(
        "one log line for each exchange with the broker; the ledger holds them all in any case",
        "error_handling.log_all_communications",
        hot=True,
    ),
    # --- positions
    "SYNC_INTERVAL_MINUTES": About(
        "how often our view is compared with the broker's, 0 for never", "position_sync.sync_interval_minutes", hot=True
    ),
    "RECONCILE_ON_DISCONNECT": About(
        "compare also after every reconnection", "position_sync.reconcile_on_disconnect", hot=True
    ),
}
