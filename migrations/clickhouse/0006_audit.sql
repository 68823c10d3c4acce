-- What auditors ask, each a view named by what it answers. All are deduplicated, and say whose account they tell of.

-- Everything that happened to an order, in the order it happened: WHERE order_id = '…' ORDER BY seq.
CREATE OR REPLACE VIEW {database}.order_audit_trail {on_cluster} AS
SELECT
    account,
    order_id,
    seq,
    stream_version,
    recorded_at,
    event,
    actor,
    correlation_id,
    JSONExtractUInt(data, 'data', 'attempt') AS attempt,
    greatest(JSONExtractUInt(data, 'data', 'retcode'), JSONExtractUInt(data, 'data', 'result', 'retcode')) AS retcode,
    JSONExtractString(data, 'data', 'retcode_name') AS retcode_name,
    JSONExtractUInt(data, 'data', 'deal') AS deal,
    JSONExtractString(data, 'data', 'volume') AS volume,
    JSONExtractString(data, 'data', 'price') AS price,
    arrayStringConcat(arrayFilter(x -> x != '', arrayConcat(
        JSONExtract(data, 'data', 'reasons', 'Array(String)'),
        [
            JSONExtractString(data, 'data', 'reason'),
            JSONExtractString(data, 'data', 'description'),
            JSONExtractString(data, 'data', 'problem'),
            JSONExtractString(data, 'data', 'detail'),
            JSONExtractString(data, 'data', 'evidence')
        ]
    )), '; ') AS said,
    data,
    ledger_id
FROM {database}.order_events FINAL
WHERE order_id != '';

-- What an order came to at the broker. Prices times volumes need more than 18 digits: they are summed as Decimal256.
CREATE OR REPLACE VIEW {database}.executions_by_order {on_cluster} AS
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
WHERE order_id != ''
GROUP BY ledger_id, account, order_id
HAVING sum(fill_quantity) > 0;

-- How far from the price we asked, where and when. Positive is worse for us; only fills whose order named a price.
CREATE OR REPLACE VIEW {database}.slippage_by_symbol_and_hour {on_cluster} AS
SELECT
    account,
    symbol,
    toStartOfHour(execution_timestamp) AS hour,
    count() AS fills,
    sum(fill_quantity) AS lots,
    toDecimal64(sum(toDecimal256(slippage, 8) * toDecimal256(fill_quantity, 8)) / toDecimal256(sum(fill_quantity), 8), 8) AS average_slippage,
    toDecimal64(sum(toDecimal256(slippage_points, 8)) / nullIf(toDecimal256(count(slippage_points), 8), 0), 8) AS average_points,
    max(slippage_points) AS worst_points,
    countIf(slippage > 0) AS worse,
    countIf(slippage < 0) AS better,
    ledger_id
FROM {database}.executions FINAL
WHERE order_id != '' AND requested_price IS NOT NULL
GROUP BY ledger_id, account, symbol, hour
HAVING sum(fill_quantity) > 0;

-- What was refused by us or rejected by the broker, why, and which share of all orders of that account that is.
CREATE OR REPLACE VIEW {database}.rejections_by_retcode {on_cluster} AS
SELECT
    account,
    order_status,
    category,
    retcode,
    retcode_name,
    count() AS rejected,
    sum(rejected) OVER (PARTITION BY ledger_id, account) AS rejected_in_all,
    any(orders_in_all) AS requested_in_all,
    round(rejected / requested_in_all, 6) AS share,
    min(requested_at) AS first_at,
    max(requested_at) AS last_at,
    ledger_id
FROM
(
    SELECT *, count() OVER (PARTITION BY ledger_id, account) AS orders_in_all
    FROM {database}.orders FINAL
)
WHERE order_status IN ('refused', 'rejected', 'failed')
GROUP BY ledger_id, account, order_status, category, retcode, retcode_name;

-- What is open now, by symbol: lots long and short, and what they would bring at the last snapshot.
CREATE OR REPLACE VIEW {database}.open_exposure {on_cluster} AS
SELECT
    account,
    symbol,
    count() AS open_positions,
    sumIf(quantity, side = 'long') AS long_lots,
    sumIf(quantity, side = 'short') AS short_lots,
    long_lots - short_lots AS net_lots,
    sum(unrealized_pnl) AS unrealized,
    countIf(unrealized_pnl IS NULL) AS positions_never_shown,
    countIf(stop_loss IS NULL) AS positions_without_stop_loss,
    min(opened_at) AS oldest,
    ledger_id
FROM {database}.positions FINAL
WHERE position_status = 'open'
GROUP BY ledger_id, account, symbol;

-- What was earned and what it cost, by day of execution: every deal of the account, also those that are none of ours.
CREATE OR REPLACE VIEW {database}.realised_profit {on_cluster} AS
SELECT
    account,
    toDate(execution_timestamp) AS day,
    symbol,
    count() AS deals,
    countIf(order_id = '') AS external_deals,
    sum(toDecimal128(profit, 8)) AS gross,
    sum(toDecimal128(commission, 8)) AS commission_total,
    sum(toDecimal128(swap, 8)) AS swap_total,
    sum(toDecimal128(fee, 8)) AS fee_total,
    gross + commission_total + swap_total + fee_total AS net,
    countIf(provisional) AS deals_with_costs_unknown,
    ledger_id
FROM {database}.executions FINAL
GROUP BY ledger_id, account, day, symbol;

-- How long the steps of orders took, milliseconds by the clock of the gateway: requested (recorded), sent (intent of
-- the first send recorded), answered (last answer recorded), filled (the completing fill recorded).
CREATE OR REPLACE VIEW {database}.latency_percentiles {on_cluster} AS
SELECT
    account,
    step,
    count() AS orders,
    round(quantileExact(0.5)(microseconds) / 1000, 3) AS p50_ms,
    round(quantileExact(0.9)(microseconds) / 1000, 3) AS p90_ms,
    round(quantileExact(0.99)(microseconds) / 1000, 3) AS p99_ms,
    round(max(microseconds) / 1000, 3) AS max_ms,
    ledger_id
FROM
(
    SELECT ledger_id, account, timed.1 AS step, assumeNotNull(timed.2) AS microseconds
    FROM {database}.orders FINAL
    ARRAY JOIN [
        ('1 requested to sent', dateDiff('microsecond', requested_at, submitted_at)),
        ('2 sent to answered', dateDiff('microsecond', submitted_at, answered_at)),
        ('3 answered to filled', dateDiff('microsecond', answered_at, filled_at)),
        ('4 requested to filled', dateDiff('microsecond', requested_at, filled_at))
    ] AS timed
    WHERE timed.2 IS NOT NULL
)
GROUP BY ledger_id, account, step;

-- Orders that may or may not be at the broker: sent without an answer, or with one that settles nothing.
CREATE OR REPLACE VIEW {database}.unresolved_orders {on_cluster} AS
SELECT
    account,
    order_id,
    symbol,
    side,
    quantity,
    state,
    attempts,
    submitted_at,
    unknown_at,
    coalesce(unknown_at, submitted_at) AS unresolved_since,
    error_message,
    broker_order_id,
    seq,
    ledger_id
FROM {database}.orders FINAL
WHERE state IN ('sending', 'unknown');

-- Orders that came again, with the same content (answered with the standing outcome) or with other (refused).
CREATE OR REPLACE VIEW {database}.duplicates_and_conflicts {on_cluster} AS
SELECT
    account,
    order_id,
    seq,
    recorded_at,
    if(event = 'order.conflict_received', 'conflict', 'duplicate') AS kind,
    JSONExtractUInt(data, 'data', 'number') AS number,
    JSONExtractString(data, 'data', 'status') AS status_then,
    arrayStringConcat(JSONExtract(data, 'data', 'reasons', 'Array(String)'), '; ') AS reasons,
    JSONExtractString(data, 'source', 'subject') AS subject,
    correlation_id,
    ledger_id
FROM {database}.order_events FINAL
WHERE event IN ('order.duplicate_received', 'order.conflict_received');

-- Who halted and resumed trading, when and why.
CREATE OR REPLACE VIEW {database}.halts_and_resumes {on_cluster} AS
SELECT
    account,
    seq,
    recorded_at,
    if(event = 'account.halted', 'halted', 'resumed') AS what,
    JSONExtractString(data, 'data', 'source') AS source,
    JSONExtractString(data, 'data', 'by') AS person,
    JSONExtractString(data, 'data', 'reason') AS reason,
    JSONExtractBool(data, 'data', 'cancel_orders') AS cancels_orders,
    actor,
    JSONExtractString(data, 'source', 'caller') AS caller,
    ledger_id
FROM {database}.order_events FINAL
WHERE event IN ('account.halted', 'account.resumed');

-- One row per difference that a comparison with the broker found.
CREATE OR REPLACE VIEW {database}.reconciliation_differences {on_cluster} AS
SELECT
    account,
    seq,
    recorded_at,
    trigger,
    differences.kind AS kind,
    differences.ours AS ours,
    differences.brokers AS brokers,
    differences.policy AS policy,
    differences.order_id AS order_id,
    differences.order_ticket AS order_ticket,
    differences.position_id AS position_id,
    differences.deal AS deal,
    differences.symbol AS symbol,
    ledger_id
FROM {database}.reconciliations FINAL
ARRAY JOIN differences;

-- What we knew of positions at a time: SELECT * FROM positions_as_recorded(at = '2026-03-01 12:00:00').
CREATE OR REPLACE VIEW {database}.positions_as_recorded {on_cluster} AS
SELECT * EXCEPT (fold, void)
FROM
(
    SELECT *
    FROM {database}.position_history FINAL
    WHERE recorded_at <= {at:DateTime64(6, 'UTC')}
    ORDER BY seq DESC
    LIMIT 1 BY ledger_id, account, position_id
)
WHERE NOT void;

-- What had happened at the broker at a time, as everything recorded since tells it: the fold of the deals up to then, in
-- the order of the broker's times. SELECT * FROM positions_at_broker(at = '2026-03-01 12:00:00').
-- Volumes and prices are whole units of 1e-8; an average is rounded half to even (2^64 keeps what is divided positive).
CREATE OR REPLACE VIEW {database}.positions_at_broker {on_cluster} AS
SELECT
    ledger_id,
    account,
    position_id,
    position_symbol AS symbol,
    if(folded.1 > 0 OR (folded.1 = 0 AND folded.3), 'long', 'short') AS side,
    toDecimal64(toDecimal256(abs(folded.1), 8) / 100000000, 8) AS quantity,
    toDecimal64(toDecimal256(folded.2, 8) / 100000000, 8) AS entry_price,
    if(folded.1 = 0, 'closed', 'open') AS position_status,
    folded.4 AS opened_at,
    realized AS realized_pnl,
    costs AS commission_total,
    swaps AS swap_total,
    deal_count
FROM
(
    SELECT
        ledger_id,
        account,
        position_id,
        argMin(symbol, (execution_timestamp, deal)) AS position_symbol,
        sum(profit) AS realized,
        sum(commission) + sum(fee) AS costs,
        sum(swap) AS swaps,
        count() AS deal_count,
        arraySort(x -> (x.4, x.5), groupArray((
            toInt256(toDecimal256(fill_quantity, 8) * 100000000) * if(side = 'buy', 1, -1),
            toInt256(toDecimal256(fill_price, 8) * 100000000),
            entry IN (1, 3),
            execution_timestamp,
            deal
        ))) AS deals,
        arrayFold(
            (acc, x) -> CAST(multiIf(
                acc.1 = 0 AND x.3, if(acc.5, acc, (acc.1, acc.2, x.1 < 0, x.4, true)),
                acc.1 = 0, (x.1, x.2, x.1 > 0, x.4, true),
                (acc.1 > 0) = (x.1 > 0), (
                    acc.1 + x.1,
                    intDiv(2 * (acc.2 * abs(acc.1) + x.2 * abs(x.1)) + abs(acc.1 + x.1) * (1 + 2 * toInt256('18446744073709551616')), 2 * abs(acc.1 + x.1)) - toInt256('18446744073709551616')
                        - if((2 * (acc.2 * abs(acc.1) + x.2 * abs(x.1)) + abs(acc.1 + x.1)) % (2 * abs(acc.1 + x.1)) = 0
                            AND intDiv(2 * (acc.2 * abs(acc.1) + x.2 * abs(x.1)) + abs(acc.1 + x.1) * (1 + 2 * toInt256('18446744073709551616')), 2 * abs(acc.1 + x.1)) % 2 != 0, 1, 0),
                    acc.3,
                    acc.4,
                    true
                ),
                abs(x.1) <= abs(acc.1), (acc.1 + x.1, acc.2, acc.3, acc.4, true),
                x.3, (acc.1 - acc.1, acc.2, acc.3, acc.4, true),
                (acc.1 + x.1, x.2, x.1 > 0, x.4, true)
            ), 'Tuple(Int256, Int256, Bool, DateTime64(6, \'UTC\'), Bool)'),
            deals,
            CAST((0, 0, true, toDateTime64(0, 6, 'UTC'), false), 'Tuple(Int256, Int256, Bool, DateTime64(6, \'UTC\'), Bool)')
        ) AS folded
    FROM {database}.executions FINAL
    WHERE execution_timestamp <= {at:DateTime64(6, 'UTC')} AND position_id != 0
    GROUP BY ledger_id, account, position_id
);
