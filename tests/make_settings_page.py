"""Writes docs/settings.md from the table of settings: `make docs`."""

from pathlib import Path
from typing import Any

from gateway.config import KINDS, load
from gateway.secret import Secret
from gateway.settings_table import ABOUT
from gateway.variables import VARIABLES

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
UNITS = {
    "_per_s": "1/s",
    "_s": "s",
    "_minutes": "min",
    "_pips": "pips",
    "_points": "points",
    "_percent": "%",
    "_volume": "lots",
}
HEAD = """\
# Settings

Written from the table of settings by `make docs`; a test holds it current.

Strongest first: flags of a command, environment variables, the Central Hub, the file (`config.toml` in the data
folder, or `ORDER_LEDGER_CONFIG`), safe defaults. All problems are told at once, by variable or path. An unknown name in
a document is refused.
Secrets come from the environment only.

**Path** is the place in a document. The hub may set what stands under `operational`; sections of others are left alone.
**Reload**: `yes` takes effect while the service runs, when the hub changes it; `restart` at the next start. An invalid
document is refused whole, and the old settings stay. Retries and delays hold for orders that come after the change;
limits, halts, alerts and intervals hold at once. What waits for a restart is named by the log, by the event of the
accepted configuration, and by `order-ledger doctor`. The service starts without a hub: on its last good configuration
in `hub.json`, or on safe defaults.

`--data DIR` or `ORDER_LEDGER_DATA` names the data folder (`./.order-ledger`). `CLICKHOUSE_HOST` and `CLICKHOUSE_PORT`
may stand for `CLICKHOUSE_URL`.

| variable | meaning | default | unit | path | reload |
|---|---|---|---|---|---|
"""


def page() -> str:
    return HEAD + "".join(_row(name) for name in VARIABLES)


def _row(name: str) -> str:
    field = VARIABLES[name][0]
    about, unit = ABOUT[name], next((unit for end, unit in UNITS.items() if field.endswith(end)), "")
    secret = KINDS[field] is Secret and not field.endswith("_url")
    path = "environment only" if secret else f"`{about.path(field)}`"
    return f"| `{name}` | {about.help} | {_default(field)} | {unit} | {path} | {'yes' if about.hot else 'restart'} |\n"


def _default(field: str) -> str:
    value: Any = load({"data": "/"}, {})
    if field == "ledger_url":
        return ""
    for part in field.split("."):
        value = getattr(value, part)
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    text = (
        ""
        if value is None or isinstance(value, Secret)
        else ",".join(value)
        if isinstance(value, tuple | dict)
        else value
    )
    return f"`{text:g}`" if isinstance(text, float) else f"`{text}`" if str(text) else ""


if __name__ == "__main__":
    PAGE.write_text(page())
