"""The truth: the pure domain of an order's life and the event store that keeps it.

Imports neither `gateway` nor `projections`.
"""
