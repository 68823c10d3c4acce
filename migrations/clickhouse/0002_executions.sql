-- One row per deal. The key is the place of the fill in its stream: a repeated insert replaces itself, and so does a
-- correction or what is told of its costs later.
CREATE TABLE IF NOT EXISTS {database}.executions {on_cluster}
(
    execution_id String COMMENT 'Unique id of the fill: the id of its event. Source: envelope',
    ledger_id LowCardinality(String) COMMENT 'Ledger it belongs to; one ledger per trading account. Source: event_id',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    order_id String COMMENT 'Our order; empty for a deal that is none of ours. Source: stream name',
    stream_version UInt64 COMMENT 'Position of the fill in its stream. Source: stored event',
    seq UInt64 COMMENT 'Position of the fill in the ledger. Source: envelope',
    changed_seq UInt64 COMMENT 'Position in the ledger of the event this row shows: the fill, its correction or its later costs. Source: envelope',
    event LowCardinality(String) COMMENT 'order.partially_filled, order.filled or account.external_deal_observed. Source: stored event',
    symbol LowCardinality(String) COMMENT 'Symbol as the broker names it. Source: request or deal',
    side LowCardinality(String) COMMENT 'buy or sell, the side of the deal. Source: fill',
    ticket UInt64 COMMENT 'Order ticket at the broker. Source: MetaTrader 5 TradeDeal.order',
    deal UInt64 COMMENT 'Deal ticket at the broker. Source: MetaTrader 5 TradeDeal.ticket',
    position_id UInt64 COMMENT 'Position identifier; until the deal names it, of the position the order acts on or opens. Source: MetaTrader 5 TradeDeal.position_id',
    entry UInt8 COMMENT '0 in, 1 out, 2 reversal, 3 closed by an opposite position. Source: MetaTrader 5 TradeDeal.entry',
    reason UInt16 COMMENT 'Why the deal was made, ENUM_DEAL_REASON. Source: MetaTrader 5 TradeDeal.reason',
    fill_price Decimal(18, 8) COMMENT 'Price, quote currency per unit. Source: MetaTrader 5 TradeDeal.price',
    fill_quantity Decimal(18, 8) COMMENT 'Volume of this fill, lots. Source: MetaTrader 5 TradeDeal.volume',
    filled_quantity Decimal(18, 8) COMMENT 'Volume of the order filled up to this fill, lots. Source: fold of the fills',
    remaining_quantity Decimal(18, 8) COMMENT 'Volume of the order still open after this fill, lots. Source: fold of the fills',
    requested_price Nullable(Decimal(18, 8)) COMMENT 'Price the order asked for, NULL when it asked for none. Source: request',
    slippage Decimal(18, 8) COMMENT 'Price units, positive = worse for us, 0 when no price was asked. Source: price and requested price',
    slippage_points Nullable(Decimal(18, 8)) COMMENT 'Slippage in points of the symbol, NULL when unknown. Source: slippage and symbol point',
    commission Decimal(18, 8) COMMENT 'Account currency, negative = cost. Source: MetaTrader 5 TradeDeal.commission, as known last',
    swap Decimal(18, 8) COMMENT 'Account currency. Source: MetaTrader 5 TradeDeal.swap, as known last',
    fee Decimal(18, 8) COMMENT 'Account currency, negative = cost. Source: MetaTrader 5 TradeDeal.fee, as known last',
    profit Decimal(18, 8) COMMENT 'Account currency, before costs; 0 for an opening deal. Source: MetaTrader 5 TradeDeal.profit, as known last',
    execution_timestamp DateTime64(6, 'UTC') COMMENT 'When the broker executed, UTC; recorded_at when the broker gave no time. Source: broker_time_msc and the measured offset',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded the fill, UTC. Source: gateway clock, in the envelope',
    broker_time_msc Int64 COMMENT 'Wall clock of the trade server, milliseconds, not UTC. Source: MetaTrader 5 TradeDeal.time_msc',
    broker_utc_offset_s Int32 COMMENT 'Measured offset of that clock from UTC, seconds. Source: gateway',
    attempts UInt16 COMMENT 'Sends the order needed. Source: fill',
    retcode UInt32 COMMENT 'Trade server return code of the send, 0 when the fill was found otherwise. Source: MetaTrader 5 TradeResult.retcode',
    retcode_name LowCardinality(String) COMMENT 'Name of the return code. Source: gateway table',
    provisional Bool COMMENT 'true = recorded from the result alone, costs not yet known. Source: fill',
    corrections UInt16 COMMENT 'How often the fill was corrected or completed. Source: order.fill_corrected',
    correlation_id String COMMENT 'Correlation id of the request, empty if none. Source: envelope',
    inexact Array(LowCardinality(String)) COMMENT 'Columns whose exact value does not fit their type: rounded or set to the bound here, exact in order_events.data. Source: projection'
)
ENGINE = {replicated}ReplacingMergeTree(changed_seq)
ORDER BY (account, order_id, stream_version, ledger_id)
SETTINGS {written}, max_compress_block_size = 65536
COMMENT 'One row per deal, as it is known now; read with FINAL, or through the view executions_by_order';
