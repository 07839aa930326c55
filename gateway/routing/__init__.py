"""Where a request goes: engines' state, strategies, health decisions, judging outcomes. No I/O.

Nothing in this package imports http, urllib, socket, threading.Timer or os.environ; time and
randomness come in as arguments.
"""
