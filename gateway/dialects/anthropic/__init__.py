"""Anthropic's Messages: its clients in front of any engine (`requests`, `answers`, `writing`), and its engines behind
any client (`asking`, `answers`, `reading`).

What chat has no words for travels in fields of its own, which `plain.py` lists, so that an engine that has them gets
them back: thinking with its signature, marks of what is to be cached, results that are errors.
"""
