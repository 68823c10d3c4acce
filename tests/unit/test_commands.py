import hashlib
import json
import time
from decimal import Decimal

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledger.facts import MAX_RAW
from ledger.intake import Received, read_order
from tests.decider import message

KNOWN = ("order_id", "symbol", "order_type", "volume", "price", "sl", "deviation", "magic", "created_at", "audit")


def reasons(payload: bytes) -> str:
    return " | ".join(read_order(payload).reasons)


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
        ("action", "destroy", "action 'destroy' is none of open, close"),
        ("volume", None, "volume is missing"),
        ("volume", "NaN", "volume: 'NaN' is not a decimal number"),
        ("volume", "1_000", "volume: '1_000' is not a decimal number"),
        ("volume", "١", "is not a decimal number"),
        ("volume", "1.123456789", "more than 8 decimals"),
        ("volume", "12345678901", "too large"),
        ("volume", True, "volume: 'true' is not a decimal number"),
        ("volume", [1], "volume: '[1]' is not a decimal number"),
        ("volume", "", "volume: '' is not a decimal number"),
        ("deviation", -1, "deviation must be a whole number"),
        ("deviation", 1.5, "deviation must be a whole number"),
        ("deviation", "²", "deviation must be a whole number"),
        ("magic", 2**63, "magic must be a whole number"),
        ("comment", "x" * 257, "comment is longer than 256 characters"),
        ("account", 5001, "account must be a string"),
        ("created_at", "yesterday", "created_at must be a time"),
        ("created_at", 1_772_366_400, "created_at must be a time"),
        ("created_at", "2026-03-01T12:00:00", "created_at has no time zone"),
        ("created_at", "2026-02-30T12:00:00Z", "created_at must be a time"),
        ("target_order_id", "a/b", "must be 1 to 64 characters"),
        ("audit", {"client_id": 5}, "audit must be an object of strings"),
    ],
)
def test_a_field_that_is_not_understood_is_malformed_and_the_reason_names_it(field, value, reason):
    received = read_order(message(**{field: value}))
    assert (received.order_id, received.request, received.category) == ("ord_1", None, "malformed")
    assert len(received.reasons) == 1
    assert reason in received.reasons[0]


@pytest.mark.parametrize("number", [b"1e400", b"1E+9999999", b"0.000000001", b"-1e10", b"9" * 5_000])
def test_a_json_number_outside_the_bounds_is_refused_quickly(number):
    began = time.perf_counter()
    received = read_order(message(volume=None)[:-1] + b',"volume":' + number + b"}")
    assert received.request is None
    assert received.reasons[0].startswith("volume: ")
    assert time.perf_counter() - began < 0.2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"volume": "0"}, "volume 0 must be more than 0 lots"),
        ({"volume": -1}, "volume -1 must be more than 0 lots"),
        ({"price": "-1.1"}, "price -1.1 is negative"),
        ({"sl": -0.5}, "sl -0.5 is negative"),
        ({"order_type": "buy_limit"}, "order_type 'buy_limit' is not supported"),
        ({"action": "close"}, "action 'close' is not supported"),
        ({"account": "4999"}, "account '4999' is not the account 5001 of this gateway"),
    ],
)
def test_what_is_understood_but_not_allowed_is_refused_with_its_request_kept(changes, reason):
    received = read_order(message(**changes), account="5001")
    assert received.category == "refused"
    assert received.request is not None
    assert len(received.reasons) == 1
    assert reason in received.reasons[0]


def test_all_reasons_are_given_at_once():
    found = reasons(message(order_id="a/b", symbol="E U", volume="lots", deviation=-1, order_type="up"))
    for field in ("order_id", "symbol", "volume", "deviation", "order_type"):
        assert field in found
    found = reasons(message(volume="-1", price="-1", sl="-1", tp="-1"))
    assert found.count("is negative") == 3
    assert "more than 0 lots" in found


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
    assert read_order(message()[:-1] + b',"note":"\xff"}').reasons == ()
    assert "not a JSON object" in reasons(rb'{"order_id":"a","symbol":"\ud800"}')  # half of a surrogate pair


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
    assert read_order(message()[:-1] + b',"sl":null,"magic" : null,"comment":null}').content == content(sl=None)


def test_of_duplicate_keys_the_last_one_counts():
    received = read_order(b'{"order_id":"a","volume":"9",' + message()[1:])
    assert (received.order_id, received.request.volume) == ("ord_1", Decimal("0.3"))


def content(**changes) -> str:
    received = read_order(message(**changes))
    assert received.request is not None
    return received.content


@pytest.mark.parametrize("volume", [0.3, "0.3", "0.30", "3e-1", "00.3"])
def test_the_same_number_however_written_is_the_same_content(volume):
    assert content(volume=volume) == content(volume="0.3")


@given(st.decimals(min_value=0, max_value=10**9, places=8, allow_nan=False), st.integers(0, 3))
def test_a_number_and_its_string_are_the_same_content(number, zeros):
    text = format(number, "f")
    as_number = message(sl=None)[:-1] + f',"sl":{text}'.encode() + b"}"
    assert read_order(as_number).content == content(sl=text + "0" * zeros)


@pytest.mark.parametrize(
    "changes",
    [
        {"comment": "other"},
        {"correlation_id": "c2", "causation_id": "c3", "signal_id": "s", "strategy_id": "t"},
        {"created_at": "2026-03-01T12:00:00Z", "valid_until": "2026-03-01T13:00:00Z"},
        {"timeframe": "H1", "audit": {"client_id": "x"}, "unheard_of": 1},
        {"action": "open"},
    ],
)
def test_comments_tracing_and_times_are_not_part_of_the_content(changes):
    assert content(**changes) == content()


@pytest.mark.parametrize(
    "changes",
    [
        {"volume": "0.4"},
        {"symbol": "EURUSD.m"},
        {"order_type": "sell"},
        {"sl": 1},
        {"tp": 1},
        {"price": 1},
        {"deviation": 5},
        {"magic": 5},
        {"filling": "ioc"},
        {"account": "5001"},
        {"action": "close"},
        {"time_in_force": "day"},
        {"expires_at": "2026-03-02"},
        {"position_id": 5},
    ],
)
def test_every_economic_field_is_part_of_the_content(changes):
    assert content(**changes) != content()


# --- laws -------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
messages = st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), json_values, max_size=10)


def is_whole(received: Received) -> None:
    """Either something to act on, or reasons; always a record that can be stored."""
    assert bool(received.reasons) == (received.category in ("malformed", "refused"))
    assert received.reasons or received.request is not None
    assert received.request is None or received.request.order_id == received.order_id
    assert len(" ".join(received.reasons)) < 8_000
    assert len(received.content) == 64
    assert msgspec.json.decode(msgspec.json.encode(received), type=Received) == received


@given(st.binary(max_size=400))
@example(b'{"order_id":"a","symbol":"\\ud800"}')
def test_reading_is_total_over_arbitrary_bytes(payload):
    is_whole(read_order(payload, account="5001"))


@given(messages)
@settings(max_examples=300)
def test_reading_is_total_over_arbitrary_json(fields):
    is_whole(read_order(json.dumps(fields).encode(), account="5001"))


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 200))
def test_reading_is_total_over_damaged_orders(flips, cut):
    payload = bytearray(message(sl="1.05", created_at="2026-03-01T12:00:00Z", audit={"client_id": "c"}))
    for position, byte in flips:
        payload[position % len(payload)] = byte
    is_whole(read_order(bytes(payload)))
    is_whole(read_order(bytes(payload[:cut])))


@given(messages)
def test_reading_the_same_bytes_twice_gives_the_same(fields):
    payload = json.dumps(fields).encode()
    assert read_order(payload) == read_order(payload)
