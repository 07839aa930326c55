"""Side-by-side measurements of the gateway and its peers (`python -m tests.bench`), and mixed load (`.mixed`).

Nothing here asserts a speed; the unit tests import `mixedreport` of this package, and nothing else.
"""
