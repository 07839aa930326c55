"""What clients and engines say in other words than OpenAI's chat: pure translations, at the two ends of a way.

`dialect.py` says what a translation is. Nothing here does I/O, reads a clock or the environment, or holds a lock.
"""
