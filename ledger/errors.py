"""What can go wrong with a ledger.

LedgerError                 base: one clear line, with the remedy
 ├─ LedgerUnavailable       the database cannot be opened, read or written now
 │   └─ DiskFull            there is no room for it: nothing of it was stored
 ├─ LedgerLocked            another writer holds the lock of this ledger
 ├─ LedgerFenced            another writer has committed: this one is stale and must stop
 ├─ ForeignLedger           the ledger belongs to another account, server or ledger id
 ├─ UnknownSchema           an event was stored by a newer version than this one
 ├─ LedgerDamaged           stored events contradict their seals; names the first bad seq
 ├─ BackupUnusable          a backup cannot be made there, or what is there is none
 └─ SinkAhead               a projection holds what this ledger does not: restored backup or wrong folder
InvariantViolated           a programming error that would endanger money: the process stops
"""


class LedgerError(Exception):
    """Base of the expected failures of the ledger; its text is one line for a person."""


class LedgerUnavailable(LedgerError):
    pass


class DiskFull(LedgerUnavailable):
    pass


class LedgerLocked(LedgerError):
    pass


class LedgerFenced(LedgerError):
    pass


class ForeignLedger(LedgerError):
    pass


class UnknownSchema(LedgerError):
    pass


class LedgerDamaged(LedgerError):
    """`first_bad_seq` is the lowest sequence number that cannot be trusted."""

    def __init__(self, text: str, first_bad_seq: int) -> None:
        super().__init__(text)
        self.first_bad_seq = first_bad_seq


class BackupUnusable(LedgerError):
    pass


class SinkAhead(LedgerError):
    pass


class InvariantViolated(Exception):
    """Not a LedgerError on purpose: nothing may catch it and go on."""
