-- Who may read. Only on a server, and only where the user of the projections may manage access: elsewhere these are
-- left out, and said to be.

-- server only
CREATE ROLE IF NOT EXISTS order_ledger_auditor {on_cluster};

-- server only
GRANT {on_cluster} SELECT ON {database}.* TO order_ledger_auditor;

-- server only
CREATE QUOTA IF NOT EXISTS order_ledger_auditor {on_cluster} FOR INTERVAL 1 MINUTE MAX queries = 600, execution_time = 120 TO order_ledger_auditor;
