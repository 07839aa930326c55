"""`python -m tests.conformance`: the OpenAPI document is one, and a running gateway answers as it says.

openapi-spec-validator looks at the document, schemathesis asks every operation with what the document allows and with
what it does not: always the same requests, some two thousand. Both come with .ci/requirements.txt; ends with
schemathesis' exit status.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import gateway_process, mock_engine

KEY = "an-administrators-key-of-the-conformance-test"
LIMIT_S = 240
EXAMPLES = 10  # for each operation
# What JSON Schema cannot say is refused with a reason: a name that is taken, a pair of tests without a function, 75.0
# for an integer. So not everything that fits the document can be accepted.
NOT_CHECKED = "positive_data_acceptance"
# An engine that exists: an id that is made up would always be 404.
CONFIG = """
[[operations]]
include-path-regex = "^/admin/engines/"
parameters = { "path.id" = "spare" }
"""


def validate(*documents: dict[str, Any]) -> None:
    """Raise for what is no OpenAPI."""
    from openapi_spec_validator import validate as validate_document

    for document in documents:
        validate_document(document)


def conform() -> int:
    """Ask a gateway with keys in front of three mock engines; returns schemathesis' exit status."""
    with mock_engine("13b") as first, mock_engine("13b") as second, mock_engine("7b") as third:
        engines = [first.url, {"url": second.url, "id": "spare"}]
        models = {"13b": {"engines": engines}, "7b": {"engines": [third.url]}}
        files = {"engines.json": json.dumps({"models": models})}
        settings = {
            "ENGINES_FILE": "engines.json",
            "ADMIN_KEYS": f"root:{KEY}",
            "JWT_SECRET": "s" * 32,
            "CACHE": "on",
            "SANDBOX": "off",
            "LEDGER": "on",
            "LOG_LEVEL": "error",
        }
        with gateway_process(settings, files=files) as gateway, tempfile.TemporaryDirectory() as folder:
            validate(json.loads(gateway.ask("GET", "/openapi.json").body))
            Path(folder, "schemathesis.toml").write_text(CONFIG, "utf-8")
            command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"]
            command += ["--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--exclude-checks", NOT_CHECKED]
            command += ["--seed", "1", "--max-examples", str(EXAMPLES), "--continue-on-failure", "--no-color"]
            status = subprocess.run(command, cwd=folder, timeout=LIMIT_S).returncode
            print(gateway.stderr, end="", file=sys.stderr)
            return status


if __name__ == "__main__":
    from gateway.api.document import openapi

    validate(openapi(needs_key=False, metrics_open=True), openapi(needs_key=True, metrics_open=False))
    sys.exit(conform())
