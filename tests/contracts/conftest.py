"""Where a ledger can be kept: every contract of the store and of the writer is run on both."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ledger.store import EventStore, open_store
from tests.servers import postgres_server


class Place:
    """A fresh place for one ledger. What is opened here is closed at the end of the test."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.url = kind, url
        self._opened: list[EventStore] = []

    def open(self, *, readonly: bool = False, wrap: Callable[[EventStore], Any] = lambda store: store) -> Any:
        self._opened.append(open_store(self.url, readonly=readonly))
        return wrap(self._opened[-1])

    @property
    def path(self) -> Path:
        return Path(urlsplit(self.url).path[1:])

    def run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Past the store: what a person with access to the database could do."""
        if self.kind == "sqlite":
            import sqlite3

            connection = sqlite3.connect(self.path)
            try:
                with connection:
                    return connection.execute(statement.replace("%s", "?"), values).fetchall()
            finally:
                connection.close()
        import psycopg

        with psycopg.connect(self.url) as remote:
            cursor = remote.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        for store in self._opened:
            store.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> str:
    """The URL of a database without a ledger."""
    Place("postgresql", postgres_url).run("DROP TABLE IF EXISTS stored_events")
    return postgres_url


def new_database(server: str, name: str) -> str:
    """The URL of one more database of this server (each costs a good part of a second at its end)."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server.rpartition('/')[0]}/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        found = Place("sqlite", f"sqlite:///{tmp_path / 'ledger.db'}")
    else:
        found = Place("postgresql", request.getfixturevalue("postgres_database"))
    yield found
    found.close()
