"""What the writer and the followers rely on, on every database that can keep a ledger."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from eventsourcing.persistence import StoredEvent

from ledger import store as store_module
from ledger.errors import LedgerDamaged, LedgerLocked, LedgerUnavailable
from ledger.events import WRITER_STREAM, Recorded, decode
from ledger.seal import batches, verify
from ledger.store import EventStore, VersionTaken, last_seal, open_store, sqlite_path
from tests.contracts.conftest import Place, new_database
from tests.history import History
from tests.servers import free_port, postgres_process, postgres_server

HISTORY = History().orders(8).records
BATCHES = list(batches(HISTORY))
HEAD = HISTORY[-1].seq


@pytest.fixture
def store(place: Place) -> EventStore:
    return place.open()


def fill(store: EventStore, parts: list[list[Recorded]] = BATCHES) -> EventStore:
    for batch in parts:
        store.insert(batch)
    return store


def fill_with_gaps(store: EventStore) -> EventStore:
    """Every second commit is preceded by one that fails at its end: PostgreSQL spends notification ids on both."""
    for number, batch in enumerate(BATCHES):
        if number % 2:
            with pytest.raises(VersionTaken):
                store.insert([*batch, HISTORY[0]])
        store.insert(batch)
    return store


def test_the_orders_are_listed_by_the_beginning_of_their_ids(store, monkeypatch):
    monkeypatch.setattr(store_module, "PAGE", 2)
    ids = ["a", "a-1", "a.b", "aB", "ab", "b"]
    batch = [Recorded(seq, f"order/{one}", 1, "order.requested", b"{}") for seq, one in enumerate(ids, 1)]
    store.insert([*batch, Recorded(9, "order/a", 2, "order.refused", b"{}"), Recorded(10, "writer", 1, "x", b"{}")])
    assert set(store.order_ids()) == set(ids)
    assert set(store.order_ids("a")) == set(ids) - {"b"}
    assert list(store.order_ids("ab")) == ["ab"]


# --- writing ----------------------------------------------------------------------------------------------------


def test_what_is_inserted_is_read_as_it_was(store):
    assert list(fill(store).scan()) == HISTORY


def test_a_batch_is_inserted_whole_or_not_at_all(store):
    fill(store, BATCHES[:2])
    for position in (0, 2, len(BATCHES[2])):
        with pytest.raises(VersionTaken):
            store.insert([*BATCHES[2][:position], HISTORY[2], *BATCHES[2][position:]])
    assert list(store.scan()) == BATCHES[0] + BATCHES[1]
    store.insert(BATCHES[2])


def test_a_version_can_be_taken_once(store):
    fill(store, BATCHES[:2])
    with pytest.raises(VersionTaken):
        store.insert(BATCHES[1])
    with pytest.raises(VersionTaken):
        store.insert([Recorded(99, WRITER_STREAM, BATCHES[1][-1].version, "x", b"other")])
    assert list(store.scan()) == BATCHES[0] + BATCHES[1]


def test_a_taken_version_is_told_from_an_unavailable_database_however_the_answers_arrive(store):
    fill(store, BATCHES[:2])
    for _ in range(500):
        with pytest.raises(VersionTaken):
            store.insert(BATCHES[1])


def test_an_event_is_stored_when_exactly_its_bytes_are(store):
    fill(store, BATCHES[:3])
    assert all(store.is_stored(one) for one in BATCHES[2])
    assert not any(store.is_stored(one) for one in BATCHES[3])
    seal = BATCHES[2][-1]
    assert not store.is_stored(Recorded(seal.seq, seal.stream, seal.version, seal.topic, seal.state + b" "))


def test_what_was_inserted_is_there_after_reopening(place):
    fill(place.open()).close()
    assert list(place.open().scan()) == HISTORY


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filled", [fill, fill_with_gaps])
def test_reading_gives_the_next_events_from_any_place(store, filled):
    filled(store)
    for after in range(HEAD + 3):
        for limit in (1, 2, 7, HEAD + 5):
            assert store.read(after, limit) == HISTORY[after : after + limit], (after, limit)


@pytest.mark.parametrize("page", [1, 2, 5, HEAD, HEAD + 1])
def test_a_scan_gives_every_event_once_whatever_the_page(store, monkeypatch, page):
    monkeypatch.setattr(store_module, "PAGE", page)
    fill_with_gaps(store)
    assert list(store.scan()) == HISTORY
    assert list(store.scan(HEAD - 3)) == HISTORY[-3:]
    assert list(store.scan(HEAD)) == []


def test_notification_ids_may_have_gaps_and_seqs_have_none(place, store):
    fill_with_gaps(store)
    if place.kind == "postgresql":
        assert place.run("SELECT max(notification_id) FROM stored_events")[0][0] > HEAD
    assert [one.seq for one in store.scan()] == list(range(1, HEAD + 1))


def test_an_event_is_found_by_its_seq(store):
    fill_with_gaps(store)
    assert [store.at(seq) for seq in range(1, HEAD + 1)] == HISTORY
    assert store.at(0) is store.at(-1) is store.at(HEAD + 1) is None


def test_a_stream_is_read_from_any_version(store):
    fill(store)
    for stream in {one.stream for one in HISTORY}:
        expected = [one for one in HISTORY if one.stream == stream]
        assert store.stream(stream) == expected
        assert store.stream(stream, after=2) == expected[2:]
    assert store.stream("order/nobody") == []


def test_the_head_is_the_last_seal(store):
    assert store.head() is None
    assert last_seal(store) is None
    for batch in BATCHES:
        store.insert(batch)
        assert store.head() == batch[-1]
        assert last_seal(store) == (batch[-1], decode(batch[-1]).data)


def test_a_writer_stream_that_does_not_end_with_a_seal_is_damage(store):
    store.insert(BATCHES[0][:-1])
    with pytest.raises(LedgerDamaged, match="is not sealed: run verify") as damage:
        last_seal(store)
    assert damage.value.first_bad_seq == 1


def test_the_streams_that_exist_are_told_from_those_that_do_not(store):
    fill(store)
    streams = {one.stream for one in HISTORY}
    strangers = [f"order/stranger_{n}" for n in range(1_200)]  # more than one statement may hold
    assert store.existing([*strangers, *streams]) == streams
    assert store.existing(strangers) == store.existing([]) == set()
    assert store.existing(["order/'; DROP TABLE stored_events; --"]) == set()


def test_many_streams_are_read_at_once(store):
    fill(store)
    streams = sorted({one.stream for one in HISTORY})
    strangers = [f"order/stranger_{n}" for n in range(1_200)]
    assert store.streams([*strangers, *streams]) == {one: store.stream(one) for one in streams}
    assert store.streams(strangers) == store.streams([]) == {}


@pytest.mark.parametrize("after", [0, 3, HEAD - 1])
def test_a_reader_who_knew_other_cursors_still_misses_nothing(place, store, after):
    fill(store)
    store.read(0, HEAD)
    store._hint = (1, 1_000)  # as after a gap that is no longer there
    assert list(store.scan(after)) == store.read(after, HEAD) == HISTORY[after:]


def test_a_whole_ledger_is_filled_in_one_step_and_only_into_an_empty_store(place, store):
    store.fill(iter(HISTORY))
    assert list(store.scan()) == HISTORY
    with pytest.raises(LedgerUnavailable, match="is not empty"):
        store.fill(HISTORY)


def test_a_filling_that_breaks_off_leaves_the_store_empty(store):
    def broken() -> Iterator[Recorded]:
        yield from HISTORY[:20]
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        store.fill(broken())
    with pytest.raises(VersionTaken):
        store.fill([*HISTORY, HISTORY[0]])
    assert list(store.scan()) == []
    store.fill(HISTORY)


def recorder_of(place):
    """The library's own recorder on the same table."""
    if place.kind == "sqlite":
        from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

        return SQLiteApplicationRecorder(SQLiteDatastore(place.path.as_uri(), originator_id_type="text"))
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    parts = urlsplit(place.url)
    datastore = PostgresDatastore("postgres", parts.hostname, parts.port, "postgres", "", originator_id_type="text")
    return PostgresApplicationRecorder(datastore)


def test_the_recorder_of_the_library_reads_what_is_stored_and_is_read(place, store):
    fill(store, BATCHES[:-1])
    recorder = recorder_of(place)
    recorder.insert_events([StoredEvent(r.stream, r.version, r.topic, r.state) for r in BATCHES[-1]])
    read = recorder.select_notifications(None, HEAD + 1)
    recorder.datastore.close()
    assert [(n.originator_id, n.originator_version, n.topic, bytes(n.state)) for n in read] == [
        (r.stream, r.version, r.topic, r.state) for r in HISTORY
    ]
    assert list(store.scan()) == HISTORY


def test_a_reader_sees_whole_commits_while_they_are_made(place, store):
    reader = place.open(readonly=True)
    seals = {batch[-1].seq for batch in BATCHES}
    written = threading.Thread(target=fill, args=(store,))
    written.start()
    seen = [0]
    while seen[-1] < HEAD and (written.is_alive() or seen[-1] == 0 or reader.head()):
        found = list(reader.scan())
        assert found == HISTORY[: len(found)]
        assert not found or found[-1].seq in seals
        assert len(found) >= seen[-1]
        seen.append(len(found))
    written.join()
    assert seen[-1] == HEAD


# --- what a person can do to the table ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [b"\x00garbage", b"", b"[" * 50_000])
def test_bytes_that_are_no_event_keep_their_place_and_do_not_stop_a_scan(place, store, state):
    fill(store)
    place.run("UPDATE stored_events SET state = %s WHERE originator_id = %s", state, HISTORY[-2].stream)
    found = list(store.scan())
    assert len(found) == len(HISTORY)
    assert verify(found).first_bad_seq is not None


@pytest.mark.parametrize("seq", [b"0", b"-5", b"1", b"99999", b"99999999999999999999999"])
def test_a_scan_from_the_beginning_shows_every_row_whatever_seq_it_claims(place, store, seq):
    fill(store)
    state = HISTORY[2].state.replace(b'"seq":3,', b'"seq":%s,' % seq)
    place.run("INSERT INTO stored_events VALUES (%s, 1, 'order.failed', %s)", "order/smuggled", state)
    assert "order/smuggled" in {one.stream for one in store.scan()}
    assert verify(store.scan()).first_bad_seq == HEAD + 1


# --- one writer -------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from ledger.store import open_store
lock = open_store(sys.argv[1]).lock()
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(url: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the writer's lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def lock_within(store: EventStore, seconds: float):
    """The lock, once the database has noticed that its holder is gone."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return store.lock()
        except LedgerLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_a_second_writer_of_this_process_is_refused_until_the_first_releases(place, store):
    lock = store.lock()
    lock.check()
    with pytest.raises(LedgerLocked, match="another process writes the ledger"):
        place.open().lock()
    lock.release()
    lock_within(place.open(), 2).release()


def test_another_process_holds_the_lock_until_it_is_killed(place, store):
    with holder(place.url) as process:
        with pytest.raises(LedgerLocked, match="another process writes the ledger"):
            store.lock()
        process.send_signal(signal.SIGKILL)
        process.wait()
        lock_within(store, 5).release()


def test_readers_need_no_lock(place, store):
    with holder(place.url):
        fill(store)
        assert place.open(readonly=True).head() == HISTORY[-1]


def test_two_ledgers_of_one_server_do_not_lock_each_other(store, tmp_path, place, request):
    if place.kind == "sqlite":
        other = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    else:
        other = open_store(new_database(request.getfixturevalue("postgres_url"), "another"))
    first, second = store.lock(), other.lock()
    first.release()
    second.release()
    other.close()


# --- opening ----------------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[LedgerUnavailable]) -> str:
    text = str(error.value)
    assert text == text.strip()
    assert "\n" not in text
    return text


def test_a_readonly_store_creates_nothing(place):
    with pytest.raises(LedgerUnavailable) as error:
        list(place.open(readonly=True).scan())
    one_line(error)
    if place.kind == "sqlite":
        assert list(place.path.parent.iterdir()) == []
    else:
        assert place.run("SELECT count(*) FROM pg_tables WHERE tablename = 'stored_events'") == [(0,)]


@pytest.mark.parametrize("url", ["", "ledger.db", "mysql://root:hunter2@host/db", "sqlite://x", "postgresql:"])
def test_a_url_of_no_known_database_is_refused_without_showing_it(url):
    with pytest.raises(LedgerUnavailable, match="LEDGER_URL must be sqlite:///") as error:
        open_store(url)
    assert "hunter2" not in one_line(error)


# --- SQLite alone -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def opened(path: Path, *, readonly: bool = False) -> contextlib.closing:
    return contextlib.closing(open_store(f"sqlite:///{path}", readonly=readonly))


def test_every_connection_of_an_sqlite_writer_syncs_fully(file):
    with opened(file) as store:
        store.insert(BATCHES[0])
        for mode, connection in (("writer", store._writer), ("reader", store._readers[0])):
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,), mode
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",), mode


def test_a_closed_ledger_is_one_file(file):
    with opened(file) as store:
        fill(store)
        assert list(store.scan()) == HISTORY
    assert [one.name for one in file.parent.iterdir()] == ["ledger.db"]


def test_a_missing_file_says_what_to_do_and_makes_no_file(tmp_path):
    missing = tmp_path / "nowhere" / "ledger.db"
    with pytest.raises(LedgerUnavailable) as error:
        open_store(f"sqlite:///{missing}", readonly=True)
    assert one_line(error) == f"no ledger at {missing}: start `order-ledger serve`, or name its folder by --data"
    assert not missing.parent.exists()


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("content", [b"this is no database\n" * 400, b"\x00" * 8192, b"SQLite format 3\x00" * 300])
def test_a_file_that_is_no_database_is_refused_in_one_line_and_left_alone(file, content, readonly):
    file.write_bytes(content)
    with pytest.raises(LedgerUnavailable) as error:
        open_store(f"sqlite:///{file}", readonly=readonly)
    assert str(file) in one_line(error)
    assert file.read_bytes() == content


def test_a_folder_where_the_file_should_be_is_refused_in_one_line(tmp_path):
    for readonly in (True, False):
        with pytest.raises(LedgerUnavailable) as error:
            open_store(f"sqlite:///{tmp_path}", readonly=readonly)
        assert str(tmp_path) in one_line(error)


def test_a_file_where_a_folder_should_be_is_refused_in_one_line(file):
    file.write_text("x")
    with pytest.raises(LedgerUnavailable, match="cannot create the folder of the ledger") as error:
        open_store(f"sqlite:///{file / 'ledger.db'}")
    one_line(error)


@pytest.mark.parametrize("name", ["a b", "100%", "what?mode=memory", "c#sharp", "ünï", "'quoted'"])
def test_a_folder_may_have_any_name(tmp_path, name):
    file = tmp_path / name / "ledger.db"
    with opened(file) as store:
        fill(store, BATCHES[:1])
    with opened(file, readonly=True) as store:
        assert list(store.scan()) == BATCHES[0]
    assert {one.name.partition("-")[0] for one in (tmp_path / name).iterdir()} == {"ledger.db"}


def test_a_readonly_file_cannot_be_written_to(file):
    with opened(file) as store:
        fill(store, BATCHES[:1])
    with opened(file, readonly=True) as store, pytest.raises(LedgerUnavailable) as error:
        store.insert(BATCHES[1])
    assert "readonly" in one_line(error)


@pytest.mark.parametrize("expression", ["CAST(state AS TEXT)", "NULL", "12", "9e99", "'ünï'"])
def test_a_column_of_another_type_is_read_and_judged_by_its_bytes(file, expression):
    with opened(file) as store:
        fill(store)
        place = Place("sqlite", f"sqlite:///{file}")
        place.run(f"UPDATE stored_events SET state = {expression} WHERE rowid = 4")
        found = verify(store.scan())
    assert found.first_bad_seq == (None if expression.startswith("CAST") else 3)


@pytest.mark.parametrize("column", ["originator_id", "originator_version", "topic"])
@pytest.mark.parametrize("value", [None, b"\xff", 1.5, "zz"])
def test_any_value_in_any_column_is_damage_and_no_accident(file, column, value):
    with opened(file) as store:
        fill(store)
        Place("sqlite", f"sqlite:///{file}").run(f"UPDATE stored_events SET {column} = %s WHERE rowid = 4", value)
        assert verify(store.scan()).first_bad_seq == 3


def test_a_path_is_read_from_its_url():
    assert sqlite_path("sqlite:////var/lib/ledger.db") == Path("/var/lib/ledger.db")
    assert sqlite_path("sqlite:///a%20b/ledger.db") == Path.cwd() / "a b" / "ledger.db"
    assert sqlite_path("postgresql://host/db") is None


# --- PostgreSQL alone ---------------------------------------------------------------------------------------------


def test_a_postgresql_without_fsync_is_refused():
    with postgres_server(fsync=False) as url, pytest.raises(LedgerUnavailable) as error:
        open_store(url)
    assert "runs with fsync=off and may lose commits: turn it on" in one_line(error)


def test_a_postgresql_that_commits_asynchronously_is_refused(postgres_database):
    url = new_database(postgres_database, "hasty")
    Place("postgresql", url).run("ALTER DATABASE hasty SET synchronous_commit = off")
    with pytest.raises(LedgerUnavailable) as error:
        open_store(url)
    assert "runs with synchronous_commit=off and may lose commits: turn it on" in one_line(error)


@pytest.mark.parametrize("readonly", [True, False])
def test_a_wrong_port_is_one_line_without_the_password(postgres_url, readonly):
    url = f"postgresql://ledger:hunter2@127.0.0.1:{free_port()}/ledger"
    with pytest.raises(LedgerUnavailable, match=r"cannot reach postgresql://127\.0\.0\.1:\d+/ledger: ") as error:
        open_store(url, readonly=readonly)
    assert "hunter2" not in one_line(error)
    assert "hunter2" not in repr(error.value)


def test_an_unknown_database_is_one_line(postgres_url):
    with pytest.raises(LedgerUnavailable, match='database "nobody" does not exist') as error:
        open_store(f"{postgres_url.rpartition('/')[0]}/nobody")
    one_line(error)


CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def test_connections_cut_between_two_commits_are_made_anew(postgres_database):
    place = Place("postgresql", postgres_database)
    store = place.open()
    fill(store, BATCHES[:2])
    place.run(CUT)
    assert store.head() == BATCHES[1][-1]
    place.run(CUT)
    store.insert(BATCHES[2])
    assert list(store.scan()) == [one for batch in BATCHES[:3] for one in batch]
    place.close()


def test_a_lock_whose_connection_was_cut_is_known_to_be_lost(postgres_database):
    place = Place("postgresql", postgres_database)
    lock = place.open().lock()
    place.run(CUT)
    with pytest.raises(LedgerLocked, match="lost the writer's lock"):
        lock.check()
    lock.release()
    place.close()


def test_parameters_of_the_url_reach_the_server(postgres_database):
    Place("postgresql", postgres_database).run("CREATE SCHEMA IF NOT EXISTS books")
    with contextlib.closing(open_store(f"{postgres_database}?options=-csearch_path%3Dbooks")) as store:
        fill(store)
    tables = Place("postgresql", postgres_database).run(
        "SELECT schemaname FROM pg_tables WHERE tablename = %s", "stored_events"
    )
    assert tables == [("books",)]
    Place("postgresql", postgres_database).run("DROP SCHEMA books CASCADE")


def test_a_connection_must_be_encrypted_where_the_url_says_so(postgres_url):
    with pytest.raises(LedgerUnavailable, match="does not support SSL"):
        open_store(f"{postgres_url}?sslmode=require")


@pytest.mark.parametrize("url", ["postgresql://u:hunter2%zz@h/db", "postgresql://u:hunter2@h/db?nonsense=hunter2"])
def test_a_url_that_cannot_be_read_is_one_line_without_the_password(url):
    with pytest.raises(LedgerUnavailable, match="LEDGER_URL cannot be read") as error:
        open_store(url)
    assert "hunter2" not in one_line(error)


def test_the_ledgers_of_two_schemas_have_two_locks(postgres_database):
    place = Place("postgresql", postgres_database)
    place.run("CREATE SCHEMA IF NOT EXISTS books")
    with (
        contextlib.closing(place.open()) as first,
        contextlib.closing(open_store(f"{postgres_database}?options=-csearch_path%3Dbooks")) as second,
    ):
        locks = [first.lock(), second.lock()]
        with pytest.raises(LedgerLocked, match=r"\(order-ledger writer .+ \d+\): stop it first, or take"):
            second.lock()
        for lock in locks:
            lock.release()
    place.run("DROP SCHEMA books CASCADE")


def test_a_server_that_does_not_answer_ends_every_call_and_not_the_process(monkeypatch):
    monkeypatch.setattr("ledger.store_postgres.CALL_S", 0.3)
    monkeypatch.setattr("ledger.store_postgres.CHECK_S", 0.3)
    monkeypatch.setattr("ledger.store_postgres.CONNECT_S", 2)  # psycopg takes no less
    with postgres_process() as server, contextlib.closing(open_store(server.url)) as store:
        fill(store, BATCHES[:1])
        lock = store.lock()
        with server.frozen():
            with pytest.raises(LedgerLocked, match="lost the writer's lock"):
                lock.check()
            for call in (store.head, lambda: store.insert(BATCHES[1]), lambda: store.read(0, 1)):
                with pytest.raises(LedgerUnavailable) as error:
                    call()
                one_line(error)
        # The server may have taken what it was given before it froze: a repetition tells.
        with contextlib.suppress(VersionTaken):
            store.insert(BATCHES[1])
        assert list(store.scan()) == BATCHES[0] + BATCHES[1]
        lock.release()
