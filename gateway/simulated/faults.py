"""Faults by script: which call fails, how, and when. Seeded, so that a run can be repeated.

    rules  =  rule { ";" rule }
    rule   =  [ call ":" ] fault [ "=" value ] [ when ]   |   "seed=" number
    when   =  "*" count        the next `count` such calls, then never again
           |  "@" rate         each such call with this probability, 0 … 1
           |  "#" number       the call of this number from now on, once
              (none: every such call)

`call` is the function's name (see CALLS; `*` for any), by default order_send. The first rule that applies to a call
decides, the others do not see it. docs/mt5.md tells what each fault does.
"""

import random
import re
from typing import Any, Final

import msgspec

from gateway.simulated import constants as c
from gateway.simulated.plans import COMMENTS, NONE, Tampering
from ledger.errors import LedgerError

ANY: Final = "*"
CALLS: Final = (
    "initialize", "login", "terminal_info", "account_info", "symbols_get", "symbol_info", "symbol_info_tick", "totals",
    "market_book", "charts", "orders_get", "positions_get", "history_orders_get", "history_deals_get",
    "order_calc_margin", "order_calc_profit", "order_check", "order_send",
)  # fmt: skip
_RETCODES: Final = {
    name.removeprefix("TRADE_RETCODE_").lower(): value
    for name, value in vars(c).items()
    if name.startswith("TRADE_RETCODE_") and value not in (c.TRADE_RETCODE_DONE,)
} | {"hedge_prohibited": 10046}
_ERRORS: Final = frozenset(value for name, value in vars(c).items() if name.startswith("RES_E_"))

# What needs a value, and how it is read: d duration, e last_error, r return code, f share, i points, t text.
_VALUED: Final = {
    "error": "e", "lost": "e", "hang": "d", "hang_after": "d", "delay": "d", "slow": "d", "late": "d",
    "late_reject": "r", "retcode": "r", "partial": "f", "slip": "i", "comment": "t", "lag": "d", "cut": "d",
    "clock": "d",
}  # fmt: skip
_DEFAULTS: Final = {"error": -10004, "lost": -10002, "hang": 0, "hang_after": 0, "late_reject": 10018}
_BARE: Final = ("kill", "kill_after", "crash", "crash_after", "reticket", "otp")
TRADE_FAULTS: Final = frozenset(("retcode", "late", "late_reject", "partial", "slip", "comment"))
_LONGEST_MS: Final = 3_600_000_000
_MOST_POINTS: Final = 1_000_000
_LATE_REJECT_MS: Final = 200

_RULE: Final = re.compile(
    r"(?:(?P<call>[a-z_]+|\*):)?(?P<name>[a-z_]+)(?:=(?P<value>.*?))?(?:(?P<how>[*@#])(?P<number>[0-9.]+))?$"
)
_DURATION: Final = re.compile(r"(-?[0-9.]+)(ms|s|m|h)?$")
_SCALE: Final = {None: 1, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


class BadFaults(LedgerError):
    """The text is no script of faults."""


class Fault(msgspec.Struct, frozen=True):
    """One rule that applies. `value` is in milliseconds where it is a duration."""

    name: str
    value: Any = None

    def tampering(self) -> Tampering:
        """What it does to a trade request."""
        match self.name:
            case "retcode":
                return Tampering(retcode=self.value)
            case "late":
                return Tampering(late_ms=max(self.value, 1))
            case "late_reject":
                return Tampering(late_ms=_LATE_REJECT_MS, late_retcode=self.value)
            case "partial":
                return Tampering(partial=self.value)
            case "slip":
                return Tampering(slip=self.value)
            case "comment":
                return Tampering(comment=self.value)
        return NONE


class Rule(msgspec.Struct):
    call: str
    fault: Fault
    how: str = ""
    number: float = 0.0
    seen: int = 0

    def __str__(self) -> str:
        """The rule as it would be written now, counted calls taken off."""
        fault = self.fault
        value = "" if fault.value is None else f"={fault.value}"
        left = self.number - self.seen if self.how in ("*", "#") else self.number
        return f"{self.call}:{fault.name}{value}{self.how}{left:g}" if self.how else f"{self.call}:{fault.name}{value}"

    @property
    def spent(self) -> bool:
        return self.how in ("*", "#") and self.seen >= self.number


def parse(text: str) -> tuple[int, list[Rule]]:
    """Seed and rules. Raises BadFaults, which names the rule."""
    seed, rules = 0, []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        if part.startswith("seed="):
            if not part[5:].isdigit():
                raise BadFaults(f"fault {part!r}: seed must be a whole number")
            seed = int(part[5:])
        else:
            rules.append(_rule(part))
    return seed, rules


def _rule(part: str) -> Rule:
    found = _RULE.match(part)
    if found is None:
        raise BadFaults(f"fault {part!r}: write [call:]fault[=value][*count|@rate|#number]")
    call, name, value = found["call"] or "order_send", found["name"], found["value"]
    if call != ANY and call not in CALLS:
        raise BadFaults(f"fault {part!r}: no call {call!r}; there are {', '.join(CALLS)}")
    if name in _RETCODES and value is None:
        name, value = "retcode", str(_RETCODES[name])
    if name not in _VALUED and name not in _BARE:
        raise BadFaults(f"fault {part!r}: no fault {name!r}; there are {', '.join((*_VALUED, *_BARE))}")
    if name in TRADE_FAULTS and call not in ("order_send", "order_check"):
        raise BadFaults(f"fault {part!r}: {name} is for order_send and order_check")
    try:
        fault = Fault(name, _value(name, value))
        number = float(found["number"] or 0)
    except ValueError as error:
        raise BadFaults(f"fault {part!r}: {error}") from None
    if found["how"] == "@" and not 0 <= number <= 1:
        raise BadFaults(f"fault {part!r}: a rate is from 0 to 1")
    if found["how"] in ("*", "#") and (number < 1 or number != int(number)):
        raise BadFaults(f"fault {part!r}: a count is a whole number from 1")
    return Rule(call, fault, found["how"] or "", number)


def _value(name: str, text: str | None) -> Any:
    kind = _VALUED.get(name)
    if kind is None:
        if text is not None:
            raise ValueError(f"{name} takes no value")
        return None
    if text is None:
        if name in _DEFAULTS:
            return _DEFAULTS[name]
        raise ValueError(f"{name} needs a value")
    if kind == "t":
        return text
    if kind == "d":
        return duration_ms(text)
    if kind == "f":
        share = float(text)
        if not 0 <= share <= 1:
            raise ValueError("a share is from 0 to 1")
        return share
    number = _RETCODES.get(text) or int(text)
    if kind == "i" and abs(number) > _MOST_POINTS:
        raise ValueError(f"at most {_MOST_POINTS} points")
    if kind == "e" and number not in _ERRORS:
        raise ValueError(f"no last_error {text}")
    if kind == "r" and number not in COMMENTS:
        raise ValueError(f"no return code {text}")
    return number


def duration_ms(text: str) -> int:
    """ "250", "250ms", "2s", "5m", "1h". Raises ValueError."""
    found = _DURATION.match(text)
    if found is None:
        raise ValueError(f"no duration {text!r}: write 250ms, 2s, 5m or 1h")
    duration = float(found[1]) * _SCALE[found[2]]
    if abs(duration) > _LONGEST_MS:
        raise ValueError(f"no duration {text!r}: the longest is 1000h")
    return round(duration)


class Faults:
    """The rules in force. `generation` counts restarts by fault: it keeps a rate from repeating its first choices."""

    def __init__(self, text: str = "", generation: int = 0) -> None:
        self.seed, self.rules = parse(text)
        self._chance = random.Random(f"{self.seed}/{generation}")

    def __str__(self) -> str:
        rules = [str(rule) for rule in self.rules if not rule.spent]
        return "; ".join([f"seed={self.seed}", *rules] if self.seed and rules else rules)

    def decide(self, call: str) -> tuple[Fault | None, bool]:
        """The fault of this call, and whether a count has changed by it."""
        counted = False
        for rule in self.rules:
            if rule.spent or rule.call not in (call, ANY):
                continue
            if rule.how == "@":
                if self._chance.random() >= rule.number:
                    continue
            elif rule.how:
                rule.seen += 1
                counted = True
                if rule.how == "#" and not rule.spent:
                    continue
            return rule.fault, counted
        return None, counted

    def standing(self, name: str) -> Any:
        """The value of the first rule without a condition by that name, as `lag`; None if there is none."""
        return next((rule.fault.value for rule in self.rules if rule.fault.name == name and not rule.how), None)
