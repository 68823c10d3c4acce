-- Every event of the ledger, in full. Inserted last of all tables: its last seq without a gap is the position, so it
-- alone need not be on the disk when an insert returns: what it loses is inserted again.
CREATE TABLE IF NOT EXISTS {database}.order_events {on_cluster}
(
    ledger_id LowCardinality(String) COMMENT 'Ledger it belongs to; one ledger per trading account. Source: event_id',
    seq UInt64 COMMENT 'Position in the ledger, dense from 1. Source: envelope',
    event_id String COMMENT 'Unique id, ledger_id:seq. Source: envelope',
    stream String COMMENT 'Stream name: order/ID, account/LOGIN, inbox/DATE or writer. Source: stored event',
    stream_version UInt64 COMMENT 'Position in the stream, dense from 1. Source: stored event',
    event LowCardinality(String) COMMENT 'Name of the event, such as order.filled. Source: stored event',
    order_id String COMMENT 'Order the stream belongs to, empty for other streams. Source: stream name',
    account LowCardinality(String) COMMENT 'Login of the trading account. Source: envelope',
    recorded_at DateTime64(6, 'UTC') COMMENT 'When the gateway recorded it, UTC. Source: gateway clock, in the envelope',
    schema_version UInt16 COMMENT 'Schema version the event was stored with. Source: envelope',
    correlation_id String COMMENT 'Correlation id of the request, empty if none. Source: envelope',
    causation_id String COMMENT 'Id of what caused the event, empty if none. Source: envelope',
    actor LowCardinality(String) COMMENT 'Who caused it: client, gateway, broker, operator. Source: envelope',
    data String COMMENT 'The stored bytes (JSON), verbatim: these are what the seals cover. Source: stored event' CODEC(ZSTD(3)),
    INDEX order_id_index order_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX correlation_id_index correlation_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = {replicated}ReplacingMergeTree()
ORDER BY (ledger_id, seq)
SETTINGS {merged}, max_compress_block_size = 65536
COMMENT 'Every event of the ledger, in full; read with FINAL, or through the view events';

CREATE OR REPLACE VIEW {database}.events {on_cluster} AS
SELECT * FROM {database}.order_events FINAL;
