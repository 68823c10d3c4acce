"""A read-only ClickHouse HTTP endpoint over the embedded engine, for `curl`, clickhouse-connect and the like.

The engine's own `readonly=1` refuses whatever changes data or settings, and table functions that reach files or the
network. It was observed not to refuse `INTO OUTFILE`, the scalar function `file()` (also by name: `arrayMap(file, …)`),
`KILL QUERY`, several statements in one text, `DESCRIBE TABLE url(…)` and the table function `eval`. So each query is
first rewritten by the engine's own parser (`formatQuerySingleLine`), which leaves no comments and one statement;
`statement_problem` judges that text, and exactly that text is run.
"""

import asyncio
import errno
import gzip
import json
import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final, Protocol

import msgspec
import structlog
from aiohttp import web

log = structlog.get_logger()

MAX_QUERY_BYTES: Final = 1024 * 1024
# Read by the transport, not by the engine; everything else in a query string is a setting.
_TRANSPORT: Final = frozenset(
    {
        "query",
        "database",
        "default_format",
        "query_id",
        "session_id",
        "session_timeout",
        "session_check",
        "user",
        "password",
        "quota_key",
        "role",
        "compress",
        "decompress",
        "enable_http_compression",
        "wait_end_of_query",
        "buffer_size",
        "client_protocol_version",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "close_session",
        "stacktrace",
        "param_",
    }
)
# As ClickHouse maps its error codes; the rest is 500.
_STATUS: Final = {
    **dict.fromkeys((6, 26, 27, 36, 38, 41, 43, 53, 62, 72, 164, 457, 456), 400),
    **dict.fromkeys((46, 47, 60, 63, 73, 81, 115), 404),
    **dict.fromkeys((192, 193, 194, 497, 516), 403),
    48: 501,
    159: 408,
    394: 500,
}
_READS: Final = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS"})
_TOKEN: Final = re.compile(
    r"'(?:[^'\\]|\\.|'')*'"  # a string: dropped, it can name nothing
    r"|`(?P<tick>(?:[^`\\]|\\.|``)*)`"
    r'|"(?P<quote>(?:[^"\\]|\\.|"")*)"'
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<open>\()"
    r"|[^\s]",
    re.DOTALL,
)
_FORMAT: Final = re.compile(r"\bFORMAT (\w+)(?: SETTINGS .*)?$", re.DOTALL)
_CODE: Final = re.compile(r"Code: (\d+)\.")


class Engine(Protocol):
    """A connection of the embedded engine: `chdb.connect(path)`."""

    def query(self, query: str, format: str = "CSV", params: Mapping[str, Any] | None = None) -> Any: ...
    def close(self) -> None: ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one query: seconds, bytes of the result, bytes of memory; and how many run side by side."""

    seconds: int = 30
    result_bytes: int = 64 * 1024 * 1024
    memory_bytes: int = 1024 * 1024 * 1024
    threads: int = 2
    side_by_side: int = 2
    waiting: int = 32


class QueryError(Exception):
    """A query that ends with an error. `code` is ClickHouse's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Answer(msgspec.Struct, frozen=True):
    body: bytes
    format: str


class Names(msgspec.Struct, frozen=True):
    """Names, in lower case, that a query may not mention at all, or not call outside SELECT."""

    forbidden: frozenset[str]
    only_in_select: frozenset[str]


def statement_problem(statement: str, names: Names) -> str:
    """Why a statement, as the engine's own formatter writes it, may not run here; empty when it may."""
    words: list[tuple[str, bool]] = []  # (lower-case name, called)
    pairs: list[str] = []
    first = ""
    for match in _TOKEN.finditer(statement):
        bare = match["word"]
        name = bare or match["tick"] or match["quote"]
        if name is not None:
            first = first or (bare or "").upper()
            words.append((name.lower(), False))
            pairs.append(bare.upper() if bare else "")
        elif match["open"] and words:
            words[-1] = (words[-1][0], True)
            pairs.append("")
        else:
            pairs.append("")
    if first not in _READS:
        return f"only {', '.join(sorted(_READS))} may be run here"
    if any(pair == ("INTO", "OUTFILE") for pair in pairwise(pairs)):
        return "INTO OUTFILE is not allowed"
    for name, called in words:
        if name in names.forbidden:
            return f"{name} is not allowed"
        if called and first not in ("SELECT", "WITH") and name in names.only_in_select:
            return f"{name}() is not allowed in {first}"
    return ""


class Session:
    """One read-only connection; used by one thread at a time."""

    def __init__(self, path: str, limits: Limits) -> None:
        import chdb

        connect: Callable[[str], Engine] = chdb.connect
        self._engine = connect(path)
        self._prepare(limits)
        self._names = self._read_names()

    def _prepare(self, limits: Limits) -> None:
        settings = {
            "final": 1,  # duplicates that the engine has not merged yet are never seen
            "max_execution_time": limits.seconds,
            "max_result_bytes": limits.result_bytes,
            "result_overflow_mode": "throw",
            "max_memory_usage": limits.memory_bytes,
            "max_threads": limits.threads,
            "max_query_size": MAX_QUERY_BYTES,
            "allow_ddl": 0,
            "allow_introspection_functions": 0,
            "readonly": 1,  # last: nothing can be set behind it
        }
        for name, value in settings.items():
            self._engine.query(f"SET {name} = '{value}'")

    def _read_names(self) -> Names:
        def listed(sql: str) -> frozenset[str]:
            return frozenset(self._engine.query(sql, "TSVRaw").bytes().decode().split())

        functions = listed("SELECT lower(name) FROM system.functions")
        reaching = listed("SELECT lower(name) FROM system.table_functions WHERE NOT allow_readonly")
        asking_models = frozenset(name for name in functions if name.startswith("ai"))
        return Names(frozenset({"file", "eval", "python", "executable"}) | asking_models, reaching)

    def run(self, query: bytes, database: str, default_format: str, params: dict[str, str]) -> Answer:
        """The answer as bytes. Raises QueryError."""
        try:
            sql = query.decode()
        except UnicodeDecodeError:
            # Only the rows of an insert need not be text.
            raise QueryError(164, "Cannot execute query in readonly mode: it is not UTF-8. (READONLY)") from None
        statement = self._call("SELECT formatQuerySingleLine({q:String})", "TSVRaw", {"q": _escaped(sql)}).decode()
        statement = statement.rstrip("\n")
        problem = statement_problem(statement, self._names)
        if problem:
            raise QueryError(164, f"Cannot execute query in readonly mode: {problem}. (READONLY)")
        self.use(database)
        body = self._call(statement, default_format, params)
        named = _FORMAT.search(statement)
        return Answer(body, named[1] if named else default_format)

    def use(self, database: str) -> None:
        """Makes a database the one that bare table names belong to."""
        self._call("USE `" + database.replace("\\", "\\\\").replace("`", "\\`") + "`", "TSV", {})

    def check_settings(self, settings: dict[str, str]) -> None:
        """Settings of a request: none may change anything. Raises QueryError."""
        for name, value in settings.items():
            sql = "SELECT value FROM system.settings WHERE name = {n:String}"
            current = self._call(sql, "TSVRaw", {"n": _escaped(name)})
            if not current:
                raise QueryError(115, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
            if current.decode().rstrip("\n") != value:
                raise QueryError(164, f"Cannot modify '{name}' setting in readonly mode. (READONLY)")

    def close(self) -> None:
        self._engine.close()

    def _call(self, sql: str, output: str, params: dict[str, str]) -> bytes:
        try:
            return bytes(self._engine.query(sql, output, params=params).bytes() or b"")
        except RuntimeError as error:
            raise _query_error(str(error)) from None


def _query_error(text: str) -> QueryError:
    codes = _CODE.findall(text)
    start = text.find("DB::Exception: ")
    return QueryError(int(codes[0]) if codes else 1002, text[start + len("DB::Exception: ") :] if start >= 0 else text)


def _escaped(text: str) -> str:
    """Parameters are read in the escaped form of TSV."""
    return (
        text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r").replace("\0", "\\0")
    )


class Endpoint:
    """Serves `host:port` (0, or one that is taken: any free); `url` is set by `start`. The engine at `path` must be
    open already."""

    def __init__(
        self,
        path: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        database: str = "default",
        limits: Limits | None = None,
    ) -> None:
        self._path, self._host, self._port, self._database = path, host, port, database
        self._limits = limits or Limits()
        self._threads = ThreadPoolExecutor(self._limits.side_by_side, thread_name_prefix="endpoint")
        self._free: asyncio.Queue[Session] = asyncio.Queue()
        self._sessions: list[Session] = []
        self._waiting = 0
        self._version = ""
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Opens the connections and listens. Raises OSError when the host is not this machine's."""
        for _ in range(self._limits.side_by_side):
            session = await self._in_thread(self._open_session)
            self._sessions.append(session)
            self._free.put_nowait(session)
        app = web.Application(client_max_size=MAX_QUERY_BYTES)
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=False, shutdown_timeout=0.5)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            log.warning("the port of the ClickHouse endpoint is taken: another one is used", port=self._port)
            await web.TCPSite(self._runner, self._host, 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        while self._sessions:
            await self._in_thread(self._sessions.pop().close)
        self._threads.shutdown(wait=False)

    def _open_session(self) -> Session:
        return Session(self._path, self._limits)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _serve(self, request: web.Request) -> web.Response:
        # A web page could otherwise reach a loopback port through a name of its own.
        if not _is_local(request.host):
            return web.Response(status=403, text="this endpoint answers to its own address only\n")
        if request.method not in ("GET", "POST", "HEAD"):
            return web.Response(status=405, text="GET or POST\n")
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        try:
            fields, body = await self._read(request)
            if not (fields.get("query") or body):
                return web.Response(text="Ok.\n")
            answer = await self._answer(fields, body)
        except QueryError as error:
            return _failure(error, query_id)
        except web.HTTPRequestEntityTooLarge:
            return _failure(
                QueryError(62, f"the query exceeds {MAX_QUERY_BYTES} bytes. (QUERY_IS_TOO_LARGE)"), query_id, 413
            )
        return await self._respond(request, fields, answer, query_id)

    async def _read(self, request: web.Request) -> tuple[dict[str, str], bytes]:
        """The parameters, those of a form included, and the body that follows the `query` parameter."""
        fields = dict(request.query)
        if request.content_type == "multipart/form-data":  # curl calls any body a form, so only this one is
            for name, value in (await request.post()).items():
                if not isinstance(value, str):
                    raise QueryError(48, "external data is not supported here. (NOT_IMPLEMENTED)")
                fields[name] = value
            return fields, b""
        return fields, await request.read()

    async def _answer(self, fields: dict[str, str], body: bytes) -> Answer:
        if self._waiting >= self._limits.waiting:
            raise QueryError(202, "too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)")
        query = b"\n".join(part for part in (fields.get("query", "").encode(), body) if part)
        output = fields.get("default_format", "TabSeparated")
        if re.fullmatch(r"\w{1,64}", output) is None:
            raise QueryError(73, "unknown format. (UNKNOWN_FORMAT)")
        params = {name.removeprefix("param_"): value for name, value in fields.items() if name.startswith("param_")}
        settings = {k: v for k, v in fields.items() if k not in _TRANSPORT and not k.startswith("param_")}
        self._waiting += 1
        try:
            session = await self._free.get()
        finally:
            self._waiting -= 1
        database = fields.get("database") or self._database

        def answered() -> Answer:
            session.check_settings(settings)
            return session.run(query, database, output, params)

        work = asyncio.ensure_future(self._in_thread(answered))
        # The connection is free when its thread is done, also when the client has gone.
        work.add_done_callback(lambda _: self._free.put_nowait(session))
        answer: Answer = await asyncio.shield(work)
        return answer

    async def _respond(
        self, request: web.Request, fields: dict[str, str], answer: Answer, query_id: str
    ) -> web.Response:
        headers = {
            "X-ClickHouse-Format": answer.format,
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Server-Display-Name": "order-ledger",
            "X-ClickHouse-Summary": json.dumps({"result_bytes": str(len(answer.body))}),
            "Content-Type": _CONTENT_TYPES.get(answer.format, "application/octet-stream"),
        }
        body = answer.body
        wants = fields.get("enable_http_compression") == "1" and "gzip" in request.headers.get("Accept-Encoding", "")
        if wants and len(body) > 4096:
            body = await asyncio.to_thread(gzip.compress, body, 1)
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers)


_CONTENT_TYPES: Final = {
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "Pretty": "text/plain; charset=UTF-8",
    "PrettyCompact": "text/plain; charset=UTF-8",
    "Vertical": "text/plain; charset=UTF-8",
}


def _failure(error: QueryError, query_id: str, status: int | None = None) -> web.Response:
    return web.Response(
        status=status or _STATUS.get(error.code, 500),
        text=f"Code: {error.code}. DB::Exception: {error}\n",
        headers={"X-ClickHouse-Exception-Code": str(error.code), "X-ClickHouse-Query-Id": query_id},
    )


def _is_local(host: str) -> bool:
    """Whether a Host header names an address or localhost, not another name."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name == "localhost" or name.startswith("[") or re.fullmatch(r"[0-9.]+", name) is not None
