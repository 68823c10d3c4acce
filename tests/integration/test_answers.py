"""Every answer a terminal can give, for every kind of request: the events, messages and broker calls that follow.

The expectations are data, in tests/data/answers.toml: which class each return code and each `last_error` has for
which kind of request, and what follows from a class. Each answer is given by the simulated broker itself.
"""

import asyncio
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from gateway.broker import NotSent
from gateway.retcodes import LAST_ERRORS, RETCODES, OrderEffect, RetcodeClass, lookup
from gateway.simulated import constants
from ledger.order import Order, Status
from ledger.order_events import OutcomeProbed, SendAbandoned
from tests.gateway_desk import Desk, desk_in

TABLE: Final = tomllib.loads((Path(__file__).parents[1] / "data" / "answers.toml").read_text())
# What is asked for, and the TRADE_ACTION it becomes.
KINDS: Final = {"market": 1, "pending": 5, "close": 1, "stops": 6, "change": 7, "cancel": 8, "close_by": 10}
SETTLED: Final = {
    Status.FILLED, Status.COMPLETED, Status.REJECTED, Status.FAILED, Status.CANCELLED, Status.PLACED,
}  # fmt: skip


class Case(NamedTuple):
    kind: str
    answer: str  # a return code, or a last_error
    fault: str  # how the simulated broker is made to give it
    row: str  # what is expected: a name of TABLE["expected"][kind]

    def __str__(self) -> str:
        return f"{self.kind}-{self.answer}"


def cases() -> Iterator[Case]:
    for kind in KINDS:
        yield Case(kind, "no fault", "", "success")
        for code, by_kind in TABLE["retcodes"].items():
            yield Case(kind, code, f"retcode={code}*1", by_kind.get(kind, by_kind["all"]))
        for code, effect in TABLE["last_errors"].items():
            yield Case(kind, f"{code} before", f"error={code}*1", effect)
            yield Case(kind, f"{code} after", f"lost={code}*1", "lost" if effect == "unknown" else "told_not_sent")


# An error that says "not sent" after the effect would be a lie of the binding: no rule can stand on it.
CASES: Final = [case for case in cases() if case.row != "told_not_sent"]


class Seen(NamedTuple):
    events: list[str]
    messages: list[str]
    calls: list[str]


class Bench:
    """Runs the cases one after the other; those whose outcome is unknown are settled meanwhile."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.calls: dict[str, list[str]] = {}
        self._now = ""
        self._watch()

    def _watch(self) -> None:
        """Notes the calls of each order: of the prober by its magic, of the others by the time."""
        desk, send, check, find = self.desk, self.desk.trade.send, self.desk.query.check, self.desk.query.find

        async def sending(sends: Any) -> Any:
            outcomes = await send(sends)
            if any(given(one) for one in outcomes):
                self.calls[self._now].append("send")
            return outcomes

        async def checking(requests: Any) -> Any:
            self.calls[self._now].append("check")
            return await check(requests)

        async def finding(magics: Any, comments: Any, since_s: float) -> Any:
            for order_id, calls in self.calls.items():
                order = desk.ledger.order(order_id)
                if order is not None and order.status is Status.UNKNOWN and calls[-1] != "find":
                    calls.append("find")
            return await find(magics, comments, since_s)

        desk.trade.send, desk.query.check, desk.query.find = sending, checking, finding  # type: ignore[method-assign]

    async def run(self, number: int, case: Case) -> str:
        """Gives the request and waits until it has an outcome, or none for now."""
        order_id = f"{case.kind}-{number}"
        self._now = f"before-{number}"
        self.calls[self._now] = []
        fields = await self._fields(case.kind, number)
        self.desk.fault(case.fault) if case.fault else self.desk.window("fault", clear=True)
        self._now = order_id
        self.calls[order_id] = []
        await self.desk.submit(order_id, **fields)
        await self.desk.until(order_id, Status.UNKNOWN, *SETTLED)
        return order_id

    async def _opened(self, order_id: str, **fields: Any) -> Order:
        return await self.desk.open(order_id, **{"volume": 0.01} | fields)

    async def _fields(self, kind: str, number: int) -> dict[str, Any]:
        order = {"symbol": "EURUSD", "order_type": "buy", "volume": 0.01}
        if kind == "market":
            return order
        if kind == "pending":
            return order | {"order_type": "buy_limit", "price": 0.9}
        self.desk.window("fault", clear=True)
        if kind in ("change", "cancel"):
            await self._opened(f"target-{number}", order_type="buy_limit", price=0.9)
            named = {"target_order_id": f"target-{number}"}
            return named | ({"action": "modify", "price": 0.91} if kind == "change" else {"action": "cancel"})
        opened = await self._opened(f"target-{number}")
        if kind == "close":
            return {"action": "close", "target_order_id": f"target-{number}"}
        if kind == "stops":
            return {"action": "modify", "target_order_id": f"target-{number}", "sl": 0.9}
        other = await self._opened(f"other-{number}", order_type="sell")
        return {"action": "close_by", "position_id": opened.position_id, "position_by_id": other.position_id}

    async def seen(self, order_id: str) -> Seen:
        await self.desk.until(order_id, *SETTLED)
        messages = [
            " ".join(filter(None, (subject.split(".")[1], body.status, body.category)))
            for subject, body in self.desk.messages(order_id)
        ]
        topics: list[str] = []
        for event in self.desk.events(order_id):
            if isinstance(event, SendAbandoned) and event.code == 0:
                assert topics.pop() == "send_started"
            elif not isinstance(event, OutcomeProbed):
                topics.append(event.topic().removeprefix("order."))
        return Seen(topics, messages, self.calls[order_id])


def given(outcome: Any) -> bool:
    """If the terminal was given the request: on a machine that stands still for a while it is too late for that, or
    the terminal is still being started again after the answer of the case before. That is no answer of a terminal."""
    return not (isinstance(outcome, NotSent) and outcome.code == 0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Seen]:
    """All cases, lived through on one broker."""

    async def run() -> dict[Case, Seen]:
        folder = tmp_path_factory.mktemp("answers") / "d"
        quick = {"RETRY_DELAY_S": "0.01", "PARK_RECHECK_S": "0.1", "NOT_AFTER_S": "2", "CALL_DEADLINE_S": "2"}
        async with desk_in(folder, **quick) as desk:
            bench = Bench(desk)
            order_ids = {case: await bench.run(number, case) for number, case in enumerate(CASES)}
            return {case: await bench.seen(order_id) for case, order_id in order_ids.items()}

    return asyncio.run(run())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_answer_has_the_events_messages_and_calls_of_its_class(results: dict[Case, Seen], case: Case) -> None:
    expected = TABLE["expected"][case.kind][case.row]
    seen = results[case]
    assert seen.events == expected["events"]
    assert seen.messages == expected["messages"]
    assert seen.calls == expected["calls"]


def test_every_return_code_is_in_the_table_with_its_class() -> None:
    known = {code for code in RETCODES if code} | {
        value for name, value in vars(constants).items() if name.startswith("TRADE_RETCODE_")
    }
    assert {int(code) for code in TABLE["retcodes"]} == known
    rows = {"deal_unnamed": RetcodeClass.SUCCESS, "order_unnamed": RetcodeClass.SUCCESS}
    for code, by_kind in TABLE["retcodes"].items():
        for kind, action in KINDS.items():
            row = by_kind.get(kind, by_kind["all"])
            assert lookup(int(code), action).retcode_class is rows.get(row) or RetcodeClass(row.partition("_")[0])


def test_every_last_error_is_in_the_table_with_its_effect() -> None:
    known = LAST_ERRORS.keys() | {value for name, value in vars(constants).items() if name.startswith("RES_")}
    assert {int(code) for code in TABLE["last_errors"]} | {1} == known  # 1 is no error
    for code, effect in TABLE["last_errors"].items():
        assert LAST_ERRORS[int(code)].order_effect is OrderEffect(effect)


def test_every_kind_of_request_has_every_class_of_answer() -> None:
    classes = {one.value for one in RetcodeClass} | {one.value for one in OrderEffect} | {"lost"}
    assert TABLE["expected"].keys() == KINDS.keys()
    for kind, rows in TABLE["expected"].items():
        assert classes <= rows.keys(), kind
        assert {case.row for case in CASES if case.kind == kind} == rows.keys()
