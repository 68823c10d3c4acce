"""Tokens, roles and limits of the HTTP interface."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http_guard import (
    MAX_ADDRESSES,
    Limit,
    Role,
    Tokens,
    address_key,
    failure_limit,
    is_loopback,
    names_loopback,
    parse_tokens,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ONE, TWO, THREE = "a" * 24, "b" * 30 + "==", "C.~+/-_9" * 3
BOTH = Tokens(auditor=f"{ONE},{TWO}@2026-03-01T00:00:01Z", operator=f"{THREE},{ONE}")


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        (f"Bearer {ONE}", {Role.AUDITOR, Role.OPERATOR}),
        (f"Bearer {TWO}", {Role.AUDITOR}),
        (f"bearer {THREE}", {Role.OPERATOR}),
        (f"Basic {ONE}", None),
        (f"Bearer {ONE}x", None),
        (f"Bearer {ONE[:-1]}", None),
        ("Bearer ", None),
        (ONE, None),
        ("", None),
        ("Bearer \udcff", None),
    ],
)
def test_a_token_has_the_roles_of_the_lists_it_stands_in(header, roles):
    assert BOTH.roles(header, NOW) == roles


def test_a_token_ends_at_its_time():
    assert BOTH.roles(f"Bearer {TWO}", NOW.replace(microsecond=999_999)) == {Role.AUDITOR}
    assert BOTH.roles(f"Bearer {TWO}", NOW.replace(second=1)) is None


@pytest.mark.parametrize("text", ["short", ONE + " x", ONE + "\nx", ONE + "@tomorrow", "ü" * 30, f"{ONE},,x"])
def test_what_is_no_token_is_refused_without_being_shown(text):
    with pytest.raises(ValueError) as refused:
        parse_tokens(text)
    assert text[:20] not in str(refused.value)


def test_no_token_is_kept_as_text():
    assert ONE not in repr([vars(BOTH), BOTH._tokens])
    assert ONE.encode() not in b"".join(token.digest for _, token in BOTH._tokens)


@given(
    per_s=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 5), max_size=200),
)
def test_never_more_pass_than_the_burst_and_what_the_rate_allows(per_s, burst, pauses):
    limit, now_s, passed = Limit(per_s, burst), 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        passed += limit.take("one", now_s) == 0
        assert passed <= burst + per_s * now_s + 1e-6


@given(st.integers(1, 20), st.floats(0.1, 10))
def test_whoever_waits_as_long_as_he_is_told_may_pass(burst, per_s):
    limit = Limit(per_s, burst)
    for _ in range(burst):
        assert limit.take("one", 0.0) == 0
    wait_s = limit.take("one", 0.0)
    assert wait_s > 0
    assert limit.take("other", 0.0) == 0
    assert limit.take("one", wait_s + 1e-6) == 0


def test_the_addresses_of_an_attacker_do_not_fill_the_memory():
    limit = failure_limit()
    for number in range(MAX_ADDRESSES + 500):
        limit.take(f"address {number}", float(number))
    assert len(limit._buckets) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("x" * 100, "x" * 64),
    ],
)
def test_one_customer_is_one_address(address, key):
    assert address_key(address) == key


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8", "LOCALHOST"])
def test_loopback_is_known_by_all_its_names(host):
    assert is_loopback(host)
    assert names_loopback(host if ":" not in host or host.startswith("[") else f"[{host}]")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.5", "localhost.evil.example", "gateway", "127.0.0.1.x"]
)
def test_everything_else_is_not(host):
    assert not is_loopback(host)
    assert not names_loopback(f"{host}:8014")


@pytest.mark.parametrize("header", ["127.0.0.1:8014", "localhost:8014", "[::1]:8014"])
def test_a_port_does_not_make_loopback_another_host(header):
    assert names_loopback(header)
