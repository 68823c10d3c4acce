"""What is derived from the ledger and can be deleted and rebuilt. Imports `ledger` only."""
