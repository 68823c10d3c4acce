"""The script of faults, and those that change what the broker does to an order."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulated import constants as c
from gateway.simulated.faults import BadFaults, Fault, Faults, duration_ms, parse
from gateway.simulated.plans import NONE
from tests.simulated import Desk, mt5_request


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def met(faults: Faults, calls: int, call: str = "order_send") -> list[bool]:
    return [faults.decide(call)[0] is not None for _ in range(calls)]


def test_a_rule_without_a_condition_meets_every_call_of_its_function_only() -> None:
    faults = Faults("order_check:error=-10005")
    assert met(faults, 2, "order_check") == [True, True]
    assert met(faults, 2) == [False, False]
    assert faults.decide("order_check")[0] == Fault("error", -10005)


def test_counts_and_numbers_are_used_up() -> None:
    assert met(Faults("lost*2"), 4) == [True, True, False, False]
    assert met(Faults("lost#3"), 5) == [False, False, True, False, False]


def test_a_rate_is_a_seeded_share_of_the_calls() -> None:
    one, same, other = (met(Faults(f"seed={seed}; lost@0.3"), 1000) for seed in (5, 5, 6))
    assert one == same != other
    assert 230 < sum(one) < 370


def test_the_first_rule_that_applies_decides() -> None:
    faults = Faults("requote*1; *:error=-10004")
    assert [fault and fault.name for fault, _ in (faults.decide("order_send") for _ in range(2))] == [
        "retcode",
        "error",
    ]


def test_what_is_left_of_the_rules_is_written_as_rules() -> None:
    faults = Faults("seed=4; lost*3; requote#5; order_check:delay=2s@0.5")
    met(faults, 2)
    assert str(faults) == "seed=4; order_send:lost=-10002*1; order_send:retcode=10004#5; order_check:delay=2000@0.5"
    assert str(Faults(str(faults))) == str(faults)


@given(st.lists(st.sampled_from(["lost*3", "requote@0.5", "late=1s", "*:hang", "partial=0.25#2", "comment=x y"])))
def test_rules_that_are_written_down_read_back_as_the_same(rules: list[str]) -> None:
    text = str(Faults("; ".join(rules)))
    assert str(Faults(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "no fault 'nonsense'"),
        ("nowhere:lost", "no call 'nowhere'"),
        ("late", "needs a value"),
        ("late=soon", "no duration"),
        ("error=-77", "no last_error"),
        ("retcode=1", "no return code"),
        ("lost@2", "rate"),
        ("lost*0", "count"),
        ("kill=3", "takes no value"),
        ("partial=2", "share"),
        ("symbol_info:late=1s", "order_send and order_check"),
        ("seed=x", "seed"),
        ("?", "write"),
    ],
)
def test_what_is_no_script_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(BadFaults, match=says):
        parse(text)


def test_durations() -> None:
    assert [duration_ms(text) for text in ("250", "250ms", "1.5s", "-1h", "2m")] == [
        250,
        250,
        1500,
        -3_600_000,
        120_000,
    ]


# ---- what they do to an order


def test_requotes_and_price_changes_come_in_runs(desk: Desk) -> None:
    """requote, price_changed"""
    desk.broker.set_faults("requote*2; price_changed*1")
    found = []
    for _ in range(4):
        fault, _ = desk.broker.faults.decide("order_send")
        found.append(desk.broker.trading.send(mt5_request(), tampering=fault.tampering() if fault else NONE)[0][0])
    assert found == [10004, 10004, 10020, 10009]


def test_a_late_order_is_placed_and_its_deal_comes_later(desk: Desk) -> None:
    """late [R55]"""
    result = desk.send(fault="late=300ms")
    assert (result.retcode, result.deal, desk.deals) == (10008, 0, [])
    assert [(row.ticket, row.state) for row in desk.working] == [(result.order, c.ORDER_STATE_PLACED)]
    desk.wait(299)
    assert desk.deals == []
    desk.wait(1)
    assert [deal.order for deal in desk.deals] == [result.order]
    assert desk.state.orders[result.order].state == c.ORDER_STATE_FILLED


def test_a_late_order_may_be_rejected_after_all(desk: Desk) -> None:
    """late_reject [R55]"""
    result = desk.send(fault="late_reject=market_closed")
    desk.wait(1000)
    assert (result.retcode, desk.deals, desk.positions) == (10008, [], [])
    assert desk.state.orders[result.order].state == c.ORDER_STATE_REJECTED


def test_a_late_close_is_rejected_where_the_position_has_gone_meanwhile(desk: Desk) -> None:
    """late [R60]"""
    ticket = desk.done(sl=desk.price(-50)).order
    late = desk.send(fault="late=10s", type=1, position=ticket).order
    assert desk.check(type=1, position=ticket) == 10039
    assert desk.check(action=6, position=ticket) == 10028
    desk.move(-60)
    desk.wait(10_000)
    assert desk.state.orders[late].state == c.ORDER_STATE_REJECTED


def test_a_late_pending_order_cannot_be_changed_before_it_is_placed(desk: Desk) -> None:
    """late [R60]"""
    request = {"action": 5, "type": 2, "type_filling": 2, "price": desk.price(-100)}
    ticket = desk.send(fault="late=1s", **request).order
    assert desk.working[0].state == c.ORDER_STATE_REQUEST_ADD
    assert desk.check(action=8, order=ticket) == 10028
    desk.wait(1000)
    assert desk.working[0].state == c.ORDER_STATE_PLACED
    assert desk.check(action=8, order=ticket) == 0


def test_only_a_share_of_the_volume_finds_a_counterpart(desk: Desk) -> None:
    """partial"""
    result = desk.send(fault="partial=0.34", volume=1.0, type_filling=1)
    assert (result.retcode, result.volume, desk.positions[0].volume) == (10010, 0.34, 0.34)
    assert desk.send(fault="partial=0", volume=1.0, type_filling=1).retcode == 10006


def test_a_price_may_slip_against_the_client(desk: Desk) -> None:
    """slip"""
    assert desk.send(fault="slip=25").price == desk.price(25, side="ask")
    assert desk.send(fault="slip=25", type=1).price == desk.price(-25)


def test_the_server_may_overwrite_the_comment_and_keeps_the_magic(desk: Desk) -> None:
    """comment"""
    result = desk.send(fault="comment=by dealer", magic=77, comment="mine")
    records = (desk.positions[0], desk.deals[0], desk.state.orders[result.order])
    assert {(row.comment, row.magic) for row in records} == {("by dealer", 77)}


def test_a_scripted_return_code_needs_no_other_reason(desk: Desk) -> None:
    """retcode"""
    assert desk.send(fault="retcode=10011").retcode == 10011


def test_the_clock_may_be_off_and_jump_but_records_never_go_back(desk: Desk) -> None:
    """clock [R54]"""
    first = desk.done()
    desk.broker.control.do("clock", {"shift": "-1h"})
    second = desk.done()
    assert desk.state.deals[second.deal].time_msc == desk.state.deals[first.deal].time_msc
    desk.broker.control.do("clock", {"shift": "1h"})
    third = desk.state.deals[desk.done().deal]
    assert third.time_msc - desk.state.deals[first.deal].time_msc == 3_600_000


def test_the_rules_in_force_outlive_the_broker(desk: Desk) -> None:
    desk.broker.set_faults("lost*3")
    later = desk.restart()
    assert str(later.broker.faults) == "order_send:lost=-10002*3"
    later.close()


def test_the_documented_seed_repeats_a_run() -> None:
    seed = int(os.environ.get("FAULT_SEED", random.Random().randrange(10**6)))
    print(f"FAULT_SEED={seed} repeats this")
    assert met(Faults(f"seed={seed}; lost@0.5"), 100) == met(Faults(f"seed={seed}; lost@0.5"), 100)
