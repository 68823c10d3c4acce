"""The broker without its process: state, market and rules over a journal. `answer` maps one request to its reply."""

import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from gateway.simulated import link
from gateway.simulated.control import Control, ControlRefused
from gateway.simulated.execution import Execution
from gateway.simulated.faults import TRADE_FAULTS, BadFaults, Fault, Faults
from gateway.simulated.journal import Journal
from gateway.simulated.market import Market
from gateway.simulated.money import Money
from gateway.simulated.plans import NONE
from gateway.simulated.queries import Queries, Selection
from gateway.simulated.rows import ClockSet, Created, Effect, FaultsSet, LinkCut, Request, SymbolSet, World
from gateway.simulated.state import State
from gateway.simulated.symbols import DEFAULT_SYMBOLS, SymbolSpec, objections
from gateway.simulated.trading import Trading

NOT_FOUND: Final = -4
INVALID: Final = -2
REFUSED: Final = -6
AUTO_TRADING_DISABLED: Final = -8
INITIALIZE_FAILED: Final = -10003

# What faults call the commands.
CALL_NAMES: Final = {
    link.INITIALIZE: "initialize",
    link.LOGIN: "login",
    link.TERMINAL: "terminal_info",
    link.ACCOUNT: "account_info",
    link.SYMBOLS: "symbols_get",
    link.SYMBOL: "symbol_info",
    link.TICK: "symbol_info_tick",
    link.TOTALS: "totals",
    link.BOOK: "market_book",
    link.CHART: "charts",
    link.ORDERS: "orders_get",
    link.POSITIONS: "positions_get",
    link.HISTORY_ORDERS: "history_orders_get",
    link.HISTORY_DEALS: "history_deals_get",
    link.CALC_MARGIN: "order_calc_margin",
    link.CALC_PROFIT: "order_calc_profit",
    link.ORDER_CHECK: "order_check",
    link.ORDER_SEND: "order_send",
}

T = TypeVar("T")

_request = msgspec.msgpack.Decoder(Request)
_selection = msgspec.msgpack.Decoder(Selection)
_text = msgspec.msgpack.Decoder(str)
_login = msgspec.msgpack.Decoder(tuple[int, str, str])
_initialize = msgspec.msgpack.Decoder(tuple[int, str, str, str | None])
_margin = msgspec.msgpack.Decoder(tuple[int, str, float, float])
_profit = msgspec.msgpack.Decoder(tuple[int, str, float, float, float])
_control = msgspec.msgpack.Decoder(tuple[str, dict[str, Any]])


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Broker:
    def __init__(self, folder: Path, world: World, clock: Callable[[], int] = wall_clock_ms) -> None:
        self.folder = folder
        self._wall = clock
        self._unwritten: list[Effect] = []
        self.state = State()
        self.journal = Journal(folder / "journal.bin")
        self.journal.replay(self.state)
        state = self.state
        if not state.created:
            self.put(Created(world))
        world = state.world
        self.market = Market(world.seed, DEFAULT_SYMBOLS, world.utc_offset_s, world.currency)
        for name, known in state.symbol_changes.items():
            self.market.define(define(self.market.symbols[name], known.changes))
        for move in state.moves:
            self.market.move(move.symbol, move.from_ms, move.points)
        self.money = Money(state, self.market)
        self.execution = Execution(state, self.market, self.money, self.put)
        if not state.deals and world.balance:
            self.execution.transfer(world.balance, "deposit", self.clock())
        self.trading = Trading(state, self.market, self.money, self.execution, self.flush, self.clock)
        self.queries = Queries(state, self.market, self.money)
        self.control = Control(self)
        self.faults = Faults(state.faults.rules, state.faults.generation)
        self.flush()

    def clock(self) -> int:
        """UTC milliseconds, as far as the server's clock is right."""
        return self._wall() + self.state.shift_ms

    def put(self, effect: Effect) -> None:
        """Applies the effect now; `flush` writes it, before anybody is told."""
        self.state.apply_one(effect)
        self._unwritten.append(effect)

    def flush(self) -> None:
        if self._unwritten:
            self.journal.append(self._unwritten)
            self._unwritten = []

    # ---- settings that may change

    def set_symbol(self, name: str, changes: dict[str, Any]) -> SymbolSpec:
        """Raises ValueError for what cannot be."""
        spec = define(self.market.symbols[name], changes)
        self.market.define(spec)
        self.put(SymbolSet(name, changes, self.clock()))
        return spec

    def set_faults(self, text: str, *, given: str | None = None) -> None:
        """Puts other rules in force. Raises BadFaults. `given` is the text a terminal brought along."""
        self.faults = Faults(text, self.state.faults.generation)
        self._keep_faults(self.state.faults.given if given is None else given, self.state.faults.generation)

    def close(self) -> None:
        """Ends in peace: faults that a terminal brought along are over, as that run is."""
        if self.state.faults.given:
            self.set_faults("", given="")
        self.journal.close()

    def _keep_faults(self, given: str, generation: int) -> None:
        self.put(FaultsSet(given, str(self.faults), generation))
        self.flush()

    def fault_of(self, command: int) -> Fault | None:
        """The fault that this call meets. What was counted is on disk before the fault happens."""
        if not self.faults.rules or command not in CALL_NAMES:
            return None
        fault, counted = self.faults.decide(CALL_NAMES[command])
        fatal = fault is not None and fault.name in ("kill", "kill_after")
        if counted or fatal:
            self._keep_faults(self.state.faults.given, self.state.faults.generation + fatal)
        return fault

    # ---- answering

    def answer(self, command: int, arguments: msgspec.Raw, fault: Fault | None = None) -> tuple[int, Any]:
        """Status (1 or a last_error code) and value."""
        now = self.trading.advance()
        if fault is not None:
            if fault.name == "clock":
                self.put(ClockSet(self.state.shift_ms + fault.value))
            elif fault.name == "cut":
                self.cut(fault.value)
            elif fault.name == "otp":
                return REFUSED, "Unsupported authorization mode, OTP or certificate password needed"
            now = self.trading.advance()  # the clock may have jumped
        self.queries.look(now, fault.value if fault is not None and fault.name == "lag" else 0)
        try:
            return self._answer(command, arguments, now, fault)
        finally:
            self.flush()

    def _answer(self, command: int, arguments: msgspec.Raw, now: int, fault: Fault | None) -> tuple[int, Any]:
        match command:
            case link.ORDER_SEND:
                return self._order_send(_request.decode(arguments), fault, now)
            case link.ORDER_CHECK:
                if not self.state.rules.python_api:
                    return AUTO_TRADING_DISABLED, None
                tampering = fault.tampering() if fault is not None and fault.name == "retcode" else NONE
                return link.OK, self.trading.check(_request.decode(arguments), tampering, now=now)
            case link.HISTORY_DEALS:
                return link.OK, self.queries.history_deals(_selection.decode(arguments))
            case link.HISTORY_ORDERS:
                return link.OK, self.queries.history_orders(_selection.decode(arguments))
            case link.POSITIONS:
                return link.OK, self.queries.positions(_selection.decode(arguments))
            case link.ORDERS:
                return link.OK, self.queries.orders(_selection.decode(arguments))
            case link.TICK:
                return _found(self.queries.tick(_text.decode(arguments)))
            case link.SYMBOL:
                return _found(self.queries.symbol(_text.decode(arguments)))
            case link.SYMBOLS:
                return link.OK, self.queries.symbols(_text.decode(arguments))
            case link.BOOK:
                return _found(self.queries.book(_text.decode(arguments)))
            case link.CHART:
                return _found(self.queries.chart(_text.decode(arguments)))
            case link.ACCOUNT:
                return link.OK, self.money.account_tuple(self.queries.now)
            case link.TERMINAL:
                rules, cut = self.state.rules, self.state.cut
                return link.OK, (not cut.from_ms <= now < cut.until_ms, rules.algo_trading, not rules.python_api)
            case link.TOTALS:
                return link.OK, self.queries.totals()
            case link.INITIALIZE:
                login, password, server, faults = _initialize.decode(arguments)
                if faults is not None and faults != self.state.faults.given:
                    try:
                        self.set_faults(faults, given=faults)
                    except BadFaults as error:
                        return INITIALIZE_FAILED, f"IPC initialize failed, SIMULATED_FAULTS: {error}"
                return self._login(login, password, server), None
            case link.LOGIN:
                return self._login(*_login.decode(arguments)), None
            case link.CALC_MARGIN:
                return self._calc_margin(*_margin.decode(arguments))
            case link.CALC_PROFIT:
                return self._calc_profit(*_profit.decode(arguments))
            case link.CONTROL:
                try:
                    return link.OK, self.control.do(*_control.decode(arguments))
                except ControlRefused as refused:
                    return INVALID, str(refused)
        return INVALID, None

    def _order_send(self, request: Request, fault: Fault | None, now: int) -> tuple[int, Any]:
        if not self.state.rules.python_api:
            return AUTO_TRADING_DISABLED, None
        tampering = fault.tampering() if fault is not None and fault.name in TRADE_FAULTS else NONE
        result, deals = self.trading.send(request, tampering=tampering, now=now)
        if fault is not None and fault.name == "reticket" and deals:
            row = self.state.positions.get(deals[0].position_id)
            if row is not None:
                self.control.reopen(row)
        lagging = any(rule.fault.name == "lag" for rule in self.faults.rules)
        return link.OK, (result, [] if lagging else deals)

    def cut(self, for_ms: int) -> None:
        """From now on and for so long the terminal has no connection to the trade server."""
        now = self.clock()
        self.put(LinkCut(now, now + for_ms))
        self.queries.freeze(now)

    def _login(self, login: int, password: str, server: str) -> int:
        """A login or server of 0 or "" means the account the terminal remembers."""
        world = self.state.world
        if login not in (0, world.login) or server not in ("", world.server):
            return REFUSED
        try:
            wanted = (self.folder / "password").read_text().strip()
        except FileNotFoundError:
            return link.OK
        return link.OK if hmac.compare_digest(wanted.encode(), password.encode()) else REFUSED

    def _calc_margin(self, action: int, symbol: str, volume: float, price: float) -> tuple[int, float | None]:
        spec = self.market.symbols.get(symbol)
        if spec is None:
            return NOT_FOUND, None
        if action not in (0, 1) or volume <= 0 or price <= 0:
            return INVALID, None
        return link.OK, round(self.market.margin(spec, volume, price, self.state.world.leverage, self.clock()), 2)

    def _calc_profit(
        self, action: int, symbol: str, volume: float, price_open: float, price_close: float
    ) -> tuple[int, float | None]:
        spec = self.market.symbols.get(symbol)
        if spec is None:
            return NOT_FOUND, None
        if action not in (0, 1) or volume <= 0 or price_open <= 0 or price_close <= 0:
            return INVALID, None
        difference = (price_close - price_open) if action == 0 else (price_open - price_close)
        rate = self.market.rate(spec.currency_profit, self.clock())
        return link.OK, round(difference * volume * spec.contract_size * rate, 2)


def define(spec: SymbolSpec, changes: dict[str, Any]) -> SymbolSpec:
    """The definition with other fields, checked. Raises ValueError."""
    defined = msgspec.convert(msgspec.structs.asdict(spec) | changes, SymbolSpec)
    if wrong := objections(defined):
        raise ValueError("; ".join(wrong))
    return defined


def _found(value: T | None) -> tuple[int, T | None]:
    return (link.OK, value) if value is not None else (NOT_FOUND, None)
