"""Return codes of the trade server and `last_error` codes of the binding: one table, used by everything.

Names and meanings follow MetaQuotes' documentation (enum_trade_return_codes). The class says what a gateway may do
next, and is chosen so that an order is never doubled: whatever the server does not state to be without effect is
AMBIGUOUS and is resolved by looking, not by sending again. 10046 is sent by servers and missing in the package;
10005 and 10037 are not assigned.
"""

from enum import StrEnum
from typing import Final

import msgspec

from ledger.trade import ACTION_DEAL, ACTION_MODIFY, ACTION_PENDING, ACTION_SLTP


class RetcodeClass(StrEnum):
    SUCCESS = "success"  # the server did it
    RETRIABLE = "retriable"  # it states that it did nothing: a new attempt with fresh prices may pass
    WAIT = "wait"  # nothing was done, and nothing will be until something changes: a session, a switch
    AMBIGUOUS = "ambiguous"  # it may have been done: look before anything else
    FATAL = "fatal"  # nothing was done, and the same request will not pass


class Retcode(msgspec.Struct, frozen=True):
    """`advice` is one sentence for the person who reads the error; `max_retries` limits a RETRIABLE one, where it
    must be fewer than the policy allows."""

    code: int
    name: str
    retcode_class: RetcodeClass
    description: str
    advice: str
    max_retries: int | None = None

    @property
    def retriable(self) -> bool:
        return self.retcode_class is RetcodeClass.RETRIABLE


class OrderEffect(StrEnum):
    """What a `None` from order_send with this `last_error` means for the order."""

    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


class LastError(msgspec.Struct, frozen=True):
    code: int
    name: str
    text: str
    order_effect: OrderEffect
    link_broken: bool = False  # every later call fails too, until the terminal is initialised again


_S, _R, _W, _A, _F = RetcodeClass
_LOOK: Final = "Look for the order at the broker before sending again."

RETCODES: Final[dict[int, Retcode]] = {
    code: Retcode(code, name, class_, description, advice)
    for code, name, class_, description, advice in (
        (0, "OK", _S, "Check passed", "Nothing to do: this is how order_check reports success."),
        (10004, "REQUOTE", _R, "Requote", "Send again at the new price, or allow a larger deviation."),
        (10006, "REJECT", _F, "Request rejected", "Ask the broker why its dealer or server rejects the order."),
        (10007, "CANCEL", _F, "Request cancelled by trader", "Submit a new order if it is still wanted."),
        (10008, "PLACED", _S, "Order placed", "Wait for its execution; it is working at the broker."),
        (10009, "DONE", _S, "Request completed", "Nothing to do."),
        (10010, "DONE_PARTIAL", _S, "Only part of the request was completed",
         "Submit a new order for the remaining volume if it is still wanted."),
        (10011, "ERROR", _A, "Request processing error", _LOOK),
        (10012, "TIMEOUT", _A, "Request cancelled by timeout", _LOOK),
        (10013, "INVALID", _F, "Invalid request", "Check symbol, action and fields of the request."),
        (10014, "INVALID_VOLUME", _F, "Invalid volume in the request",
         "Use a volume between volume_min and volume_max in whole volume_steps of the symbol."),
        (10015, "INVALID_PRICE", _F, "Invalid price in the request",
         "Place the price on the right side of the market, at least the stops level away, in whole tick sizes."),
        (10016, "INVALID_STOPS", _F, "Invalid stops in the request",
         "Move SL and TP to their side of the price, at least trade_stops_level points away."),
        (10017, "TRADE_DISABLED", _W, "Trade is disabled",
         "Ask the broker to enable trading of the symbol or account."),
        (10018, "MARKET_CLOSED", _W, "Market is closed", "Wait for the next trading session of the symbol."),
        (10019, "NO_MONEY", _F, "Not enough money", "Reduce the volume, or add funds or close positions."),
        (10020, "PRICE_CHANGED", _R, "Prices changed", "Send again at the new price."),
        (10021, "PRICE_OFF", _R, "There are no quotes to process the request",
         "Send again when the symbol is quoted; check the connection if that takes long."),
        (10022, "INVALID_EXPIRATION", _F, "Invalid expiration in the request",
         "Use a time in force the symbol allows, and an expiration in the future."),
        (10023, "ORDER_CHANGED", _A, "Order state changed", "Read the order again before changing it."),
        (10024, "TOO_MANY_REQUESTS", _R, "Too frequent requests", "Send fewer requests per second."),
        (10025, "NO_CHANGES", _F, "No changes in the request", "Nothing to do: the values are already as requested."),
        (10026, "SERVER_DISABLES_AT", _W, "Autotrading disabled by server",
         "Ask the broker to allow automated trading for the account."),
        (10027, "CLIENT_DISABLES_AT", _W, "Autotrading disabled by client terminal",
         "Press the Algo Trading button in the terminal."),
        (10028, "LOCKED", _A, "Request locked for processing",
         "Another request on the same order is in progress: read its result first."),
        (10029, "FROZEN", _W, "Order or position frozen", "Wait until the price has left the freeze level."),
        (10030, "INVALID_FILL", _F, "Invalid order filling type",
         "Use a filling mode the symbol's filling_mode allows."),
        (10031, "CONNECTION", _A, "No connection with the trade server",
         "Check the terminal's connection, and look for the order at the broker before sending again."),
        (10032, "ONLY_REAL", _F, "Operation is allowed only for live accounts", "Use a live account for this."),
        (10033, "LIMIT_ORDERS", _F, "The number of pending orders has reached the limit",
         "Cancel pending orders, or have the limit raised."),
        (10034, "LIMIT_VOLUME", _F, "The volume of orders and positions for the symbol has reached the limit",
         "Reduce the volume, or close positions of the symbol."),
        (10035, "INVALID_ORDER", _F, "Incorrect or prohibited order type", "Use an order type the symbol allows."),
        (10036, "POSITION_CLOSED", _F, "Position with the specified identifier has already been closed",
         "Nothing to close: the history of the position tells when and why it ended."),
        (10038, "INVALID_CLOSE_VOLUME", _F, "A close volume exceeds the current position volume",
         "Close no more than the position's volume."),
        (10039, "CLOSE_ORDER_EXIST", _A, "A close order already exists for the position",
         "Wait for the result of the first close."),
        (10040, "LIMIT_POSITIONS", _F, "The number of open positions has reached the limit",
         "Close positions, or have the limit raised."),
        (10041, "REJECT_CANCEL", _F, "Pending order activation rejected, the order is cancelled",
         "Submit a new order if it is still wanted."),
        (10042, "LONG_ONLY", _F, "Only long positions are allowed", "Buy only: the symbol cannot be sold short."),
        (10043, "SHORT_ONLY", _F, "Only short positions are allowed", "Sell only: long positions are not allowed."),
        (10044, "CLOSE_ONLY", _F, "Only position closing is allowed", "Close positions only: no new ones are allowed."),
        (10045, "FIFO_CLOSE", _F, "Positions may be closed only in the order they were opened",
         "Close the oldest position of the symbol first."),
        (10046, "HEDGE_PROHIBITED", _F, "Opposite positions on one symbol are prohibited",
         "Close the existing position instead of opening the opposite one."),
    )
}  # fmt: skip

# The same code means another thing for these actions.
BY_ACTION: Final[dict[tuple[int, int], Retcode]] = {
    (10008, ACTION_DEAL): msgspec.structs.replace(
        RETCODES[10008],
        retcode_class=_A,
        description="Order accepted, not executed yet",
        advice="Wait for its deal: it may still be rejected.",
    ),
    (10015, ACTION_DEAL): msgspec.structs.replace(
        RETCODES[10015], retcode_class=_R, advice="Send once more with a fresh price.", max_retries=1
    ),
    (10025, ACTION_SLTP): msgspec.structs.replace(RETCODES[10025], retcode_class=_S),
    (10025, ACTION_MODIFY): msgspec.structs.replace(RETCODES[10025], retcode_class=_S),
    (10004, ACTION_PENDING): msgspec.structs.replace(
        RETCODES[10004], advice="Send again: the price moved while the order was placed."
    ),
}


def lookup(retcode: int, action: int = ACTION_DEAL) -> Retcode:
    """The meaning of a return code for a TRADE_ACTION_*. Total: a code nobody has documented is ambiguous."""
    known = BY_ACTION.get((retcode, action)) or RETCODES.get(retcode)
    return known or Retcode(retcode, f"RETCODE_{retcode}", _A, f"Unknown return code {retcode}", _LOOK)


_NOT_SENT, _UNKNOWN = OrderEffect

# What is known of the binding's code (5.0.6231): -2, -8, -10003 and -10004 are found before anything is sent, -10001
# when the request was not written completely (which does not prove that nothing arrived), -10002 and -10000 after it.
# -4 to -7 are the terminal's refusal to handle the call; -1, -3 and -10005 leave open how far it came.
LAST_ERRORS: Final[dict[int, LastError]] = {
    error.code: error
    for error in (
        LastError(1, "RES_S_OK", "Success", _UNKNOWN),
        LastError(-1, "RES_E_FAIL", "Terminal: Call failed", _UNKNOWN),
        LastError(-2, "RES_E_INVALID_PARAMS", "Invalid arguments", _NOT_SENT),
        LastError(-3, "RES_E_NO_MEMORY", "Terminal: Out of memory", _UNKNOWN),
        LastError(-4, "RES_E_NOT_FOUND", "Terminal: Not found", _NOT_SENT),
        LastError(-5, "RES_E_INVALID_VERSION", "Terminal: Incompatible versions", _NOT_SENT),
        LastError(-6, "RES_E_AUTH_FAILED", "Terminal: Authorization failed", _NOT_SENT),
        LastError(-7, "RES_E_UNSUPPORTED", "Terminal: Unsupported function", _NOT_SENT),
        LastError(-8, "RES_E_AUTO_TRADING_DISABLED", "Auto-Trading using Python API disabled in Terminal", _NOT_SENT),
        LastError(-10000, "RES_E_INTERNAL_FAIL", "IPC call failed", _UNKNOWN, link_broken=True),
        LastError(-10001, "RES_E_INTERNAL_FAIL_SEND", "IPC send failed", _UNKNOWN, link_broken=True),
        LastError(-10002, "RES_E_INTERNAL_FAIL_RECEIVE", "IPC recv failed", _UNKNOWN, link_broken=True),
        LastError(-10003, "RES_E_INTERNAL_FAIL_INIT", "IPC initialize failed", _NOT_SENT, link_broken=True),
        LastError(-10004, "RES_E_INTERNAL_FAIL_CONNECT", "No IPC connection", _NOT_SENT, link_broken=True),
        LastError(-10005, "RES_E_INTERNAL_FAIL_TIMEOUT", "IPC timeout", _UNKNOWN, link_broken=True),
    )
}


def lookup_error(code: int) -> LastError:
    """The meaning of a `last_error` code. Total: an undocumented one leaves the order's fate unknown."""
    known = LAST_ERRORS.get(code)
    return known or LastError(code, f"LAST_ERROR_{code}", f"Unknown error {code}", _UNKNOWN)
