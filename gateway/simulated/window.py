"""The simulated terminal's window: asks a folder's broker to do what no program asked for."""

from pathlib import Path
from typing import Any

from gateway.simulated import link
from ledger.errors import LedgerError


class WindowRefused(LedgerError):
    """The broker did not do it, or there is none; the text says why."""


def ask(folder: Path, verb: str, **arguments: Any) -> Any:
    """What the broker of `folder` answers: dicts and lists. It is started if it rests, but not made anew.

    Raises WindowRefused.
    """
    if not (folder / "journal.bin").exists():
        raise WindowRefused(f"no simulated broker in {folder}: start `order-ledger serve` on this data folder first")
    try:
        connection = link.ensure_broker(folder)
    except (link.BrokerUnreachable, OSError) as error:
        raise WindowRefused(str(error)) from None
    try:
        status, value = connection.call(link.CONTROL, (verb, arguments))
    except link.LinkBroken as error:
        raise WindowRefused(f"the simulated broker went away: {error}") from None
    finally:
        connection.close()
    if status != link.OK:
        raise WindowRefused(value if isinstance(value, str) else f"the simulated broker does not understand {verb!r}")
    return value
