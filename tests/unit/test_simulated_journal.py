from pathlib import Path

import pytest

from gateway.simulated import journal as journal_module
from gateway.simulated.journal import Journal, JournalDamaged
from gateway.simulated.rows import World
from gateway.simulated.service import Broker
from gateway.simulated.state import State
from tests.simulated import Clock, mt5_request


def traded(folder: Path, trades: int) -> Broker:
    broker = Broker(folder, World(), Clock())
    for _ in range(trades):
        broker.trading.send(mt5_request())
    broker.journal.close()
    return broker


def replayed(folder: Path) -> State:
    state = State()
    journal = Journal(folder / "journal.bin")
    journal.replay(state)
    journal.close()
    return state


def test_a_replay_gives_the_state_that_was(tmp_path: Path) -> None:
    broker = traded(tmp_path, 5)
    assert list(replayed(tmp_path).as_effects()) == list(broker.state.as_effects())


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 50])
def test_an_incomplete_last_record_is_cut_off_and_writing_goes_on(tmp_path: Path, cut: int) -> None:
    traded(tmp_path, 3)
    path = tmp_path / "journal.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    assert len(replayed(tmp_path).deals) == 3  # the deposit is one
    broker = traded(tmp_path, 1)
    assert len(broker.state.deals) == len(replayed(tmp_path).deals) == 4


def test_a_changed_record_is_damage_and_not_a_shorter_history(tmp_path: Path) -> None:
    traded(tmp_path, 3)
    path = tmp_path / "journal.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalDamaged):
        replayed(tmp_path)


def test_a_large_journal_is_compacted_at_the_start_with_the_same_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(tmp_path, World(), Clock())
    for _ in range(20):
        ticket = broker.trading.send(mt5_request(volume=0.02))[0][2]
        broker.trading.send(mt5_request(type=1, position=ticket))
        broker.trading.send(mt5_request(type=1, position=ticket))
    broker.journal.close()
    size = (tmp_path / "journal.bin").stat().st_size
    monkeypatch.setattr(journal_module, "COMPACT_ABOVE_BYTES", 1000)
    assert list(replayed(tmp_path).as_effects()) == list(broker.state.as_effects())
    assert (tmp_path / "journal.bin").stat().st_size < size * 0.9
    assert list(replayed(tmp_path).as_effects()) == list(broker.state.as_effects())


def test_a_folder_goes_on_in_the_world_it_was_created_in(tmp_path: Path) -> None:
    Broker(tmp_path, World(seed=5, login=42), Clock()).journal.close()
    later = Broker(tmp_path, World(seed=6, login=43), Clock())
    later.journal.close()
    assert (later.state.world.seed, later.state.world.login) == (5, 42)


def test_a_moved_price_is_remembered(tmp_path: Path) -> None:
    clock = Clock()
    first = Broker(tmp_path, World(), clock)
    first.control.do("price", {"symbol": "EURUSD", "points": 700})
    moved = first.market.quote("EURUSD", clock.ms)
    first.journal.close()
    second = Broker(tmp_path, World(), clock)
    second.journal.close()
    assert second.market.quote("EURUSD", clock.ms) == moved
