"""The shell around the ledger: broker, NATS, configuration, HTTP, command line."""
