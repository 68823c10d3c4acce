"""Our validation and the simulated broker's `order_check` judge alike, as far as both judge the same."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import mt5_decode as decode
from gateway.broker import Symbol, Tick
from gateway.mt5 import build_request
from gateway.simulated import structs
from gateway.simulated.rows import OrderRow, PositionRow
from gateway.simulated.structs import SymbolInfo
from gateway.validate import Limits, View, validate
from ledger.trade import TargetImage, TradeRequest
from tests.simulated import Desk

HEDGING, NETTING, EXCHANGE = 2, 0, 1
PASSED = 0
INVALID_ORDER, INVALID_CLOSE_VOLUME = 10035, 10038
# What both judge: such an answer of the broker must have been foreseen.
FORESEEN = {10014, 10015, 10016, 10022, 10030, INVALID_ORDER, INVALID_CLOSE_VOLUME, 10042, 10043, 10044, 10036}


def mostly(usual, *unusual):
    """The usual value, and now and then another one: most requests are to be sound, or wrong in one thing."""
    return st.sampled_from([usual] * 8 + list(unusual))


definitions = st.fixed_dictionaries(
    {
        "volume_step": mostly(0.01, 0.05),
        "volume_min": mostly(0.05, 0.1),
        "volume_max": mostly(100.0, 1.0),
        "trade_mode": mostly(4, 0, 1, 2, 3),
        "stops_level": st.sampled_from([0, 1, 10]),
        "freeze_level": mostly(0, 5, 100, 150),
        "filling_mode": mostly(7, 0, 1, 2, 4),
        "expiration_mode": mostly(15, 1, 2, 4, 8),
        "order_mode": mostly(127, *(127 - 2**bit for bit in range(7))),
        "exemode": st.integers(0, 3),
    }
)
edge = mostly(0, -1, 1, 50)  # points beyond the stops level


@st.composite
def requests(draw):
    """A request whose prices lie about where the symbol's stops level puts the border, as points beyond it."""
    action = draw(st.sampled_from([1, 1, 5, 5, 5, 6, 7, 8, 10]))
    return {
        "action": action,
        "volume": draw(mostly(Decimal("0.2"), *map(Decimal, ("0", "0.05", "0.1", "0.3", "0.015", "1.05", "150")))),
        "type": draw(st.integers(0, 1) if action == 1 else st.integers(2, 7)),
        "type_filling": draw(mostly(0, 1, 2, 3)),
        "type_time": draw(st.integers(0, 3)),
        "expires_in": draw(mostly(3600, -90_000, -1, 0, 1)),
        "offs": {name: draw(edge) for name in ("price", "stoplimit", "sl", "tp")},
        "bad": draw(mostly("", "price off", "sl off", "price none", "sl negative", "no stops")),
        "deviation": 1000,
        "on": draw(mostly(True, False)),
    }


def symbol_of(desk: Desk) -> Symbol:
    known = desk.broker.market.symbol_info("EURUSD", desk.clock())
    blank = {name: "" if name in decode_texts else 0 for name in SymbolInfo.__match_args__}
    return decode.symbol(SymbolInfo(tuple((blank | known).values())))


decode_texts = {"basis", "category", "currency_base", "currency_profit", "currency_margin", "bank", "description",
                "exchange", "formula", "isin", "name", "page", "path"}  # fmt: skip


def tick_of(desk: Desk) -> Tick:
    quote, spec = desk.broker.market.quote("EURUSD", desk.clock()), desk.broker.market.symbols["EURUSD"]
    point = Decimal(1) / spec.scale
    return Tick(time_msc=quote.time_msc + desk.broker.market.offset_ms, bid=quote.bid * point, ask=quote.ask * point)


def position(row: PositionRow):
    return decode.position(structs.TradePosition(row_tuple(row)))


def row_tuple(row: PositionRow):
    return (row.ticket, 0, 0, 0, 0, row.type, 0, row.identifier, 0, row.volume, row.price_open, row.sl, row.tp, 0.0,
            0.0, 0.0, row.symbol, "", "")  # fmt: skip


def order(row: OrderRow):
    return decode.order(row)


def prices(drawn: dict, symbol: Symbol, tick: Tick, type_: int) -> dict[str, Decimal]:
    """Each price `offs` points beyond the least distance that is allowed."""
    offs, bad, buy = drawn["offs"], drawn["bad"], type_ % 2 == 0
    level, sign = max(symbol.trade_stops_level, 1), 1 if buy else -1
    market, closes_at = (tick.ask, tick.bid) if buy else (tick.bid, tick.ask)
    found = {"price": market, "stoplimit": Decimal(0)}
    reference = closes_at
    if type_ > 1:
        worse = sign * (-1 if type_ in (2, 3) else 1)
        reference = found["price"] = market + worse * (level + offs["price"]) * symbol.point
    if type_ in (6, 7):
        reference = found["stoplimit"] = found["price"] - sign * (1 + offs["stoplimit"]) * symbol.point
    found["sl"] = reference - sign * (level + offs["sl"]) * symbol.point
    found["tp"] = reference + sign * (level + offs["tp"]) * symbol.point
    half = symbol.point / 2
    changes = {
        "price off": {"price": found["price"] + half},
        "sl off": {"sl": found["sl"] - sign * half},
        "price none": {"price": Decimal(0)},
        "sl negative": {"sl": -found["sl"]},
        "no stops": {"sl": Decimal(0), "tp": Decimal(0)},
    }
    return found | changes.get(bad, {})


def made(desk: Desk, drawn: dict, mode: int) -> tuple[TradeRequest, View]:
    """The request, and what the account shows of its target."""
    open_ones, working = desk.positions, desk.working
    on, server_s = drawn["on"], (desk.clock() + desk.broker.market.offset_ms) // 1000
    fields = {name: drawn[name] for name in ("action", "volume", "type", "type_filling", "type_time", "deviation")}
    if drawn["type_time"] in (2, 3):
        fields["expiration"] = server_s + drawn["expires_in"]
    target, type_ = TargetImage(), drawn["type"]
    match drawn["action"]:
        case 1 if mode != HEDGING:
            target = TargetImage(position=position(open_ones[0]) if open_ones else None)
        case 1 if on and open_ones:
            fields["position"] = open_ones[0].ticket
            target = TargetImage(position=position(open_ones[0]))
        case 6:
            fields["position"] = open_ones[0].ticket if on and open_ones else 77
            target = TargetImage(position=position(open_ones[0]) if on and open_ones else None)
            type_ = open_ones[0].type if open_ones else 0
        case 7 | 8:
            fields["order"] = working[0].ticket if on and working else 77
            target = TargetImage(order=order(working[0]) if on and working else None)
            type_ = working[0].type if working else type_
        case 10:
            one, other = (open_ones[0], open_ones[-1]) if open_ones else (None, None)
            fields |= {"position": one.ticket if one else 77, "position_by": other.ticket if on and other else 78}
            target = TargetImage(
                position=position(one) if one else None, position_by=position(other) if on and other else None
            )
    fields |= prices(drawn, symbol_of(desk), tick_of(desk), type_)
    offset_s = desk.broker.market.offset_ms // 1000
    return TradeRequest(symbol="EURUSD", **fields), View(margin_mode=mode, server_utc_offset_s=offset_s, target=target)


@pytest.mark.parametrize("mode", [HEDGING, NETTING, EXCHANGE])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    definition=definitions,
    drawn=st.lists(requests(), min_size=1, max_size=6),
    first=st.lists(st.tuples(st.integers(0, 1), st.sampled_from([20, 60])), max_size=2),
    hang=mostly(True, False),
)
def test_validation_and_order_check_agree(tmp_path_factory, mode, definition, drawn, first, hang):
    desk = Desk(Path(tmp_path_factory.mktemp("desk")), margin_mode=mode, balance=10**9)
    try:
        for side, size in first:
            sign = 1 if side == 0 else -1
            desk.send(volume=size / 100, type=side, sl=desk.price(-150 * sign), tp=desk.price(200 * sign))
        if hang:
            desk.send(action=5, volume=0.1, type=2, price=desk.price(-30), type_filling=2)
        desk.define(**definition)
        for one in drawn:
            request, view = made(desk, one, mode)
            now = datetime.fromtimestamp(desk.clock() / 1000, UTC)
            reasons = validate(request, symbol_of(desk), tick_of(desk), view, Limits(), now)
            retcode = desk.check(**{"volume": 0.0} | build_request(request))
            if reasons:
                assert retcode != PASSED, (reasons, request)
            elif retcode in FORESEEN:
                # Two the terminal does not show: a market order's RETURN, and a target on the other kind of account.
                assert (retcode, request.type_filling, request.action) == (10030, 2, 1), (retcode, request)
    finally:
        desk.close()
