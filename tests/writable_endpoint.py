"""The endpoint's transport over an engine that may be written to: stands in for a ClickHouse server, so that the
sink's HTTP path runs against the real engine. Only tests have it; the product's endpoint has no way to write."""

import re
import tempfile
from pathlib import Path

from projections.endpoint import Answer, Endpoint, Limits, Session

_INSERT = re.compile(rb"\s*INSERT INTO (\S+) (\([^)]*\)) FORMAT Native\s*\n", re.DOTALL)


class WritableSession(Session):
    def _prepare(self, limits: Limits) -> None:
        """Leaves the connection as it is."""
        self._set: list[str] = []

    def check_settings(self, settings: dict[str, str]) -> None:
        """Those of one request, as on a server: they are undone before the next sets its own."""
        while self._set:
            self._call(f"SET {self._set.pop()} = DEFAULT", "TSV", {})
        for name, value in settings.items():
            self._call(f"SET {name} = '{value}'", "TSV", {})
            self._set.append(name)

    def run(self, query: bytes, database: str, default_format: str, params: dict[str, str]) -> Answer:
        self.use(database)
        insert = _INSERT.match(query)
        if insert is None:
            return Answer(self._call(query.decode(), default_format, params), default_format)
        with tempfile.NamedTemporaryFile(suffix=".native") as file:
            file.write(query[insert.end() :])
            file.flush()
            path = Path(file.name)
            table, columns = insert[1].decode(), insert[2].decode()
            statement = f"INSERT INTO {table} {columns} FROM INFILE '{path}' FORMAT Native"
            return Answer(self._call(statement, default_format, params), default_format)


class WritableEndpoint(Endpoint):
    def _open_session(self) -> Session:
        return WritableSession(self._path, self._limits)
