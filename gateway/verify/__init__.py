"""Asks several models, runs what they wrote, and answers with what agrees."""
