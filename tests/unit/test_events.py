from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from ledger import events
from ledger.errors import UnknownSchema
from ledger.events import (
    TOPICS,
    UPCASTERS,
    BatchSealed,
    Envelope,
    Event,
    Recorded,
    decode,
    encode,
    schema_version,
    seq_of,
)
from ledger.facts import Fact
from ledger.order_events import OrderFailed, OrderFilled
from tests.make_frozen_events import EXAMPLES, FOLDER, READ, main, path_of, topic_of, version_of

# Names that stand in stored ledgers: one may be added, none may go or change.
STORED_TOPICS = {
    "order.requested",
    "order.duplicate_received",
    "order.conflict_received",
    "order.refused",
    "order.stale",
    "order.checked",
    "order.send_started",
    "order.broker_answered",
    "order.send_abandoned",
    "order.retry_scheduled",
    "order.parked",
    "order.outcome_unknown",
    "order.outcome_probed",
    "order.outcome_resolved",
    "order.placed",
    "order.partially_filled",
    "order.filled",
    "order.fill_corrected",
    "order.fill_costs_changed",
    "order.modified",
    "order.cancelled",
    "order.expired",
    "order.completed",
    "order.rejected",
    "order.failed",
    "order.anomaly_detected",
    "account.connected",
    "account.disconnected",
    "account.login_refused",
    "account.external_deal_observed",
    "account.halted",
    "account.resumed",
    "account.control_received",
    "account.alert_raised",
    "account.configuration_accepted",
    "account.configuration_refused",
    "account.reconciled",
    "account.position_corrected",
    "account.snapshot_taken",
    "inbox.message_rejected",
    "writer.ledger_created",
    "writer.checkpointed",
    "writer.took_over",
    "writer.head_signed",
    "writer.batch_sealed",
}
FILES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.json"))


def stored(name: str, state: bytes | None = None) -> Recorded:
    return Recorded(42, "order/ord_1", 1, topic_of(name), path_of(name).read_bytes() if state is None else state)


def changed(name: str, **fields: object) -> Recorded:
    whole = msgspec.json.decode(path_of(name).read_bytes())
    data = whole["data"] | fields.pop("data", {})
    return stored(name, msgspec.json.encode(whole | fields | {"data": data}))


# --- stored bytes stay readable (invariant I5) --------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_stored_bytes_of_every_version_still_mean_the_same(name):
    assert decode(stored(name)) == READ[name]


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_today_is_what_was_written_then(name):
    assert encode(EXAMPLES[name]) == path_of(name).read_bytes()


def test_every_topic_has_frozen_bytes_of_each_of_its_versions_and_nothing_else_has():
    frozen = {(topic_of(name), version_of(name)) for name in FILES}
    assert frozen == {(topic, version) for topic in TOPICS for version in range(1, schema_version(topic) + 1)}
    assert set(FILES) == EXAMPLES.keys()


def test_every_version_but_the_last_has_its_upcaster_and_no_other_has():
    wanted = {(topic, version) for topic in TOPICS for version in range(1, schema_version(topic))}
    assert UPCASTERS.keys() == wanted


@pytest.mark.parametrize("name", FILES)
def test_frozen_bytes_say_their_topic_and_version(name):
    whole = msgspec.json.decode(path_of(name).read_bytes())
    assert (whole["data"]["event"], whole["schema_version"]) == (topic_of(name), version_of(name))


def test_frozen_bytes_are_never_overwritten(tmp_path: Path):
    kept = path_of("v1/order.failed", tmp_path)
    kept.parent.mkdir()
    kept.write_bytes(b"as it was")
    main(tmp_path)
    assert kept.read_bytes() == b"as it was"
    written = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.json")}
    assert written == EXAMPLES.keys()


def test_topics_are_unique_and_keep_their_names():
    assert len(TOPICS) == len(Event.__args__)
    assert STORED_TOPICS <= TOPICS


def test_every_event_says_its_topic_in_its_data():
    for name, envelope in EXAMPLES.items():
        assert envelope.data.topic() == topic_of(name)
        assert msgspec.json.decode(encode(envelope))["data"]["event"] == topic_of(name)


def shown(value: object, data: object, found: dict[type, set[str]]) -> dict[type, set[str]]:
    """The stored fields of every struct inside a value, by type."""
    if isinstance(value, msgspec.Struct):
        found.setdefault(type(value), set()).update(data.keys() - {"event"})
        for name in value.__struct_fields__:
            shown(getattr(value, name), data.get(name), found)
    elif isinstance(value, tuple):
        for one, its_data in zip(value, data or (), strict=True):
            shown(one, its_data, found)
    return found


def test_the_examples_together_leave_no_field_of_any_stored_struct_to_its_default():
    found: dict[type, set[str]] = {}
    for envelope in EXAMPLES.values():
        shown(envelope, msgspec.json.decode(encode(envelope)), found)
    assert found.keys() >= set(Event.__args__)
    for kind, fields in found.items():
        assert fields == set(kind.__struct_fields__), kind


def test_every_struct_that_can_be_stored_stands_in_an_example():
    found: dict[type, set[str]] = {}
    for envelope in EXAMPLES.values():
        shown(envelope, msgspec.json.decode(encode(envelope)), found)
    assert {kind.__name__ for kind in found} == {
        name.rpartition(".")[2] for name in msgspec.json.schema(Envelope)["$defs"]
    }


# --- how it is stored -------------------------------------------------------------------------------------------


def numbers_in(value: object) -> list[object]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in numbers_in(one)]
    return [value] if isinstance(value, float) else []


def test_amounts_are_stored_as_strings_and_nothing_as_a_float():
    for envelope in EXAMPLES.values():
        assert numbers_in(msgspec.json.decode(encode(envelope))) == []
    data = msgspec.json.decode(encode(EXAMPLES["v1/order.filled"]))["data"]
    assert (data["volume"], data["commission"], data["remaining_volume"]) == ("0.3", "-0.35", "0")


def test_no_field_of_any_event_is_a_float():
    assert '"type":"number"' not in msgspec.json.encode(msgspec.json.schema(Envelope)).decode()


def test_data_is_last_in_the_envelope_and_the_digest_last_in_a_seal():
    for name in FILES:
        assert list(msgspec.json.decode(path_of(name).read_bytes()))[-1] == "data"
    assert path_of("v1/writer.batch_sealed").read_bytes().endswith(b'"digest":"' + b"56" * 32 + b'"}}')
    assert BatchSealed.__struct_fields__[-1] == "digest"


def test_every_event_is_frozen_and_untracked_by_the_collector():
    for kind in Event.__args__:
        assert issubclass(kind, Fact)
        assert kind.__struct_config__.frozen
        assert kind.__struct_config__.gc is False


def test_the_seq_is_read_from_the_bytes_alone():
    assert seq_of(path_of("v1/order.filled").read_bytes()) == 42
    with pytest.raises(msgspec.DecodeError):
        seq_of(b"\x00garbage")


def test_times_are_stored_as_utc_with_microseconds():
    whole = msgspec.json.decode(encode(EXAMPLES["v1/order.failed"]))
    assert whole["recorded_at"] == "2026-03-01T12:00:00.123456Z"


# --- versions ---------------------------------------------------------------------------------------------------


def test_an_unknown_topic_is_refused_by_name():
    with pytest.raises(UnknownSchema, match=r"event 42 is a 'order\.teleported'.*upgrade"):
        decode(Recorded(42, "order/ord_1", 1, "order.teleported", path_of("v1/order.failed").read_bytes()))


@pytest.mark.parametrize("data", [{}, {"attempts": "two"}, {"symbol": {"name": "EURUSD"}}, {"event": "order.broken"}])
def test_a_newer_schema_version_is_refused_however_its_data_looks(data):
    with pytest.raises(UnknownSchema, match="schema version 2, known is 1: upgrade"):
        decode(changed("v1/order.failed", schema_version=2, data=data))


def test_a_schema_version_that_never_was_is_refused():
    with pytest.raises(UnknownSchema, match="schema version 0, known is 1"):
        decode(changed("v1/order.failed", schema_version=0))


def test_data_of_a_known_version_that_fits_no_event_is_an_error_of_its_own():
    with pytest.raises(msgspec.DecodeError):
        decode(changed("v1/order.failed", data={"attempts": "two"}))
    with pytest.raises(msgspec.DecodeError):
        decode(stored("v1/order.failed", b"{}"))


def test_a_field_of_a_later_version_with_the_same_schema_is_ignored():
    assert decode(changed("v1/order.failed", data={"mood": "good"})) == EXAMPLES["v1/order.failed"]


def test_an_older_schema_version_is_lifted_by_its_upcasters(monkeypatch):
    def lift(data):
        return data | {"reason": f"{data['reason']} (lifted)"}

    monkeypatch.setitem(events.SCHEMA_VERSIONS, "order.failed", 3)
    monkeypatch.setitem(events.UPCASTERS, ("order.failed", 1), lift)
    monkeypatch.setitem(events.UPCASTERS, ("order.failed", 2), lift)
    assert decode(stored("v1/order.failed")).data == msgspec.structs.replace(
        EXAMPLES["v1/order.failed"].data, reason="proven absent (lifted) (lifted)"
    )
    assert decode(changed("v1/order.failed", schema_version=2)).data.reason == "proven absent (lifted)"
    assert decode(changed("v1/order.failed", schema_version=3)).data == EXAMPLES["v1/order.failed"].data
    with pytest.raises(UnknownSchema, match="schema version 4, known is 3"):
        decode(changed("v1/order.failed", schema_version=4))


@pytest.mark.parametrize(("limit_s", "cause"), [("30.0", "age"), ("0", "valid_until"), ("0.0", "valid_until")])
def test_an_old_stale_order_says_its_cause_by_its_limit(limit_s, cause):
    old = decode(changed("v1/order.stale", data={"limit_s": limit_s}))
    assert (old.data.cause, old.data.age_s, old.schema_version) == (cause, Decimal("30.001"), 1)
    assert decode(stored("v2/order.stale")).data.cause == "life"


def test_the_fields_that_old_events_got_later_are_absent_in_old_bytes():
    assert decode(stored("v1/order.send_started")).data.before is None
    resolved = decode(stored("v1/order.outcome_resolved")).data
    assert (resolved.orders, resolved.history, resolved.positions, resolved.deals) == ((), (), (), ())


def test_lifted_numbers_and_times_are_what_they_were(monkeypatch):
    monkeypatch.setitem(events.SCHEMA_VERSIONS, "order.filled", 2)
    monkeypatch.setitem(events.UPCASTERS, ("order.filled", 1), lambda data: data)
    lifted = decode(stored("v1/order.filled"))
    assert isinstance(lifted.data, OrderFilled)
    assert lifted.data == EXAMPLES["v1/order.filled"].data
    assert (lifted.seq, lifted.recorded_at) == (42, EXAMPLES["v1/order.filled"].recorded_at)


def test_a_default_is_not_stored_so_that_a_new_field_changes_no_old_bytes():
    state = encode(
        msgspec.structs.replace(EXAMPLES["v1/order.failed"], data=OrderFailed(symbol="", category="c", reason=""))
    )
    assert b"attempts" not in state
    assert b"retriable" not in state
