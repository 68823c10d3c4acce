"""Acting on the broker from outside, as at the terminal's window or the dealer's desk: the verbs of `order-ledger sim`.

`Control.do(verb, arguments)` returns plain dicts and lists. Raises ControlRefused with one line.
"""

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import asdict, fields, replace

from gateway.simulated import constants as c
from gateway.simulated.faults import BadFaults, duration_ms
from gateway.simulated.market import UNIT, units
from gateway.simulated.queries import Selection
from gateway.simulated.rows import (
    ClockSet,
    DealRow,
    Dealt,
    LinkCut,
    OrderRow,
    PositionRow,
    PositionSet,
    PriceMoved,
    Request,
    RulesSet,
)
from gateway.simulated.rows import Rules as AccountRules
from gateway.simulated.structs import AccountInfo, TradePosition
from gateway.simulated.symbols import CHANGEABLE, NAMED_SESSIONS, SymbolSpec

if TYPE_CHECKING:
    from gateway.simulated.service import Broker

_MOST: Final = 1e9
_FOREVER_MS: Final = 10 * 365 * 86_400_000
_TYPES: Final = {
    name.removeprefix("ORDER_TYPE_").lower().replace("_", "-"): value
    for name, value in vars(c).items()
    if name.startswith("ORDER_TYPE_") and not name.startswith(("ORDER_TYPE_FILLING", "ORDER_TYPE_TIME"))
}
_WORDS: Final = {
    prefix: {
        name.removeprefix(prefix).lower(): value for name, value in vars(c).items() if name.startswith(prefix)
    }
    for prefix in ("SYMBOL_TRADE_MODE_", "SYMBOL_TRADE_EXECUTION_", "SYMBOL_SWAP_MODE_", "SYMBOL_ORDERS_")
}  # fmt: skip
_NAMED: Final = {
    "trade_mode": _WORDS["SYMBOL_TRADE_MODE_"],
    "exemode": _WORDS["SYMBOL_TRADE_EXECUTION_"],
    "swap_mode": _WORDS["SYMBOL_SWAP_MODE_"],
    "gtc_mode": _WORDS["SYMBOL_ORDERS_"],
}
_SWITCH: Final = {
    "on": True,
    "true": True,
    "yes": True,
    "1": True,
    "off": False,
    "false": False,
    "no": False,
    "0": False,
}


class ControlRefused(Exception):
    """One line that says what to do instead."""


class Control:
    def __init__(self, broker: "Broker") -> None:
        self.broker = broker

    def do(self, verb: str, arguments: dict[str, Any]) -> Any:
        method = getattr(self, f"_do_{verb}", None)
        if method is None:
            raise ControlRefused(f"the broker knows no {verb!r}")
        self.broker.trading.advance()  # what was due before is not done at prices of after
        try:
            return method(**arguments)
        except (BadFaults, ValueError, TypeError, OverflowError) as error:
            raise ControlRefused(str(error)) from None
        finally:
            self.broker.flush()

    # ---- prices and settings

    def _spec(self, symbol: str) -> SymbolSpec:
        spec = self.broker.market.symbols.get(symbol)
        if spec is None:
            raise ControlRefused(f"no symbol {symbol!r}: there are {', '.join(self.broker.market.symbols)}")
        return spec

    def _do_price(self, symbol: str, bid: float | None = None, points: int | None = None) -> dict[str, Any]:
        """Shows the price; or sets the bid, or moves it by points, from now on."""
        broker, spec = self.broker, self._spec(symbol)
        now = broker.clock()
        if bid is not None or points is not None:
            moves = [points_ for from_ms, points_ in broker.market.moves(symbol) if from_ms <= now]
            shift = moves[-1] if moves else 0
            quote = broker.market.quote(symbol, now)
            wanted = quote.bid + (points or 0) if bid is None else round(bid * spec.scale)
            if not 0 < wanted < _MOST * spec.scale:
                raise ControlRefused("a price is above 0 and below 1,000,000,000")
            self._move(symbol, now, shift + wanted - quote.bid)
        quote = broker.market.quote(symbol, now)
        server_s = (quote.time_msc + broker.market.offset_ms) // 1000
        return {"symbol": symbol, "bid": spec.price(quote.bid), "ask": spec.price(quote.ask), "time": server_s}

    def _move(self, symbol: str, now: int, points: int) -> None:
        self.broker.put(PriceMoved(symbol, now, points))
        self.broker.market.move(symbol, now, points)
        self.broker.trading.clockwork.look_again()
        self.broker.trading.advance()

    def _do_market(self, symbol: str, changes: dict[str, str]) -> dict[str, Any]:
        """Shows the symbol's definition, after changing it."""
        spec = self._spec(symbol)
        if changes:
            for name in changes:
                if name not in CHANGEABLE:
                    raise ControlRefused(f"{name!r} cannot be changed; what can: {', '.join(sorted(CHANGEABLE))}")
            spec = self.broker.set_symbol(symbol, {name: _read(name, text) for name, text in changes.items()})
            self.broker.trading.clockwork.look_again()
        shown: dict[str, Any] = msgspec.to_builtins(spec)
        return shown

    def _do_rules(self, changes: dict[str, str]) -> dict[str, Any]:
        """Shows what account and terminal allow, after changing it."""
        rules = self.broker.state.rules
        if changes:
            known = {field.name: field.type for field in fields(AccountRules)}
            for name in changes:
                if name not in known:
                    raise ControlRefused(f"no rule {name!r}: there are {', '.join(known)}")
            values = {name: _switch(text) if known[name] is bool else text for name, text in changes.items()}
            rules = msgspec.convert(asdict(rules) | values, AccountRules, strict=False)
            self.broker.put(RulesSet(rules))
        return asdict(rules)

    def _do_cut(self, duration: str = "") -> dict[str, Any]:
        """Cuts the terminal off for so long ("" until it is undone, "off" now no more)."""
        broker, now = self.broker, self.broker.clock()
        if duration == "off":
            broker.put(LinkCut(0, 0))
        else:
            broker.cut(duration_ms(duration) if duration else _FOREVER_MS)
        cut = broker.state.cut
        return {"connected": not cut.from_ms <= now < cut.until_ms, "until_ms": cut.until_ms}

    def _do_clock(self, shift: str = "") -> dict[str, Any]:
        """Shows how far the server's clock is off, after setting it."""
        broker = self.broker
        if shift:
            broker.put(ClockSet(duration_ms(shift)))
            broker.trading.advance()
        return {"shift_ms": broker.state.shift_ms, "server_ms": broker.clock() + broker.market.offset_ms}

    def _do_fault(self, add: str = "", clear: bool = False) -> dict[str, Any]:
        """The rules in force, after clearing or adding."""
        broker = self.broker
        if clear or add:
            kept = "" if clear else str(broker.faults)
            broker.set_faults("; ".join(filter(None, (kept, add))))
        return {"rules": [rule for rule in str(broker.faults).split("; ") if rule]}

    # ---- trading by hand

    def _do_trade(
        self,
        type: str,
        symbol: str,
        volume: float,
        price: float = 0.0,
        stoplimit: float = 0.0,
        sl: float = 0.0,
        tp: float = 0.0,
        comment: str = "",
        position: int = 0,
        magic: int = 0,
    ) -> dict[str, Any]:
        """An order typed in at the terminal's window: no magic, reason CLIENT. With a magic another program's: reason
        EXPERT."""
        spec = self._spec(symbol)
        number = _TYPES.get(type)
        if number is None or number == c.ORDER_TYPE_CLOSE_BY:
            raise ControlRefused(f"no order type {type!r}: there are {', '.join(sorted(set(_TYPES) - {'close-by'}))}")
        pending = number > c.ORDER_TYPE_SELL
        filling = c.ORDER_FILLING_RETURN if pending else self._filling(spec)
        if not pending and not price:
            quote = self.broker.market.quote(symbol, self.broker.clock())
            price = spec.price(quote.ask if number == c.ORDER_TYPE_BUY else quote.bid)
        action = c.TRADE_ACTION_PENDING if pending else c.TRADE_ACTION_DEAL
        return self._send(
            Request(
                action, magic, 0, symbol, volume, price, stoplimit, sl, tp, 10, number, filling, c.ORDER_TIME_GTC, 0,
                comment, position, 0,
            ),
            expert=bool(magic),
        )  # fmt: skip

    def _filling(self, spec: SymbolSpec) -> int:
        return c.ORDER_FILLING_FOK if spec.filling_mode & 1 else c.ORDER_FILLING_IOC

    def _send(self, request: Request, *, expert: bool = False) -> dict[str, Any]:
        (retcode, deal, order, volume, price, _, _, text), _ = self.broker.trading.send(request, expert=expert)
        if retcode not in (c.TRADE_RETCODE_DONE, c.TRADE_RETCODE_PLACED, c.TRADE_RETCODE_DONE_PARTIAL):
            raise ControlRefused(f"{retcode} {text}")
        return {"retcode": retcode, "text": text, "order": order, "deal": deal, "volume": volume, "price": price}

    def _do_close(self, ticket: int, volume: float | None = None) -> dict[str, Any]:
        """Closes a position, or deletes a pending order, by its ticket."""
        state = self.broker.state
        if ticket in state.working:
            return self._send(Request(c.TRADE_ACTION_REMOVE, 0, ticket, *_EMPTY, 0, 0))
        row = state.position_by_ticket(ticket)
        if row is None:
            raise ControlRefused(f"no position and no pending order {ticket}: see `sim positions` and `sim orders`")
        amount = row.volume if volume is None else volume
        side = "sell" if row.type == c.POSITION_TYPE_BUY else "buy"
        position = row.ticket if state.is_hedging() else 0
        return self._do_trade(side, row.symbol, amount, position=position)

    def _do_modify(self, ticket: int, sl: float = 0.0, tp: float = 0.0, price: float = 0.0) -> dict[str, Any]:
        """Gives a position these stops (0 is none), or a pending order these and, unless 0, this price."""
        state = self.broker.state
        order, row = state.working.get(ticket), state.position_by_ticket(ticket)
        if order is not None:
            return self._send(
                Request(
                    c.TRADE_ACTION_MODIFY, 0, ticket, "", 0.0, price or order.price_open, order.price_stoplimit, sl,
                    tp, 0, 0, 0, 0, 0, "", 0, 0,
                )
            )  # fmt: skip
        if row is None:
            raise ControlRefused(f"no position and no pending order {ticket}: see `sim positions` and `sim orders`")
        return self._send(
            Request(c.TRADE_ACTION_SLTP, 0, 0, row.symbol, 0.0, 0.0, 0.0, sl, tp, 0, 0, 0, 0, 0, "", row.ticket, 0)
        )

    def _do_fill(self, ticket: int, volume: float | None = None, price: float | None = None) -> dict[str, Any]:
        """Executes a working order now, whatever the market: by default all of it, at its own price."""
        broker = self.broker
        order = broker.state.working.get(ticket)
        if order is None:
            raise ControlRefused(f"no working order {ticket}: see `sim orders`")
        queued = broker.state.queued.get(ticket)
        now, spec = broker.clock(), broker.market.symbols[order.symbol]
        target = None
        if not broker.state.is_hedging():
            target = broker.state.position_of_symbol(order.symbol)
        elif queued is not None and queued.position:
            target = broker.state.positions.get(queued.position)
        wanted = min(units(order.volume_current if volume is None else volume), units(order.volume_current))
        if wanted <= 0 or (price is not None and not 0 < price < _MOST):
            raise ControlRefused("a volume and a price are above 0")
        quote = broker.market.quote(order.symbol, now)
        market = spec.price(quote.ask if order.type % 2 == 0 else quote.bid)
        at = price if price is not None else order.price_stoplimit or order.price_open or market
        broker.trading.clockwork.settle(order, [(round(at * spec.scale), wanted)], target, now)
        left = broker.state.working.get(ticket)
        return {"order": ticket, "filled": wanted / UNIT, "left": 0.0 if left is None else left.volume_current}

    def _do_transfer(self, amount: float, comment: str = "") -> dict[str, Any]:
        if not abs(amount) < _MOST:
            raise ControlRefused("an amount is below 1,000,000,000")
        deal = self.broker.execution.transfer(amount, comment, self.broker.clock())
        return {"deal": deal.ticket, "balance": self.broker.money.balance()}

    def _do_reopen(self, ticket: int) -> dict[str, Any]:
        """Closes the position and opens it again at the same price, as some brokers do over night."""
        row = self.broker.state.position_by_ticket(ticket)
        if row is None:
            raise ControlRefused(f"no position {ticket}: see `sim positions`")
        return {"identifier": row.identifier, "ticket": self.reopen(row).ticket}

    def reopen(self, row: PositionRow) -> PositionRow:
        now = self.broker.clock()
        quote = self.broker.market.quote(row.symbol, now)
        buy = row.type == c.POSITION_TYPE_BUY
        return self.broker.execution.reopen(row, quote.bid if buy else quote.ask, 0.0, now)

    # ---- what a broker's staff may set right by hand: no deal tells of it

    def _do_amend(
        self, ticket: int, side: str = "", volume: float | None = None, price: float | None = None
    ) -> dict[str, Any]:
        """Gives a position another side, volume or open price, without a deal."""
        row = self.broker.state.position_by_ticket(ticket)
        if row is None:
            raise ControlRefused(f"no position {ticket}: see `sim positions`")
        if side not in ("", "buy", "sell"):
            raise ControlRefused(f"a position's side is buy or sell, not {side!r}")
        lots = row.volume if volume is None else units(volume) / UNIT
        at = row.price_open if price is None else price
        if not (0 < lots < _MOST and 0 < at < _MOST):
            raise ControlRefused("a volume and a price are above 0 and below 1,000,000,000")
        type_ = {"": row.type, "buy": c.POSITION_TYPE_BUY, "sell": c.POSITION_TYPE_SELL}[side]
        now = self.broker.execution.server_ms(self.broker.clock())
        amended = replace(row, type=type_, volume=lots, price_open=at, time_update_msc=now)
        self.broker.put(PositionSet(amended))
        return asdict(amended)

    def _do_book(self, deal: int, **amounts: float) -> dict[str, Any]:
        """Books commission, swap, fee or profit of a deal anew, in the account's currency: brokers do so after it."""
        row = self.broker.state.deals.get(deal)
        if row is None:
            raise ControlRefused(f"no deal {deal}: see `sim deals`")
        for name, amount in amounts.items():
            if name not in ("commission", "swap", "fee", "profit"):
                raise ControlRefused(f"a deal has commission, swap, fee and profit, no {name!r}")
            if not abs(amount) < _MOST:
                raise ControlRefused("an amount is below 1,000,000,000")
        booked = replace(row, **{name: round(amount, 2) for name, amount in amounts.items()})
        self.broker.put(Dealt(booked))
        return asdict(booked)

    # ---- looking

    def _do_positions(self) -> list[dict[str, Any]]:
        names = TradePosition.__match_args__
        rows = self.broker.queries.positions(Selection())
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _do_orders(self, history: bool = False) -> list[dict[str, Any]]:
        rows: list[OrderRow] = self.broker.queries.orders(Selection())
        return [asdict(row) for row in (self.broker.state.orders.values() if history else rows)]

    def _do_deals(self, last: int = 0) -> list[dict[str, Any]]:
        """The newest `last` deals, or all."""
        rows: list[DealRow] = list(self.broker.state.deals.values())
        return [asdict(row) for row in rows[-last:]]

    def _do_account(self) -> dict[str, Any]:
        return dict(zip(AccountInfo.__match_args__, self.broker.money.account_tuple(self.broker.clock()), strict=True))


_EMPTY: Final = ("", 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, "")  # symbol to comment of a request without content


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError(f"{text!r}: write on or off")
    return _SWITCH[text.lower()]


def _read(name: str, text: str) -> Any:
    """A symbol's field as written on a command line."""
    kind = {field.name: field.type for field in fields(SymbolSpec)}[name]
    if name == "sessions":
        if text not in NAMED_SESSIONS:
            raise ValueError(f"sessions are {', '.join(NAMED_SESSIONS)}, not {text!r}")
        return NAMED_SESSIONS[text]
    words = _NAMED.get(name, {})
    if text.lower() in words:
        return words[text.lower()]
    if kind is bool:
        return _switch(text)
    try:
        return kind(text)
    except ValueError:
        allowed = f" or one of {', '.join(words)}" if words else ""
        raise ValueError(f"{name} must be a number{allowed}, not {text!r}") from None
