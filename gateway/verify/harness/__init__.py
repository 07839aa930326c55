"""Trusted programs that run inside the sandbox: `generate` makes inputs, `judge` runs a program on them.

Every file here imports the standard library and its neighbours only. In the sandbox there are no neighbours: the files
that a harness needs stand in front of it there (`sandbox/texts.py`), and all of them share one namespace, so no two of
them may define a name twice (a test looks).
"""
