"""`python main.py loadtest URL`: load for an OpenAI-style server, and what it makes of it (docs/LOADTEST.md).

`command` says what happens in which order. `options` (over `durations`, `thresholds`, `prompts`) reads the command
line; `arrivals` says when requests are due, `requests` what they are; `loop` (over `schedule`, `connections`,
`exchange`, `events`) asks; `measures` (over `histogram`) keeps what came of it; `result` makes one JSON document of
that, `table`, `page` (over `charts`, `figures`) and `progress` show it. Nothing here knows the gateway: it is measured
from outside.
"""
