import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ledger.facts import MAX_RAW, OrderRequest
from ledger.intake import (
    ACTIONS,
    FILLINGS,
    MAX_IGNORED,
    MAX_IGNORED_NAME,
    ORDER_TYPES,
    TIMES_IN_FORCE,
    Received,
    read_order,
)
from tests.decider import message

KNOWN = OrderRequest.__struct_fields__
PENDING = ORDER_TYPES[2:]
STOP_LIMIT = ("buy_stop_limit", "sell_stop_limit")

# One sound message of each shape, with every field that belongs to it.
_EXECUTION = {"price": "1.1", "deviation": 20, "filling": "ioc"}
_REST = {"symbol": "EURUSD", "account": "5001", "magic": 7}
_EXPIRY = {"time_in_force": "specified", "expires_at": "2026-03-02T00:00:00Z"}
_STOPS = {"sl": "1.05", "tp": "1.2"}
_PRICES = {"price": "1.1", "stop_limit_price": "1.09"}
_OPEN = {"action": "open", "volume": "0.3"} | _EXECUTION | _STOPS | _REST
SOUND = {
    "market": _OPEN | {"order_type": "buy", "time_in_force": "day"},
    "pending": _OPEN | _EXPIRY | {"order_type": "buy_limit"},
    "stop limit": _OPEN | _EXPIRY | _PRICES | {"order_type": "buy_stop_limit"},
    "close of a position": {"action": "close", "position_id": 901, "volume": "0.1"} | _EXECUTION | _REST,
    "close of an order": {"action": "close", "target_order_id": "ord_0", "volume": "0.1"} | _EXECUTION | _REST,
    "modify of a position": {"action": "modify", "position_id": 901} | _STOPS | _REST,
    "modify of a ticket": {"action": "modify", "order_ticket": 903} | _PRICES | _STOPS | _EXPIRY | _REST,
    "modify of an order": {"action": "modify", "target_order_id": "ord_0"} | _PRICES | _STOPS | _EXPIRY | _REST,
    "cancel of a ticket": {"action": "cancel", "order_ticket": 903} | _REST,
    "cancel of an order": {"action": "cancel", "target_order_id": "ord_0"} | _REST,
    "close by": {"action": "close_by", "position_id": 901, "position_by_id": 902} | _REST,
}
# Another sound value of each economic field; `action` has a test of its own.
OTHER = {
    "symbol": "EURUSD.m",
    "order_type": {"buy": "sell", "buy_limit": "sell_limit", "buy_stop_limit": "sell_stop_limit"},
    "volume": "0.2",
    "price": "1.11",
    "stop_limit_price": "1.08",
    "sl": "1.04",
    "tp": "1.3",
    "deviation": 0,
    "filling": "fok",
    "time_in_force": {"day": "gtc", "specified": "specified_day"},
    "expires_at": "2026-03-03T00:00:00Z",
    "position_id": 911,
    "position_by_id": 912,
    "order_ticket": 913,
    "target_order_id": "ord_9",
    "account": "5002",
    "magic": 8,
}
NOT_ECONOMIC = {
    "comment": "other",
    "timeframe": "H1",
    "valid_until": "2026-03-01T13:00:00Z",
    "created_at": "2026-03-01T12:00:00Z",
    "correlation_id": "c2",
    "causation_id": "c3",
    "signal_id": "s",
    "strategy_id": "t",
    "audit": {"client_id": "x"},
}


def order(**fields: object) -> bytes:
    """The bytes of a message with just these fields; None leaves one out."""
    given_fields = {"order_id": "ord_1"} | fields
    return json.dumps({name: value for name, value in given_fields.items() if value is not None}).encode()


def with_token(field: str, token: str) -> bytes:
    """A sound market order with one more field, its value in these very characters."""
    return message()[:-1] + f',"{field}":{token}}}'.encode()


def reasons(payload: bytes) -> tuple[str, ...]:
    return read_order(payload).reasons


def content(payload: bytes) -> str:
    received = read_order(payload)
    assert received.request is not None, received.reasons
    return received.content


# --- what cannot be acted on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"order_id"',
        b'{"order_id": "a"',
        b"{'order_id': 'a'}",
        b'\xef\xbb\xbf{"order_id":"a"}',
        b'{"order_id":"a"}{"order_id":"b"}',
        b'{"\xff": 1}',
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"order_id":"a","x":' + b"[" * 60_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda payload: repr(payload[:24]),
)
def test_bytes_that_are_no_json_object_name_no_order_and_say_so(payload):
    received = read_order(payload)
    assert (received.order_id, received.request, received.category) == (None, None, "malformed")
    assert len(received.reasons) == 1
    assert received.reasons[0].startswith("the message is not a JSON object: ")


@pytest.mark.parametrize(
    ("order_id", "reason"),
    [
        (None, "order_id is missing"),
        ("", "must be 1 to 64 characters"),
        ("x" * 65, "must be 1 to 64 characters"),
        ("x" * 60_000, "must be 1 to 64 characters"),
        ("a/b", "must be 1 to 64 characters"),
        ("order/../inbox", "must be 1 to 64 characters"),
        ("ord 1", "must be 1 to 64 characters"),
        (17, "order_id must be a string, not 17"),
        (["a"], "order_id must be a string"),
    ],
)
def test_an_order_id_that_names_no_stream_of_ours_names_no_order(order_id, reason):
    received = read_order(message(order_id=order_id))
    assert (received.order_id, received.request, received.category) == (None, None, "malformed")
    assert reason in received.reasons[0]


def test_a_null_order_id_is_no_order_id():
    assert read_order(b'{"order_id": null}').order_id is None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("symbol", None, "symbol is missing"),
        ("symbol", "", "symbol is empty"),
        ("symbol", "EUR USD", "blanks or control characters"),
        ("symbol", "x" * 5_000, "longer than 29 characters"),
        ("symbol", 5, "symbol must be a string, not 5"),
        ("order_type", None, "order_type is missing"),
        ("order_type", "BUY", "order_type 'BUY' is none of buy, sell"),
        ("order_type", 0, "order_type must be a string, not 0"),
        ("action", "destroy", "action 'destroy' is none of open, close"),
        ("action", "", "action '' is none of open, close"),
        ("filling", "FOK", "filling 'FOK' is none of fok, ioc, return, boc"),
        ("time_in_force", "GTC", "time_in_force 'GTC' is none of gtc, day, specified"),
        ("volume", None, "volume is missing"),
        ("volume", True, "volume: 'true' is not a decimal number"),
        ("volume", [1], "volume: '[1]' is not a decimal number"),
        ("volume", {"lots": 1}, "is not a decimal number"),
        ("comment", "x" * 257, "comment is longer than 256 characters"),
        ("comment", 5, "comment must be a string, not 5"),
        ("account", 5001, "account must be a string"),
        ("created_at", "yesterday", "created_at must be a time"),
        ("created_at", 1_772_366_400, "created_at must be a time"),
        ("created_at", "2026-03-01T12:00:00", "created_at has no time zone"),
        ("created_at", "2026-02-30T12:00:00Z", "created_at must be a time"),
        ("valid_until", "2026-03-02", "valid_until must be a time"),
        ("valid_until", "0001-01-01T00:00:00+05:00", "valid_until is outside the years 1 to 9999"),
        ("audit", {"client_id": 5}, "audit must be an object of strings"),
        ("audit", "client", "audit must be an object of strings"),
    ],
)
def test_a_field_that_is_not_understood_is_malformed_and_the_reason_names_it(field, value, reason):
    received = read_order(message(**{field: value}))
    assert (received.order_id, received.request, received.category) == ("ord_1", None, "malformed")
    assert len(received.reasons) == 1
    assert reason in received.reasons[0]


def test_all_reasons_are_given_at_once():
    found = " | ".join(reasons(message(order_id="a/b", symbol="E U", volume="lots", deviation=-1, order_type="up")))
    for field in ("order_id", "symbol", "volume", "deviation", "order_type"):
        assert field in found
    assert reasons(order(order_type="buy_limit", volume="lots", sl="-1", expires_at="soon", position_id=4)) == (
        "volume: 'lots' is not a decimal number",
        "expires_at must be a time like 2026-01-31T12:00:00Z",
        "position_id does not belong to action open",
        "symbol is missing",
        "price is missing",
        "sl -1 is negative",
    )


def test_what_cannot_be_read_is_not_said_to_be_missing_nor_guessed_at():
    assert reasons(order(action="close", position_id="x")) == (
        f"position_id must be a whole number from 1 to {2**64 - 1}, not 'x'",
    )
    assert len(reasons(message(action="destroy", position_id=5))) == 1
    assert len(reasons(message(order_type="up", stop_limit_price=1, expires_at="2026-03-02T00:00:00Z"))) == 1


def test_the_symbol_of_a_bad_message_is_still_told_and_cut():
    assert read_order(message(volume="many")).symbol == "EURUSD"
    assert len(read_order(message(symbol="x" * 5_000)).symbol) == 32
    assert read_order(message(symbol=7)).symbol == ""


def test_a_message_of_a_megabyte_is_refused_by_its_size_and_kept_as_hash_and_size():
    payload = message(note="x" * 1_000_000)
    received = read_order(payload)
    assert (received.order_id, received.request) == ("ord_1", None)
    assert f"the message has {len(payload)} bytes, {MAX_RAW} are allowed" in received.reasons
    assert received.raw == msgspec.structs.replace(
        received.raw, size=len(payload), sha256=hashlib.sha256(payload).hexdigest(), text=None
    )


def test_bytes_that_are_no_utf_8_are_kept_as_hexadecimal():
    raw = read_order(b'{"order_id":"a","symbol":"\xff"}').raw
    assert raw.encoding == "hex"
    assert bytes.fromhex(raw.text) == b'{"order_id":"a","symbol":"\xff"}'
    assert read_order(b"\xff" * 40_000).raw.text is None


def test_invalid_utf_8_in_a_field_is_malformed_and_in_an_unknown_one_harmless():
    assert "symbol is not valid text" in reasons(b'{"order_id":"a","symbol":"\xff"}')
    assert reasons(message()[:-1] + b',"note":"\xff"}') == ()
    assert "not a JSON object" in reasons(rb'{"order_id":"a","symbol":"\ud800"}')[0]  # half of a surrogate pair


def test_a_field_that_no_order_has_is_named_and_has_no_effect():
    misspelt = read_order(message()[:-1] + b',"stoploss":1.05,"note":null}')
    assert (misspelt.reasons, misspelt.ignored) == ((), ("stoploss", "note"))
    assert misspelt.request == read_order(message()).request
    assert read_order(message()).ignored == ()


def test_of_many_unknown_fields_the_first_are_named_and_of_a_long_name_the_beginning():
    many = read_order(message()[:-1] + b"".join(b',"%d%s":1' % (one, b"x" * 300) for one in range(99)) + b"}")
    assert len(many.ignored) == MAX_IGNORED
    assert {len(name) for name in many.ignored} == {MAX_IGNORED_NAME}


# --- hostile numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1_000", "٣", "01", "+5", ".5", "5.", "0x10", "1e"])
def test_what_is_no_json_number_makes_the_message_no_json_object(token):
    assert reasons(with_token("sl", token))[0].startswith("the message is not a JSON object: ")


@pytest.mark.parametrize("field", ["sl", "deviation"])
@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1_000", "٣", "²", "0x10", "1,5", " 5", "5\n", "", "five", "1e400000", "1" * 5_000]
)
def test_a_string_that_is_no_plain_number_is_malformed(field, text):
    received = read_order(message(**{field: text}))
    assert (received.request, received.category, len(received.reasons)) == (None, "malformed", 1)
    assert received.reasons[0].startswith(field)
    assert len(received.reasons[0]) < 200


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("1e400000", "is not a decimal number"),
        ("1E+9999999", "is not a decimal number"),
        ("9" * 30, "is not a decimal number"),
        ("1e400", "is too large"),
        ("-1e10", "is too large"),
        ("12345678901", "is too large"),
        ("1e-30", "has more than 8 decimals"),
        ("1.123456789", "has more than 8 decimals"),
        ("0.000000001", "has more than 8 decimals"),
    ],
)
def test_a_json_number_outside_the_bounds_is_malformed(token, reason):
    for written in (token, f'"{token}"'):
        (found,) = reasons(with_token("sl", written))
        assert found.startswith("sl: ")
        assert reason in found


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("-0", "0"),
        ("-0.0", "0"),
        ("0e999", "0"),
        ("1E5", "100000"),
        ("5e-8", "0.00000005"),
        ("1.100000000000", "1.1"),
        ("9999999999.99999999", "9999999999.99999999"),
        ('"+5"', "5"),
        ('"\\u0035"', "5"),
    ],
)
def test_a_number_within_the_bounds_is_plain_however_it_is_written(token, value):
    found = read_order(with_token("sl", token)).request.sl
    assert (format(found, "f"), str(found)) == (value, str(Decimal(value)))


@pytest.mark.parametrize("token", ["-0", "-1", "1.0", "1e3", "true", "[]", '"-0"', '"+5"', "1000001"])
def test_a_whole_number_has_digits_only_and_its_bounds(token):
    (found,) = reasons(with_token("deviation", token))
    assert found.startswith("deviation must be a whole number from 0 to 1000000")


def test_whole_numbers_go_up_to_63_bits():
    assert read_order(message(magic=2**63 - 1)).request.magic == 2**63 - 1
    assert read_order(message(magic=str(2**63 - 1))).request.magic == 2**63 - 1
    assert "magic must be a whole number" in reasons(message(magic=2**63))[0]


# --- the actions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SOUND)
def test_every_field_of_a_sound_message_arrives_in_the_request(shape):
    received = read_order(order(**SOUND[shape], **NOT_ECONOMIC), account="5001")
    assert (received.reasons, received.category) == ((), "")
    arrived = msgspec.to_builtins(received.request)
    expected = {"order_id": "ord_1"} | SOUND[shape] | NOT_ECONOMIC
    assert arrived == expected | ({} if SOUND[shape]["action"] != "open" else {"action": "open"})


ACCEPTED = [
    *[{"symbol": "EURUSD", "order_type": kind, "volume": 1} for kind in ("buy", "sell")],
    *[{"symbol": "EURUSD", "order_type": kind, "volume": 1, "price": 1.1} for kind in PENDING[:4]],
    *[
        {"symbol": "EURUSD", "order_type": kind, "volume": 1, "price": 1.1, "stop_limit_price": 1}
        for kind in STOP_LIMIT
    ],
    {"symbol": "EURUSD", "order_type": "buy", "volume": 1, "price": 0, "time_in_force": "gtc"},
    {"symbol": "EURUSD", "order_type": "buy_limit", "volume": 1, "price": 1.1, "time_in_force": "day"},
    {"symbol": "EURUSD", "order_type": "buy_limit", "volume": 1, "price": 1.1, "expires_at": "2026-03-02T00:00:00Z"},
    {"action": "close", "position_id": 901},
    {"action": "close", "target_order_id": "ord_0"},
    {"action": "close", "position_id": 901, "volume": "0.1"},
    {"action": "modify", "position_id": 901, "sl": 0},
    {"action": "modify", "position_id": 901, "tp": 1.2},
    {"action": "modify", "order_ticket": 903, "price": 1.2},
    {"action": "modify", "order_ticket": 903, "time_in_force": "gtc"},
    {"action": "modify", "target_order_id": "ord_0", "expires_at": "2026-03-02T00:00:00Z"},
    {"action": "modify", "target_order_id": "ord_0", "stop_limit_price": 1.09},
    {"action": "cancel", "order_ticket": 903},
    {"action": "cancel", "target_order_id": "ord_0"},
    {"action": "close_by", "position_id": 901, "position_by_id": 902},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda fields: json.dumps(fields))
def test_the_least_that_an_action_needs_is_accepted(fields):
    received = read_order(order(**fields))
    assert (received.reasons, received.request.action) == ((), fields.get("action", "open"))
    assert received.symbol == fields.get("symbol", "")


MALFORMED = [
    ({}, ["symbol is missing", "order_type is missing", "volume is missing"]),
    ({"action": "open"}, ["symbol is missing", "order_type is missing", "volume is missing"]),
    *[(SOUND["pending"] | {"order_type": kind, "price": None}, ["price is missing"]) for kind in PENDING[:4]],
    *[(SOUND["stop limit"] | {"order_type": kind, "price": None}, ["price is missing"]) for kind in STOP_LIMIT],
    *[
        (SOUND["stop limit"] | {"order_type": kind, "stop_limit_price": None}, ["stop_limit_price is missing"])
        for kind in STOP_LIMIT
    ],
    *[
        (
            SOUND["pending"] | {"order_type": kind, "stop_limit_price": 1},
            [f"stop_limit_price does not belong to order_type {kind}"],
        )
        for kind in PENDING[:4]
    ],
    (SOUND["market"] | {"stop_limit_price": 1}, ["stop_limit_price does not belong to order_type buy"]),
    (SOUND["market"] | _EXPIRY, ["an expiration does not belong to order_type buy"]),
    (
        SOUND["market"] | {"order_type": "sell", "time_in_force": None, "expires_at": "2026-03-02T00:00:00Z"},
        ["an expiration does not belong to order_type sell"],
    ),
    (SOUND["pending"] | {"expires_at": None}, ["expires_at is missing"]),
    (SOUND["pending"] | {"expires_at": None, "time_in_force": "specified_day"}, ["expires_at is missing"]),
    (SOUND["pending"] | {"time_in_force": "gtc"}, ["expires_at does not belong to time_in_force gtc"]),
    (SOUND["pending"] | {"time_in_force": "day"}, ["expires_at does not belong to time_in_force day"]),
    (SOUND["pending"] | {"expires_at": "2026-03-02T00:00:00"}, ["expires_at has no time zone"]),
    (
        SOUND["pending"] | {"expires_at": "9999-12-31T23:00:00-05:00"},
        ["expires_at is outside the years 1 to 9999"],
    ),
    ({"action": "close"}, ["position_id or target_order_id is missing"]),
    (
        {"action": "close", "position_id": 901, "target_order_id": "ord_0"},
        ["only one of position_id, target_order_id may be given"],
    ),
    ({"action": "close", "position_id": 0}, [f"position_id must be a whole number from 1 to {2**64 - 1}, not '0'"]),
    (
        {"action": "close", "target_order_id": "a/b"},
        ["target_order_id 'a/b' must be 1 to 64 characters of A-Z a-z 0-9 . _ : -"],
    ),
    ({"action": "close", "target_order_id": 5}, ["target_order_id must be a string, not 5"]),
    (
        {"action": "modify", "sl": 1},
        ["position_id or order_ticket or target_order_id is missing"],
    ),
    (
        {"action": "modify", "position_id": 901, "order_ticket": 903, "target_order_id": "ord_0", "sl": 1},
        ["only one of position_id, order_ticket, target_order_id may be given"],
    ),
    (
        {"action": "modify", "position_id": 901},
        ["nothing to modify: none of sl, tp, price, stop_limit_price, expires_at, time_in_force is given"],
    ),
    (
        {"action": "modify"},
        [
            "position_id or order_ticket or target_order_id is missing",
            "nothing to modify: none of sl, tp, price, stop_limit_price, expires_at, time_in_force is given",
        ],
    ),
    (
        {"action": "modify", "position_id": 901, "sl": 1} | _PRICES | _EXPIRY,
        [
            "price does not belong to a position",
            "stop_limit_price does not belong to a position",
            "expires_at does not belong to a position",
            "time_in_force does not belong to a position",
        ],
    ),
    ({"action": "modify", "order_ticket": 903, "time_in_force": "specified"}, ["expires_at is missing"]),
    ({"action": "cancel"}, ["order_ticket or target_order_id is missing"]),
    (
        {"action": "cancel", "order_ticket": 903, "target_order_id": "ord_0"},
        ["only one of order_ticket, target_order_id may be given"],
    ),
    ({"action": "cancel", "order_ticket": 0}, [f"order_ticket must be a whole number from 1 to {2**64 - 1}, not '0'"]),
    ({"action": "close_by"}, ["position_id is missing", "position_by_id is missing"]),
    ({"action": "close_by", "position_id": 901}, ["position_by_id is missing"]),
    ({"action": "close_by", "position_by_id": 902}, ["position_id is missing"]),
]


@pytest.mark.parametrize(("fields", "expected"), MALFORMED, ids=lambda part: json.dumps(part)[:90])
def test_what_is_missing_or_contradicts_is_malformed_with_every_reason(fields, expected):
    received = read_order(order(**fields))
    assert (list(received.reasons), received.category, received.request) == (expected, "malformed", None)


# All that is not of the action or known to every one, by the words of the interface.
FOREIGN = {
    "open": {"position_id", "position_by_id", "order_ticket", "target_order_id"},
    "close": {
        *("order_type", "stop_limit_price", "sl", "tp", "time_in_force", "expires_at"),
        *("position_by_id", "order_ticket"),
    },
    "modify": {"order_type", "volume", "deviation", "filling", "position_by_id"},
    "cancel": {
        *("order_type", "volume", "price", "stop_limit_price", "sl", "tp", "deviation", "filling"),
        *("time_in_force", "expires_at", "position_id", "position_by_id"),
    },
    "close_by": {
        *("order_type", "volume", "price", "stop_limit_price", "sl", "tp", "deviation", "filling"),
        *("time_in_force", "expires_at", "order_ticket", "target_order_id"),
    },
}
ANY_VALUE = {name: value for shape in SOUND.values() for name, value in shape.items()} | {"time_in_force": "gtc"}


@pytest.mark.parametrize(("shape", "field"), [(shape, name) for shape in SOUND for name in sorted(ANY_VALUE)])
def test_a_field_of_another_action_is_malformed_and_none_of_its_own_is(shape, field):
    action = SOUND[shape]["action"]
    found = reasons(order(**SOUND[shape] | {field: ANY_VALUE[field]}))
    assert (f"{field} does not belong to action {action}" in found) is (field in FOREIGN[action])


def test_a_null_of_another_action_is_no_field():
    fields = SOUND["cancel of a ticket"] | {"sl": None, "volume": None}
    assert reasons(json.dumps({"order_id": "ord_1"} | fields).encode()) == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (SOUND["market"] | {"volume": "0"}, ["volume 0 must be more than 0 lots"]),
        (SOUND["market"] | {"volume": "-0"}, ["volume 0 must be more than 0 lots"]),
        (SOUND["market"] | {"volume": -1}, ["volume -1 must be more than 0 lots"]),
        (SOUND["close of a position"] | {"volume": 0}, ["volume 0 must be more than 0 lots"]),
        (
            SOUND["stop limit"] | {"price": "-1.1", "stop_limit_price": -1, "sl": -0.5, "tp": "-2"},
            ["price -1.1 is negative", "stop_limit_price -1 is negative", "sl -0.5 is negative", "tp -2 is negative"],
        ),
        (SOUND["modify of a position"] | {"sl": -1}, ["sl -1 is negative"]),
        (
            SOUND["stop limit"] | {"price": 0, "stop_limit_price": 0},
            ["price 0 is no price for a pending order", "stop_limit_price 0 is no price for a pending order"],
        ),
        (SOUND["modify of a ticket"] | {"price": 0}, ["price 0 is no price for a pending order"]),
        (SOUND["market"] | {"account": "4999"}, ["account '4999' is not the account 5001 of this gateway"]),
        (SOUND["market"] | {"account": ""}, ["account '' is not the account 5001 of this gateway"]),
        (SOUND["cancel of an order"] | {"target_order_id": "ord_1"}, ["target_order_id is the order itself"]),
        (SOUND["close by"] | {"position_by_id": 901}, ["position_id and position_by_id are the same position"]),
        (
            SOUND["market"] | {"volume": 0, "sl": -1, "account": "4999"},
            [
                "sl -1 is negative",
                "volume 0 must be more than 0 lots",
                "account '4999' is not the account 5001 of this gateway",
            ],
        ),
    ],
    ids=lambda part: json.dumps(part)[:90],
)
def test_what_is_understood_but_not_allowed_is_refused_with_its_request_kept(fields, expected):
    received = read_order(order(**fields), account="5001")
    assert (list(received.reasons), received.category) == (expected, "refused")
    assert received.request is not None


# --- what is understood -----------------------------------------------------------------------------------------


def test_a_sound_order_is_read_whole():
    received = read_order(message(sl=1.05, deviation="20", audit={"client_id": "c", "pin": "1"}, correlation_id="k"))
    assert (received.reasons, received.category, received.correlation_id) == ((), "", "k")
    request = received.request
    assert (request.order_id, request.action, request.side, request.volume) == ("ord_1", "open", "buy", Decimal("0.3"))
    assert (request.sl, request.deviation, request.audit) == (Decimal("1.05"), 20, {"client_id": "c"})


def test_unknown_fields_are_kept_in_the_raw_text_and_not_trusted():
    payload = message(status="filled", note={"a": [1, None]})
    received = read_order(payload)
    assert received.reasons == ()
    assert received.raw.text == payload.decode()
    assert not hasattr(received.request, "status")


def test_a_null_is_an_absent_field():
    nulls = json.dumps(dict.fromkeys(set(KNOWN) - {"order_id", "symbol", "order_type", "volume"})).encode()
    assert read_order(message()[:-1] + b"," + nulls[1:]).request == read_order(message()).request
    assert reasons(json.dumps({"order_id": "ord_1", "action": "close", "position_id": None}).encode()) == (
        "position_id or target_order_id is missing",
    )


def test_of_duplicate_keys_the_last_one_counts_also_when_it_is_null_or_bad():
    received = read_order(b'{"order_id":"a","volume":"9",' + message()[1:])
    assert (received.order_id, received.request.volume) == ("ord_1", Decimal("0.3"))
    assert reasons(with_token("volume", "null")) == ("volume is missing",)
    assert reasons(with_token("volume", '"x"')) == ("volume: 'x' is not a decimal number",)
    assert reasons(with_token("\\u0076olume", "null")) == ("volume is missing",)


def test_times_are_kept_in_utc_whatever_their_zone():
    request = read_order(
        message(created_at="2026-03-01T14:00:00+02:00", valid_until="2026-03-01T08:00:00-05:00")
    ).request
    assert (request.created_at, request.valid_until) == (
        datetime(2026, 3, 1, 12, tzinfo=UTC),
        datetime(2026, 3, 1, 13, tzinfo=UTC),
    )
    assert (request.created_at.tzinfo, request.valid_until.tzinfo) == (UTC, UTC)


# --- the same order or another one ------------------------------------------------------------------------------


def test_every_field_of_a_request_is_known_to_be_economic_or_not():
    assert {"order_id", "action"} | OTHER.keys() | NOT_ECONOMIC.keys() == set(KNOWN)
    assert {name for shape in SOUND.values() for name in shape} - {"action"} == OTHER.keys()


@pytest.mark.parametrize(
    ("shape", "field"), [(shape, name) for shape in SOUND for name in OTHER if name in SOUND[shape]]
)
def test_another_value_of_an_economic_field_is_another_content(shape, field):
    other = OTHER[field]
    changed = other[SOUND[shape][field]] if isinstance(other, dict) else other
    assert content(order(**SOUND[shape] | {field: changed})) != content(order(**SOUND[shape]))


@pytest.mark.parametrize(
    ("shape", "field"), [(shape, name) for shape in SOUND for name in OTHER if name in SOUND[shape]]
)
def test_a_missing_economic_field_is_another_content(shape, field):
    received = read_order(order(**SOUND[shape] | {field: None}))
    assert received.content != content(order(**SOUND[shape]))


def test_another_action_on_the_same_target_is_another_content():
    contents = {
        content(order(action="close", target_order_id="ord_0")),
        content(order(action="cancel", target_order_id="ord_0")),
        content(order(action="modify", target_order_id="ord_0", price="1.1")),
        content(order(action="close", target_order_id="ord_0", price="1.1")),
    }
    assert len(contents) == 4


@pytest.mark.parametrize("shape", SOUND)
def test_comments_tracing_and_times_are_not_part_of_the_content(shape):
    alone = content(order(**SOUND[shape]))
    assert {content(order(**SOUND[shape], **{name: value})) for name, value in NOT_ECONOMIC.items()} == {alone}
    assert content(order(**SOUND[shape], unheard_of=1)) == alone


def test_an_open_need_not_say_so():
    assert content(message(action="open")) == content(message())


@pytest.mark.parametrize("volume", [0.3, "0.3", "0.30", "3e-1", "00.3", "+0.3"])
def test_the_same_number_however_written_is_the_same_content(volume):
    assert content(message(volume=volume)) == content(message(volume="0.3"))


# --- laws -------------------------------------------------------------------------------------------------------

NUMBERS = ("volume", "price", "stop_limit_price", "sl", "tp")
WHOLE = ("deviation", "position_id", "position_by_id", "order_ticket", "magic")


def written(number: Decimal) -> st.SearchStrategy[str]:
    """JSON tokens of one number: digits or a string, with more zeros, with an exponent."""
    text = format(number, "f")
    zeros = text + ("." if "." not in text else "") + "00"
    return st.sampled_from([text, f'"{text}"', zeros, f'"{zeros}"', f"{number:e}", f'"{number:E}"', f'"0{text}"'])


@given(st.sampled_from(sorted(SOUND)), st.data())
def test_the_same_numbers_written_differently_are_the_same_content(shape, data):
    """Of any action; also in another order of the fields, with blanks between them."""
    tokens = {name: json.dumps(value) for name, value in ({"order_id": "ord_1"} | SOUND[shape]).items()}
    plain = dict(tokens)
    for name in NUMBERS:
        if name in tokens:
            number = data.draw(st.decimals(min_value="0.00000001", max_value=10**9, places=8, allow_nan=False))
            plain[name], tokens[name] = format(number, "f"), data.draw(written(number))
    for name in WHOLE:
        if name in tokens:
            tokens[name] = data.draw(st.sampled_from([plain[name], f'"{plain[name]}"', f'"00{plain[name]}"']))
    names = data.draw(st.permutations(sorted(tokens)))
    one = "{" + ",".join(f'"{name}":{token}' for name, token in plain.items()) + "}"
    other = "{ " + " , ".join(f'"{name}" : {tokens[name]}' for name in names) + "\n}"
    assert content(one.encode()) == content(other.encode())


@given(
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2999, 1, 1), timezones=st.just(UTC)),
    st.integers(-23 * 60, 23 * 60),
    st.sampled_from(["pending", "stop limit", "modify of a ticket"]),
)
def test_the_same_expiration_told_in_another_zone_is_the_same_content(when, minutes, shape):
    elsewhere = when.astimezone(timezone(timedelta(minutes=minutes)))
    here = content(order(**SOUND[shape] | {"expires_at": when.isoformat()}))
    assert content(order(**SOUND[shape] | {"expires_at": elsewhere.isoformat()})) == here
    later = (elsewhere + timedelta(microseconds=1)).isoformat()
    assert content(order(**SOUND[shape] | {"expires_at": later})) != here


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
times = st.datetimes(timezones=st.timezones() | st.just(UTC)).map(lambda when: when.isoformat())
prices = st.decimals(min_value=-1, max_value=10**11, places=9, allow_nan=False).map(str) | st.sampled_from(
    [0, 1, "1.1", "NaN", "1e400000", "-0", "1e-30", "1_000", "٣"]
)
tickets = st.sampled_from([0, 1, 901, 902, "901", 2**63, -1])
short = st.text(max_size=12)
# Values that a field often has: sound messages and those that nearly are.
plausible: dict[str, st.SearchStrategy[object]] = (
    dict.fromkeys(KNOWN, short)
    | dict.fromkeys(NUMBERS, prices)
    | dict.fromkeys(WHOLE, tickets)
    | dict.fromkeys(("valid_until", "created_at", "expires_at"), times)
    | {
        "order_id": st.sampled_from(["ord_1", "ord_2", "a/b"]),
        "target_order_id": st.sampled_from(["ord_1", "ord_2", "a/b"]),
        "action": st.sampled_from(ACTIONS),
        "order_type": st.sampled_from(ORDER_TYPES),
        "filling": st.sampled_from(FILLINGS),
        "time_in_force": st.sampled_from(TIMES_IN_FORCE),
        "symbol": st.sampled_from(["EURUSD", "E U", "x" * 30]) | short,
        "audit": st.dictionaries(st.sampled_from(["client_id", "venue_mic", "pin"]), short, max_size=2),
    }
)
messages = st.fixed_dictionaries(
    {}, optional={name: st.one_of(values, values, values, json_values) for name, values in plausible.items()}
)
# From one shape a few fields away: most are nearly sound, many are.
nearly_sound = st.builds(
    lambda shape, changes, dropped: {
        name: value for name, value in ({"order_id": "ord_1"} | SOUND[shape] | changes).items() if name not in dropped
    },
    st.sampled_from(sorted(SOUND)),
    st.sampled_from(sorted(KNOWN)).flatmap(lambda name: st.fixed_dictionaries({name: plausible[name]})) | st.just({}),
    st.sets(st.sampled_from(sorted(KNOWN)), max_size=1),
)


def is_whole(received: Received) -> None:
    """Either something to act on, or reasons; always a record that can be stored."""
    assert bool(received.reasons) == (received.category in ("malformed", "refused"))
    assert received.reasons or received.request is not None
    assert (received.request is None) == (received.category == "malformed")
    assert received.request is None or received.request.order_id == received.order_id
    assert len(set(received.reasons)) == len(received.reasons)
    assert len(" ".join(received.reasons)) < 8_000
    assert len(received.content) == 64
    assert msgspec.json.decode(msgspec.json.encode(received), type=Received) == received


def is_sound(request: OrderRequest) -> None:
    """The rules of the interface, said once more of what was accepted."""
    present = {name for name in KNOWN if getattr(request, name) not in (None, "")} | {"action"}
    assert not present & FOREIGN[request.action]
    targets = present & {"position_id", "order_ticket", "target_order_id"}
    if request.action == "open":
        assert {"symbol", "order_type", "volume"} <= present
        assert ("stop_limit_price" in present) is (request.order_type in STOP_LIMIT)
        assert request.order_type not in PENDING or request.price > 0
        assert request.order_type in PENDING or not present & {"expires_at"}
    elif request.action == "close_by":
        assert request.position_id != request.position_by_id
        assert {"position_id", "position_by_id"} <= present
    else:
        assert len(targets) == 1
    changes = present & {"sl", "tp", "price", "stop_limit_price", "expires_at", "time_in_force"}
    if request.action == "modify":
        assert changes
        assert "position_id" not in targets or changes <= {"sl", "tp"}
    assert not (request.time_in_force or "").startswith("specified") or request.expires_at is not None
    assert all(getattr(request, name) >= 0 for name in NUMBERS if name in present)
    assert request.volume is None or request.volume > 0
    assert all(getattr(request, name) > 0 for name in targets - {"target_order_id"})


@given(st.binary(max_size=400))
@example(b'{"order_id":"a","symbol":"\\ud800"}')
def test_reading_is_total_over_arbitrary_bytes(payload):
    is_whole(read_order(payload, account="5001"))


@given(
    messages | nearly_sound | st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), json_values, max_size=10)
)
@settings(max_examples=500)
@example(SOUND["pending"] | {"order_id": "ord_1", "expires_at": "0001-01-01T00:00:00+05:00"})
@example({"order_id": "ord_1", "action": "close", "position_id": 0})
def test_reading_is_total_and_accepts_only_what_keeps_the_rules(fields):
    payload = json.dumps(fields).encode()
    received = read_order(payload, account="5001")
    is_whole(received)
    assert read_order(payload, account="5001") == received
    if not received.reasons:
        is_sound(received.request)


@given(nearly_sound)
@settings(max_examples=300)
def test_a_request_written_down_and_read_again_is_the_same_request(fields):
    received = read_order(json.dumps(fields).encode())
    assume(received.request is not None)
    again = read_order(msgspec.json.encode(received.request))
    assert (again.request, again.content, again.reasons) == (received.request, received.content, received.reasons)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 200))
def test_reading_is_total_over_damaged_orders(flips, cut):
    payload = bytearray(message(sl="1.05", created_at="2026-03-01T12:00:00Z", audit={"client_id": "c"}))
    for position, byte in flips:
        payload[position % len(payload)] = byte
    is_whole(read_order(bytes(payload)))
    is_whole(read_order(bytes(payload[:cut])))
