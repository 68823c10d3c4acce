"""PURE: the state of the trading account, folded from its stream: connection, halts, configuration.

A halt stands until its own source lifts it: a new configuration never lifts what an operator ordered.
"""

from typing import Final, assert_never

import msgspec

from ledger.account_events import (
    AccountConnected,
    AccountDisconnected,
    AccountEvent,
    AccountReconciled,
    AlertRaised,
    ConfigurationAccepted,
    ConfigurationRefused,
    ControlReceived,
    DealsFollowed,
    ExternalDealObserved,
    LoginRefused,
    PositionCorrected,
    SnapshotTaken,
    TradingHalted,
    TradingResumed,
)

HALT_SOURCES: Final = ("operator", "configuration", "limit", "heartbeat")


class Account(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`halts`: those in force, at most one of each source, in the order they came."""

    connected: bool = False
    refused: str = ""
    halts: tuple[TradingHalted, ...] = ()
    config_version: str = ""

    @property
    def halted(self) -> str:
        """Why nothing may open or add to a position, in one line; empty when nothing is halted."""
        return "; ".join(f"{halt.source}: {halt.reason}" for halt in self.halts)

    def halt(self, source: str) -> TradingHalted | None:
        """The halt of this source, if it is in force."""
        return next((halt for halt in self.halts if halt.source == source), None)


def evolve_account(account: Account, event: AccountEvent) -> Account:
    """The state after the event."""
    changes: dict[str, object] = {}
    match event:
        case AccountConnected():
            changes |= {"connected": True, "refused": ""}
        case AccountDisconnected():
            changes["connected"] = False
        case LoginRefused():
            changes |= {"connected": False, "refused": event.reason}
        case TradingHalted():
            others = tuple(halt for halt in account.halts if halt.source != event.source)
            changes["halts"] = (*others, event)
        case TradingResumed():
            changes["halts"] = tuple(halt for halt in account.halts if halt.source != event.source)
        case ConfigurationAccepted():
            changes["config_version"] = event.version
        case ExternalDealObserved() | DealsFollowed() | ConfigurationRefused() | AccountReconciled() | SnapshotTaken():
            pass
        case ControlReceived() | AlertRaised() | PositionCorrected():
            pass
        case _:
            assert_never(event)
    return msgspec.structs.replace(account, **changes)
