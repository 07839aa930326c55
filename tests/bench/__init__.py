"""Side-by-side measurements of the gateway and its peers: `python -m tests.bench`.

Nothing here asserts a speed; the unit tests never import this package.
"""
