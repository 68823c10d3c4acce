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
    "AUDITOR_TOKENS": About(
        "bearer tokens that may read over HTTP what was recorded, to the byte: "
        "a comma list of `TOKEN` or `TOKEN@2027-01-31T00:00:00Z`"
    ),
    "OPERATOR_TOKENS": About(
        "bearer tokens that may read over HTTP how the service runs and what was recorded, in the same form"
    ),
    "HTTP_REQUESTS_PER_S": About("requests a second that one address may make over HTTP"),
    "VERIFY_EVERY_S": About("how often the whole ledger is verified beside the service; 0: only when asked"),
    "OTEL_EXPORTER_OTLP_ENDPOINT": About("where spans of orders are sent (OTLP over HTTP); empty: nowhere"),
    "LOG_LEVEL": About(
        "`debug`, `info`, `warning` or `error`; the projections' own log follows at the next start",
        "logging.level",
        hot=True,
    ),
    "ROLES": About("which parts this process is: `gateway`, `projections`, `mirror`, a comma list"),
    "REAL_TIME": About("`on`, `off` or `auto`: whether the path of an order goes before the other processes"),
    # --- Central Hub
    "CENTRAL_HUB_URL": About("the hub that holds the section `operational`; empty: no hub"),
    "CENTRAL_HUB_API_KEY": About("sent to the hub as `X-API-Key`"),
    "CENTRAL_HUB_TIMEOUT_S": About("how long an answer of the hub is waited for, also at the start"),
    "CENTRAL_HUB_POLL_S": About("how often the hub is asked again; its messages arrive at once"),
    # --- message bus
    "NATS_URL": About("the message bus, a comma list for a cluster; empty: the bundled nats-server"),
    "NATS_PORT": About("preferred port of the bundled nats-server, 0 for any"),
    "NATS_USER": About("the user at the message bus"),
    "NATS_PASSWORD": About("the password at the message bus"),
    "NATS_TOKEN": About("the token for the message bus"),
    "NATS_NKEY": About("the seed of an NKey for the message bus"),
    "NATS_CREDS": About("a credentials file for the message bus"),
    "NATS_TLS_CA": About("the certificate authority of the message bus, a file"),
    "NATS_TLS_CERT": About("the certificate of this client at the message bus, a file"),
    "NATS_TLS_KEY": About("the key of that certificate, a file"),
    "NATS_MONITOR_URL": About("the monitoring address of the message bus, to see whether it acknowledges too early"),
    "NATS_NEWS": About("`own`: a stream for each account's news; `shared`: one that is there already"),
    "MAX_ACK_PENDING": About("orders that may be under way from the message bus to the ledger"),
    "TAKE_UNADDRESSED": About("take orders that name no account; one gateway of several does"),
    "BROKER_CONTROL": About("answer `broker.control.*`: halt, resume, close all"),
    # --- ledger and projections
    "LEDGER_URL": About("`sqlite:///file` or `postgresql://user:password@host/database`; empty: in the data folder"),
    "KAFKA_BROKERS": About(
        "the audit log in Kafka, `host:port` or a comma list, or `off`; empty: files under `audit/`"
    ),
    "KAFKA_REPLICATION_FACTOR": About("replicas of topics that are made, 0 for up to three by the number of brokers"),
    "CLICKHOUSE_URL": About("the ClickHouse of the projections, or `off`; empty: ClickHouse inside the process"),
    "CLICKHOUSE_DATABASE": About("the database of the projections"),
    "CLICKHOUSE_CLUSTER": About("the cluster that the tables are made on; empty: one server"),
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
    "MT5_PORTABLE": About("the terminal keeps its data in its own folder"),
    "MT5LINUX_HOST": About("the host of the mt5linux server"),
    "MT5LINUX_PORT": About("the port of the mt5linux server"),
    "MT5LINUX_QUERY_PORT": About("the port of a second one, for queries; 0: the same"),
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
    "MAX_REQUESTS_PER_S": About("requests to the terminal in a second, 0 for no limit"),
    # --- limits and halts
    "LIMIT_SYMBOLS": About("the only symbols that may be traded, a list; empty: all", "limits.symbols", hot=True),
    "LIMIT_MIN_VOLUME": About("the least volume of an order, 0 for no limit", "limits.min_volume", hot=True),
    "LIMIT_MAX_VOLUME": About("the largest volume of an order, 0 for no limit", "limits.max_volume", hot=True),
    "LIMIT_OPEN_POSITIONS": About("open positions, 0 for no limit", "limits.open_positions", hot=True),
    "LIMIT_ORDERS_PER_MINUTE": About(
        "orders that open, in a minute, 0 for no limit", "limits.orders_per_minute", hot=True
    ),
    "LIMIT_PRICE_COLLAR_PERCENT": About(
        "how far a price may be from the market's, 0 for no limit", "limits.price_collar_percent", hot=True
    ),
    "LIMIT_REQUIRE_SL": About("refuse an order without a stop loss", "limits.require_sl", hot=True),
    "LIMIT_REQUIRE_TP": About("refuse an order without a take profit", "limits.require_tp", hot=True),
    "LIMIT_DAILY_LOSS": About(
        "a loss of the day that halts trading until the next one, 0 for no limit", "limits.daily_loss", hot=True
    ),
    "MAX_QUOTE_AGE_S": About(
        "a symbol without a new price for longer is told as closed, beside other reasons; 0: never",
        "limits.max_quote_age_seconds",
        hot=True,
    ),
    "HALT": About("a reason to halt trading; empty: this source lifts its halt", "halt.reason", hot=True),
    "HALT_CANCEL_ORDERS": About("a halt cancels our working orders, too", "halt.cancel_orders", hot=True),
    "HEARTBEAT_TIMEOUT_S": About("halt after this much silence from upstream, 0 for never"),
    "HEARTBEAT_SUBJECT": About("where signs of life from upstream arrive"),
    # --- alerts
    "SLOW_BROKER_S": About(
        "alert when the broker takes longer over a request, 0 for never", "alerts.slow_broker_seconds", hot=True
    ),
    "SLIPPAGE_REPORT_PIPS": About("report slippage over this, 0 for never", "alerts.slippage_report_pips", hot=True),
    "SLIPPAGE_ALERT_PIPS": About("alert on slippage over this, 0 for never", "alerts.slippage_alert_pips", hot=True),
    "UNRESOLVED_ALERT_S": About(
        "alert when an outcome has been unknown for this long", "alerts.unresolved_seconds", hot=True
    ),
    # --- connection
    "AUTO_RECONNECT": About(
        "connect again after a lost connection; else orders are parked until an operator does",
        "error_handling.auto_reconnect",
        hot=True,
    ),
    "RECONNECT_INTERVAL_S": About(
        "the longest wait between two tries to connect",
        "error_handling.reconnect_interval_seconds",
        hot=True,
    ),
    "CONNECTION_CHECK_S": About("how often the terminal's connection is looked at"),
    "LOG_ALL_COMMUNICATIONS": About(
        "one log line for each exchange with the broker; the ledger holds them all in any case",
        "error_handling.log_all_communications",
        hot=True,
    ),
    # --- positions
    "SYNC_INTERVAL_MINUTES": About(
        "how often our view is compared with the broker's; 0: at the start, after a reconnection and on demand only",
        "position_sync.sync_interval_minutes",
        hot=True,
    ),
    "RECONCILE_ON_DISCONNECT": About(
        "compare also after every reconnection", "position_sync.reconcile_on_disconnect", hot=True
    ),
    "RECONCILE_LOOKBACK_S": About("how far back deals are compared at least"),
    "RECONCILE_POLICY": About(
        "what is done about a class of difference, where not the default: `stops=alert,…`; in a document a group",
        "position_sync.reconcile_policy",
        hot=True,
    ),
    "POLL_INTERVAL_S": About(
        "how often the account is looked at for deals that nobody told of",
        "position_sync.poll_interval_seconds",
        hot=True,
    ),
    "DEAL_OVERLAP_S": About("how far each look at the deals reaches back before the last one"),
}
