"""The mock engine: what stands behind the gateway in tests, demonstrations and load tests.

Nothing is imported here, so that `python -m gateway.mock` handles Ctrl-C before it imports the rest.
"""
