"""A MetaTrader 5 made here: a terminal module with the MetaTrader5 package's API and, in its own process, a broker.

The broker's state is on disk and outlives terminal and gateway, as a real broker's does, so that a killed gateway
finds what it did. docs/mt5.md tells what is modelled. Layers, each importing only those above it:

    constants, structs   what the package exports
    symbols, market      symbols, sessions and prices: a pure function of (seed, symbol, time)
    rows, watch, state   accounts, orders, deals, positions: changed only by applying effects
    money, prices        what the account is worth; where a request's numbers may lie
    plans, judge         the rules: order_check and order_send share one judgement
    execution            what an accepted request does
    clockwork            what happens without a request: activations, stops, expirations, swap, stop-out
    trading, queries     order_check, order_send, and what can be asked
    faults               what is made to go wrong, by script
    journal              effects on disk, replay, compaction
    link                 address, frames, and how a terminal finds or starts its broker
    control, service     acting from outside; one request and its reply
    broker               the process
    arguments            how the package reads its arguments
    charts               the past as numpy arrays
    market_calls, terminal, helpers   the module object
    window               the verbs of `order-ledger sim`
"""
