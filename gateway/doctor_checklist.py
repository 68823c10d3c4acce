"""The ten items of the service's checklist, against a running one. Each is tried out where that is free of effect: a
malformed message always, an order only on the simulated terminal. On a real one the ledger's newest events are the
proof, and what they do not show is `unproven`."""

import uuid
from typing import Any, Final

import orjson

from gateway.bus import STREAM
from gateway.client import News, NoAnswer, connect, publish
from gateway.config import Settings
from gateway.doctor import FAILED, OK, Check
from gateway.doctor_facts import Found, gather
from gateway.operations import caller, control
from gateway.queries import Declined
from ledger.account_events import ConfigurationAccepted
from ledger.errors import LedgerError
from ledger.order_events import BrokerAnswered, DuplicateReceived

UNPROVEN: Final = "unproven"
WAIT_S: Final = 10.0
SYMBOL: Final = "EURUSD"
LIST: Final = "checklist"
OF_HUB: Final = "hub version "


def _item(name: str, status: str, found: str, remedy: str = "") -> Check:
    return Check(trouble=LIST, name=name, status=status, found=found, remedy="" if status == OK else remedy)


def _held(name: str, bad: str, good: str, remedy: str) -> Check:
    return _item(name, FAILED if bad else OK, bad or good, remedy)


async def go_through(settings: Settings) -> list[Check]:
    """The ten items, in their order."""
    tried = await _try(settings)
    found = await gather(settings)
    sent, fill, again, malformed = (tried.get(one) for one in ("sent", "fill", "again", "malformed"))
    subjects = found.orders_subjects
    missing = "" if "orders.submitted.>" in subjects and found.consumer else "nobody consumes orders.submitted.>"
    serve = f"start `order-ledger serve --data {settings.data}`; `order-ledger doctor` tells more"
    hub = found.hub_error or ("" if found.hub else "CENTRAL_HUB_URL is not set: there is no hub")
    if not hub and found.configuration is not None and OF_HUB not in found.configuration.origin:
        hub = f"the service runs on {found.configuration.origin}"
    taken = [one for one in found.configurations if isinstance(one, ConfigurationAccepted) and OF_HUB in one.origin]
    reloaded = [one for one in taken if one.changed]
    return [
        _held("orders are taken from orders.submitted.>", found.nats_error or missing, f"stream {STREAM}", serve),
        _held("connection to MetaTrader 5", found.broker_error, _account(found), serve),
        _shown("orders are sent to the broker", tried, sent, found, BrokerAnswered),
        _shown("fills are published on broker.fill.*", tried, fill, found, None),
        _held(
            "every communication is archived in Kafka",
            found.kafka_error or _archived(settings, found),
            found.kafka,
            "see the dependency Kafka of `order-ledger doctor`",
        ),
        _held(
            "errors are handled",
            "" if malformed else tried.get("error", "a malformed order had no answer"),
            "a malformed order was refused on broker.error",
            serve,
        ),
        _held("position sync", *(await _sync(settings)), "see `positions differ` of `order-ledger doctor`"),
        _shown("duplicates are prevented", tried, again, found, DuplicateReceived),
        _item(
            "configuration from the Central Hub",
            OK if not hub else UNPROVEN if not found.hub else FAILED,
            hub or found.hub,
            "set CENTRAL_HUB_URL, or run `order-ledger hub` beside",
        ),
        _item(
            "hot reload",
            OK if reloaded else UNPROVEN,
            f"{', '.join(reloaded[-1].changed)}, now version {reloaded[-1].version}"
            if reloaded
            else "no change at the hub was taken over lately",
            "post a changed configuration to the hub, then look again",
        ),
    ]


def _account(found: Found) -> str:
    account = found.account or {}
    return f"account {account.get('account')}, balance {account.get('balance')} {account.get('currency')}"


def _shown(name: str, tried: dict[str, Any], outcome: Any, found: Found, event: type | None) -> Check:
    if outcome:
        return _item(name, OK, str(outcome))
    if "tried" in tried:
        return _item(
            name, FAILED, tried.get("error", "the order of the checklist did not get so far"), "see its history"
        )
    seen = found.published_seq if event is None else len(found.of(event))
    return _item(
        name,
        OK if seen else UNPROVEN,
        f"seen in the ledger ({seen})" if seen else tried.get("error", "not seen lately"),
        "send an order on a demo account",
    )


def _archived(settings: Settings, found: Found) -> str:
    if settings.kafka_brokers is not None or found.service is None:
        return "" if found.service is not None else found.service_error
    from pathlib import Path

    return "" if any(Path(found.service["audit_dir"]).iterdir()) else "no audit file yet"


async def _sync(settings: Settings) -> tuple[str, str]:
    """What is wrong, what is well."""
    try:
        answer = await control(settings, "reconcile", {"by": caller(), "reason": "checklist"})
    except (NoAnswer, Declined, LedgerError) as error:
        return str(error), ""
    alerted = [one for one in answer["reconciled"].get("differences", ()) if one["policy"] == "alert"]
    return (answer["description"] if alerted else ""), answer["description"]


async def _try(settings: Settings) -> dict[str, Any]:
    """What became of a malformed message and, on the simulated terminal, of an order sent twice."""
    tried: dict[str, Any] = {}
    try:
        connection = await connect(settings)
    except NoAnswer as error:
        return {"error": str(error)}
    try:
        news = News(connection)
        await news.open()
        name = f"doctor.{uuid.uuid4().hex[:12]}"
        await publish(connection, orjson.dumps({"order_id": f"{name}.malformed", "symbol": SYMBOL, "volume": "x"}))
        tried["malformed"] = (await news.outcome(f"{name}.malformed", 0, WAIT_S))[0]["subject"]
        if settings.terminal == "simulated":
            tried["tried"] = name
            order = orjson.dumps({"order_id": name, "symbol": SYMBOL, "order_type": "buy", "volume": 0.01})
            await _order(connection, news, name, order, tried)
    except (NoAnswer, TimeoutError) as error:
        tried["error"] = str(error) or f"no outcome within {WAIT_S:g} s"
    finally:
        await connection.close()
    return tried


async def _order(connection: Any, news: News, name: str, order: bytes, tried: dict[str, Any]) -> None:
    """An order, the same again, and a close of what it opened."""
    await publish(connection, order)
    outcome, after = await news.outcome(name, 0, WAIT_S)
    if "deal" in outcome:
        tried["sent"] = f"{name}: {outcome.get('retcode_name') or outcome['event']}"
        tried["fill"] = outcome["subject"] if outcome["subject"].startswith("broker.fill.") else ""
    else:
        tried["error"] = str(outcome.get("description", outcome["event"]))
        tried["sent"] = f"{name}: {outcome['retcode_name']}" if outcome.get("retcode") else ""
    await publish(connection, order)
    twice, after = await news.outcome(name, after, WAIT_S)
    tried["again"] = f"{name} again: duplicate, no second order" if twice.get("duplicate") else ""
    if outcome.get("position_id"):
        close = {
            "order_id": f"{name}.close",
            "action": "close",
            "symbol": SYMBOL,
            "position_id": outcome["position_id"],
        }
        await publish(connection, orjson.dumps(close))
        await news.outcome(f"{name}.close", after, WAIT_S)
