import hashlib
import pickle

import pytest

from gateway.simulated import constants, structs


def test_the_constants_are_those_of_the_package() -> None:
    """223 names and values, as MetaTrader5 5.0.6231 exports them."""
    exported = {name: value for name, value in vars(constants).items() if not name.startswith("_")}
    listing = "\n".join(f"{name}={value}" for name, value in sorted(exported.items()))
    assert len(exported) == 223
    assert (
        hashlib.sha256(listing.encode()).hexdigest()
        == "d7de17a5e558f0a10afd43624e300669a9be0f07fb4cafec4d5052bf0bef2f51"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIMEFRAME_H4", 16388),
        ("COPY_TICKS_ALL", -1),
        ("ORDER_FILLING_BOC", 3),
        ("DEAL_DIVIDEND", 15),
        ("TRADE_ACTION_CLOSE_BY", 10),
        ("TRADE_RETCODE_POSITION_CLOSED", 10036),
        ("RES_E_INTERNAL_FAIL_TIMEOUT", -10005),
    ],
)
def test_a_constant_has_its_value(name: str, value: int) -> None:
    assert getattr(constants, name) == value


@pytest.mark.parametrize(
    ("struct", "count"),
    [
        ("TradeRequest", 17),
        ("OrderSendResult", 11),
        ("OrderCheckResult", 9),
        ("TradePosition", 19),
        ("TradeOrder", 24),
        ("TradeDeal", 18),
        ("AccountInfo", 28),
        ("TerminalInfo", 22),
        ("SymbolInfo", 96),
        ("Tick", 8),
        ("BookInfo", 4),
    ],
)
def test_a_struct_has_as_many_fields_as_in_the_package(struct: str, count: int) -> None:
    assert getattr(structs, struct).n_fields == count


def test_a_struct_reads_by_index_by_name_and_as_a_dict() -> None:
    """[R11]"""
    book = structs.BookInfo((1, 1.25, 3, 3.0))
    assert book[1] == book.price == 1.25
    assert tuple(book) == (1, 1.25, 3, 3.0)
    assert book._asdict() == {"type": 1, "price": 1.25, "volume": 3, "volume_dbl": 3.0}
    assert repr(book) == "BookInfo(type=1, price=1.25, volume=3, volume_dbl=3.0)"


def test_a_struct_is_not_a_namedtuple() -> None:
    """[R11]"""
    book = structs.BookInfo((1, 1.25, 3, 3.0))
    assert not hasattr(book, "_fields")
    assert not hasattr(book, "_replace")


def test_a_dict_of_a_struct_is_shallow() -> None:
    request = structs.TradeRequest([0] * 17)
    result = structs.OrderCheckResult([0] * 8 + [request])
    assert result._asdict()["request"] is request


def test_a_struct_refuses_another_number_of_fields() -> None:
    with pytest.raises(TypeError, match="4-sequence"):
        structs.BookInfo((1, 2))


def test_a_struct_survives_pickling() -> None:
    book = structs.BookInfo((1, 1.25, 3, 3.0))
    copy = pickle.loads(pickle.dumps((book,)))[0]
    assert copy == book
