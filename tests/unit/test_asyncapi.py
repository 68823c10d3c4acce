"""The AsyncAPI document is what the types of the messages say, whole, and in itself consistent."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import pytest

from gateway import interface as api
from gateway.messages import Message
from ledger.intake import ACTIONS, read_order
from tests.make_asyncapi import FILE, REQUIRED, order_schema, text


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def test_it_is_current():
    assert FILE.read_text() == text(), "run `make docs`"


def test_every_reference_leads_somewhere(stored):
    for reference in references(stored):
        found = stored
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_every_subject_of_the_service_is_described(stored):
    addresses = {one["address"] for one in stored["channels"].values() if one["address"]}
    kinds = {"broker.fill.{symbol}", "broker.error.{symbol}", "broker.order.{symbol}", "broker.alert.{kind}"}
    orders = {"orders.submitted.{symbol}", "orders.account.{login}.{symbol}", "orders.heartbeat"}
    asked = {f"broker.query.{one}" for one in api.QUERIES} | {f"broker.control.{one}" for one in api.CONTROLS}
    assert addresses == kinds | orders | asked


def test_every_channel_has_an_operation_and_requests_have_a_reply(stored):
    used = {one["channel"]["$ref"] for one in stored["operations"].values()}
    used |= {one["reply"]["channel"]["$ref"] for one in stored["operations"].values() if "reply" in one}
    assert used == {f"#/channels/{name}" for name in stored["channels"]}


def test_the_examples_of_news_are_messages(stored):
    for kind in ("Fill", "Error", "Order", "Alert"):
        examples = stored["components"]["messages"][f"{kind}News"]["examples"]
        assert examples
        for example in examples:
            assert msgspec.convert(example["payload"], Message, strict=False).event_id


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_required_is_what_the_gateway_requires(action):
    """Of a sound message nothing that is required can be left out."""
    fields = {
        "open": {"symbol": "EURUSD", "order_type": "buy", "volume": 1},
        "close": {"position_id": 7},
        "modify": {"position_id": 7, "sl": 1.1},
        "cancel": {"order_ticket": 7},
        "close_by": {"position_id": 7, "position_by_id": 8},
    }[action]
    whole = {"order_id": "o-1", "action": action} | fields
    assert read_order(orjson.dumps(whole)).reasons == ()
    assert set(whole) <= set(order_schema(action)["properties"])
    for one in ["order_id", *(field for field in fields if field in str(REQUIRED[action]))]:
        without = {field: value for field, value in whole.items() if field != one}
        assert read_order(orjson.dumps(without)).reasons != (), one
