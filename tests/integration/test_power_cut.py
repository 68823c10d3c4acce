"""Embedded tables are written without an fsync for each insert: a power cut is made good from the ledger."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from projections.clickhouse import ClickHouseSink, Target, connect
from projections.digest import agree_tables, batches_of
from projections.durable import Mark, boot_id
from tests.engine import engine_path, fresh_database
from tests.history import History, past_of

pytestmark = pytest.mark.skipif(not boot_id(), reason="this system does not tell one run of the machine from another")


class Tables:
    """The tables of one ledger, and the mark of what is on the disk."""

    def __init__(self) -> None:
        self.history, self.database = History().orders(20), fresh_database()
        self.past = past_of(self.history.records)
        path = Path(engine_path())
        self.mark = path.parent / f"{path.name}.{self.database}.synced"

    async def write(self) -> int:
        """Takes the tables to the end of the ledger, as a start of the service does; where it began."""
        sink = ClickHouseSink(
            Target(path=engine_path()), self.history.ledger_id, database=self.database, past=self.past
        )
        await sink.open()
        held = await sink.position()
        began = held.seq if held else 0
        for batch in batches_of(self.history.records[began:], 16):
            await sink.write(batch)
        await sink.close()
        return began

    def run(self, sql: str) -> Any:
        with connect(Target(path=engine_path())) as client:
            return client.command(sql.replace("{db}", self.database))

    def differing(self) -> list[str]:
        with connect(Target(path=engine_path())) as client:
            found = agree_tables(self.history.records, self.past, client, self.database, self.history.ledger_id)
        return [one.table for one in found if not one.ok]


@pytest.fixture
def tables() -> Tables:
    return Tables()


async def test_rows_that_a_power_cut_took_come_back_from_the_ledger(tables: Tables) -> None:
    await tables.write()
    synced = next(one.seq for one in tables.history.records[40:] if one.topic == "writer.batch_sealed")
    tables.mark.write_bytes(msgspec.json.encode({"boot": "before the power cut", "seq": synced}))
    for table in ("executions", "orders", "positions", "position_history"):
        version = "changed_seq" if table == "executions" else "seq"
        tables.run(f"ALTER TABLE {{db}}.{table} DELETE WHERE {version} > {synced} SETTINGS mutations_sync = 2")
    assert tables.differing()
    assert await tables.write() == synced
    assert tables.differing() == []


async def test_a_cut_before_everything_is_made_good_is_no_other(tables: Tables) -> None:
    await tables.write()
    tables.mark.write_bytes(msgspec.json.encode({"boot": "before the power cut", "seq": 0}))
    sink = ClickHouseSink(Target(path=engine_path()), tables.history.ledger_id, database=tables.database)
    await sink.open()
    await sink.close()  # killed before it wrote again
    assert await tables.write() == 0
    assert tables.differing() == []


async def test_after_a_killed_process_nothing_is_written_again(tables: Tables) -> None:
    await tables.write()
    assert await tables.write() == len(tables.history.records)


async def test_without_its_mark_nothing_is_taken_for_safe(tables: Tables) -> None:
    await tables.write()
    tables.mark.unlink()
    assert await tables.write() == 0
    assert tables.differing() == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"boot": 1}'])
def test_a_mark_that_cannot_be_read_says_nothing(tmp_path: Path, text: bytes) -> None:
    mark = Mark(tmp_path, "db")
    mark.set(7)
    assert mark.lost_behind() is None
    assert Mark(tmp_path, "db", boot="another run").lost_behind() == 7
    (tmp_path.parent / f"{tmp_path.name}.db.synced").write_bytes(text)
    assert mark.lost_behind() == 0


def test_where_runs_of_the_machine_cannot_be_told_apart_every_insert_is_synced(tmp_path: Path) -> None:
    mark = Mark(tmp_path / "engine", "db", boot="")
    mark.set(7)
    assert (mark.lost_behind(), list(tmp_path.iterdir())) == (None, [])
