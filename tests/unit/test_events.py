import msgspec
import pytest

from ledger import events
from ledger.errors import UnknownSchema
from ledger.events import TOPICS, BatchSealed, Envelope, Event, Recorded, decode, encode, seq_of
from ledger.facts import Fact
from ledger.order_events import OrderFailed, OrderFilled
from tests.make_frozen_events import EXAMPLES, FOLDER, path_of

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
    "order.outcome_unknown",
    "order.outcome_probed",
    "order.outcome_resolved",
    "order.partially_filled",
    "order.filled",
    "order.rejected",
    "order.failed",
    "order.anomaly_detected",
    "account.connected",
    "account.disconnected",
    "inbox.message_rejected",
    "writer.ledger_created",
    "writer.checkpointed",
    "writer.batch_sealed",
}


def stored(topic: str, state: bytes | None = None) -> Recorded:
    return Recorded(42, "order/ord_1", 1, topic, path_of(topic).read_bytes() if state is None else state)


def changed(topic: str, **fields: object) -> Recorded:
    whole = msgspec.json.decode(path_of(topic).read_bytes())
    data = whole["data"] | fields.pop("data", {})
    return stored(topic, msgspec.json.encode(whole | fields | {"data": data}))


# --- stored bytes stay readable (invariant I5) --------------------------------------------------------------------


@pytest.mark.parametrize("topic", sorted(STORED_TOPICS))
def test_stored_bytes_of_the_first_version_still_mean_the_same(topic):
    assert decode(stored(topic)) == EXAMPLES[topic]


@pytest.mark.parametrize("topic", sorted(STORED_TOPICS))
def test_what_is_written_today_is_what_was_written_then(topic):
    assert encode(EXAMPLES[topic]) == path_of(topic).read_bytes()


def test_every_topic_has_its_frozen_example():
    assert {path.stem for path in FOLDER.glob("*.json")} == TOPICS


def test_topics_are_unique_and_keep_their_names():
    assert len(TOPICS) == len(Event.__args__)
    assert STORED_TOPICS <= TOPICS


def test_every_event_says_its_topic_in_its_data():
    for topic, envelope in EXAMPLES.items():
        assert envelope.data.topic() == topic
        assert msgspec.json.decode(encode(envelope))["data"]["event"] == topic


def test_the_example_of_an_event_leaves_no_field_to_its_default():
    for topic, envelope in EXAMPLES.items():
        data = msgspec.json.decode(encode(envelope))["data"]
        assert data.keys() - {"event"} == set(type(envelope.data).__struct_fields__), topic


# --- how it is stored -------------------------------------------------------------------------------------------


def numbers_in(value: object) -> list[object]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in numbers_in(one)]
    return [value] if isinstance(value, float) else []


def test_amounts_are_stored_as_strings_and_nothing_as_a_float():
    for envelope in EXAMPLES.values():
        assert numbers_in(msgspec.json.decode(encode(envelope))) == []
    data = msgspec.json.decode(encode(EXAMPLES["order.filled"]))["data"]
    assert (data["volume"], data["commission"], data["remaining_volume"]) == ("0.3", "-0.35", "0")


def test_no_field_of_any_event_is_a_float():
    assert '"type":"number"' not in msgspec.json.encode(msgspec.json.schema(Envelope)).decode()


def test_data_is_last_in_the_envelope_and_the_digest_last_in_a_seal():
    for topic in TOPICS:
        assert list(msgspec.json.decode(path_of(topic).read_bytes()))[-1] == "data"
    assert path_of("writer.batch_sealed").read_bytes().endswith(b'"digest":"' + b"56" * 32 + b'"}}')
    assert BatchSealed.__struct_fields__[-1] == "digest"


def test_every_event_is_frozen_and_untracked_by_the_collector():
    for kind in Event.__args__:
        assert issubclass(kind, Fact)
        assert kind.__struct_config__.frozen
        assert kind.__struct_config__.gc is False


def test_the_seq_is_read_from_the_bytes_alone():
    assert seq_of(path_of("order.filled").read_bytes()) == 42
    with pytest.raises(msgspec.DecodeError):
        seq_of(b"\x00garbage")


def test_times_are_stored_as_utc_with_microseconds():
    whole = msgspec.json.decode(encode(EXAMPLES["order.failed"]))
    assert whole["recorded_at"] == "2026-03-01T12:00:00.123456Z"


# --- versions ---------------------------------------------------------------------------------------------------


def test_an_unknown_topic_is_refused_by_name():
    with pytest.raises(UnknownSchema, match=r"event 42 is a 'order\.teleported'.*upgrade"):
        decode(Recorded(42, "order/ord_1", 1, "order.teleported", path_of("order.failed").read_bytes()))


@pytest.mark.parametrize("data", [{}, {"attempts": "two"}, {"symbol": {"name": "EURUSD"}}, {"event": "order.broken"}])
def test_a_newer_schema_version_is_refused_however_its_data_looks(data):
    with pytest.raises(UnknownSchema, match="schema version 2, known is 1: upgrade"):
        decode(changed("order.failed", schema_version=2, data=data))


def test_a_schema_version_that_never_was_is_refused():
    with pytest.raises(UnknownSchema, match="schema version 0, known is 1"):
        decode(changed("order.failed", schema_version=0))


def test_data_of_a_known_version_that_fits_no_event_is_an_error_of_its_own():
    with pytest.raises(msgspec.DecodeError):
        decode(changed("order.failed", data={"attempts": "two"}))
    with pytest.raises(msgspec.DecodeError):
        decode(stored("order.failed", b"{}"))


def test_a_field_of_a_later_version_with_the_same_schema_is_ignored():
    assert decode(changed("order.failed", data={"mood": "good"})) == EXAMPLES["order.failed"]


def test_an_older_schema_version_is_lifted_by_its_upcasters(monkeypatch):
    def lift(data):
        return data | {"reason": f"{data['reason']} (lifted)"}

    monkeypatch.setitem(events.SCHEMA_VERSIONS, "order.failed", 3)
    monkeypatch.setitem(events.UPCASTERS, ("order.failed", 1), lift)
    monkeypatch.setitem(events.UPCASTERS, ("order.failed", 2), lift)
    assert decode(stored("order.failed")).data == msgspec.structs.replace(
        EXAMPLES["order.failed"].data, reason="proven absent (lifted) (lifted)"
    )
    assert decode(changed("order.failed", schema_version=2)).data.reason == "proven absent (lifted)"
    assert decode(changed("order.failed", schema_version=3)).data == EXAMPLES["order.failed"].data
    with pytest.raises(UnknownSchema, match="schema version 4, known is 3"):
        decode(changed("order.failed", schema_version=4))


def test_lifted_numbers_and_times_are_what_they_were(monkeypatch):
    monkeypatch.setitem(events.SCHEMA_VERSIONS, "order.filled", 2)
    monkeypatch.setitem(events.UPCASTERS, ("order.filled", 1), lambda data: data)
    lifted = decode(stored("order.filled"))
    assert isinstance(lifted.data, OrderFilled)
    assert lifted.data == EXAMPLES["order.filled"].data
    assert (lifted.seq, lifted.recorded_at) == (42, EXAMPLES["order.filled"].recorded_at)


def test_a_default_is_not_stored_so_that_a_new_field_changes_no_old_bytes():
    state = encode(
        msgspec.structs.replace(EXAMPLES["order.failed"], data=OrderFailed(symbol="", category="c", reason=""))
    )
    assert b"attempts" not in state
    assert b"retriable" not in state
