"""The read-only ClickHouse endpoint, asked as its users ask it: curl's way, clickhouse-connect's, and an attacker's."""

import asyncio
import gzip
import io
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import pytest

from projections.clickhouse import Target, connect
from projections.endpoint import Endpoint, Limits, Names, statement_problem
from tests.engine import engine_path, fresh_database


@pytest.fixture(scope="module")
def database() -> str:
    name = fresh_database()
    client = connect(Target(path=engine_path()))
    client.command(f"CREATE DATABASE {name}")
    client.command(
        f"CREATE TABLE {name}.fills (id UInt64, price Decimal(18, 8), name String) "
        "ENGINE = ReplacingMergeTree ORDER BY id"
    )
    for _ in range(2):
        client.command(f"INSERT INTO {name}.fills VALUES (1, 1.1, 'a'), (2, 2.5, 'tab\\there')")
    client.close()
    return name


@pytest.fixture
async def endpoint(database: str) -> AsyncIterator[Endpoint]:
    serving = Endpoint(engine_path(), database=database)
    await serving.start()
    yield serving
    await serving.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http: aiohttp.ClientSession, endpoint: Endpoint, body: str, **params: str) -> tuple[int, str, Any]:
    async with http.post(endpoint.url, data=io.BytesIO(body.encode()), params=params) as response:
        return response.status, await response.text(), response.headers


async def test_a_query_is_answered_from_the_body_and_from_the_address(
    http: aiohttp.ClientSession, endpoint: Endpoint
) -> None:
    assert (await ask(http, endpoint, "SELECT 1"))[:2] == (200, "1\n")
    async with http.get(endpoint.url, params={"query": "SELECT 2"}) as response:
        assert await response.text() == "2\n"
    status, text, _ = await ask(http, endpoint, "FROM fills ORDER BY id LIMIT 1 FORMAT CSV", query="SELECT name")
    assert (status, text) == (200, '"a"\n')


async def test_what_curl_sends_is_a_query_not_a_form(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with http.post(endpoint.url, data=b"SELECT 'a=b&c'", headers=headers) as response:
        assert await response.text() == "a=b&c\n"


async def test_rows_not_yet_merged_are_seen_once(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    assert (await ask(http, endpoint, "SELECT count() FROM fills"))[1] == "2\n"


async def test_any_format_comes_back_as_it_is(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    _, text, headers = await ask(http, endpoint, "SELECT price FROM fills WHERE id = 1 FORMAT JSONEachRow")
    assert text == '{"price":1.1}\n'
    assert headers["X-ClickHouse-Format"] == "JSONEachRow"
    _, text, headers = await ask(http, endpoint, "SELECT 1 AS one", default_format="JSONCompact")
    assert '"one"' in text
    assert headers["Content-Type"].startswith("application/json")


async def test_parameters_are_bound_as_values(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    hostile = "a') OR 1=1 --"
    sql = "SELECT count() FROM fills WHERE name = {name:String}"
    assert (await ask(http, endpoint, sql, param_name="a"))[1] == "1\n"
    assert (await ask(http, endpoint, sql, param_name=hostile))[1] == "0\n"
    assert (await ask(http, endpoint, sql, param_name="tab\\there"))[1] == "1\n"


async def test_comments_and_odd_quoting_do_not_change_a_query(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    query = "/* INTO OUTFILE 'x' */ SELECT 'INTO OUTFILE', \"id\", $$it's;$$ -- file('/x')\nFROM `fills` WHERE id = 1;"
    assert (await ask(http, endpoint, query))[:2] == (200, "INTO OUTFILE\t1\tit\\'s;\n")


async def test_the_database_of_one_query_is_not_that_of_the_next(
    http: aiohttp.ClientSession, endpoint: Endpoint, database: str
) -> None:
    for _ in range(4):
        assert (await ask(http, endpoint, "SELECT currentDatabase()", database="system"))[1] == "system\n"
        assert (await ask(http, endpoint, "SELECT currentDatabase()"))[1] == f"{database}\n"


async def test_errors_come_with_clickhouses_code_and_text(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    status, text, headers = await ask(http, endpoint, "SELECT * FROM missing")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (404, "60")
    assert text.startswith("Code: 60. DB::Exception: ")
    assert "UNKNOWN_TABLE" in text
    status, text, headers = await ask(http, endpoint, "SELEC 1")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (400, "62")


async def test_a_large_answer_is_compressed_on_request(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    url = f"{endpoint.url}/?enable_http_compression=1"
    headers = {"Accept-Encoding": "gzip"}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as raw,
        raw.post(url, data=b"SELECT number FROM numbers(5000)", headers=headers) as response,
    ):
        assert response.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await response.read()).startswith(b"0\n1\n2\n")


async def test_ping_answers(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    async with http.get(f"{endpoint.url}/ping") as response:
        assert await response.text() == "Ok.\n"


async def test_another_host_name_is_not_answered(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    async with http.get(endpoint.url, params={"query": "SELECT 1"}, headers={"Host": "evil.example"}) as response:
        assert response.status == 403


def test_the_clickhouse_connect_client_reads_types_parameters_and_dataframes(
    engine_in_thread: str, database: str
) -> None:
    host, _, port = engine_in_thread.removeprefix("http://").rpartition(":")
    client = clickhouse_connect.get_client(host=host, port=int(port), database=database)
    found = client.query("SELECT id, price FROM fills WHERE id > {low:UInt64} ORDER BY id", parameters={"low": 1})
    assert [str(value) for value in found.result_rows[0]] == ["2", "2.50000000"]
    assert client.command("SELECT count() FROM fills") == 2
    assert client.query("SELECT 1 AS nothing WHERE 0").result_rows == []
    assert client.query_df("SELECT id FROM fills ORDER BY id")["id"].tolist() == [1, 2]
    with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match="READONLY"):
        client.command("DROP TABLE fills")
    with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match="READONLY"):
        client.insert("fills", [[3]], column_names=["id"], column_type_names=["UInt64"])
    client.close()


@pytest.fixture
def engine_in_thread(database: str) -> Iterator[str]:
    """The endpoint on a loop of its own, for clients that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    endpoint = Endpoint(engine_path(), database=database)
    asyncio.run_coroutine_threadsafe(endpoint.start(), loop).result(20)
    yield endpoint.url
    asyncio.run_coroutine_threadsafe(endpoint.close(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


FORBIDDEN = [
    "SET readonly = 0",
    "SET readonly = 2",
    "SET max_threads = 1",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_memory_usage = 1",
    "INSERT INTO fills VALUES (3, 1, 'x')",
    "INSERT INTO FUNCTION file('{folder}/out.csv') SELECT 1",
    "INSERT INTO fills FROM INFILE '{folder}/secret.csv' FORMAT CSV",
    "CREATE TABLE x (a Int8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE x (a Int8)",
    "CREATE DATABASE x",
    "CREATE FUNCTION f AS x -> x",
    "CREATE USER u",
    "GRANT ALL ON *.* TO default",
    "DROP TABLE fills",
    "TRUNCATE TABLE fills",
    "ALTER TABLE fills DELETE WHERE 1",
    "OPTIMIZE TABLE fills FINAL",
    "RENAME TABLE fills TO gone",
    "DETACH TABLE fills",
    "ATTACH TABLE fills",
    "KILL QUERY WHERE 1",
    "SYSTEM SHUTDOWN",
    "SYSTEM FLUSH LOGS",
    "USE system",
    "BACKUP TABLE fills TO File('{folder}/backup')",
    "exit",
    "\\q",
    "SELECT 1; DROP TABLE fills",
    "SELECT 1; SELECT 2",
    "SELECT 1 INTO OUTFILE '{folder}/out.csv'",
    "SELECT 1 into/**/outfile '{folder}/out.csv' TRUNCATE FORMAT CSV",
    "SELECT 1 INTO OUTFILE '{folder}/out.csv' AND STDOUT",
    "SHOW DATABASES INTO OUTFILE '{folder}/out.csv'",
    "SELECT file('{folder}/secret.csv')",
    "SELECT `file`('{folder}/secret.csv')",
    "SELECT \"file\"('{folder}/secret.csv')",
    "SELECT fi/**/le('{folder}/secret.csv'), file /* */ ('{folder}/secret.csv')",
    "SELECT arrayMap(file, ['{folder}/secret.csv'])",
    "SELECT arrayMap(x -> file(x), ['{folder}/secret.csv'])",
    "WITH file('{folder}/secret.csv') AS x SELECT x",
    "SELECT * FROM file('{folder}/secret.csv')",
    "SELECT * FROM fileCluster('default', '{folder}/secret.csv')",
    "SELECT * FROM default.`{folder}/secret.csv`",
    "SELECT * FROM eval('SELECT file(\\'{folder}/secret.csv\\')')",
    "SELECT * FROM view(SELECT file('{folder}/secret.csv'))",
    "EXPLAIN SELECT file('{folder}/secret.csv')",
    "DESCRIBE TABLE file('{folder}/secret.csv')",
    "DESCRIBE (SELECT * FROM file('{folder}/secret.csv'))",
    "SELECT * FROM (DESCRIBE TABLE url('{url}'))",
    "DESCRIBE TABLE url('{url}')",
    "DESCRIBE TABLE s3('{url}')",
    "SELECT * FROM url('{url}', 'CSV', 'a String')",
    "SELECT * FROM url('{url}')",
    "SELECT * FROM s3('{url}', 'CSV', 'a String')",
    "SELECT * FROM remote('127.0.0.1:{port}', 'system', 'one')",
    "SELECT * FROM mysql('127.0.0.1:{port}', 'a', 'b', 'c', 'd')",
    "SELECT * FROM postgresql('127.0.0.1:{port}', 'a', 'b', 'c', 'd')",
    "SELECT * FROM executable('ls', 'CSV', 'a String')",
    "SELECT * FROM Python(x)",
    "SELECT * FROM sqlite('{folder}/secret.csv', 'x')",
    "SELECT * FROM icebergLocal('{folder}')",
    "SELECT aiGenerate('x')",
    "SELECT 1 FORMAT Template SETTINGS format_template_row = '{folder}/secret.csv'",
]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[tuple[Path, int, list[int]]]:
    """What must stay out of reach: a file with a secret, and a server that counts who connects."""
    (tmp_path / "secret.csv").write_text("s3cret,1\n")
    reached: list[int] = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            reached.append(1)
            connection.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield tmp_path, server.getsockname()[1], reached
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


async def test_nothing_that_writes_reads_files_or_reaches_the_network_is_run(
    http: aiohttp.ClientSession, endpoint: Endpoint, outside: tuple[Path, int, list[int]]
) -> None:
    folder, port, reached = outside
    for template in FORBIDDEN:
        query = template.replace("{folder}", str(folder)).replace("{port}", str(port))
        query = query.replace("{url}", f"http://127.0.0.1:{port}/bucket/x.csv")
        status, text, _ = await ask(http, endpoint, query)
        assert status >= 400, query
        assert "s3cret" not in text, query
    assert [path.name for path in folder.iterdir()] == ["secret.csv"]
    assert reached == []
    assert (await ask(http, endpoint, "SELECT count() FROM fills"))[:2] == (200, "2\n")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("readonly", "0", 400),
        ("readonly", "2", 400),
        ("readonly", "1", 200),
        ("max_execution_time", "0", 400),
        ("final", "0", 400),
        ("no_such_setting", "1", 404),
        ("session_id", "s", 200),
        ("wait_end_of_query", "1", 200),
    ],
)
async def test_settings_in_the_address_change_nothing(
    http: aiohttp.ClientSession, endpoint: Endpoint, name: str, value: str, status: int
) -> None:
    assert (await ask(http, endpoint, "SELECT getSetting('readonly')", **{name: value}))[0] == status
    assert (await ask(http, endpoint, "SELECT getSetting('readonly'), getSetting('final')"))[1] == "1\ttrue\n"


async def test_an_endless_query_is_ended_and_does_not_hold_up_the_loop(
    http: aiohttp.ClientSession, database: str
) -> None:
    endpoint = Endpoint(engine_path(), database=database, limits=Limits(seconds=1))
    await endpoint.start()
    long = asyncio.create_task(
        ask(http, endpoint, "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 1")
    )
    async with asyncio.timeout(0.9):
        assert (await ask(http, endpoint, "SELECT 1"))[1] == "1\n"
        async with http.get(f"{endpoint.url}/ping") as response:
            assert response.status == 200
    status, text, _ = await long
    assert (status, "TIMEOUT_EXCEEDED" in text) == (408, True)
    await endpoint.close()


async def test_an_answer_beyond_its_bound_is_an_error_not_a_part(http: aiohttp.ClientSession, database: str) -> None:
    endpoint = Endpoint(engine_path(), database=database, limits=Limits(result_bytes=100_000))
    await endpoint.start()
    status, text, _ = await ask(http, endpoint, "SELECT number, 'some more text' FROM numbers(1000000)")
    assert status >= 400
    assert "TOO_MANY_ROWS_OR_BYTES" in text
    await endpoint.close()


async def test_a_query_beyond_its_bound_is_refused(http: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    status, text, _ = await ask(http, endpoint, "SELECT '" + "x" * 1_100_000 + "'")
    assert (status, "QUERY_IS_TOO_LARGE" in text) == (413, True)


async def test_a_taken_port_is_replaced_by_a_free_one(
    http: aiohttp.ClientSession, endpoint: Endpoint, database: str
) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    second = Endpoint(engine_path(), port=port, database=database)
    await second.start()
    assert second.url != endpoint.url
    assert (await ask(http, second, "SELECT 1"))[:2] == (200, "1\n")
    await second.close()


async def test_a_host_that_is_not_this_machine_is_an_error_that_names_it(database: str) -> None:
    endpoint = Endpoint(engine_path(), host="192.0.2.1", database=database)
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        await endpoint.start()
    await endpoint.close()


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("SELECT outfile, `into` FROM t", True),
        ("SELECT 'INTO OUTFILE'", True),
        ("SELECT x INTO OUTFILE 'y'", False),
        ("SELECT format('{}', 'a')", True),
        ("DESCRIBE TABLE format(CSV, '1')", False),
        ("EXISTS TABLE t", True),
        ("SHOW CREATE TABLE t", True),
        ("INSERT INTO t SELECT 1", False),
        ("'SELECT' ALTER", False),
        ("", False),
    ],
)
def test_a_statement_is_judged_by_its_words(statement: str, allowed: bool) -> None:
    names = Names(frozenset({"file"}), frozenset({"format", "url"}))
    assert (statement_problem(statement, names) == "") is allowed
