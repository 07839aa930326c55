"""Doing the work once: answers that are kept, calls that are shared, queries that leave together."""
