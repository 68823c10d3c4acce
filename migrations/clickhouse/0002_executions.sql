-- One row per fill (a deal of ours). The key is the fill's place in its stream, so a repeated insert replaces itself.
CREATE TABLE IF NOT EXISTS {database}.executions
(
    execution_id String COMMENT 'Unique id of the fill, the id of its event. Source: envelope',
    ledger_id LowCardinality(String) COMMENT 'Ledger the fill belongs to. Source: event_id',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    order_id String COMMENT 'Our order. Source: stream name',
    stream_version UInt64 COMMENT 'Position in the stream of the order. Source: stored event',
    seq UInt64 COMMENT 'Position in the ledger. Source: envelope',
    event LowCardinality(String) COMMENT 'order.partially_filled or order.filled. Source: stored event',
    symbol LowCardinality(String) COMMENT 'Symbol as the broker names it. Source: fill',
    side LowCardinality(String) COMMENT 'buy or sell, the side of the deal. Source: fill',
    ticket UInt64 COMMENT 'Order ticket at the broker. Source: MetaTrader 5 TradeDeal.order',
    deal UInt64 COMMENT 'Deal ticket at the broker. Source: MetaTrader 5 TradeDeal.ticket',
    position_id UInt64 COMMENT 'Position identifier, 0 while unknown. Source: MetaTrader 5 TradeDeal.position_id',
    entry UInt8 COMMENT '0 in, 1 out, 2 reversal, 3 closed by an opposite position. Source: MetaTrader 5 TradeDeal.entry',
    reason UInt16 COMMENT 'Why the deal was made, ENUM_DEAL_REASON. Source: MetaTrader 5 TradeDeal.reason',
    fill_price Decimal(18, 8) COMMENT 'Price, quote currency per unit. Source: MetaTrader 5 TradeDeal.price',
    fill_quantity Decimal(18, 8) COMMENT 'Volume of this fill, lots. Source: MetaTrader 5 TradeDeal.volume',
    filled_quantity Decimal(18, 8) COMMENT 'Volume of the order filled so far, lots. Source: fold of the fills',
    remaining_quantity Decimal(18, 8) COMMENT 'Volume of the order still open, lots. Source: fold of the fills',
    requested_price Nullable(Decimal(18, 8)) COMMENT 'Price the order asked for, NULL when it asked for none. Source: request',
    slippage Decimal(18, 8) COMMENT 'Price units, positive = worse for us, 0 when no price was asked. Source: price and requested price',
    slippage_points Nullable(Decimal(18, 8)) COMMENT 'Slippage in points of the symbol, NULL when unknown. Source: slippage and symbol point',
    commission Decimal(18, 8) COMMENT 'Account currency, negative = cost. Source: MetaTrader 5 TradeDeal.commission',
    swap Decimal(18, 8) COMMENT 'Account currency. Source: MetaTrader 5 TradeDeal.swap',
    fee Decimal(18, 8) COMMENT 'Account currency, negative = cost. Source: MetaTrader 5 TradeDeal.fee',
    profit Decimal(18, 8) COMMENT 'Account currency, before costs; 0 for an opening deal. Source: MetaTrader 5 TradeDeal.profit',
    execution_timestamp DateTime64(6, 'UTC') COMMENT 'When the broker executed, UTC; recorded_at when the broker gave no time. Source: broker_time_msc and the measured offset',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded the fill, UTC. Source: gateway clock, in the envelope',
    broker_time_msc Int64 COMMENT 'Wall clock of the trade server, milliseconds, not UTC. Source: MetaTrader 5 TradeDeal.time_msc',
    broker_utc_offset_s Int32 COMMENT 'Measured offset of that clock from UTC, seconds. Source: gateway',
    attempts UInt16 COMMENT 'Sends the order needed. Source: fill',
    retcode UInt32 COMMENT 'Trade server return code of the send, 0 when the fill was found otherwise. Source: MetaTrader 5 TradeResult.retcode',
    retcode_name LowCardinality(String) COMMENT 'Name of the return code. Source: gateway table',
    provisional Bool COMMENT 'true = recorded from the result alone, costs not yet known. Source: fill',
    correlation_id String COMMENT 'Correlation id of the request, empty if none. Source: envelope',
    inexact Array(LowCardinality(String)) COMMENT 'Columns whose exact value does not fit Decimal(18, 8): rounded or set to the bound here, exact in order_events.data. Source: projection'
)
ENGINE = ReplacingMergeTree
ORDER BY (account, order_id, stream_version, ledger_id)
COMMENT 'One row per fill; read with FINAL, or through the view fills';

CREATE OR REPLACE VIEW {database}.fills AS
SELECT * FROM {database}.executions FINAL;

-- Prices times volumes need more than 18 digits: they are multiplied and summed as Decimal256.
CREATE OR REPLACE VIEW {database}.executions_by_order AS
SELECT
    account,
    order_id,
    any(symbol) AS order_symbol,
    any(side) AS order_side,
    count() AS fill_count,
    sum(fill_quantity) AS quantity,
    toDecimal64(sum(toDecimal256(fill_price, 8) * toDecimal256(fill_quantity, 8)) / toDecimal256(sum(fill_quantity), 8), 8) AS average_fill_price,
    toDecimal64(sum(toDecimal256(slippage, 8) * toDecimal256(fill_quantity, 8)) / toDecimal256(sum(fill_quantity), 8), 8) AS average_slippage,
    sum(commission) AS commission_total,
    sum(swap) AS swap_total,
    sum(fee) AS fee_total,
    sum(profit) AS profit_total,
    min(execution_timestamp) AS first_execution,
    max(execution_timestamp) AS last_execution,
    max(event = 'order.filled') AS complete,
    max(provisional) AS provisional_fills,
    ledger_id
FROM {database}.executions FINAL
GROUP BY ledger_id, account, order_id
HAVING sum(fill_quantity) > 0;
