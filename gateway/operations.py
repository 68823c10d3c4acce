"""Queries and control from the command line: through the running gateway, or, where none runs, by taking the writer's
lock for what changes only the ledger."""

import getpass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import msgspec
import nats.errors

from gateway import interface as api
from gateway.client import NoAnswer, connect, running
from gateway.config import Settings, version_of
from gateway.control import Control
from gateway.halts import Halts
from gateway.proof import key_of, prove
from gateway.queries import Declined
from gateway.show import open_ledger
from ledger.errors import LedgerError
from ledger.events import LedgerCreated, event_of
from ledger.store import open_store
from ledger.writer import Ledger

TIMEOUT_S: Final = 15.0


class NoGateway(NoAnswer):
    """Nobody listens: no gateway runs, as far as can be told."""


def caller() -> str:
    """Who calls, as the operating system knows it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


async def query(settings: Settings, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer of the running gateway. Raises NoAnswer, Declined."""
    return await _ask(settings, f"{api.QUERY}.{name}", fields)


async def control(settings: Settings, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Done by the running gateway, else on the ledger alone. Raises NoAnswer, Declined, LedgerError."""
    try:
        return await _ask(settings, f"{api.CONTROL}.{command}", fields)
    except NoGateway:
        return await _alone(settings, command, fields)


async def _ask(settings: Settings, subject: str, fields: dict[str, Any]) -> dict[str, Any]:
    found = running(settings)
    if found is None and settings.nats_url is None:
        raise NoGateway(f"no service runs on {settings.data}: start `order-ledger serve`, or set NATS_URL")
    if found is not None:
        fields = {"account": str(found["login"])} | fields
    body = msgspec.json.encode(fields)
    try:
        headers = {api.PROOF_HEADER: prove(key_of(settings.data), subject, body)} if found is not None else None
        connection = await connect(settings)
    except NoAnswer as error:
        raise NoGateway(str(error)) from None
    except OSError as error:
        raise NoAnswer(f"the key of {settings.data} cannot be read: {error.strerror}") from None
    try:
        reply = await connection.request(subject, body, timeout=TIMEOUT_S, headers=headers)
    except nats.errors.NoRespondersError:
        raise NoGateway(f"no gateway listens on {subject}: start `order-ledger serve`") from None
    except (nats.errors.Error, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise NoAnswer(f"no answer within {TIMEOUT_S:g} s ({reason}): look whether it was done") from None
    finally:
        await connection.close()
    if reply.headers and "Nats-Service-Error-Code" in reply.headers:
        refusal = msgspec.json.decode(reply.data, type=api.Refusal)
        raise Declined(refusal.code, *refusal.reasons)
    answer: dict[str, Any] = msgspec.json.decode(reply.data)
    return answer


async def _alone(settings: Settings, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    """On the ledger alone, under the writer's lock: no gateway may run meanwhile."""
    readable = open_ledger(settings)
    try:
        first = readable.at(1)
        created = event_of(first) if first is not None else None
    finally:
        readable.close()
    if not isinstance(created, LedgerCreated):
        raise LedgerError("the ledger is empty: there is nothing to control")

    def clock() -> datetime:
        return datetime.now(UTC)

    ledger = await Ledger.open(
        open_store(settings.ledger_url.reveal()),
        login=created.login,
        server=created.server,
        clock=clock,
        build=version("order-ledger"),
        config_version=version_of(settings)[0],
    )
    try:
        alone = Control(ledger, Halts(ledger, None, settings), clock)
        answer = await alone.call(command, msgspec.json.encode(fields), f"command line: {command}")
    finally:
        await ledger.close()
    told: dict[str, Any] = msgspec.json.decode(api.encode(answer))
    return told
