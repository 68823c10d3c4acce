"""The binding's structs as the ledger's records: exact Decimals, plain ints and strings, or `Unreadable`.

A float becomes the Decimal of its shortest representation, which is the number the terminal shows. Structs are read
by name, so one with more fields than these is read all the same.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache, wraps
from typing import Any, TypeVar

import msgspec

from gateway.broker import Account, Symbol, Tick
from ledger.trade import ZERO, BrokerOrder, CheckResult, Deal, Position, TradeResult

T = TypeVar("T")


class Unreadable(Exception):
    """A struct of the terminal holds what no field of its kind may hold."""


@lru_cache(4096)  # the same few volumes and prices come again and again
def decimal(value: Any) -> Decimal:
    number = float(value)
    if number == 0.0:
        return ZERO
    if not math.isfinite(number):
        raise Unreadable(f"{number} is not a number")
    return Decimal(repr(number))


def _reader(function: Callable[[Any], T]) -> Callable[[Any], T]:
    @wraps(function)
    def read(row: Any) -> T:
        try:
            return function(row)
        except (AttributeError, TypeError, ValueError) as error:
            raise Unreadable(f"{function.__name__}: {error}") from None

    return read


@_reader
def trade_result(row: Any) -> TradeResult:
    return TradeResult(
        retcode=int(row.retcode), deal=int(row.deal), order=int(row.order), volume=decimal(row.volume),
        price=decimal(row.price), bid=decimal(row.bid), ask=decimal(row.ask), comment=str(row.comment),
        request_id=int(row.request_id), retcode_external=int(row.retcode_external),
    )  # fmt: skip


@_reader
def check_result(row: Any) -> CheckResult:
    return CheckResult(
        retcode=int(row.retcode), balance=decimal(row.balance), equity=decimal(row.equity),
        profit=decimal(row.profit), margin=decimal(row.margin), margin_free=decimal(row.margin_free),
        margin_level=decimal(row.margin_level), comment=str(row.comment),
    )  # fmt: skip


@_reader
def deal(row: Any) -> Deal:
    return Deal(
        ticket=int(row.ticket), order=int(row.order), time_msc=int(row.time_msc), type=int(row.type),
        entry=int(row.entry), magic=int(row.magic), position_id=int(row.position_id), reason=int(row.reason),
        volume=decimal(row.volume), price=decimal(row.price), commission=decimal(row.commission),
        swap=decimal(row.swap), profit=decimal(row.profit), fee=decimal(row.fee), symbol=str(row.symbol),
        comment=str(row.comment), external_id=str(row.external_id),
    )  # fmt: skip


@_reader
def order(row: Any) -> BrokerOrder:
    return BrokerOrder(
        ticket=int(row.ticket), time_setup_msc=int(row.time_setup_msc), time_done_msc=int(row.time_done_msc),
        time_expiration=int(row.time_expiration), type=int(row.type), type_time=int(row.type_time),
        type_filling=int(row.type_filling), state=int(row.state), magic=int(row.magic),
        position_id=int(row.position_id), position_by_id=int(row.position_by_id), reason=int(row.reason),
        volume_initial=decimal(row.volume_initial), volume_current=decimal(row.volume_current),
        price_open=decimal(row.price_open), price_stoplimit=decimal(row.price_stoplimit), sl=decimal(row.sl),
        tp=decimal(row.tp), symbol=str(row.symbol), comment=str(row.comment), external_id=str(row.external_id),
    )  # fmt: skip


@_reader
def position(row: Any) -> Position:
    return Position(
        ticket=int(row.ticket), identifier=int(row.identifier), time_msc=int(row.time_msc),
        time_update_msc=int(row.time_update_msc), type=int(row.type), magic=int(row.magic), reason=int(row.reason),
        volume=decimal(row.volume), price_open=decimal(row.price_open), price_current=decimal(row.price_current),
        sl=decimal(row.sl), tp=decimal(row.tp), swap=decimal(row.swap), profit=decimal(row.profit),
        symbol=str(row.symbol), comment=str(row.comment), external_id=str(row.external_id),
    )  # fmt: skip


@_reader
def account(row: Any) -> Account:
    return Account(
        login=int(row.login), server=str(row.server), currency=str(row.currency), margin_mode=int(row.margin_mode),
        balance=decimal(row.balance), equity=decimal(row.equity), margin=decimal(row.margin),
        margin_free=decimal(row.margin_free), name=str(row.name), company=str(row.company), leverage=int(row.leverage),
    )  # fmt: skip


def with_offset(known: Account, server_utc_offset_s: int | None) -> Account:
    return msgspec.structs.replace(known, server_utc_offset_s=server_utc_offset_s)


@_reader
def symbol(row: Any) -> Symbol:
    return Symbol(
        name=str(row.name), digits=int(row.digits), point=decimal(row.point),
        trade_tick_size=decimal(row.trade_tick_size), trade_contract_size=decimal(row.trade_contract_size),
        volume_min=decimal(row.volume_min), volume_max=decimal(row.volume_max), volume_step=decimal(row.volume_step),
        trade_stops_level=int(row.trade_stops_level), trade_freeze_level=int(row.trade_freeze_level),
        trade_mode=int(row.trade_mode), trade_exemode=int(row.trade_exemode), filling_mode=int(row.filling_mode),
        expiration_mode=int(row.expiration_mode), order_mode=int(row.order_mode), bid=decimal(row.bid),
        ask=decimal(row.ask), select=bool(row.select),
    )  # fmt: skip


@_reader
def tick(row: Any) -> Tick:
    return Tick(time_msc=int(row.time_msc), bid=decimal(row.bid), ask=decimal(row.ask))
