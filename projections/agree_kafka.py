"""Whether Kafka holds exactly what the ledger holds: content, order of every key, and signed heads."""

import time
from collections.abc import Iterable
from itertools import takewhile
from typing import Final

from ledger.events import HeadSigned, Recorded
from ledger.store import EventStore
from projections.agree import Agreement, compare, scan
from projections.kafka_log import KafkaLog, OutOfPlace

CATCH_UP_S: Final = 5.0
LOOK_AGAIN_S: Final = 0.25
_SIGNED: Final = HeadSigned.topic()


def agree_kafka(
    store: EventStore, log: KafkaLog, ledger_id: str, *, catch_up_s: float = CATCH_UP_S
) -> tuple[Agreement, Agreement]:
    """`broker_communication_log` byte for byte, and `broker_communication_seals` against the signed heads.

    What the ledger holds at this moment is waited for: a running mirror is a little behind. Raises LedgerUnavailable.
    """
    head = store.head()
    last = head.seq if head else 0
    deadline = time.monotonic() + catch_up_s
    while (held := log.last_seq(ledger_id)) < last and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_S)
    # What was committed since then is left out, unless Kafka holds it too.
    end = max(last, held)

    def ledger() -> Iterable[Recorded]:
        return takewhile(lambda one: one.seq <= end, scan(store))

    heads = (one for one in ledger() if one.topic == _SIGNED)
    return (
        _compared(f"kafka.{log.topic}", ledger(), log.read(ledger_id)),
        _compared(f"kafka.{log.seals_topic}", heads, log.heads(ledger_id)),
    )


def _compared(name: str, ledger: Iterable[Recorded], held: Iterable[Recorded]) -> Agreement:
    try:
        return compare(name, ledger, held)
    except OutOfPlace as found:
        return Agreement(projection=name, compared=0, ledger=0, held=0, seq=found.seq, difference=str(found))
