"""Tests that start processes: the gateway as it is run, its scripts, other programs."""
