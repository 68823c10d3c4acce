"""The document of the HTTP API, and the reading of parameters by it."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http_api import ROUTES
from gateway.openapi import BadParameter, document, read_parameters

BY_NAME = {route.name: route for route in ROUTES}
DOCUMENT = document(ROUTES, "1.0")


def read(route: str, *query: tuple[str, str], **path: str) -> dict[str, object]:
    return read_parameters(BY_NAME[route], path, query)


def test_what_is_not_given_has_its_default():
    assert read("orders") == {
        "state": [], "symbol": "", "open": False, "since": None, "until": None, "before": 0, "limit": 100,
    }  # fmt: skip


def test_what_is_given_is_read():
    found = read("orders", ("state", "filled"), ("state", "parked"), ("open", "true"), ("until", "2026-03-01"))
    assert (found["state"], found["open"]) == (["filled", "parked"], True)
    assert found["until"] == datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ([("limit", "0")], "limit must be a whole number from 1 to 500"),
        ([("limit", "١")], "limit must be a whole number"),
        ([("limit", "9" * 30)], "limit must be a whole number"),
        ([("limit", "1"), ("limit", "2")], "limit stands twice"),
        ([("state", "new")], "state must be one of requested"),
        ([("open", "yes")], "open must be true or false"),
        ([("since", "yesterday")], "since 'yesterday' is no time"),
        ([("symbol", "")], "symbol must be"),
        ([("symbol", "\udcff")], "symbol must be"),
        ([("symbol", "A" * 65)], "symbol must be"),
        ([("sql", "1")], "unknown parameter 'sql'"),
    ],
)
def test_a_parameter_that_is_not_what_it_must_be_is_refused_by_name(query, told):
    with pytest.raises(BadParameter, match=told):
        read("orders", *query)


@pytest.mark.parametrize("order_id", ["", "a/b", "../x", "a b", "a" * 65, "a\n", "ä", "%2e%2e"])
def test_no_path_names_anything_but_an_order(order_id):
    with pytest.raises(BadParameter):
        read("order", order_id=order_id)


@given(st.sampled_from(ROUTES), st.lists(st.tuples(st.text(), st.text()), max_size=4))
def test_whatever_is_asked_it_is_read_or_refused(route, query):
    try:
        read_parameters(route, {}, query)
    except BadParameter as refused:
        assert str(refused)


def test_every_route_is_described_with_all_it_may_answer():
    for route in ROUTES:
        told = DOCUMENT["paths"][route.path][route.method.lower()]
        assert told["operationId"] == route.name
        assert {"400", "429"} | {str(status) for status in route.replies} <= set(told["responses"])
        assert ("401" in told["responses"]) == (route.roles is not None)
        assert [one["name"] for one in told.get("parameters", [])] == [one.name for one in route.parameters]


def test_every_reference_leads_somewhere():
    text = json.dumps(DOCUMENT)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(DOCUMENT["components"]["schemas"])
