"""Which deals of the account are in the ledger already, and whose order a deal is.

The ledger itself says where to go on after a restart: `DealsFollowed` names a time of the broker's clock before which
nothing is missing, and every deal that was recorded since is read behind it.
"""

from collections import OrderedDict
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from ledger.account_events import DealsFollowed, ExternalDealObserved
from ledger.events import Recorded, account_stream, decode, event_of
from ledger.order_events import DealFact, FillCorrected, OrderFilled, OrderPartiallyFilled, OutcomeResolved
from ledger.store import EventStore
from ledger.trade import DEAL_REASON_EXPERT, TYPE_SELL, BrokerOrder, Deal
from ledger.values import order_hash

MAX_KEPT: Final = 100_000
MAX_TICKETS: Final = 5_000
MAX_NAMED: Final = 1_000
FIRST_LOOK: Final = 500  # events of the account's stream: the newest DealsFollowed is mostly among them
_FILLS: Final = frozenset({OrderFilled.topic(), OrderPartiallyFilled.topic(), FillCorrected.topic()})
_KNOWN_BEFORE_MSC: Final = 60_000  # of an event that does not say it: what every version kept at least
_DAY_MSC: Final = 86_400_000
_EXTERNAL: Final = ExternalDealObserved.topic()
_RESOLVED: Final = OutcomeResolved.topic()
_SMALLEST_MAGIC: Final = 1 << 40  # ours have 63 bits; a smaller one is nearly always somebody else's

Signature = tuple[Decimal, Decimal, Decimal, Decimal, Decimal, Decimal]


class Seen(NamedTuple):
    """A deal that is in the ledger. `order_id` is empty for one that is not ours; `signature` None if its values are
    not known here."""

    time_msc: int
    order_id: str
    signature: Signature | None


def signature(deal: Deal) -> Signature:
    """What of a deal may still change after it."""
    return deal.volume, deal.price, deal.commission, deal.swap, deal.fee, deal.profit


class Followed:
    """`through_msc`: before it nothing is missing. `known_from_msc`: the deals in the ledger since then are in `seen`;
    of an older one that is not ours it cannot be told here whether the ledger has it. `provisional`: fills known from
    a result alone, with the broker's time from which their deals may show. `named`: orders of ours by the ticket under
    which an operator found them: nothing at the broker itself tells whose they are."""

    def __init__(self) -> None:
        self.through_msc = 0
        self.created_msc = 0
        self.known_from_msc = 0
        self.seen: dict[int, Seen] = {}
        self.provisional: dict[int, int] = {}
        self.named: dict[int, str] = {}

    @classmethod
    def read(cls, store: EventStore, login: int, offset_s: int) -> "Followed":
        """As the ledger tells it; reads no more than what followed the last DealsFollowed."""
        followed = cls()
        after = followed._begin(store, login)
        for recorded in store.scan(after):
            if recorded.topic in _FILLS:
                fact: Any = event_of(recorded)
                order_id = recorded.stream.removeprefix("order/")
                recorded_msc = 0
                if fact.provisional:
                    recorded_msc = _recorded_msc(recorded) + offset_s * 1000 - 5_000
                followed._fill(fact, order_id, recorded_msc)
            elif recorded.topic == _EXTERNAL:
                external: Any = event_of(recorded)
                followed.note(external.deal, "")
            elif recorded.topic == _RESOLVED:
                resolved: Any = event_of(recorded)
                if resolved.by == "operator" and resolved.order_ticket:
                    followed.name(resolved.order_ticket, recorded.stream.removeprefix("order/"))
        return followed

    def begin(self, created: Recorded, offset_s: int, now_msc: int) -> None:
        """`created`: the first event of the ledger. Deals from before it are not its business.

        It tells the time by a clock that may have been ahead then, and set right since: what was followed already
        lies behind it, and where it is still to come a day is looked at rather than nothing."""
        created_msc = _recorded_msc(created) + offset_s * 1000
        self.created_msc = min(created_msc, self.through_msc or created_msc)
        if self.created_msc > now_msc:
            self.created_msc = self.through_msc = self.known_from_msc = now_msc - _DAY_MSC
        self.through_msc = max(self.through_msc, self.created_msc)

    def _begin(self, store: EventStore, login: int) -> int:
        stream = account_stream(login)
        last, span = store.last_version(stream), FIRST_LOOK
        while last:
            for recorded in reversed(store.stream(stream, max(last - span, 0))):
                if recorded.topic == DealsFollowed.topic():
                    event: Any = event_of(recorded)
                    self.through_msc = event.through_msc
                    self.known_from_msc = event.known_from_msc or event.through_msc - _KNOWN_BEFORE_MSC
                    self.seen = dict.fromkeys(event.tickets, Seen(event.through_msc, "", None))
                    self.named = dict(event.named)
                    return recorded.seq
            if span >= last:
                break
            span *= 8
        return 0

    def _fill(self, fact: DealFact, order_id: str, recorded_msc: int) -> None:
        if fact.provisional:
            self.provisional[fact.deal] = recorded_msc
            return
        self.provisional.pop(fact.deal, None)
        values = (fact.volume, fact.price, fact.commission, fact.swap, fact.fee, fact.profit)
        # That this deal is known says nothing of those before it: `through_msc` moves by looking alone.
        self.seen[fact.deal] = Seen(fact.broker_time_msc, order_id, values)

    def note(self, deal: Deal, order_id: str) -> None:
        """The deal is in the ledger."""
        self.seen[deal.ticket] = Seen(deal.time_msc, order_id, signature(deal))
        self.provisional.pop(deal.ticket, None)

    def name(self, ticket: int, order_id: str) -> None:
        """An operator found the order under this ticket."""
        self.named[ticket] = order_id
        if len(self.named) > MAX_NAMED:
            del self.named[next(iter(self.named))]

    def is_news(self, deal: Deal) -> bool:
        seen = self.seen.get(deal.ticket)
        return deal.time_msc >= self.created_msc and (seen is None or seen.signature != signature(deal))

    def is_external(self, ticket: int) -> bool:
        """Whether it is known not to be ours."""
        seen = self.seen.get(ticket)
        return seen is not None and not seen.order_id

    def recorded_for(self, ticket: int) -> str | None:
        """The order of ours the deal was recorded for, empty for one that is not ours; None when it is not seen."""
        seen = self.seen.get(ticket)
        return None if seen is None else seen.order_id

    def may_be_unrecorded(self, deal: Deal) -> bool:
        """Of a deal that is not ours and not in `seen`."""
        return deal.time_msc >= self.known_from_msc

    def forget_before(self, time_msc: int, nobodys_msc: int) -> None:
        """They are not looked at any more, unless the server's clock goes back. Then an order of ours knows its deals;
        those that are not ours are kept from `nobodys_msc` on."""
        if len(self.seen) > 1_000:
            self.known_from_msc = max(self.known_from_msc, nobodys_msc)
            self.seen = {
                ticket: one
                for ticket, one in self.seen.items()
                if one.time_msc >= (time_msc if one.order_id else nobodys_msc)
            }

    def cursor(self, since_msc: int) -> DealsFollowed:
        """The event to go on from, if deals are looked at again from `since_msc` on. Ours need no mention: an order
        knows its deals."""
        since_msc = max(since_msc, self.known_from_msc)
        found = sorted(
            ((one.time_msc, ticket) for ticket, one in self.seen.items() if not one.order_id),
            reverse=True,
        )
        if len(found) > MAX_TICKETS:
            since_msc = max(since_msc, found[MAX_TICKETS][0] + 1)
        tickets = tuple(ticket for time_msc, ticket in reversed(found) if time_msc >= since_msc)
        named = tuple(self.named.items())
        return DealsFollowed(through_msc=self.through_msc, tickets=tickets, known_from_msc=since_msc, named=named)


def _recorded_msc(recorded: Recorded) -> int:
    return round(decode(recorded).recorded_at.timestamp() * 1000)


class Owners:
    """The order of ours that a magic, a ticket or a position belongs to."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._by_hash: OrderedDict[int, str] = OrderedDict()
        self._by_ticket: OrderedDict[int, str] = OrderedDict()
        self._by_position: OrderedDict[int, str] = OrderedDict()

    def know(self, order_id: str, ticket: int = 0, position_id: int = 0) -> None:
        _put(self._by_hash, order_hash(order_id), order_id)
        if ticket:
            _put(self._by_ticket, ticket, order_id)
        if position_id:
            _put(self._by_position, position_id, order_id)

    def forget(self, ticket: int) -> None:
        """The deals of this broker's order are not its order's."""
        self._by_ticket.pop(ticket, None)

    def of_position(self, position_id: int) -> str | None:
        """The order that opened it, empty when it was none of ours; None when that is not known here."""
        return self._by_position.get(position_id)

    def opened(self, position_id: int, order_id: str) -> None:
        _put(self._by_position, position_id, order_id)

    def of(self, row: Deal | BrokerOrder) -> str | None:
        """The order by what is known in memory: empty when it is none of ours, None when only the ledger can tell."""
        ticket = row.order if isinstance(row, Deal) else row.ticket
        if found := self._by_ticket.get(ticket):
            return found
        if row.reason > DEAL_REASON_EXPERT or (row.type > TYPE_SELL and isinstance(row, Deal)):
            return ""  # the server's own: it may carry the magic of the position
        if row.reason < DEAL_REASON_EXPERT and row.magic and isinstance(row, Deal) and row.entry:
            return ""  # a hand closed it; some servers give such a deal the magic of the position
        if not row.magic:
            return ""
        return self._by_hash.get(row.magic >> 8)

    def look_up(self, rows: "Iterable[Deal | BrokerOrder]") -> dict[int, str]:
        """The order ids by the hash in the magic, as the ledger has them; blocks. What is not found is empty. Mostly
        the comment leads there; else every order id there is has to be tried."""
        wanted = {row.magic >> 8: row.comment for row in rows if row.magic >= _SMALLEST_MAGIC}
        found: dict[int, str] = {}
        for number, comment in wanted.items():
            prefix, token, _ = comment.partition(f".{number:014x}.")
            if token:
                ids = self._store.order_ids(prefix)
                found |= dict.fromkeys([number], next((one for one in ids if order_hash(one) == number), ""))
        missing = {number for number in wanted if not found.get(number)}
        if missing:
            for one in self._store.order_ids():
                if (number := order_hash(one)) in missing:
                    found[number] = one
        return dict.fromkeys(wanted, "") | found

    def remember(self, found: dict[int, str]) -> None:
        for number, order_id in found.items():
            _put(self._by_hash, number, order_id)


def _put(index: "OrderedDict[int, str]", key: int, order_id: str) -> None:
    index[key] = order_id
    index.move_to_end(key)
    if len(index) > MAX_KEPT:
        index.popitem(last=False)
