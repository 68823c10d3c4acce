-- What the views answer, with an example, and what their columns are. The two views with a time as parameter have no
-- columns before it is given: theirs are those of positions. First the units that columns of tables lacked.
ALTER TABLE {database}.executions {on_cluster}
    COMMENT COLUMN requested_price 'Price the order asked for, quote currency per unit, NULL when it asked for none. Source: request';

ALTER TABLE {database}.orders {on_cluster}
    COMMENT COLUMN average_fill_price 'Average price of the fills by volume, quote currency, NULL without a fill. Source: fold of the fills';

ALTER TABLE {database}.positions {on_cluster}
    COMMENT COLUMN exit_price 'Average price of what was closed since the side was opened, quote currency, NULL = nothing. Source: fold of the deals';

ALTER TABLE {database}.position_history {on_cluster}
    COMMENT COLUMN exit_price 'Average price of what was closed since the side was opened, quote currency, NULL = nothing. Source: fold of the deals';

ALTER TABLE {database}.events {on_cluster}
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: order_events',
    COMMENT COLUMN seq 'Position in the ledger, dense from 1. Source: order_events',
    COMMENT COLUMN event_id 'Unique id, ledger_id:seq. Source: order_events',
    COMMENT COLUMN stream 'Stream name: order/ID, account/LOGIN, inbox/DATE or writer. Source: order_events',
    COMMENT COLUMN stream_version 'Position in the stream, dense from 1. Source: order_events',
    COMMENT COLUMN event 'Name of the event, such as order.filled. Source: order_events',
    COMMENT COLUMN order_id 'Order the stream belongs to, empty for other streams. Source: order_events',
    COMMENT COLUMN account 'Login of the trading account. Source: order_events',
    COMMENT COLUMN recorded_at 'When the gateway recorded it, UTC. Source: order_events',
    COMMENT COLUMN schema_version 'Schema version the event was stored with. Source: order_events',
    COMMENT COLUMN correlation_id 'Correlation id of the request, empty if none. Source: order_events',
    COMMENT COLUMN causation_id 'Id of what caused the event, empty if none. Source: order_events',
    COMMENT COLUMN actor 'Who caused it: client, gateway, broker, operator. Source: order_events',
    COMMENT COLUMN data 'The stored bytes (JSON), verbatim. Source: order_events',
    MODIFY COMMENT 'Every event of the ledger, each once. Example: SELECT event, count() FROM events GROUP BY event ORDER BY event';

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

ALTER TABLE {database}.executions_by_order {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: executions',
    COMMENT COLUMN order_id 'Our order. Source: executions',
    COMMENT COLUMN order_symbol 'Symbol as the broker names it. Source: executions.symbol',
    COMMENT COLUMN order_side 'buy or sell. Source: executions.side',
    COMMENT COLUMN fill_count 'Deals of the order. Source: count of executions',
    COMMENT COLUMN quantity 'Volume filled, lots. Source: sum of executions.fill_quantity',
    COMMENT COLUMN average_fill_price 'Price, quote currency per unit, weighted by volume, cut to 8 places. Source: executions.fill_price',
    COMMENT COLUMN average_slippage 'Price units, positive = worse for us, weighted by volume. Source: executions.slippage',
    COMMENT COLUMN commission_total 'Account currency, negative = cost. Source: sum of executions.commission',
    COMMENT COLUMN swap_total 'Account currency. Source: sum of executions.swap',
    COMMENT COLUMN fee_total 'Account currency, negative = cost. Source: sum of executions.fee',
    COMMENT COLUMN profit_total 'Account currency, before costs. Source: sum of executions.profit',
    COMMENT COLUMN first_execution 'When the broker executed the first deal, UTC. Source: executions.execution_timestamp',
    COMMENT COLUMN last_execution 'When the broker executed the last deal, UTC. Source: executions.execution_timestamp',
    COMMENT COLUMN complete '1 = a fill completed the order. Source: executions.event',
    COMMENT COLUMN provisional_fills 'true = the costs of a deal are not yet known. Source: executions.provisional',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: executions',
    MODIFY COMMENT 'What did each order come to at the broker? Example: SELECT order_id, quantity, average_fill_price, commission_total FROM executions_by_order ORDER BY last_execution DESC LIMIT 20';

ALTER TABLE {database}.slippage_by_symbol_and_hour {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: executions',
    COMMENT COLUMN symbol 'Symbol as the broker names it. Source: executions',
    COMMENT COLUMN hour 'Hour in which the broker executed, its beginning, UTC. Source: executions.execution_timestamp',
    COMMENT COLUMN fills 'Deals whose order named a price. Source: count of executions',
    COMMENT COLUMN lots 'Volume of these deals, lots. Source: sum of executions.fill_quantity',
    COMMENT COLUMN average_slippage 'Price units, positive = worse for us, weighted by volume. Source: executions.slippage',
    COMMENT COLUMN average_points 'Points of the symbol, each deal counted alike, NULL when unknown of all. Source: executions.slippage_points',
    COMMENT COLUMN worst_points 'Points of the symbol, of the worst deal, NULL when unknown of all. Source: executions.slippage_points',
    COMMENT COLUMN worse 'Deals at a price worse than asked. Source: executions.slippage',
    COMMENT COLUMN better 'Deals at a price better than asked. Source: executions.slippage',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: executions',
    MODIFY COMMENT 'How far from the price we asked were we filled, where and when? Only deals whose order named a price. Example: SELECT symbol, hour, fills, average_points, worst_points FROM slippage_by_symbol_and_hour ORDER BY worst_points DESC LIMIT 20';

ALTER TABLE {database}.rejections_by_retcode {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: orders',
    COMMENT COLUMN order_status 'refused (by us), rejected (by the broker) or failed. Source: orders',
    COMMENT COLUMN category 'Kind of error. Source: orders',
    COMMENT COLUMN retcode 'Trade server return code, 0 when there was none. Source: orders',
    COMMENT COLUMN retcode_name 'Name of the return code. Source: orders',
    COMMENT COLUMN rejected 'Orders that ended so. Source: count of orders',
    COMMENT COLUMN rejected_in_all 'Orders of the account that were refused, rejected or failed. Source: count of orders',
    COMMENT COLUMN requested_in_all 'All orders of the account. Source: count of orders',
    COMMENT COLUMN share 'rejected by requested_in_all, from 0 to 1. Source: count of orders',
    COMMENT COLUMN first_at 'When the first of them was requested, UTC. Source: orders.requested_at',
    COMMENT COLUMN last_at 'When the last of them was requested, UTC. Source: orders.requested_at',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: orders',
    MODIFY COMMENT 'What was refused by us or rejected by the broker, why, and how large a share of all orders is it? Example: SELECT order_status, retcode, retcode_name, rejected, share FROM rejections_by_retcode ORDER BY rejected DESC';

ALTER TABLE {database}.open_exposure {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: positions',
    COMMENT COLUMN symbol 'Symbol as the broker names it. Source: positions',
    COMMENT COLUMN open_positions 'Open positions. Source: count of positions',
    COMMENT COLUMN long_lots 'Volume held long, lots. Source: sum of positions.quantity',
    COMMENT COLUMN short_lots 'Volume held short, lots. Source: sum of positions.quantity',
    COMMENT COLUMN net_lots 'Long less short, lots. Source: sum of positions.quantity',
    COMMENT COLUMN unrealized 'Account currency, at the last snapshot, NULL when it showed none of them. Source: sum of positions.unrealized_pnl',
    COMMENT COLUMN positions_never_shown 'Open positions that no snapshot has shown yet. Source: positions.unrealized_pnl',
    COMMENT COLUMN positions_without_stop_loss 'Open positions without a stop loss that we know of. Source: positions.stop_loss',
    COMMENT COLUMN oldest 'When the oldest was opened, UTC. Source: positions.opened_at',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: positions',
    MODIFY COMMENT 'What is open now? Example: SELECT symbol, long_lots, short_lots, net_lots, unrealized FROM open_exposure ORDER BY abs(net_lots) DESC';

ALTER TABLE {database}.realised_profit {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: executions',
    COMMENT COLUMN day 'Day on which the broker executed, UTC. Source: executions.execution_timestamp',
    COMMENT COLUMN symbol 'Symbol as the broker names it. Source: executions',
    COMMENT COLUMN deals 'Deals of that day. Source: count of executions',
    COMMENT COLUMN external_deals 'Of these, deals that are none of ours. Source: executions.order_id',
    COMMENT COLUMN gross 'Account currency, before costs. Source: sum of executions.profit',
    COMMENT COLUMN commission_total 'Account currency, negative = cost. Source: sum of executions.commission',
    COMMENT COLUMN swap_total 'Account currency. Source: sum of executions.swap',
    COMMENT COLUMN fee_total 'Account currency, negative = cost. Source: sum of executions.fee',
    COMMENT COLUMN net 'Account currency, gross with all costs. Source: gross, commission_total, swap_total, fee_total',
    COMMENT COLUMN deals_with_costs_unknown 'Deals whose costs the broker has not told yet. Source: executions.provisional',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: executions',
    MODIFY COMMENT 'What was earned, and what did it cost? Every deal of the account, also those that are none of ours. Example: SELECT day, sum(gross), sum(net), sum(deals) FROM realised_profit GROUP BY day ORDER BY day';

ALTER TABLE {database}.latency_percentiles {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: orders',
    COMMENT COLUMN step 'Between which two of requested, sent, answered, filled. Source: view',
    COMMENT COLUMN orders 'Orders that took the step. Source: count of orders',
    COMMENT COLUMN p50_ms 'Half of them took no longer, milliseconds. Source: times in orders, by the clock of the gateway',
    COMMENT COLUMN p90_ms '90 of 100 took no longer, milliseconds. Source: times in orders, by the clock of the gateway',
    COMMENT COLUMN p99_ms '99 of 100 took no longer, milliseconds. Source: times in orders, by the clock of the gateway',
    COMMENT COLUMN max_ms 'The longest, milliseconds. Source: times in orders, by the clock of the gateway',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: orders',
    MODIFY COMMENT 'How long did the steps of orders take? Example: SELECT step, orders, p50_ms, p99_ms, max_ms FROM latency_percentiles ORDER BY step';

ALTER TABLE {database}.unresolved_orders {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: orders',
    COMMENT COLUMN order_id 'Our order. Source: orders',
    COMMENT COLUMN symbol 'Symbol as the broker names it. Source: orders',
    COMMENT COLUMN side 'buy or sell. Source: orders',
    COMMENT COLUMN quantity 'Volume asked for, lots. Source: orders',
    COMMENT COLUMN state 'sending or unknown. Source: orders',
    COMMENT COLUMN attempts 'Sends so far. Source: orders',
    COMMENT COLUMN submitted_at 'When the intent of the first send was recorded, UTC. Source: orders',
    COMMENT COLUMN unknown_at 'When the outcome was recorded as unknown, UTC, NULL when it was not. Source: orders',
    COMMENT COLUMN unresolved_since 'unknown_at, or else submitted_at, UTC. Source: orders',
    COMMENT COLUMN error_message 'What is known in words. Source: orders',
    COMMENT COLUMN broker_order_id 'Order ticket at the broker, 0 when not known. Source: orders',
    COMMENT COLUMN seq 'Position in the ledger of the last event of the order. Source: orders',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: orders',
    MODIFY COMMENT 'Which orders may or may not be at the broker? Sent without an answer, or with one that settles nothing. Example: SELECT order_id, symbol, side, quantity, unresolved_since FROM unresolved_orders ORDER BY unresolved_since';

ALTER TABLE {database}.duplicates_and_conflicts {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: order_events',
    COMMENT COLUMN order_id 'Our order. Source: order_events',
    COMMENT COLUMN seq 'Position in the ledger. Source: order_events',
    COMMENT COLUMN recorded_at 'When the gateway recorded it, UTC. Source: order_events',
    COMMENT COLUMN kind 'duplicate (same content) or conflict (other content, refused). Source: order_events.event',
    COMMENT COLUMN number 'Which repetition of the order it was, from 1; 0 for a conflict. Source: order_events.data',
    COMMENT COLUMN status_then 'State of the order when a duplicate came; empty for a conflict. Source: order_events.data',
    COMMENT COLUMN reasons 'What was wrong with a conflict, in words. Source: order_events.data',
    COMMENT COLUMN subject 'Subject it came in by. Source: order_events.data',
    COMMENT COLUMN correlation_id 'Correlation id of the request, empty if none. Source: order_events',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: order_events',
    MODIFY COMMENT 'Which orders came again, with the same content or with other? Example: SELECT recorded_at, order_id, kind, number, reasons FROM duplicates_and_conflicts ORDER BY seq';

ALTER TABLE {database}.halts_and_resumes {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: order_events',
    COMMENT COLUMN seq 'Position in the ledger. Source: order_events',
    COMMENT COLUMN recorded_at 'When the gateway recorded it, UTC. Source: order_events',
    COMMENT COLUMN what 'halted or resumed. Source: order_events.event',
    COMMENT COLUMN source 'operator, configuration, limit or heartbeat; each lifts only its own halt. Source: order_events.data',
    COMMENT COLUMN person 'Who asked for it, as the request names him, empty if not told. Source: order_events.data',
    COMMENT COLUMN reason 'Why, in words. Source: order_events.data',
    COMMENT COLUMN cancels_orders '1 = the halt also cancels working orders. Source: order_events.data',
    COMMENT COLUMN actor 'Who caused it: client, gateway, broker, operator. Source: order_events',
    COMMENT COLUMN caller 'Who called, empty if not known. Source: order_events.data',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: order_events',
    MODIFY COMMENT 'Who halted and resumed trading, when and why? Example: SELECT recorded_at, what, source, person, reason FROM halts_and_resumes ORDER BY seq';

ALTER TABLE {database}.reconciliation_differences {on_cluster}
    COMMENT COLUMN account 'Login of the trading account. Source: reconciliations',
    COMMENT COLUMN seq 'Position in the ledger of the comparison. Source: reconciliations',
    COMMENT COLUMN recorded_at 'When the gateway recorded it, UTC. Source: reconciliations',
    COMMENT COLUMN trigger 'start, reconnect, interval or demand. Source: reconciliations',
    COMMENT COLUMN kind 'What kind of difference. Source: reconciliations.differences',
    COMMENT COLUMN ours 'What the ledger tells, as text. Source: reconciliations.differences',
    COMMENT COLUMN brokers 'What the broker shows, as text. Source: reconciliations.differences',
    COMMENT COLUMN policy 'alert, adopt or correct, as applied. Source: reconciliations.differences',
    COMMENT COLUMN order_id 'Our order, empty if none. Source: reconciliations.differences',
    COMMENT COLUMN order_ticket 'Order ticket at the broker, 0 if none. Source: reconciliations.differences',
    COMMENT COLUMN position_id 'Position identifier at the broker, 0 if none. Source: reconciliations.differences',
    COMMENT COLUMN deal 'Deal ticket at the broker, 0 if none. Source: reconciliations.differences',
    COMMENT COLUMN symbol 'Symbol as the broker names it, empty if none. Source: reconciliations.differences',
    COMMENT COLUMN ledger_id 'Ledger it belongs to; one ledger per trading account. Source: reconciliations',
    MODIFY COMMENT 'Which differences did comparisons with the broker find? Example: SELECT recorded_at, kind, ours, brokers, policy FROM reconciliation_differences ORDER BY seq';

ALTER TABLE {database}.positions_as_recorded {on_cluster}
    MODIFY COMMENT 'What did we know of positions at a time? Columns of position_history. Example: SELECT position_id, symbol, side, quantity FROM positions_as_recorded(at = \'2026-03-01 12:00:00\') WHERE position_status = \'open\'';

ALTER TABLE {database}.positions_at_broker {on_cluster}
    MODIFY COMMENT 'What positions did the broker hold at a time, as everything recorded since tells it? Columns of positions. Example: SELECT position_id, symbol, side, quantity FROM positions_at_broker(at = \'2026-03-01 12:00:00\') WHERE position_status = \'open\'';
