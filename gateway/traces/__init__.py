"""Distributed traces: where a request stands in one, the spans that are made of it, and their way to a collector."""
