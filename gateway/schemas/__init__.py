"""Whether an answer fits a schema: JSON Schema 2020-12 as structured outputs use it.

`schema.py` compiles a schema and checks values, `reading.py` makes a value of a model's text and says what is wrong
with it, `tools.py` does so for calls of strict functions, `registry.py` keeps schemas by name. Nothing here but the
registry does I/O; nothing reads a clock or the environment.
"""
