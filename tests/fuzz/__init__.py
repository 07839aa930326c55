"""Odd bytes from both sides, by the thousand: `python -m tests.fuzz --help`.

Each fuzzer makes its cases from a seed and a number alone, so that any of them can be made again by `--seed` and
`--case`; what must hold is the same for all of them (`checks.py`) or stands in the fuzzer's own docstring.
"""
