import pytest

from gateway.retcodes import LAST_ERRORS, RETCODES, OrderEffect, RetcodeClass, lookup, lookup_error
from gateway.simulated import constants
from ledger.trade import ACTION_DEAL, ACTION_MODIFY, ACTION_PENDING, ACTION_SLTP
from tests.make_retcodes_page import PAGE, page


def test_every_code_the_package_exports_is_in_the_table_under_its_name() -> None:
    exported = {
        value: name.removeprefix("TRADE_RETCODE_")
        for name, value in vars(constants).items()
        if name.startswith("TRADE_RETCODE_")
    }
    assert exported == {code: RETCODES[code].name for code in exported}
    assert set(RETCODES) - set(exported) == {0, 10046}


def test_every_last_error_of_the_package_is_in_the_table_under_its_name() -> None:
    exported = {value: name for name, value in vars(constants).items() if name.startswith("RES_")}
    assert exported == {code: error.name for code, error in LAST_ERRORS.items()}


@pytest.mark.parametrize("code", sorted(RETCODES))
def test_every_code_has_a_description_and_one_sentence_of_advice(code: int) -> None:
    retcode = RETCODES[code]
    assert retcode.description
    assert retcode.advice.endswith(".")
    assert retcode.advice.count(". ") == 0


def test_a_placed_deal_is_ambiguous_and_a_placed_pending_order_a_success() -> None:
    assert lookup(10008, ACTION_DEAL).retcode_class is RetcodeClass.AMBIGUOUS
    assert lookup(10008, ACTION_PENDING).retcode_class is RetcodeClass.SUCCESS


def test_no_changes_is_a_success_for_a_modification_only() -> None:
    assert lookup(10025, ACTION_SLTP).retcode_class is RetcodeClass.SUCCESS
    assert lookup(10025, ACTION_MODIFY).retcode_class is RetcodeClass.SUCCESS
    assert lookup(10025, ACTION_DEAL).retcode_class is RetcodeClass.FATAL


def test_an_invalid_price_is_tried_once_more_for_a_market_order_and_not_for_a_pending_one() -> None:
    market, pending = lookup(10015, ACTION_DEAL), lookup(10015, ACTION_PENDING)
    assert (market.retriable, market.max_retries) == (True, 1)
    assert pending.retcode_class is RetcodeClass.FATAL


def test_a_code_nobody_documented_is_ambiguous() -> None:
    unknown = lookup(12345)
    assert (unknown.name, unknown.retcode_class) == ("RETCODE_12345", RetcodeClass.AMBIGUOUS)


@pytest.mark.parametrize("code", [10011, 10012, 10028, 10031, 10039])
def test_what_the_server_does_not_state_to_be_without_effect_is_ambiguous(code: int) -> None:
    assert lookup(code).retcode_class is RetcodeClass.AMBIGUOUS


@pytest.mark.parametrize("code", [-10000, -10001, -10002, -10005, -1, 1, 4711])
def test_an_error_that_may_follow_a_send_leaves_the_order_unknown(code: int) -> None:
    assert lookup_error(code).order_effect is OrderEffect.UNKNOWN


@pytest.mark.parametrize("code", [-2, -8, -10003, -10004])
def test_an_error_found_before_anything_was_sent_proves_that_nothing_was(code: int) -> None:
    assert lookup_error(code).order_effect is OrderEffect.NOT_SENT


def test_the_page_of_the_return_codes_says_what_the_table_says() -> None:
    assert PAGE.read_text() == page(), "docs/retcodes.md is not what gateway/retcodes.py says: make docs"
