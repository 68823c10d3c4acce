-- A part that live projection inserts is small and soon merged away. Kept in one file instead of ten, it costs the file
-- system a tenth of the files made and deleted, which is most of what an insert costs when there are several a second.
-- Of the embedded engine only: a server's disks and version are not ours to choose.

-- embedded only
ALTER TABLE {database}.executions MODIFY SETTING min_bytes_for_full_part_storage = 10485760;

-- embedded only
ALTER TABLE {database}.orders MODIFY SETTING min_bytes_for_full_part_storage = 10485760;

-- embedded only
ALTER TABLE {database}.positions MODIFY SETTING min_bytes_for_full_part_storage = 10485760;

-- embedded only
ALTER TABLE {database}.position_history MODIFY SETTING min_bytes_for_full_part_storage = 10485760;

-- embedded only
ALTER TABLE {database}.reconciliations MODIFY SETTING min_bytes_for_full_part_storage = 10485760;

-- embedded only
ALTER TABLE {database}.account_snapshots MODIFY SETTING min_bytes_for_full_part_storage = 10485760;

-- embedded only
ALTER TABLE {database}.order_events MODIFY SETTING min_bytes_for_full_part_storage = 10485760;
