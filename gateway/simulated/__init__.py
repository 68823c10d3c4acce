"""A MetaTrader 5 made here: a terminal module with the MetaTrader5 package's API and, in its own process, a broker.

The broker's state is on disk and outlives terminal and gateway, as a real broker's does, so that a killed gateway
finds what it did. Layers, each importing only those above it:

    constants, structs   what the package exports
    market               symbols, sessions and prices: a pure function of (seed, symbol, time)
    state                accounts, orders, deals, positions: changed only by applying effects
    trading              the rules: order_check and order_send share one judgement
    queries              selections of orders, deals, positions, symbols
    journal              effects on disk, replay, compaction
    link                 address, frames, and how a terminal finds or starts its broker
    arguments            how the package reads its arguments
    broker               the process
    terminal             the module object
"""
