"""The simulated terminal under `order-ledger serve`: faults of the environment, and the window while it runs."""

from pathlib import Path

import orjson

from tests.service import Service, market_order


def test_a_service_meets_the_faults_it_is_started_with_and_the_window_shows_what_it_did(tmp_path: Path) -> None:
    """SIMULATED_FAULTS"""
    service = Service(tmp_path / "d", SIMULATED_FAULTS="requote*1; comment=dealer*1")
    order = tmp_path / "order.json"
    order.write_bytes(orjson.dumps(market_order("met-1")))
    try:
        service.start()
        outcome = orjson.loads(service.cli("submit", str(order), "--json").stdout)
        [deposit, deal] = orjson.loads(service.cli("sim", "deals", "--json").stdout)
        assert (outcome["retcode"], outcome["attempts"]) == (10009, 2)
        assert (deal["ticket"], deal["comment"]) == (outcome["deal"], "dealer")
        assert deposit["symbol"] == ""
        assert orjson.loads(service.cli("sim", "fault", "--json").stdout) == {"rules": []}
    finally:
        service.end()
