"""Random trading in this process: the domain decides, the simulated broker deals, and every step becomes events.

What the terminal, the message bus and the writer do in between is left out; the events are those they would record.
"""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

from msgspec.structs import replace

from gateway import mt5_decode
from gateway.retcodes import lookup
from gateway.simulated import structs
from gateway.simulated.rows import DealRow, PositionRow
from ledger.account_events import ExternalDealObserved
from ledger.commands import OrderCommand, ReceiveOrder, RecordAnswer, RecordCheck, RecordDeals, StartSend
from ledger.decide import decide
from ledger.events import Event, account_stream, order_stream
from ledger.fills import broker_utc
from ledger.intake import read_order
from ledger.order import Order, evolve
from ledger.trade import ACTION_CLOSE_BY, ACTION_DEAL, CheckResult, Deal, Position, TargetImage, TradeRequest
from tests.history import History
from tests.simulated import Desk

SYMBOLS = ("EURUSD", "USDJPY", "XAUUSD")
POINT = Decimal("0.00001")


class Trader:
    """Trades at random on one account until told to stop. `history` holds the ledger, `desk` the broker."""

    def __init__(self, folder: Path, seed: int, margin_mode: int) -> None:
        self.random = Random(seed)
        self.desk = Desk(folder, margin_mode=margin_mode, balance=50_000_000.0, seed=seed)
        self.history = History()
        self.seen: dict[datetime, list[PositionRow]] = {}  # what was open at a time of the broker, in UTC
        self._events: list[tuple[str, Event]] = []
        self._orders: dict[str, Order] = {}
        self._waiting: list[tuple[str, tuple[Deal, ...]]] = []
        self._known: set[int] = set()
        self._offset_s = self.desk.state.world.utc_offset_s

    def trade(self, orders: int) -> "Trader":
        """`orders` more of them; all that the broker did is recorded at the end."""
        for number in range(orders):
            self._order(f"t-{len(self._orders)}")
            if self.random.random() < 0.3:
                self.desk.wait(self.random.choice([200, 5_000, 900_000]))
            if number % 7 == 0:
                self.desk.move(self.random.randint(-400, 400), self.random.choice(SYMBOLS))
                self.desk.wait(1_000)
            self._record_strangers()
            if self._waiting and self.random.random() < 0.5:
                self._record_late(self.random.randrange(len(self._waiting)))
            if number % 5 == 0:
                self._commit()
            if number % 97 == 0:
                self._look()
        while not self.desk.positions:  # something is to be open in the end
            self._order(f"t-{len(self._orders)}")
        while self._waiting:
            self._record_late(0)
        self._record_strangers()
        self._commit()
        return self

    def _order(self, order_id: str) -> None:
        positions = self.desk.positions
        choice = self.random.random()
        if positions and choice < 0.45:
            self._close(order_id, self.random.choice(positions))
            return
        if len(positions) > 1 and choice < 0.5 and self.desk.state.is_hedging():
            one, other = self.random.sample(positions, 2)
            body = {"action": "close_by", "position_id": one.identifier, "position_by_id": other.identifier}
            request = TradeRequest(action=ACTION_CLOSE_BY, position=one.ticket, position_by=other.ticket)
            self._send(order_id, body, request, _image(one, other))
            return
        symbol, kind = self.random.choice(SYMBOLS), self.random.randrange(2)
        lots = Decimal(self.random.randint(1, 40)) / 100
        stops: dict[str, Decimal] = {}
        if self.random.random() < 0.3:
            away = self.random.randint(100, 600) * (1 if kind else -1)
            stops = {"sl": _exact(self.desk.price(away, symbol)), "tp": _exact(self.desk.price(-away, symbol))}
        body = {"symbol": symbol, "order_type": ("buy", "sell")[kind], "volume": str(lots)}
        body |= {name: str(value) for name, value in stops.items()}
        request = TradeRequest(action=ACTION_DEAL, symbol=symbol, volume=lots, type=kind, **stops)
        self._send(order_id, body, request, None)

    def _close(self, order_id: str, row: PositionRow) -> None:
        volume = _exact(row.volume)
        if self.random.random() < 0.5:
            volume = max((volume / 2).quantize(Decimal("0.01")), Decimal("0.01"))
        body = {"action": "close", "position_id": row.identifier, "volume": str(volume)}
        request = TradeRequest(
            action=ACTION_DEAL, symbol=row.symbol, volume=volume, type=1 - row.type, position=row.ticket
        )
        self._send(order_id, body, request, _image(row))

    def _send(self, order_id: str, body: dict[str, Any], request: TradeRequest, before: TargetImage | None) -> None:
        payload = json.dumps({"order_id": order_id, **body}).encode()
        self._orders[order_id] = Order(order_id=order_id)
        self._do(order_id, ReceiveOrder(received=read_order(payload)))
        self._do(order_id, RecordCheck(result=CheckResult(retcode=0), passed=True))
        self._do(order_id, StartSend(attempt=1, request=request, before=before))
        fields = {name: getattr(request, name) for name in ("symbol", "type", "position", "position_by")}
        fields |= {name: float(getattr(request, name)) for name in ("volume", "sl", "tp")}
        seen = set(self.desk.state.deals)
        given = {name: value for name, value in fields.items() if value}
        answer = self.desk.send(action=request.action, type_filling=1, **{"symbol": "", "volume": 0.0} | given)
        deals = tuple(_deal(row) for ticket, row in self.desk.state.deals.items() if ticket not in seen)
        ours = tuple(one for one in deals if one.order == answer.order)
        self._known |= {one.ticket for one in ours}
        self._answered(order_id, answer, ours)

    def _answered(self, order_id: str, answer: Any, deals: tuple[Deal, ...]) -> None:
        found = lookup(int(answer.retcode))
        shown = deals
        how = self.random.random()
        if deals and how < 0.15:  # not visible yet: a provisional fill of what the result names
            shown = ()
        elif how < 0.3:  # visible, but its costs are booked later
            shown = tuple(replace(one, commission=Decimal(0), fee=Decimal(0)) for one in deals)
        if shown != deals:
            self._waiting.append((order_id, deals))
        self._do(
            order_id,
            RecordAnswer(
                attempt=1,
                result=mt5_decode.trade_result(answer),
                retcode_name=found.name,
                verdict=found.retcode_class.value,
                description=found.description,
                deals=shown,
                point=POINT,
                broker_utc_offset_s=self._offset_s,
            ),
        )

    def _record_late(self, place: int) -> None:
        order_id, deals = self._waiting.pop(place)
        self._do(order_id, RecordDeals(deals=deals, point=POINT, broker_utc_offset_s=self._offset_s))

    def _record_strangers(self) -> None:
        """Deals of the broker's own: stop losses, take profits, stop-outs."""
        for ticket, row in self.desk.state.deals.items():
            if row.symbol and ticket not in self._known:
                self._known.add(ticket)
                observed = ExternalDealObserved(
                    deal=_deal(row),
                    broker_time=broker_utc(row.time_msc, self._offset_s),
                    broker_utc_offset_s=self._offset_s,
                )
                self._events.append((account_stream(self.history.login), observed))

    def _do(self, order_id: str, command: OrderCommand) -> None:
        order = self._orders[order_id]
        for event in decide(order, command):
            order = evolve(order, event)
            self._events.append((order_stream(order_id), event))
        self._orders[order_id] = order

    def _commit(self) -> None:
        if self._events:
            self.history.commit(self._events)
            self._events = []

    def _look(self) -> None:
        """Keeps what is open now. Nothing happens at the broker in the same millisecond any more."""
        now = datetime.fromtimestamp(self.desk.state.last_ms / 1000, UTC) - timedelta(seconds=self._offset_s)
        self.seen[now] = list(self.desk.positions)
        self.desk.wait(5)


def _image(one: PositionRow, other: PositionRow | None = None) -> TargetImage:
    return TargetImage(position=_shown(one), position_by=None if other is None else _shown(other))


def _shown(row: PositionRow) -> Position:
    return Position(
        ticket=row.ticket, identifier=row.identifier, type=row.type, volume=_exact(row.volume),
        price_open=_exact(row.price_open), sl=_exact(row.sl), tp=_exact(row.tp), symbol=row.symbol,
    )  # fmt: skip


def _deal(row: DealRow) -> Deal:
    return mt5_decode.deal(structs.TradeDeal([getattr(row, name) for name in row.__struct_fields__]))


def _exact(value: float) -> Decimal:
    return mt5_decode.decimal(value)
