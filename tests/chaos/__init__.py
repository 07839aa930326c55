"""Faults on purpose: a real gateway, real engine processes, clients that count what reached them.

`python -m tests.chaos` runs every fault and prints a table; `tests/process/test_chaos_short.py` runs a few in the unit
tests.
"""
