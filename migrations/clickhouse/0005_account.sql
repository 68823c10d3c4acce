-- What the broker showed of the account, and how our view compared with it.
CREATE TABLE IF NOT EXISTS {database}.reconciliations {on_cluster}
(
    ledger_id LowCardinality(String) COMMENT 'Ledger it belongs to; one ledger per trading account. Source: event_id',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    seq UInt64 COMMENT 'Position in the ledger of the event that made this row. Source: envelope',
    stream_version UInt64 COMMENT 'Position in its stream of the event that made this row, dense from 1. Source: stored event',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded it, UTC. Source: gateway clock, in the envelope',
    trigger LowCardinality(String) COMMENT 'start, reconnect, interval or demand. Source: account.reconciled',
    positions UInt32 COMMENT 'Positions the broker showed. Source: account.reconciled',
    orders UInt32 COMMENT 'Working orders the broker showed. Source: account.reconciled',
    deals UInt32 COMMENT 'Deals the broker showed. Source: account.reconciled',
    deals_since Nullable(DateTime64(6, 'UTC')) COMMENT 'From when on deals were compared, UTC, NULL = not told. Source: account.reconciled',
    difference_count UInt32 COMMENT 'Differences found. Source: account.reconciled',
    `differences.kind` Array(LowCardinality(String)) COMMENT 'What differs. Source: account.reconciled',
    `differences.ours` Array(String) COMMENT 'Our view. Source: account.reconciled',
    `differences.brokers` Array(String) COMMENT 'View of the broker. Source: account.reconciled',
    `differences.policy` Array(LowCardinality(String)) COMMENT 'alert, adopt or correct, as applied. Source: account.reconciled',
    `differences.order_id` Array(String) COMMENT 'Our order, empty if none. Source: account.reconciled',
    `differences.order_ticket` Array(UInt64) COMMENT 'Order ticket at the broker, 0 if none. Source: account.reconciled',
    `differences.position_id` Array(UInt64) COMMENT 'Position identifier, 0 if none. Source: account.reconciled',
    `differences.deal` Array(UInt64) COMMENT 'Deal ticket, 0 if none. Source: account.reconciled',
    `differences.symbol` Array(LowCardinality(String)) COMMENT 'Symbol, empty if none. Source: account.reconciled'
)
ENGINE = {replicated}ReplacingMergeTree(seq)
ORDER BY (account, seq, ledger_id)
SETTINGS {written}, max_compress_block_size = 65536
COMMENT 'One row per comparison with the broker; read with FINAL';

CREATE TABLE IF NOT EXISTS {database}.account_snapshots {on_cluster}
(
    ledger_id LowCardinality(String) COMMENT 'Ledger it belongs to; one ledger per trading account. Source: event_id',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    seq UInt64 COMMENT 'Position in the ledger of the event that made this row. Source: envelope',
    stream_version UInt64 COMMENT 'Position in its stream of the event that made this row, dense from 1. Source: stored event',
    event LowCardinality(String) COMMENT 'account.snapshot_taken, or account.connected, which tells balance and equity only. Source: stored event',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded it, UTC. Source: gateway clock, in the envelope',
    currency LowCardinality(String) COMMENT 'Currency of the account. Source: MetaTrader 5 AccountInfo.currency',
    balance Decimal(38, 8) COMMENT 'Account currency. Source: MetaTrader 5 AccountInfo.balance',
    equity Decimal(38, 8) COMMENT 'Account currency. Source: MetaTrader 5 AccountInfo.equity',
    margin Nullable(Decimal(38, 8)) COMMENT 'Account currency, in use, NULL when not told. Source: MetaTrader 5 AccountInfo.margin',
    margin_free Nullable(Decimal(38, 8)) COMMENT 'Account currency, NULL when not told. Source: MetaTrader 5 AccountInfo.margin_free',
    profit Nullable(Decimal(38, 8)) COMMENT 'Account currency, of open positions, NULL when not told. Source: MetaTrader 5 AccountInfo.profit',
    open_positions Nullable(UInt32) COMMENT 'How many, NULL when not told. Source: account.snapshot_taken',
    working_orders Nullable(UInt32) COMMENT 'How many, NULL when not told. Source: account.snapshot_taken'
)
ENGINE = {replicated}ReplacingMergeTree(seq)
ORDER BY (account, seq, ledger_id)
SETTINGS {written}, max_compress_block_size = 65536
COMMENT 'The account as the broker showed it; read with FINAL';
