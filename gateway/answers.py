"""PURE: what the terminal said → the command that records it. All use of the retcode table for orders is here."""

from datetime import datetime
from decimal import Decimal
from typing import Final

from gateway.broker import Answered, Checked, CheckOutcome, NotSent, Outcome
from gateway.retcodes import Retcode, RetcodeClass, lookup
from ledger.commands import Again, RecordAnswer, RecordCheck, RecordNotSent, RecordUnknown
from ledger.order import Order
from ledger.plan import Policy, park, retry
from ledger.trade import ZERO, TradeRequest

_NO_CONNECTION: Final = 10031


def checked(outcome: CheckOutcome | None, problem: str = "") -> RecordCheck:
    """`problem`: why the check could not be asked, if it was not. The check is a courtesy: only a final refusal ends
    the order, whatever else it says is left to the sending to find out."""
    if not isinstance(outcome, Checked):
        return RecordCheck(result=None, passed=False, problem=problem or (outcome.text if outcome else ""))
    result = outcome.result
    meaning = lookup(result.retcode)
    passed = meaning.retcode_class is RetcodeClass.SUCCESS
    final = meaning.retcode_class is RetcodeClass.FATAL
    return RecordCheck(
        result=result if passed or final else None,
        passed=passed,
        retcode_name=meaning.name,
        description=result.comment or meaning.description,
        category="fatal",
        advice=meaning.advice,
        problem="" if passed or final else f"{result.retcode} {meaning.name}",
    )


def proves_connection(outcome: Outcome) -> bool:
    """Whether the broker itself answered."""
    return isinstance(outcome, Answered) and outcome.result.retcode != _NO_CONNECTION


def sent(
    order: Order,
    attempt: int,
    request: TradeRequest,
    outcome: Outcome,
    now: datetime,
    policy: Policy,
    *,
    point: Decimal | None = None,
    broker_utc_offset_s: int = 0,
    latency_s: Decimal = ZERO,
) -> RecordAnswer | RecordNotSent | RecordUnknown:
    """The outcome of one send of the order, and when to try again if that may help."""
    if isinstance(outcome, NotSent):
        return RecordNotSent(attempt=attempt, code=outcome.code, reason=outcome.text)
    if not isinstance(outcome, Answered):
        return RecordUnknown(attempt=attempt, code=outcome.code, reason=outcome.text)
    meaning = lookup(outcome.result.retcode, request.action)
    return RecordAnswer(
        attempt=attempt,
        result=outcome.result,
        retcode_name=meaning.name,
        verdict=meaning.retcode_class.value,
        description=outcome.result.comment or meaning.description,
        advice=meaning.advice,
        latency_s=latency_s,
        deals=outcome.deals,
        point=point,
        broker_utc_offset_s=broker_utc_offset_s,
        again=_again(order, attempt, meaning, now, policy),
    )


def _again(order: Order, attempt: int, meaning: Retcode, now: datetime, policy: Policy) -> Again | None:
    """When to try once more after this answer, if it may be better then and the policy allows it."""
    if meaning.retcode_class is RetcodeClass.WAIT:
        return park(order, now, policy)
    if meaning.retcode_class is RetcodeClass.RETRIABLE:
        return retry(order, attempt, now, policy, max_retries=meaning.max_retries)
    return None
