"""The HTTP API as data: what each route takes, gives and demands. The server and the document are made from it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.http_guard import EVERYBODY, Role
from gateway.times import BadTime, parse_as_of, parse_end, parse_time
from ledger.order import Status
from ledger.values import Refused, parse_order_id

PROBLEM: Final = "application/problem+json"
MAX_SYMBOL: Final = 64
_TIME: Final = "ISO 8601; UTC without a zone"


class BadParameter(Exception):
    """A parameter that is not what it must be; the text says what that is."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """`read` turns the text into its value, or raises BadParameter."""

    name: str
    read: Callable[[str], Any]
    schema: dict[str, Any]
    text: str
    where: str = "query"
    many: bool = False
    default: Any = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """`type`: what the body is made of; None for a body that is no JSON of ours."""

    text: str
    type: Any = None
    media: str = "application/json"


Handler = Callable[[web.Request, dict[str, Any], frozenset[Role]], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """`roles`: who may, None for whoever reaches the port. `name` is that of the handler."""

    path: str
    name: str
    summary: str
    replies: dict[int, Reply]
    method: str = "GET"
    roles: frozenset[Role] | None = EVERYBODY
    parameters: tuple[Parameter, ...] = ()
    tag: str = "ledger"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `detail` says what is wrong and what would help."""

    status: int
    title: str
    detail: str
    type: str = "about:blank"


# --- parameters -------------------------------------------------------------------------------------------------


def _time(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def reading(text: str) -> Any:
        try:
            return read(text[:64])
        except BadTime as error:
            raise BadParameter(str(error)) from None

    return reading


def _number(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and low <= int(text) <= high):
            raise BadParameter(f"must be a whole number from {low} to {high}")
        return int(text)

    return read


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise BadParameter("must be true or false")
    return text == "true"


def _order_id(text: str) -> str:
    try:
        return parse_order_id(text)
    except Refused as refused:
        raise BadParameter(str(refused)) from None


def _symbol(text: str) -> str:
    if not 0 < len(text) <= MAX_SYMBOL or any("\ud800" <= one <= "\udfff" for one in text):
        raise BadParameter(f"must be a symbol of at most {MAX_SYMBOL} characters")
    return text


_STATES: Final = [one.value for one in Status if one is not Status.NEW]


def _state(text: str) -> str:
    if text not in _STATES:
        raise BadParameter(f"must be one of {', '.join(_STATES)}")
    return text


def time_parameter(name: str, text: str, *, end: bool = False, as_of: bool = False) -> Parameter:
    read = parse_as_of if as_of else parse_end if end else parse_time
    day = "; a date alone is the end of that day" if end or as_of else ""
    schema = {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}
    return Parameter(name=name, read=_time(read), schema=schema, text=f"{text} ({_TIME}{day}).")


def number_parameter(name: str, text: str, low: int, high: int, default: int) -> Parameter:
    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return Parameter(name=name, read=_number(low, high), schema=schema, text=text, default=default)


def switch_parameter(name: str, text: str) -> Parameter:
    return Parameter(name=name, read=_switch, schema={"type": "boolean", "default": False}, text=text, default=False)


def choice_parameter(name: str, text: str, *choices: str) -> Parameter:
    """The first choice is the default."""

    def read(given: str) -> str:
        if given not in choices:
            raise BadParameter(f"must be one of {', '.join(choices)}")
        return given

    schema = {"type": "string", "enum": list(choices), "default": choices[0]}
    return Parameter(name=name, read=read, schema=schema, text=text, default=choices[0])


ORDER_ID: Final = Parameter(
    name="order_id",
    read=_order_id,
    schema={"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,64}$"},
    text="The order's id.",
    where="path",
)
SYMBOL: Final = Parameter(
    name="symbol",
    read=_symbol,
    schema={"type": "string", "minLength": 1, "maxLength": MAX_SYMBOL},
    text="Only orders of this symbol.",
    default="",
)
STATE: Final = Parameter(
    name="state",
    read=_state,
    schema={"type": "array", "items": {"type": "string", "enum": _STATES}},
    text="Only orders in one of these states; may stand several times.",
    many=True,
)


def read_parameters(route: Route, path: Mapping[str, str], query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values of a request's parameters, by name. Raises BadParameter for one that is unknown, repeated or wrong."""
    known = {one.name: one for one in route.parameters}
    found: dict[str, Any] = {one.name: [] if one.many else one.default for one in route.parameters}
    seen = set()
    for name, text in (*path.items(), *query):
        parameter = known.get(name)
        if parameter is None:
            raise BadParameter(f"unknown parameter {name[:40]!r}: {', '.join(known) or 'none'} may be given")
        if name in seen and not parameter.many:
            raise BadParameter(f"{name} stands twice")
        seen.add(name)
        try:
            value = parameter.read(text)
        except BadParameter as error:
            raise BadParameter(f"{name} {error}") from None
        if parameter.many:
            found[name].append(value)
        else:
            found[name] = value
    return found


# --- the document -----------------------------------------------------------------------------------------------


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = [reply.type for route in routes for reply in route.replies.values() if reply.type is not None]
    schemas, components = msgspec.json.schema_components([*types, Problem], ref_template="#/components/schemas/{name}")
    by_type = dict(zip(map(id, [*types, Problem]), schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "order-ledger",
            "version": version,
            "summary": "Read the order ledger, and see how the service stands.",
            "description": (
                "Read only. Without tokens the service listens on loopback only and asks for none. "
                "Errors are RFC 9457 problems. Amounts are text with exact digits, times are ISO 8601 in UTC."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "http://127.0.0.1:8014"}],
        "tags": [
            {"name": "service", "description": "How the service stands."},
            {"name": "ledger", "description": "What was recorded."},
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of AUDITOR_TOKENS or OPERATOR_TOKENS.",
                }
            },
        },
    }


def _operation(route: Route, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    replies = dict(route.replies)
    told: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
    }
    refusals = {400: "The request is not what it must be.", 429: "Too many requests, or too many wrong tokens."}
    if route.roles is not None:
        told["security"] = [{"token": []}]
        told["description"] = f"Roles: {', '.join(sorted(route.roles))}."
        refusals |= {401: "No token that is known and has not ended.", 403: "The token's role may not do this."}
    else:
        told["security"] = []
        refusals |= {403: "Without tokens: the request was not sent to a loopback name."}
    if route.parameters:
        told["parameters"] = [_parameter(one) for one in route.parameters]
    for status, text in refusals.items():
        replies.setdefault(status, Reply(text=text, type=Problem, media=PROBLEM))
    told["responses"] = {str(status): _reply(reply, by_type) for status, reply in sorted(replies.items())}
    return told


def _parameter(parameter: Parameter) -> dict[str, Any]:
    told = {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.text,
        "schema": parameter.schema,
    }
    return told | ({"style": "form", "explode": True} if parameter.many else {})


def _reply(reply: Reply, by_type: dict[int, dict[str, Any]]) -> dict[str, Any]:
    schema = {"type": "string"} if reply.type is None else by_type[id(reply.type)]
    told: dict[str, Any] = {"description": reply.text, "content": {reply.media: {"schema": schema}}}
    return told
