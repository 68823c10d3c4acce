-- Sent to answered is the attempt that was answered: from the intent of the first send it held the waits of retries, too.
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
        ('3 answered to filled', dateDiff('microsecond', answered_at, filled_at)),
        ('4 requested to filled', dateDiff('microsecond', requested_at, filled_at))
    ] AS timed
    WHERE timed.2 IS NOT NULL
    UNION ALL
    SELECT ledger_id, account, '2 sent to answered' AS step, dateDiff('microsecond', sends[-1].2, answered) AS microseconds
    FROM
    (
        SELECT
            ledger_id,
            account,
            order_id,
            maxIf(seq, event = 'order.broker_answered') AS answered_seq,
            argMaxIf(recorded_at, seq, event = 'order.broker_answered') AS answered,
            arrayFilter(
                send -> send.1 < answered_seq, arraySort(groupArrayIf((seq, recorded_at), event = 'order.send_started'))
            ) AS sends
        FROM {database}.order_events FINAL
        WHERE event IN ('order.send_started', 'order.broker_answered')
        GROUP BY ledger_id, account, order_id
    )
    WHERE notEmpty(sends)
)
GROUP BY ledger_id, account, step;

-- A view that is made again has no comments.
ALTER TABLE {database}.latency_percentiles {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: orders',
    COMMENT COLUMN step 'Between which two of requested, sent, answered, filled: 1 ends with the first send, 2 begins with the send that was answered last. Source: view',
    COMMENT COLUMN orders 'Orders that took the step. Source: count of orders',
    COMMENT COLUMN p50_ms 'Half of them took no longer, milliseconds. Source: times in orders and order_events, by the clock of the gateway',
    COMMENT COLUMN p90_ms '90 of 100 took no longer, milliseconds. Source: times in orders and order_events, by the clock of the gateway',
    COMMENT COLUMN p99_ms '99 of 100 took no longer, milliseconds. Source: times in orders and order_events, by the clock of the gateway',
    COMMENT COLUMN max_ms 'The longest, milliseconds. Source: times in orders and order_events, by the clock of the gateway',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: orders',
    MODIFY COMMENT 'How long did the steps of orders take? Example: SELECT step, orders, p50_ms, p99_ms, max_ms FROM latency_percentiles ORDER BY step';
