"""Reads settings from a document: the TOML file, or what the Central Hub holds. Pure.

A document is judged as a whole, and every problem is named by its path. What is unknown in a section of ours is
refused, since a misspelt limit that is silently ignored is a limit that is not there. No message repeats a text that
may be a secret in the wrong place.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from ledger.values import Refused, parse_decimal

MAX_PROBLEMS: Final = 50
MAX_TEXT: Final = 1_000
_LARGEST: Final = 2**63
_HUSHED: Final = ("password", "secret", "token", "api_key", "apikey", "credential", "private_key", "seal_key", "nkey")

Reader = Callable[[str], Any]


class Place(NamedTuple):
    """A setting at its place in a document: its variable, the type of its value, and what reads its text."""

    variable: str
    kind: Any
    read: Reader


class Found(NamedTuple):
    """What a document says: values by variable, or all that is wrong with it. `notes`: sections that are not ours."""

    values: dict[str, Any]
    problems: list[str]
    notes: tuple[str, ...] = ()


def places(settings: Mapping[str, tuple[Any, Reader, str]]) -> dict[str, Place]:
    """By path. `settings`: variable → type, reader and path."""
    return {path: Place(name, kind, read) for name, (kind, read, path) in settings.items()}


def read_document(document: Mapping[str, Any], known: Mapping[str, Place], *, section: str = "") -> Found:
    """Reads every setting. With `section` only that one is ours, and the others are left to whom they belong."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    notes: list[str] = []
    tree = _tree(known)
    for path, value in _leaves(document, tree, problems, notes, section):
        place = known[path]
        try:
            if getattr(place.kind, "__origin__", None) is dict:
                values[place.variable] = _by_name(path, value, place, problems)
            else:
                values[place.variable] = place.read(_text(value, place))
        except ValueError as error:
            problems.append(f"{path} {error}")
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"and {len(problems) - MAX_PROBLEMS} more"]
    return Found({} if problems else values, problems, tuple(notes))


def deep_merge(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    """A new document: what `strong` says, and where it is silent (or says null) what `weak` says. Lists are values:
    they are replaced, not joined."""
    merged = {name: _copy(value) for name, value in weak.items()}
    for name, value in strong.items():
        below = merged.get(name)
        if value is None and name in merged:
            continue
        merged[name] = (
            deep_merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else _copy(value)
        )
    return merged


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The document that holds these values at their paths."""
    document: dict[str, Any] = {}
    for path, value in values.items():
        *groups, name = path.split(".")
        group = document
        for one in groups:
            group = group.setdefault(one, {})
        group[name] = value
    return document


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(one) for name, one in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list) else value


def _tree(known: Mapping[str, Place]) -> dict[str, Any]:
    return nested(dict.fromkeys(known, ""))


def _leaves(
    document: Mapping[str, Any], tree: Mapping[str, Any], problems: list[str], notes: list[str], section: str
) -> Iterator[tuple[str, Any]]:
    """The path and value of every known setting that is given; the rest becomes problems and notes."""
    waiting: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [("", document, tree)]
    while waiting:
        prefix, group, names = waiting.pop()
        for name, value in group.items():
            path = f"{prefix}{name}"
            if not prefix and section and name != section:
                if name in names or not get_close_matches(str(name), [section], cutoff=0.8):
                    notes.append(_shown(path))
                    continue
                problems.append(_unknown(path, str(name), [section]))
            elif name not in names:
                problems.append(_unknown(path, str(name), list(names)))
            elif value is None:
                continue
            elif isinstance(names[name], dict):
                if isinstance(value, Mapping):
                    waiting.append((f"{path}.", value, names[name]))
                else:
                    problems.append(f"{path} must be a group of settings, not {_kind(value)}")
            else:
                yield path, value


def _unknown(path: str, name: str, names: list[str]) -> str:
    if any(word in name.lower() for word in _HUSHED):
        return f"{_shown(path)} is a secret, and secrets come from the environment only"
    close = get_close_matches(name, names, n=1)
    return f"{_shown(path)} is unknown" + (f" (is {close[0]} meant?)" if close else "")


def _shown(path: str) -> str:
    """A path as it may be printed: keys come from outside, too."""
    return "".join(one if one.isprintable() else "?" for one in path)[:120]


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a group"
        case _:
            return f"a {type(value).__name__}"


def _by_name(path: str, value: Any, place: Place, problems: list[str]) -> dict[str, Any]:
    """Texts under names of which the reader knows which there are: each is read, and objected to, by itself."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a group of texts, not {_kind(value)}")  # noqa: TRY004
    found: dict[str, Any] = {}
    for name, text in value.items():
        try:
            if not isinstance(text, str) or not isinstance(name, str) or {",", "="} & {*name, *text}:
                raise ValueError(f"must be text without comma and equals sign, not {_kind(text)}")
            found |= place.read(f"{_line(name)}={_line(text)}")
        except ValueError as error:
            problems.append(f"{_shown(f'{path}.{name}')} {error}")
    return found


def _text(value: Any, place: Place) -> str:
    """The value as the text that an environment variable would hold. Raises ValueError."""
    kind = place.kind
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {_kind(value)}")
        return "true" if value else "false"
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            shown = f"{value:g}" if isinstance(value, float) else _kind(value)
            raise ValueError(f"must be a whole number, not {shown}")
        return str(int(_bounded(value)))
    if kind in (float, Decimal):
        if kind is Decimal and isinstance(value, str):
            return _decimal(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {_kind(value)}")
        return format(Decimal(repr(_bounded(value))), "f")
    if getattr(kind, "__origin__", None) is tuple:
        if not isinstance(value, list) or not all(isinstance(one, str) and "," not in one for one in value):
            raise ValueError("must be a list of texts without commas")
        return ",".join(_line(one) for one in value)
    if kind is not str:
        return _open_secret(value, place.variable)
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {_kind(value)}")  # noqa: TRY004
    return _line(value)


def _bounded(value: float) -> float:
    if not math.isfinite(value) or abs(value) >= _LARGEST:
        raise ValueError("is too large a number")
    return value


def _decimal(text: str) -> str:
    try:
        return format(parse_decimal(text), "f")
    except Refused:
        raise ValueError("must be a number") from None


def _line(text: str) -> str:
    if len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"must be one line of at most {MAX_TEXT} characters")
    return text


def _open_secret(value: Any, variable: str) -> str:
    """An address may stand in a document as long as it holds no password; nothing else that is secret may."""
    if not variable.endswith("_URL"):
        raise ValueError(f"is a secret, and secrets come from the environment only ({variable})")
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {_kind(value)}")  # noqa: TRY004
    if "@" in value or "?" in value:
        raise ValueError(f"must hold no user and password: give the whole address by the environment ({variable})")
    return _line(value)
