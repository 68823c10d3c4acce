"""Writes docs/asyncapi.json: every subject of the service, from the types of its messages (AsyncAPI 3.0).

`make docs`; a test holds it current.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from gateway import interface as api
from gateway.messages import Message, encode, outgoing
from ledger.events import Recorded
from ledger.facts import OrderRequest
from ledger.intake import _ANY, _AUDIT, _FIELDS_OF, _INTEGERS, ACTIONS, FILLINGS, ORDER_TYPES, TIMES_IN_FORCE
from tests.make_frozen_events import EXAMPLES

FILE: Final = Path(__file__).parents[1] / "docs" / "asyncapi.json"
# What each action cannot do without, beside order_id; of each inner tuple one is needed.
REQUIRED: Final[dict[str, tuple[str | tuple[str, ...], ...]]] = {
    "open": ("symbol", "order_type", "volume"),
    "close": (("position_id", "target_order_id"),),
    "modify": (("position_id", "order_ticket", "target_order_id"),),
    "cancel": (("order_ticket", "target_order_id"),),
    "close_by": ("position_id", "position_by_id"),
}
NAMES: Final = {"open": "Open", "close": "Close", "modify": "Modify", "cancel": "Cancel", "close_by": "CloseBy"}
CHOICES: Final = {"action": ACTIONS, "order_type": ORDER_TYPES, "filling": FILLINGS, "time_in_force": TIMES_IN_FORCE}
KINDS: Final = {
    "fill": ("symbol", "A deal of an order of ours, told once; the stated fields and what we add."),
    "error": ("symbol", "An order that ended without effect, or a message that was none (`_invalid`)."),
    "order": ("symbol", "Every other change of an order's state."),
    "alert": ("kind", "What a person must look at."),
}
TEXTS: Final = {
    "order_id": "Unique in one ledger. The same id with the same content is a duplicate, with other a conflict.",
    "volume": "Lots.",
    "price": "Reference price of a market order, entry of a pending one.",
    "stop_limit_price": "The limit of a stop-limit order, once its stop was touched.",
    "deviation": "Points.",
    "valid_until": "Not sent after that.",
    "expires_at": "When a pending order ends by itself at the broker.",
    "account": "The login of the gateway that is meant; another gateway refuses it.",
    "audit": "Kept as given.",
}


def document() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}

    def message(name: str, schema: dict[str, Any], summary: str, examples: Iterable[Any] = ()) -> None:
        messages[name] = {
            "name": name,
            "summary": " ".join(summary.split()),
            "contentType": "application/json",
            "payload": schema,
        } | ({"examples": [{"payload": one} for one in examples]} if examples else {})

    def channel(name: str, address: str | None, names: Iterable[str], text: str, parameters: dict[str, str]) -> None:
        channels[name] = {
            "address": address,
            "description": text,
            "messages": {one: {"$ref": f"#/components/messages/{one}"} for one in names},
        } | ({"parameters": {one: {"description": words} for one, words in parameters.items()}} if parameters else {})

    def operation(name: str, action: str, on: str, text: str) -> dict[str, Any]:
        operations[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{on}"},
            "summary": text,
        }
        return operations[name]

    symbol = {"symbol": "The symbol; on outgoing subjects anything outside A-Z a-z 0-9 _ - is an underscore."}
    login = {"login": "The account's login."}
    orders = [f"{NAMES[action]}Order" for action in ACTIONS]
    for action, name in zip(ACTIONS, orders, strict=True):
        schemas[name] = order_schema(action)
        message(name, {"$ref": f"#/components/schemas/{name}"}, f"A request of action `{action}`.")
    channel(
        "orders", "orders.submitted.{symbol}", orders,
        "Orders, over JetStream or core NATS. The subject only routes; the body is what counts.", symbol,
    )  # fmt: skip
    channel(
        "addressedOrders", "orders.account.{login}.{symbol}", orders,
        "The same, for the gateway of one account.", login | symbol,
    )  # fmt: skip
    operation("takeOrders", "receive", "orders", "The one gateway that takes unaddressed orders")
    operation("takeAddressedOrders", "receive", "addressedOrders", "The gateway of that account")

    (news,), definitions = msgspec.json.schema_components([Message], ref_template="#/components/schemas/{name}")
    schemas |= api.as_numbers(definitions)
    for kind, (token, text) in KINDS.items():
        told = examples_of(kind)
        name = f"{kind.capitalize()}News"
        message(name, news, f"{text} Events: {', '.join(sorted(told))}.", list(told.values())[:3])
        parameter = symbol if token == "symbol" else {"kind": "What kind of alert."}
        channel(kind, f"broker.{kind}.{{{token}}}", [name], text, parameter)
        operation(f"tell{kind.capitalize()}", "send", kind, text)
    channel("heartbeat", "orders.heartbeat", ["Heartbeat"], "Signs of life of upstream (HEARTBEAT_SUBJECT).", {})
    message("Heartbeat", {}, "Any payload: that it comes is what counts.")
    operation("hearHeartbeat", "receive", "heartbeat", "With HEARTBEAT_TIMEOUT_S set, silence halts trading")

    asked: list[tuple[str, str, Any, Any]] = [
        (api.QUERY, name, request, answer) for name, (request, answer) in api.QUERIES.items()
    ]
    asked += [(api.CONTROL, name, request, api.ControlAnswer) for name, request in api.CONTROLS.items()]
    types = [api.Refusal, *(one for _, _, request, answer in asked for one in (request, answer))]
    found, definitions = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas |= api.as_numbers(definitions)
    message("Refusal", found[0], f"An error. Codes: {'; '.join(f'{c} {t}' for c, t in api.CODES.items())}.")
    for (prefix, name, request, answer), reference, reply in zip(asked, found[1::2], found[2::2], strict=True):
        words = name.replace("_", " ").title().replace(" ", "")
        verb = "query" if prefix == api.QUERY else "control"
        message(f"{verb}{words}", reference, request.__doc__ or "")
        message(f"{verb}{words}Answer", reply, answer.__doc__ or f"The answer to {prefix}.{name}.")
        channel(f"{verb}{words}", f"{prefix}.{name}", [f"{verb}{words}"], f"Request and reply: {prefix}.{name}.", {})
        answers = [f"{verb}{words}Answer", "Refusal"]
        channel(f"{verb}{words}Reply", None, answers, "The inbox of the requester.", {})
        operation(f"{verb}{words}", "receive", f"{verb}{words}", f"Answers {prefix}.{name}")["reply"] = {
            "address": {"location": "$message.header#/reply"},
            "channel": {"$ref": f"#/channels/{verb}{words}Reply"},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "mt5-connector",
            "version": "1.0.0",
            "description": (
                "Orders to MetaTrader 5, what becomes of them, queries and control. Amounts are JSON numbers or "
                "strings on the way in, exact JSON numbers on the way out; times are ISO 8601 in UTC. News carry "
                "their event id as Nats-Msg-Id, Ledger-Seq and, where one came in, traceparent."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "NATS_URL; JetStream is needed."}
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": dict(sorted(schemas.items()))},
    }


def order_schema(action: str) -> dict[str, Any]:
    """The message of an action: the fields it may name, which of them it must, and what each may hold."""
    known = msgspec.json.schema_components([OrderRequest])[1]["OrderRequest"]["properties"]
    allowed = _FIELDS_OF[action] | _ANY
    properties = {name: field_schema(name, known[name]) for name in known if name in allowed}
    properties["action"] = {"const": action} | ({"default": "open"} if action == "open" else {})
    required = ["order_id", *([] if action == "open" else ["action"])]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    for one in REQUIRED[action]:
        if isinstance(one, str):
            required.append(one)
        else:
            schema["oneOf"] = [{"required": [name]} for name in one]
    return schema | {"required": required}


def field_schema(name: str, known: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any]
    if name in CHOICES:
        schema = {"enum": list(CHOICES[name])}
    elif name == "order_id" or name == "target_order_id":
        schema = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"}
    elif name in _INTEGERS:
        low, high = _INTEGERS[name]
        schema = {"type": "integer", "minimum": low, "maximum": high}
    elif name in ("valid_until", "created_at", "expires_at"):
        schema = {"type": "string", "format": "date-time"}
    elif name == "audit":
        schema = {"type": "object", "properties": {one: {"type": "string"} for one in _AUDIT}}
    elif "decimal" in json.dumps(known):
        schema = {"type": ["number", "string"]}
    else:
        schema = {"type": "string", "maxLength": 29 if name == "symbol" else 256}
    return schema | ({"description": TEXTS[name]} if name in TEXTS else {})


def examples_of(kind: str) -> dict[str, Any]:
    """By topic: the message that the stored example of an event becomes, where it is of this kind."""
    found = {}
    for name, envelope in EXAMPLES.items():
        topic = name.partition("/")[2].partition("+")[0]
        made = outgoing(Recorded(envelope.seq, "order/ord_1", 5, topic, b""), envelope)
        if made is not None and made.subject.startswith(f"broker.{kind}."):
            found[topic] = orjson.loads(encode(made.message))
    return found


def text() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
