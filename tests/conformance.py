"""`python -m tests.conformance`: the OpenAPI document is one, and a running gateway answers as it says.

openapi-spec-validator looks at the document, schemathesis asks every operation with what the document allows and with
what it does not, each time of another of the gateway's models (`conformance_models.py`): always the same requests, some
three thousand. Both come with .ci/requirements.txt; ends with schemathesis' exit status.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gateway.api import own
from gateway.mock.server import MockEngine
from tests import conformance_models
from tests.conformance_models import REGION, SCHEMA
from tests.support import gateway_process, mock_engine

KEY = "an-administrators-key-of-the-conformance-test"
LIMIT_S = 240
EXAMPLES = 10  # for each operation
# What JSON Schema cannot say is refused with a reason: a name that is taken, a pair of tests without a function, 75.0
# for an integer. So not everything that fits the document can be accepted.
NOT_CHECKED = "positive_data_acceptance"
# An engine that exists: an id that is made up would always be 404.
CONFIG = """
hooks = {hooks}

[[operations]]
include-path-regex = "^/admin/engines/"
parameters = {{ "path.id" = "spare" }}
"""
SPEAKS_MESSAGES_ALONE = "chat/completions,completions,embeddings,responses"
CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def validate(*documents: dict[str, Any]) -> None:
    """Raise for what is no OpenAPI."""
    from openapi_spec_validator import validate as validate_document

    for document in documents:
        validate_document(document)


def models(*engines: MockEngine) -> dict[str, Any]:
    """A model of every kind, by the names of `conformance_models.py`. `engines`: two alike, one of Anthropic's dialect,
    and one that answers /v1/responses itself."""
    first, second, anthropic, responses = ({"url": engine.url, "region": REGION} for engine in engines)
    native = {**responses, "endpoints": ["/v1/chat/completions", "/v1/responses"]}
    shaped = {"strip": ["temperature"], "defaults": {"max_tokens": 16}, "force": {"top_p": 0.5, "seed": 1}}
    return {
        "plain": {"engines": [first, {**second, "id": "spare"}]},
        "anthropic": {"engines": [{**anthropic, "dialect": "anthropic"}]},
        "native": {"engines": [native]},
        "shaped": {"engines": [second], "aliases": ["alias"], **shaped},
        "split": {"split": {"plain": 1, "native": 1, "anthropic": 1}, **shaped},
        "chain": {"chain": ["anthropic", "plain"], **shaped},
        "agreed": {"consensus": {"members": ["plain", "shaped"]}},
    }


def conform() -> int:
    """Ask a gateway with keys and models of every kind in front of mock engines; returns schemathesis' exit status."""
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(mock_engine("m", lacks=lacks))
            for lacks in ("responses", "responses", SPEAKS_MESSAGES_ALONE, "")
        ]
        files = {"engines.json": json.dumps({"models": models(*engines)})}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        schemas = folder / "schemas"
        schemas.mkdir()
        (schemas / f"{SCHEMA}.json").write_text(json.dumps(CITY), "utf-8")
        settings = {
            "ENGINES_FILE": "engines.json",
            "SCHEMAS_DIR": schemas,
            "FALLBACK": "configured",
            "ADMIN_KEYS": f"root:{KEY}",
            "JWT_SECRET": "s" * 32,
            "CACHE": "on",
            "SANDBOX": "off",
            "LEDGER": "on",
            "LOG_LEVEL": "error",
        }
        gateway = stack.enter_context(gateway_process(settings, files=files))
        validate(json.loads(gateway.ask("GET", "/openapi.json").body))
        config = CONFIG.format(hooks=json.dumps(conformance_models.__file__))
        (folder / "schemathesis.toml").write_text(config, "utf-8")
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {KEY}", "--checks", "all", "--exclude-checks", NOT_CHECKED]
        command += ["--exclude-path", own.LIVE.path]  # it has no end
        command += ["--seed", "1", "--max-examples", str(EXAMPLES), "--continue-on-failure", "--no-color"]
        status = subprocess.run(command, cwd=folder, timeout=LIMIT_S).returncode
        print(gateway.stderr, end="", file=sys.stderr)
        return status


if __name__ == "__main__":
    from gateway.api.document import openapi

    validate(openapi(needs_key=False, metrics_open=True), openapi(needs_key=True, metrics_open=False))
    sys.exit(conform())
