-- The reason of a fill is a number of MetaTrader's, not a word: the audit trail said 3 where it had nothing to say.
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
            if(JSONType(data, 'data', 'reason') = 'String', JSONExtractString(data, 'data', 'reason'), ''),
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

-- A view that is made again has no comments.
ALTER TABLE {database}.order_audit_trail {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: order_events',
    COMMENT COLUMN order_id 'Our order. Source: order_events',
    COMMENT COLUMN seq 'Position in the ledger. Source: order_events',
    COMMENT COLUMN stream_version 'Position in the stream of the order, dense from 1. Source: order_events',
    COMMENT COLUMN recorded_at 'When the gateway recorded it, UTC. Source: order_events',
    COMMENT COLUMN event 'Name of the event, such as order.filled. Source: order_events',
    COMMENT COLUMN actor 'Who caused it: client, gateway, broker, operator. Source: order_events',
    COMMENT COLUMN correlation_id 'Correlation id of the request, empty if none. Source: order_events',
    COMMENT COLUMN attempt 'Which send it tells of, from 1; 0 when of none. Source: order_events.data',
    COMMENT COLUMN retcode 'Trade server return code, 0 when it tells none. Source: order_events.data',
    COMMENT COLUMN retcode_name 'Name of the return code, empty if none. Source: order_events.data',
    COMMENT COLUMN deal 'Deal ticket at the broker, 0 when it tells none. Source: order_events.data',
    COMMENT COLUMN volume 'Volume the event tells, lots, exact as text, empty if none. Source: order_events.data',
    COMMENT COLUMN price 'Price the event tells, quote currency per unit, exact as text, empty if none. Source: order_events.data',
    COMMENT COLUMN said 'Reasons, description, problem and evidence of the event in words. Source: order_events.data',
    COMMENT COLUMN data 'The stored bytes (JSON), verbatim. Source: order_events',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: order_events',
    MODIFY COMMENT 'What happened to an order, in which order? Example: SELECT recorded_at, event, actor, attempt, retcode, said FROM order_audit_trail WHERE order_id = \'o-1\' ORDER BY seq';
