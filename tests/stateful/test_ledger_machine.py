"""Whatever happens to a ledger, its promises hold: the rules and the checks are in `machine.py`.

`make long` lives through many more lives than `make test` does, and tells what they met.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contracts.conftest import Place
from tests.servers import postgres_server
from tests.stateful.machine import LedgerMachine

LIVES = int(os.environ.get("LIVES", "200"))
SETTINGS = settings(
    max_examples=LIVES,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short life meets several batches and checkpoints."""
    monkeypatch.setattr("ledger.writer.MAX_BATCH", 3)
    monkeypatch.setattr("ledger.writer.CHECKPOINT_EVERY", 12)


@pytest.fixture(scope="module", autouse=True)
def statistics(request: pytest.FixtureRequest) -> Iterator[None]:
    """A long run tells at its end what its lives met: what is never met is not tested."""
    yield
    if "LIVES" in os.environ:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\nmet in {LIVES:,} lives, and one for each twenty on PostgreSQL:")
            for what, times in sorted(LedgerMachine.lives.items()):
                print(f"{times:9,}  {what}")


class TestNothingIsLostAndNothingIsSentTwice(LedgerMachine.TestCase):
    settings = SETTINGS


def test_the_same_holds_on_postgresql():
    with postgres_server() as server:

        class OnPostgres(LedgerMachine):
            url = server

            def __init__(self) -> None:
                Place("postgresql", server).run("DROP TABLE IF EXISTS stored_events")
                super().__init__()

        run_state_machine_as_test(OnPostgres, settings=settings(SETTINGS, max_examples=max(LIVES // 20, 1)))
