"""Our view of the account is kept in a file, and is the same wherever the fold of it began."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway import view as module
from gateway.reader import Holdings, ReaderSettings, answer
from gateway.view import LedgerView
from tests.gateway_desk import Desk, desk_in


@pytest.fixture(autouse=True)
def saved_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_AFTER", 1)


def told(view: LedgerView) -> tuple[Any, ...]:
    return view.seq, view.positions, view.tickets, view.deals


async def folded(desk: Desk, file: Path) -> LedgerView:
    view = LedgerView(desk.store, file)
    await view.catch_up()
    return view


async def test_a_kept_view_goes_on_where_it_ended(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d") as desk:
        await desk.open("o-1", sl=1.05)
        await folded(desk, tmp_path / "view.json")
        await desk.open("o-2", order_type="sell")
        kept, fresh = await folded(desk, tmp_path / "view.json"), await folded(desk, tmp_path / "other.json")
        assert told(kept) == told(fresh)
        assert len(kept.positions) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"seq":5,"sha256":"00","positions":{},"tickets":{},"deals":{}}'])
async def test_a_kept_view_that_is_not_of_this_ledger_is_made_again(tmp_path: Path, damage: str) -> None:
    async with desk_in(tmp_path / "d") as desk:
        await desk.open("o-1")
        (tmp_path / "view.json").write_text(damage)
        assert told(await folded(desk, tmp_path / "view.json")) == told(await folded(desk, tmp_path / "other.json"))


async def test_what_is_open_now_is_told_from_the_kept_view_as_the_whole_ledger_tells_it(tmp_path: Path) -> None:
    async with desk_in(tmp_path / "d", reconciles=True) as desk:
        reader = LedgerView(desk.store, tmp_path / "none.json")
        settings = ReaderSettings(ledger_url="", data="")
        for number, kind in enumerate(["buy", "sell", "buy"]):
            opened = await desk.open(f"o-{number}", order_type=kind, sl=0.5 if kind == "buy" else 1.5)
            if number == 1:
                await desk.submit("closing", action="close", position_id=opened.position_id)
                await desk.ended("closing")
            whole = answer(desk.store, settings, Holdings(as_of=datetime.max.replace(tzinfo=UTC)), reader)
            assert reader.seq < desk.store.head().seq
            told = answer(desk.store, settings, Holdings(), reader).body["positions"]
            assert told == whole.body["positions"]
        assert len(told) == 2
