-- Positions are the fold of all deals, by identifier: where each stands now, and every version it ever had.
CREATE TABLE IF NOT EXISTS {database}.positions {on_cluster}
(
    ledger_id LowCardinality(String) COMMENT 'Ledger it belongs to; one ledger per trading account. Source: event_id',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    position_id UInt64 COMMENT 'Position identifier, which a reversal keeps. Source: MetaTrader 5 TradeDeal.position_id',
    seq UInt64 COMMENT 'Position in the ledger of the event that made this row. Source: envelope',
    stream String COMMENT 'Stream of that event. Source: stored event',
    stream_version UInt64 COMMENT 'Position in its stream of the event that made this row, dense from 1. Source: stored event',
    event LowCardinality(String) COMMENT 'Name of the event that made this row. Source: stored event',
    deal UInt64 COMMENT 'Deal that made this version, 0 when it was none. Source: MetaTrader 5 TradeDeal.ticket',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded it, UTC. Source: gateway clock, in the envelope',
    opened_at DateTime64(6, 'UTC') COMMENT 'When the present side was opened at the broker, UTC. Source: deal',
    symbol LowCardinality(String) COMMENT 'Symbol as the broker names it. Source: request or deal',
    side LowCardinality(String) COMMENT 'long or short; of a closed position the side last open. Source: fold of the deals',
    quantity Decimal(18, 8) COMMENT 'Open volume, lots; 0 when closed. Source: fold of the deals',
    entry_price Decimal(18, 8) COMMENT 'Average entry price by volume, quote currency. Source: fold of the deals',
    stop_loss Nullable(Decimal(18, 8)) COMMENT 'Quote currency, NULL = none. Source: order, modification or snapshot',
    take_profit Nullable(Decimal(18, 8)) COMMENT 'Quote currency, NULL = none. Source: order, modification or snapshot',
    position_status LowCardinality(String) COMMENT 'open or closed. Source: quantity',
    current_price Nullable(Decimal(18, 8)) COMMENT 'Quote currency, NULL when closed or never shown. Source: last snapshot',
    unrealized_pnl Nullable(Decimal(18, 8)) COMMENT 'Account currency, NULL when closed or never shown. Source: last snapshot',
    realized_pnl Decimal(18, 8) COMMENT 'Account currency, profit of all its deals before costs. Source: deals',
    commission_total Decimal(18, 8) COMMENT 'Account currency, commission and fees of all its deals, negative = cost. Source: deals',
    swap_total Decimal(18, 8) COMMENT 'Account currency, swap of all its deals. Source: deals',
    exit_price Nullable(Decimal(18, 8)) COMMENT 'Average price of what was closed since the side was opened, NULL = nothing. Source: fold of the deals',
    exit_quantity Decimal(18, 8) COMMENT 'Volume closed since the side was opened, lots. Source: fold of the deals',
    exit_reason LowCardinality(String) COMMENT 'take_profit, stop_loss, stop_out, close_by, signal (an order of ours), manual (by hand), external; empty while nothing was closed. Source: last closing deal',
    closed_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When its volume was gone at the broker, UTC, NULL while open. Source: deal',
    r_multiple Nullable(Decimal(18, 8)) COMMENT 'Way from entry to exit in units of the way from entry to the first stop loss, NULL while open or without one. Source: prices',
    holding_period_hours Nullable(Decimal(18, 8)) COMMENT 'Hours from opened_at to closed_at, NULL while open. Source: deals',
    entry_order_id String COMMENT 'Our order that opened the present side, empty if none of ours. Source: fold of the deals',
    exit_order_id String COMMENT 'Our order of the last closing deal, empty if none of ours. Source: fold of the deals',
    deal_count UInt32 COMMENT 'Deals of the position. Source: fold of the deals',
    inexact Array(LowCardinality(String)) COMMENT 'Columns whose exact value does not fit their type: rounded or set to the bound here, exact in order_events.data. Source: projection',
    void UInt8 COMMENT '1 = its deals turned out to belong to another position. Source: order.fill_corrected'
)
ENGINE = {replicated}ReplacingMergeTree(seq, void)
ORDER BY (account, position_id, ledger_id)
SETTINGS {written}, max_compress_block_size = 65536
COMMENT 'One row per position: where it stands; read with FINAL, or through the view open_exposure';

CREATE TABLE IF NOT EXISTS {database}.position_history {on_cluster}
(
    ledger_id LowCardinality(String) COMMENT 'Ledger it belongs to; one ledger per trading account. Source: event_id',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    position_id UInt64 COMMENT 'Position identifier, which a reversal keeps. Source: MetaTrader 5 TradeDeal.position_id',
    seq UInt64 COMMENT 'Position in the ledger of the event that made this row. Source: envelope',
    stream String COMMENT 'Stream of that event. Source: stored event',
    stream_version UInt64 COMMENT 'Position in its stream of the event that made this row, dense from 1. Source: stored event',
    event LowCardinality(String) COMMENT 'Name of the event that made this row. Source: stored event',
    deal UInt64 COMMENT 'Deal that made this version, 0 when it was none. Source: MetaTrader 5 TradeDeal.ticket',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded it, UTC. Source: gateway clock, in the envelope',
    opened_at DateTime64(6, 'UTC') COMMENT 'When the present side was opened at the broker, UTC. Source: deal',
    symbol LowCardinality(String) COMMENT 'Symbol as the broker names it. Source: request or deal',
    side LowCardinality(String) COMMENT 'long or short; of a closed position the side last open. Source: fold of the deals',
    quantity Decimal(18, 8) COMMENT 'Open volume, lots; 0 when closed. Source: fold of the deals',
    entry_price Decimal(18, 8) COMMENT 'Average entry price by volume, quote currency. Source: fold of the deals',
    stop_loss Nullable(Decimal(18, 8)) COMMENT 'Quote currency, NULL = none. Source: order, modification or snapshot',
    take_profit Nullable(Decimal(18, 8)) COMMENT 'Quote currency, NULL = none. Source: order, modification or snapshot',
    position_status LowCardinality(String) COMMENT 'open or closed. Source: quantity',
    current_price Nullable(Decimal(18, 8)) COMMENT 'Quote currency, NULL when closed or never shown. Source: last snapshot',
    unrealized_pnl Nullable(Decimal(18, 8)) COMMENT 'Account currency, NULL when closed or never shown. Source: last snapshot',
    realized_pnl Decimal(18, 8) COMMENT 'Account currency, profit of all its deals before costs. Source: deals',
    commission_total Decimal(18, 8) COMMENT 'Account currency, commission and fees of all its deals, negative = cost. Source: deals',
    swap_total Decimal(18, 8) COMMENT 'Account currency, swap of all its deals. Source: deals',
    exit_price Nullable(Decimal(18, 8)) COMMENT 'Average price of what was closed since the side was opened, NULL = nothing. Source: fold of the deals',
    exit_quantity Decimal(18, 8) COMMENT 'Volume closed since the side was opened, lots. Source: fold of the deals',
    exit_reason LowCardinality(String) COMMENT 'take_profit, stop_loss, stop_out, close_by, signal (an order of ours), manual (by hand), external; empty while nothing was closed. Source: last closing deal',
    closed_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When its volume was gone at the broker, UTC, NULL while open. Source: deal',
    r_multiple Nullable(Decimal(18, 8)) COMMENT 'Way from entry to exit in units of the way from entry to the first stop loss, NULL while open or without one. Source: prices',
    holding_period_hours Nullable(Decimal(18, 8)) COMMENT 'Hours from opened_at to closed_at, NULL while open. Source: deals',
    entry_order_id String COMMENT 'Our order that opened the present side, empty if none of ours. Source: fold of the deals',
    exit_order_id String COMMENT 'Our order of the last closing deal, empty if none of ours. Source: fold of the deals',
    deal_count UInt32 COMMENT 'Deals of the position. Source: fold of the deals',
    inexact Array(LowCardinality(String)) COMMENT 'Columns whose exact value does not fit their type: rounded or set to the bound here, exact in order_events.data. Source: projection',
    void UInt8 COMMENT '1 = its deals turned out to belong to another position. Source: order.fill_corrected',
    fold String COMMENT 'The whole state of the position (JSON), exact: what the projection goes on from. Source: fold of the deals' CODEC(ZSTD(3))
)
ENGINE = {replicated}ReplacingMergeTree(seq)
ORDER BY (account, position_id, seq, ledger_id)
SETTINGS {written}, max_compress_block_size = 65536
COMMENT 'Every version of every position, what was known when; read with FINAL';
