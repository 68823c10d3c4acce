"""The world outside the ledger, as a model: a broker that holds exactly what reached it, and tells the truth late,
twice, in any order, or not at all. It never says what is not so; what it shows may be incomplete, and then says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import count
from typing import Any, Final, NamedTuple

import msgspec

from ledger.commands import ReceiveOrder, RecordAnswer, RecordEvidence
from ledger.order import Order
from ledger.trade import (
    ACTION_DEAL,
    ACTION_PENDING,
    FILLING_IOC,
    FILLING_RETURN,
    ORDER_STATE_CANCELED,
    ORDER_STATE_EXPIRED,
    ORDER_STATE_FILLED,
    ORDER_STATE_PARTIAL,
    ORDER_STATE_PLACED,
    ORDER_STATE_REJECTED,
    ORDER_TYPES,
    RETCODE_DONE_PARTIAL,
    WORKING_STATES,
    ZERO,
    BrokerOrder,
    Deal,
    Position,
    TradeRequest,
    TradeResult,
)
from ledger.values import comment_of, magic_of
from tests.decider import message, receive

# What orders ask for, by their name without its number.
KINDS: Final[dict[str, dict[str, str]]] = {
    "market": {"order_type": "buy"},
    "at_once": {"order_type": "sell", "filling": "ioc"},
    "standing": {"order_type": "buy", "filling": "return"},
    "limit": {"order_type": "buy_limit", "price": "1.05"},
}
FIRST_PART: Final = Decimal("0.1")
_RETCODES: Final = {"ambiguous": 10012, "retriable": 10004, "wait": 10018, "fatal": 10019}


class Fate(NamedTuple):
    """What becomes of a send. `effect`: nothing, deal, deals, part, working, rejected, cancelled. `reply`: how the
    call ends: deals, provisional, bare (a success of different detail), another verdict, silence, not_sent."""

    effect: str
    reply: str
    late: bool = False


# Every fate that is consistent: a refusal has no effect, a success has one. What leads on is to be met more often.
FATES: Final = (
    *[Fate("nothing", "retriable")] * 3,
    *[Fate("nothing", reply) for reply in ("wait", "fatal", "ambiguous", "silence", "not_sent")],
    *[Fate(effect, reply) for effect in ("deal", "deals", "part") for reply in ("deals", "provisional", "bare")],
    *[Fate("working", "bare")] * 3,
    *[Fate(effect, "ambiguous") for effect in ("deal", "working")],
    *[Fate(effect, "silence") for effect in ("deal", "deals", "part", "working", "rejected", "cancelled")],
    *[Fate(effect, reply, True) for effect in ("nothing", "deal", "working") for reply in ("silence", "ambiguous")],
)


class View(NamedTuple):
    """What a probe gets to see. Only a complete and settled one must show all there is."""

    complete: bool
    settled: bool
    orders: bool = True
    history: bool = True
    deals: bool = True
    positions: bool = True


FULL: Final = View(complete=True, settled=True)


@dataclass
class Attempt:
    """One send: what reached the broker of it, and what the broker made of it. `state` is that of the broker's order,
    None while there is none."""

    order_id: str
    number: int
    request: TradeRequest
    fate: Fate
    volume: Decimal
    in_flight: bool = False
    closed: bool = False  # the position it opened is no more
    ticket: int = 0
    state: int | None = None
    terms: dict[str, object] = field(default_factory=dict)
    deals: list[Deal] = field(default_factory=list)
    shown: list[BrokerOrder] = field(default_factory=list)
    answer: tuple[str, TradeResult, tuple[Deal, ...]] | None = None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Short, in the story that hypothesis tells of a failure."""
        printer.text(f"attempt {self.number} of {self.order_id}")

    @property
    def took_effect(self) -> bool:
        return self.state is not None and self.state != ORDER_STATE_REJECTED

    @property
    def may_take_effect(self) -> bool:
        return self.in_flight or self.took_effect

    @property
    def works(self) -> bool:
        return self.state in WORKING_STATES

    @property
    def dealt(self) -> Decimal:
        return sum((deal.volume for deal in self.deals), ZERO)


class World:
    """The broker. `send` is called for what was really sent, and for nothing else."""

    def __init__(self) -> None:
        self.attempts: dict[str, list[Attempt]] = {}
        self._tickets = count(1001)

    def of(self, order_id: str) -> list[Attempt]:
        return self.attempts.get(order_id, [])

    def held(self, order_id: str) -> list[Attempt]:
        """The attempts that have an effect at the broker, or still may get one."""
        return [one for one in self.of(order_id) if one.may_take_effect]

    def find(self, order_id: str, number: int) -> Attempt | None:
        return next((one for one in self.of(order_id) if one.number == number), None)

    # --- what reaches it ------------------------------------------------------------------------------------------

    def send(self, order_id: str, number: int, request: TradeRequest, fate: Fate) -> None:
        attempt = Attempt(order_id, number, request, fate, request.volume, in_flight=fate.late)
        self.attempts.setdefault(order_id, []).append(attempt)
        if not fate.late:
            self._take(attempt)
        attempt.answer = self._answer(attempt)

    def land(self, attempt: Attempt, *, lost: bool) -> None:
        """The flight of a late request ends: at the broker, or nowhere."""
        attempt.in_flight = False
        if not lost:
            self._take(attempt)

    def _take(self, attempt: Attempt) -> None:
        effect = attempt.fate.effect
        if effect == "nothing":
            return
        attempt.ticket = next(self._tickets)
        attempt.state = {"rejected": ORDER_STATE_REJECTED, "cancelled": ORDER_STATE_CANCELED}.get(
            effect, ORDER_STATE_PLACED
        )
        if effect in ("deals", "part"):
            self.deal(attempt, FIRST_PART)
        if effect in ("deal", "deals"):
            self.deal(attempt, attempt.volume - attempt.dealt)
        if effect == "part" and not self._may_stand(attempt):
            attempt.state = ORDER_STATE_CANCELED
        self._show(attempt)

    @staticmethod
    def _may_stand(attempt: Attempt) -> bool:
        return attempt.request.type_filling not in (0, 1)  # neither fill-or-kill nor immediate-or-cancel

    def _answer(self, attempt: Attempt) -> tuple[str, TradeResult, tuple[Deal, ...]] | None:
        reply = attempt.fate.reply
        if reply in ("silence", "not_sent"):
            return None
        if reply in _RETCODES:
            return reply, TradeResult(retcode=_RETCODES[reply]), ()
        if not attempt.deals:
            return "success", TradeResult(retcode=10008, order=attempt.ticket), ()
        retcode = RETCODE_DONE_PARTIAL if attempt.dealt < attempt.volume else 10009
        result = TradeResult(retcode=retcode, order=attempt.ticket, volume=attempt.dealt, price=attempt.deals[0].price)
        if reply == "bare":
            return "success", result, ()
        # A result names one deal, and the volume of all.
        named = msgspec.structs.replace(result, deal=attempt.deals[0].ticket)
        return "success", named, tuple(attempt.deals) if reply == "deals" else ()

    # --- what happens there ---------------------------------------------------------------------------------------

    def deal(self, attempt: Attempt, volume: Decimal) -> None:
        """Fills so much of it, at most what is open."""
        volume = min(volume, attempt.volume - attempt.dealt)
        attempt.deals.append(
            Deal(
                ticket=next(self._tickets),
                order=attempt.ticket,
                type=attempt.request.type % 2,
                magic=attempt.request.magic,
                position_id=attempt.ticket,
                volume=volume,
                price=attempt.request.price or Decimal("1.1"),
                commission=Decimal("-0.07"),
                symbol=attempt.request.symbol,
                comment=attempt.request.comment,
            )
        )
        attempt.state = ORDER_STATE_FILLED if attempt.dealt == attempt.volume else ORDER_STATE_PARTIAL
        self._show(attempt)

    def end(self, attempt: Attempt, *, expired: bool) -> None:
        """Cancelled by hand, or expired."""
        attempt.state = ORDER_STATE_EXPIRED if expired else ORDER_STATE_CANCELED
        self._show(attempt)

    def change(self, attempt: Attempt, sl: Decimal) -> None:
        """Other stops of the working order, set by hand."""
        attempt.terms["sl"] = sl
        self._show(attempt)

    def book_costs(self, attempt: Attempt) -> None:
        """Commission that comes late."""
        attempt.deals = [
            msgspec.structs.replace(deal, commission=deal.commission - Decimal("0.01")) for deal in attempt.deals
        ]

    def _show(self, attempt: Attempt) -> None:
        request, open_ = attempt.request, attempt.volume - attempt.dealt
        fields: dict[str, object] = {"price_open": request.price, "sl": request.sl, "tp": request.tp} | attempt.terms
        assert attempt.state is not None
        shown = BrokerOrder(
            ticket=attempt.ticket,
            state=attempt.state,
            type=request.type,
            magic=request.magic,
            comment=request.comment,
            symbol=request.symbol,
            volume_initial=attempt.volume,
            volume_current=open_,
            **fields,  # type: ignore[arg-type]
        )
        if not attempt.shown or attempt.shown[-1] != shown:
            attempt.shown.append(shown)

    # --- what it shows --------------------------------------------------------------------------------------------

    def evidence(self, order_id: str, number: int, view: View) -> RecordEvidence:
        """What the four queries give. Nothing is settled while the request may still arrive."""
        attempt = self.find(order_id, number)
        settled = view.settled and not (attempt and attempt.in_flight)
        if view.complete and settled:
            view = FULL
        if attempt is None or attempt.state is None:
            return RecordEvidence(attempt=number, complete=view.complete, settled=settled, reason="nothing shows")
        shown, deals = (attempt.shown[-1],), tuple(attempt.deals)
        return RecordEvidence(
            attempt=number,
            complete=view.complete,
            settled=settled,
            orders=shown if view.orders and attempt.works else (),
            history=shown if view.history and not attempt.works else (),
            deals=deals if view.deals else (),
            positions=(self.position(attempt),) if view.positions and deals and not attempt.closed else (),
            reason="not all is visible yet",
        )

    @staticmethod
    def position(attempt: Attempt, sl: Decimal | None = None) -> Position:
        request = attempt.request
        return Position(
            ticket=attempt.ticket,
            identifier=attempt.ticket,
            magic=request.magic,
            volume=attempt.dealt,
            sl=request.sl if sl is None else sl,
            tp=request.tp,
            symbol=request.symbol,
        )


def answers(attempts: Iterable[Attempt]) -> list[RecordAnswer]:
    """What the broker said of these, once more."""
    return [
        RecordAnswer(
            attempt=one.number,
            result=one.answer[1],
            retcode_name=f"RETCODE_{one.answer[1].retcode}",
            verdict=one.answer[0],
            description="as the broker put it",
            deals=one.answer[2],
        )
        for one in attempts
        if one.answer is not None
    ]


def received(order_id: str, kind: str, now: datetime, unrecorded: int) -> ReceiveOrder:
    """The message of this order: as its sender meant it, or otherwise."""
    fields: dict[str, Any] = {"order_id": order_id, **KINDS[order_id[:-2]]}
    match kind:
        case "spelled otherwise":
            fields |= {"volume": "0.300", "comment": "once more"}
        case "other content":
            fields |= {"volume": "0.4"}
        case "malformed":
            fields |= {"volume": "NaN"}
    return msgspec.structs.replace(receive(message(**fields), unrecorded=unrecorded), age_from=now)


def request_of(order: Order, attempt: int) -> TradeRequest:
    """What is sent for the order, as the gateway builds it."""
    request = order.request
    assert request is not None
    pending = request.order_type not in ("buy", "sell")
    return TradeRequest(
        action=ACTION_PENDING if pending else ACTION_DEAL,
        symbol=request.symbol,
        volume=request.volume or ZERO,
        type=ORDER_TYPES.index(request.order_type),
        price=request.price or Decimal("1.1"),
        type_filling={"ioc": FILLING_IOC, "return": FILLING_RETURN}.get(request.filling or "", 0) or 2 * pending,
        magic=magic_of(order.order_id, attempt),
        comment=comment_of(order.order_id, attempt),
    )
