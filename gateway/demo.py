"""`order-ledger demo`: the whole service in a temporary folder, some 20 orders, and what a user wants to see of them.

Everything shown is asked of the running service as any client would ask: orders over NATS, rows from ClickHouse over
HTTP, the audit records from their files, the events from the ledger. Exit code 0 only if all of them agree.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli_proof import verify_ledger
from gateway.client import News, NoAnswer, connect, order_id_of, publish
from gateway.config import Settings, load
from gateway.embedded import StartFailed
from gateway.history import history_of, print_history
from gateway.run_file import clickhouse_endpoint
from gateway.show import (
    ask_http,
    console,
    outcome_line,
    progress_bar,
    rows_table,
)
from gateway.show_table import print_table

READY_S: Final = 30.0
STOP_S: Final = 8.0
OUTCOME_S: Final = 15.0
AGREE_S: Final = 10.0

# What the check of agreement gives back: does it hold, and a line per comparison.
Agreement = tuple[bool, list[str]]


class Sample:
    """One message of the demo: what it is, what is sent, what must come of it (the category or event)."""

    def __init__(self, what: str, payload: bytes, expected: str) -> None:
        self.what, self.payload, self.expected = what, payload, expected


def _order(order_id: str, **changes: Any) -> bytes:
    order = {"order_id": order_id, "symbol": "EURUSD", "order_type": "buy", "volume": 0.01, "sl": 1.05, "tp": 1.11}
    return orjson.dumps(order | changes)


def _dear(order_id: str) -> bytes:
    return _order(order_id, symbol="XAUUSD", volume=1000, sl=2000, tp=3500)


def samples() -> list[Sample]:
    """The orders of the demo, in the order they are sent."""
    found = []
    for number in range(1, 13):
        sell = number % 3 == 0
        levels = {"sl": 1.11, "tp": 1.05} if sell else {}
        volume = 0.01 * (1 + number % 4)
        payload = _order(f"demo-{number:02}", order_type="sell" if sell else "buy", volume=round(volume, 2), **levels)
        found.append(Sample("market order", payload, "order.filled"))
    found += [
        Sample("the same order again", _order("demo-01", volume=0.02), "duplicate"),
        Sample("the same id, other volume", _order("demo-01", volume=0.5), "conflict"),
        Sample("volume above the maximum", _order("demo-13", volume=500), "refused"),
        Sample("stop loss on the wrong side", _order("demo-14", sl=1.2), "refused"),
        Sample("more than there is money for", _dear("demo-19"), "fatal"),
        Sample("a symbol nobody knows", _order("demo-15", symbol="EUR/USD"), "refused"),
        Sample("volume that is no number", _order("demo-16", volume="NaN"), "malformed"),
        Sample("volume zero", _order("demo-17", volume=0), "refused"),
        Sample("an order without an id", orjson.dumps({"symbol": "EURUSD", "order_type": "buy"}), "malformed"),
        Sample("not JSON at all", b"buy EURUSD now!", "malformed"),
        Sample("and the next order works", _order("demo-18"), "order.filled"),
    ]
    return found


def run_demo(keep: Path | None, *, as_json: bool, agree: Callable[[Settings], Agreement]) -> bool:
    """Runs it; returns whether everything came out as it must."""
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise StartFailed(f"{keep} is not empty: name a new folder for --keep")
    folder = keep or Path(tempfile.mkdtemp(prefix="order-ledger-demo-"))
    out = Console(stderr=True, highlight=False) if as_json else console()
    began = time.monotonic()
    service = _Service(folder)
    try:
        service.start(out)
        settings = load({"data": str(folder)}, service.environment)
        report = asyncio.run(_send_all(settings, out))
        out.print()
        print_table(_outcomes_table(report), out)
        out.print()
        print_history(history_of(settings, "demo-01"))
        _show_clickhouse(settings, out)
        agreed, lines = _until_agreed(agree, settings)
        verification = verify_ledger(settings, progress=False)
        service.stop()
        ok = agreed and verification["ok"] and all(row["as_expected"] for row in report)
        _show_agreement(out, lines, verification)
        took_s = time.monotonic() - began
        if as_json:
            summary = {"ok": ok, "orders": report, "agreement": lines, "verification": verification, "seconds": took_s}
            sys.stdout.buffer.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        verdict = "[green]everything agrees[/]" if ok else "[red]NOT everything is as it must be[/]"
        out.print(f"\n{verdict} ({took_s:.1f} s)")
        if keep is not None:
            out.print(f"kept in {escape(str(folder))}: try `order-ledger history demo-01 --data {escape(str(folder))}`")
        return ok
    finally:
        service.stop()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


class _Service:
    """`order-ledger serve` as its own process, on free ports, with nothing of the user's configuration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        kept = {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH"}
        self.environment = {name: text for name, text in os.environ.items() if name in kept}
        self.environment |= {"NATS_PORT": "0", "CLICKHOUSE_HTTP_PORT": "0", "SERVICE_PORT": "0", "LOG_LEVEL": "warning"}

    def start(self, out: Console) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        log_file = self._folder / "serve.log"
        with log_file.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve", "--data", str(self._folder)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        deadline = time.monotonic() + READY_S
        for line in self._process.stdout:
            out.print(escape(line.rstrip()), soft_wrap=True)
            if line.startswith("READY"):
                return
            if time.monotonic() > deadline:
                break
        raise StartFailed(f"the service did not start: {log_file.read_text()[-500:]}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _send_all(settings: Settings, out: Console) -> list[dict[str, Any]]:
    """Sends one after the other and waits for each outcome."""
    connection = await connect(settings)
    report = []
    try:
        news = News(connection)
        await news.open()
        seen = 0
        todo = samples()
        with progress_bar("sending orders", len(todo)) as bar:
            for sample in todo:
                order_id = order_id_of(sample.payload)
                began = time.perf_counter()
                await publish(connection, sample.payload)
                try:
                    outcome, seen = await news.outcome(order_id, seen, OUTCOME_S)
                except TimeoutError:
                    raise NoAnswer(f"no outcome of {sample.what} within {OUTCOME_S:g} s") from None
                came = _kind(outcome)
                report.append(
                    {
                        "what": sample.what,
                        "order_id": order_id,
                        "outcome": came,
                        "as_expected": came == sample.expected,
                        "ms": round((time.perf_counter() - began) * 1e3, 1),
                        "told": outcome_line(outcome),
                        "message": outcome,
                    }
                )
                bar.step()
    finally:
        await connection.close()
    return report


def _kind(outcome: dict[str, Any]) -> str:
    if outcome.get("duplicate"):
        return "duplicate"
    return str(outcome["event"] if outcome["event"] == "order.filled" else outcome.get("category"))


def _outcomes_table(report: list[dict[str, Any]]) -> Table:
    table = Table(title="what was sent, and what came of it", title_justify="left", box=None, pad_edge=False)
    table.add_column("sent", no_wrap=True)
    table.add_column("ms", justify="right", style="dim")
    table.add_column("outcome on NATS", overflow="fold")
    for row in report:
        style = "" if row["as_expected"] else "red"
        table.add_row(
            row["what"], str(row["ms"]), f"[{style}]{escape(row['told'])}[/]" if style else escape(row["told"])
        )
    return table


def _show_clickhouse(settings: Settings, out: Console) -> None:
    found = clickhouse_endpoint(settings.data)
    if found is None:
        raise NoAnswer("the ClickHouse endpoint is not ready")
    url, database = found

    def ask(query: str, title: str) -> None:
        answer = ask_http(url, query, database=database, format="JSONCompact")
        out.print()
        print_table(rows_table(orjson.loads(answer.body), title), out)

    # The projection follows the ledger by a fraction of a second.
    deadline = time.monotonic() + AGREE_S
    while time.monotonic() < deadline:
        answer = ask_http(url, "SELECT count() FROM executions FINAL", database=database, format="TSV")
        if int(answer.body) >= sum(sample.expected == "order.filled" for sample in samples()):
            break
        time.sleep(0.05)
    ask(
        "SELECT order_id, side, fill_quantity AS lots, fill_price AS price, commission, position_id, "
        "formatDateTime(execution_timestamp, '%T.%f') AS at FROM executions FINAL ORDER BY seq LIMIT 5",
        "ClickHouse: the first executions",
    )
    ask(
        "SELECT symbol, side, count() AS positions, sum(quantity) AS lots, "
        "round(sum(quantity * entry_price) / sum(quantity), 5) AS average_entry, sum(commission_total) AS commission "
        "FROM positions WHERE position_status = 'open' GROUP BY symbol, side ORDER BY symbol, side",
        "ClickHouse: open positions",
    )


def _until_agreed(agree: Callable[[Settings], Agreement], settings: Settings) -> Agreement:
    """The projections follow the ledger: asked until they have caught up, at most for a while."""
    deadline = time.monotonic() + AGREE_S
    while True:
        found = agree(settings)
        if found[0] or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _show_agreement(out: Console, lines: list[str], verification: dict[str, Any]) -> None:
    out.print()
    for line in lines:
        out.print(escape(line), soft_wrap=True)
    sound = "[green]sound[/]" if verification["ok"] else f"[red]broken at {verification['first_bad_seq']}[/]"
    out.print(f"seals: {sound}, {verification['events']} events under {verification['seals']} seals")
