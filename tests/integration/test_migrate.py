"""The schema of ClickHouse, brought up on the real engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from projections.clickhouse import Target, connect
from projections.follower import SinkRefused
from projections.migrate import FOLDER, Place, check, load, plan
from projections.migrate import migrate as run
from projections.tables import TABLES, Table
from tests import make_schema_page
from tests.engine import engine_path, fresh_database


@pytest.fixture
def client() -> Iterator[Any]:
    opened = connect(Target(path=engine_path()))
    yield opened
    opened.close()


@pytest.fixture
def database() -> str:
    return fresh_database()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE IF NOT EXISTS {database}.a (x Int8) ENGINE = Memory;\n")
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE IF NOT EXISTS {database}.b (x Int8) ENGINE = Memory;\n")
    return tmp_path


def migrate(client: Any, database: str, migrations: Any = None) -> list[str]:
    return [one.name for one in run(client, Place(database=database), migrations)]


def states(client: Any, database: str) -> list[tuple[int, str]]:
    sql = "SELECT version, toString(state) FROM {db}.schema_migrations FINAL ORDER BY version".replace("{db}", database)
    return [tuple(row) for row in client.query(sql).result_rows]


def test_every_migration_is_applied_once_and_recorded(client: Any, database: str) -> None:
    assert migrate(client, database) == [path.name for path in sorted(FOLDER.glob("*.sql"))]
    assert migrate(client, database) == []
    assert {state for _, state in states(client, database)} == {"applied"}
    check(client, database)


def test_a_changed_old_file_is_refused(client: Any, database: str, files: Path) -> None:
    migrate(client, database, load(files))
    (files / "0001_first.sql").write_text("CREATE TABLE IF NOT EXISTS {database}.a (x Int64) ENGINE = Memory;\n")
    with pytest.raises(SinkRefused, match=r"0001_first\.sql was changed after"):
        migrate(client, database, load(files))


def test_a_failed_file_stands_as_started_and_runs_again_when_corrected(client: Any, database: str, files: Path) -> None:
    second = files / "0002_second.sql"
    second.write_text(second.read_text() + "CREATE TABLE {database}.c (x NoSuchType) ENGINE = Memory;\n")
    with pytest.raises(Exception, match="NoSuchType"):
        migrate(client, database, load(files))
    assert states(client, database) == [(1, "applied"), (2, "started")]
    second.write_text(second.read_text().replace("NoSuchType", "Int8"))
    assert migrate(client, database, load(files)) == ["0002_second.sql"]
    assert states(client, database) == [(1, "applied"), (2, "applied")]


def test_a_database_of_a_newer_version_is_refused(client: Any, database: str, files: Path) -> None:
    migrate(client, database, load(files))
    with pytest.raises(SinkRefused, match="does not know"):
        migrate(client, database, load(files)[:1])


def test_without_migrating_a_missing_schema_is_said_with_its_remedy(client: Any, database: str) -> None:
    with pytest.raises(SinkRefused, match="no schema") as caught:
        check(client, database)
    assert "migrate" in caught.value.remedy


@pytest.mark.parametrize("names", [["0001_a.sql", "0003_b.sql"], ["first.sql"], ["0002_a.sql"], []])
def test_misnamed_or_missing_files_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;\n")
    with pytest.raises(SinkRefused):
        load(tmp_path)


@pytest.mark.parametrize("name", ["a b", "a`b", "a.b", "", "1a", "x" * 65])
def test_a_database_name_cannot_carry_sql(client: Any, name: str) -> None:
    with pytest.raises(SinkRefused, match="database name"):
        migrate(client, name)


# What takes a time as parameter has no columns before it is given, so none that could be commented.
OF_A_TIME = {"positions_as_recorded", "positions_at_broker"}


def test_every_column_of_tables_and_views_says_what_it_is_and_where_it_comes_from(client: Any, database: str) -> None:
    migrate(client, database)
    named = {"db": database}
    columns = client.query(
        "SELECT table, name, comment FROM system.columns WHERE database = {db:String}", parameters=named
    ).result_rows
    assert [f"{table}.{name}" for table, name, comment in columns if "Source: " not in comment] == []
    told = client.query("SELECT name, comment FROM system.tables WHERE database = {db:String}", parameters=named)
    assert [name for name, comment in told.result_rows if not comment] == []
    assert {name for name, _ in told.result_rows} - {table for table, _, _ in columns} == OF_A_TIME


@pytest.mark.parametrize("view", sorted(OF_A_TIME))
def test_a_view_of_a_time_has_columns_of_positions_with_their_meaning(client: Any, database: str, view: str) -> None:
    migrate(client, database)
    found = client.query(f"DESCRIBE TABLE (SELECT * FROM {database}.{view}(at = '2026-01-30 12:00:00'))").result_rows
    explained = {row[0] for row in client.query(f"DESCRIBE TABLE {database}.positions").result_rows}
    assert len(found) > 5
    assert [row[0] for row in found if row[0] not in explained] == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_rows_have_the_columns_of_their_table(client: Any, database: str, table: Table) -> None:
    migrate(client, database)
    found = client.query(f"DESCRIBE TABLE {database}.{table.name}").result_rows
    assert {row[0]: row[1] for row in found} == table.columns
    sql = "SELECT sorting_key FROM system.tables WHERE database = {db:String} AND name = {t:String}"
    ((key,),) = client.query(sql, parameters={"db": database, "t": table.name}).result_rows
    assert tuple(key.split(", ")) == table.key


def test_what_migrate_would_do_is_told_and_not_done(client: Any, database: str, files: Path) -> None:
    told = plan(client, Place(database=database), load(files))
    assert [one.name for one in told] == ["0001_first.sql", "0002_second.sql"]
    assert told[0].statements == (f"CREATE TABLE IF NOT EXISTS {database}.a (x Int8) ENGINE = Memory",)
    assert not client.query(f"SELECT name FROM system.databases WHERE name = '{database}'").result_rows
    migrate(client, database, load(files))
    assert plan(client, Place(database=database), load(files)) == []


def test_the_same_files_serve_a_replicated_cluster() -> None:
    place = Place(database="audit", cluster="main", server=True)
    statements = [place.fill(one.sql) for file in load() for one in file.statements if not one.embedded_only]
    assert all("ON CLUSTER main" in one for one in statements)
    tables = [one for one in statements if one.startswith("CREATE TABLE")]
    assert len(tables) == len(TABLES)
    assert all("ENGINE = ReplicatedReplacingMergeTree(" in one for one in tables)
    alone = [Place(database="audit").fill(one.sql) for file in load() for one in file.statements]
    assert not any("CLUSTER" in one or "Replicated" in one or "{on" in one for one in alone)


async def test_statements_for_a_server_only_are_left_out_where_they_may_not_run(client: Any, database: str) -> None:
    applied = run(client, Place(database=database))
    access = next(one for one in applied if "access" in one.name)
    assert (access.statements, access.left_out) == ((), 3)
    other = fresh_database()
    on_server = run(client, Place(database=other, server=True))  # the engine denies them, as a server may
    assert next(one for one in on_server if "access" in one.name).left_out == 3
    check(client, other)


def test_no_table_is_partitioned_or_expires(client: Any, database: str) -> None:
    migrate(client, database)
    rows = client.query(
        "SELECT name, partition_key, create_table_query FROM system.tables WHERE database = {db:String}",
        parameters={"db": database},
    ).result_rows
    assert all(not partition and "TTL" not in sql for _, partition, sql in rows)


def test_the_page_of_the_schema_is_what_the_database_has(client: Any, database: str) -> None:
    migrate(client, database)
    assert make_schema_page.PAGE.read_text() == make_schema_page.page(client, database), "run `make docs`"


def test_the_page_of_the_schema_has_a_meaning_for_every_column() -> None:
    rows = [line for line in make_schema_page.PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 300
    assert [row for row in rows if row.count(" | ") < 2 or "Source: " not in row] == []
