"""What the tests of SDKs share: a gateway that refuses and fails in many ways, and what a user is to read of each.

`Scene` owns a gateway and its engines until its test has ended. ERROR_FORMAT is left as it is by default.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from tests.access import ADMIN_KEYS, AccessTest, bearer
from tests.support import TIMEOUT_S, dead_url

MESSAGES: Any = [{"role": "user", "content": "hi there"}]
LONG = "word " * 10_000


class Case(NamedTuple):
    """A request, and what its SDK's exception has to say. `status` None: the error comes in the middle of a stream."""

    name: str
    exception: str
    status: Optional[int]
    code: str
    param: Optional[str]
    says: str
    key: str
    base_url: str
    options: dict[str, Any]


class Scene(AccessTest):
    """A gateway with engines that fail in their own ways, one for each model, and keys with limits."""

    def setUp(self) -> None:
        super().setUp()
        behaviours: dict[str, dict[str, Any]] = {
            "m": {},
            "failing": {"behaviour": "error"},
            "slow": {"behaviour": "hang"},
            "breaking": {"behaviour": "drop_mid_stream"},
        }
        models: dict[str, Any] = {
            name: {"engines": [self.engine(model=name, **own).url]} for name, own in behaviours.items()
        }
        models["gone"] = {"engines": [dead_url()]}
        resting = self.engine(model="resting")
        resting.control("rate_limit", retry_after=7)
        models["resting"] = {"engines": [resting.url]}
        self.gateway = self.serve(
            models, ADMIN_KEYS=ADMIN_KEYS, FALLBACK="off", RETRY_ATTEMPTS=1, REQUEST_TIMEOUT=1, MAX_BODY_BYTES=20_000
        )
        self.draining = self.serve({"m": {"engines": ["echo:"]}})
        self.draining.app.pipeline.draining = True
        self.freeze(self.gateway)
        self.key = self.secret(self.gateway, "alice")
        self.one_model_key = self.secret(self.gateway, "bob", models=["m"])
        self.used_up_key = self.secret(self.gateway, "carol", rpm=1)
        answer = self.gateway.post({"model": "m", "messages": MESSAGES}, headers=bearer(self.used_up_key))
        self.assertEqual(answer.status, 200, answer.body)

    def cases(self) -> list[Case]:
        """One request for each kind of error."""
        url, key = self.gateway.url, self.key
        v1 = f"{url}/v1"

        def case(
            exception: str, status: Optional[int], code: str, param: Optional[str], says: str, **more: Any
        ) -> Case:
            own_key, base_url = more.pop("key", key), more.pop("base_url", v1)
            name = f"{status} {code}"
            return Case(name, exception, status, code, param, says, own_key, base_url, {"model": "m", **more})

        temperature = "temperature must be a number from 0 to 2"
        return [
            case("BadRequestError", 400, "invalid_temperature", "temperature", temperature, temperature=3),
            case("AuthenticationError", 401, "unauthorized", None, "key", key="wrong"),
            case(
                "PermissionDeniedError", 403, "forbidden", "model", "failing", key=self.one_model_key, model="failing"
            ),
            case("NotFoundError", 404, "model_not_found", "model", "nope", model="nope"),
            case("NotFoundError", 404, "not_found", None, "did you mean /v1/chat/completions?", base_url=url),
            case("APIStatusError", 413, "body_too_large", None, "larger than 20000 bytes", user=LONG),
            case("RateLimitError", 429, "rate_limit_exceeded", None, "the limit of 1", key=self.used_up_key),
            case("RateLimitError", 429, "backend_rate_limited", None, "asks for a pause", model="resting"),
            case("InternalServerError", 502, "backend_unavailable", None, "refused", model="gone"),
            case("InternalServerError", 502, "backend_error", None, "500", model="failing"),
            case("InternalServerError", 503, "draining", None, "shutting down", base_url=f"{self.draining.url}/v1"),
            case("InternalServerError", 504, "gateway_timeout", None, "1 s", model="slow"),
            case("APIError", None, "backend_error", None, "engine", model="breaking", stream=True),
        ]

    def assert_tells(self, case: Case, error: Any, message: str) -> None:
        """The exception of a Python SDK, and what it prints, say what is wrong."""
        self.assertIn(case.exception, [kind.__name__ for kind in type(error).__mro__])  # langchain's are kinds of it
        self.assertEqual(getattr(error, "status_code", None), case.status)
        self.assertEqual((error.code, error.param), (case.code, case.param))
        self.assertEqual((error.body["code"], error.body["param"]), (case.code, case.param))
        self.assertIn(case.says, error.body["message"])
        self.assertIn(error.body["message"], message)


__all__ = ["LONG", "MESSAGES", "TIMEOUT_S", "Case", "Scene"]
