-- Positions as the fold of the fills of our orders: fills on the position's side open or add, the others close.
-- The side is that of the open volume, of a closed position that of its first fill. Until a deal names its
-- position, that is the ticket of the order that opened it (the two are equal on the broker's side).
CREATE OR REPLACE VIEW {database}.positions AS
SELECT
    ledger_id,
    account,
    position AS position_id,
    position_symbol AS symbol,
    if(direction = 'buy', 'long', 'short') AS side,
    toDecimal64(abs(net), 8) AS quantity,
    toDecimal64(if(entered = 0, toDecimal256(0, 16), if(direction = 'buy', buy_value, sell_value) / if(entered = 0, toDecimal256(1, 8), entered)), 8) AS entry_price,
    profit_sum AS realized_pnl,
    commission_sum + fee_sum AS commission_total,
    swap_sum AS swap_total,
    first_time AS opened_at,
    if(net = 0, last_time, NULL) AS closed_at,
    if(net = 0, 'closed', 'open') AS position_status,
    first_order AS entry_order_id,
    last_event AS last_seq
FROM
(
    SELECT
        *,
        buys - sells AS net,
        multiIf(net > 0, 'buy', net < 0, 'sell', first_side) AS direction,
        if(direction = 'buy', buys, sells) AS entered
    FROM
    (
        SELECT
            ledger_id,
            account,
            if(position_id = 0, ticket, position_id) AS position,
            argMin(symbol, seq) AS position_symbol,
            argMin(side, seq) AS first_side,
            sumIf(toDecimal256(fill_quantity, 8), side = 'buy') AS buys,
            sumIf(toDecimal256(fill_quantity, 8), side = 'sell') AS sells,
            sumIf(toDecimal256(fill_price, 8) * toDecimal256(fill_quantity, 8), side = 'buy') AS buy_value,
            sumIf(toDecimal256(fill_price, 8) * toDecimal256(fill_quantity, 8), side = 'sell') AS sell_value,
            sum(profit) AS profit_sum,
            sum(commission) AS commission_sum,
            sum(fee) AS fee_sum,
            sum(swap) AS swap_sum,
            min(execution_timestamp) AS first_time,
            max(execution_timestamp) AS last_time,
            argMin(order_id, seq) AS first_order,
            max(seq) AS last_event
        FROM {database}.executions FINAL
        GROUP BY ledger_id, account, position
    )
);
