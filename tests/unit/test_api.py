"""The OpenAPI document and its page: complete, true to what is checked, and nothing of it is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unittest
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, Callable, Optional

from gateway.api import managing, own
from gateway.api.document import HEADERS, OPERATIONS, documents, openapi
from gateway.api.page import PAGE_POLICY, page_of
from gateway.api.schemas import ENGINE, KEY
from gateway.errors import ERRORS, RequestRefused
from gateway.keys.record import ARGUMENTS, KeyRecord, KeyRefused, arguments_of, faults_of, key_schema, to_public
from gateway.pipeline import PATHS
from gateway.routing.members import EngineSnapshot
from gateway.server.cachepages import checked
from gateway.upstream.fields import BY_PATH
from gateway.verify import question
from tests.fitting import compiled

DOCUMENT = openapi()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
RECORD = KeyRecord("a", b"", "user", (), None, None, None, None, None, 0.0, None, None, (), None)
USER = {"role": "user", "content": "hi"}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 128, 129, 10**6, 10**6 + 1, -2, 0.5, 2.5, 1e308, "", "x", " ", "x" * 300, "90d",
    "1h", "256m", "day", "high", "a b", [], [1], [None], ["x"], [""], [[]], [[1]], [[1], ["x"]], ["x", 1], ["x"] * 65,
    ["x"] * 201, [[1]] * 201, {}, {"a": 1}, [{"input": "a", "output": "b"}], [{"input": "a"}], {"timeout": 1},
    {"timeout": 0}, {"timeout": "1"}, {"network_disabled": False}, {"network_disabled": True}, {"memory_limit": "1g"},
    {"memory_limit": "much"}, {"memory_limit": 5}, {"other": 1}, [USER], [{**USER, "role": "robot"}],
    [{"role": "user"}],
    [{"role": "user", "content": []}], [{"role": "assistant", "content": None}], [USER, {"content": "x"}], [[USER]],
    [{"role": "assistant", "tool_calls": CALLS}], [{"role": "assistant", "content": [], "refusal": ""}],
    [{"role": "assistant", "tool_calls": []}], [{"role": "tool", "tool_calls": CALLS}],
    [{"role": "user", "content": 1}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], [{**USER, "role": None}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": [{"text": "a"}]}],
    [{"role": "assistant", "content": {}, "reasoning": "a"}], [{"role": "assistant", "audio": {}}],
]  # fmt: skip


def refs_in(value: Any) -> Iterator[str]:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            if isinstance(item.get("$ref"), str):
                yield item["$ref"]
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)


class OperationsTest(unittest.TestCase):
    def test_each_is_described(self) -> None:
        for operation in OPERATIONS:
            with self.subTest(operation.name):
                self.assertTrue(operation.summary)
                self.assertTrue(operation.answers)
                named = re.findall(r"\{(\w+)\}", operation.path)
                self.assertEqual(named, [p.name for p in operation.parameters if p.place == "path"])
        names = [operation.name for operation in OPERATIONS]
        self.assertEqual(len(names), len(set(names)))
        ways = [(operation.method, operation.path) for operation in OPERATIONS]
        self.assertEqual(len(ways), len(set(ways)))

    def test_every_path_to_engines_is_among_them(self) -> None:
        self.assertLessEqual(PATHS.keys(), {operation.path for operation in OPERATIONS})

    def test_every_error_is_one_of_some_operation(self) -> None:
        told = {code for operation in OPERATIONS for code in operation.all_errors}
        # The log's own; and what no operation of the document can have.
        self.assertEqual(ERRORS.keys() - told, {"client_closed_request", "method_not_allowed"})


class DocumentTest(unittest.TestCase):
    def test_what_it_refers_to_is_there_and_what_is_there_is_referred_to(self) -> None:
        refs = set(refs_in(DOCUMENT))
        there = {
            f"#/components/{kind}/{name}"
            for kind in ("schemas", "headers", "responses")
            for name in DOCUMENT["components"][kind]
        }
        self.assertEqual(refs - there, set())
        self.assertEqual({name for name in there - refs if "/responses/" not in name}, {"#/components/headers/Allow"})

    def test_every_answer_has_the_requests_id(self) -> None:
        for path, item in DOCUMENT["paths"].items():
            for method, operation in item.items():
                for status, response in operation["responses"].items():
                    if "$ref" in response:
                        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
                    self.assertIn("X-Request-ID", response["headers"], f"{method} {path} {status}")
        self.assertIn("X-Request-ID", HEADERS)

    def test_the_registry_of_errors_is_in_it(self) -> None:
        self.assertEqual(DOCUMENT["x-errors"], {code: row._asdict() for code, row in ERRORS.items()})

    def test_it_says_which_permission_is_needed(self) -> None:
        listing = DOCUMENT["paths"]["/admin/keys"]["get"]
        self.assertEqual(listing["security"], [{"bearer": ["admin"]}, {"key": ["admin"]}])
        self.assertIn("`admin`", listing["description"])
        self.assertEqual(DOCUMENT["paths"]["/healthz"]["get"]["security"], [])

    def test_metrics_need_no_key_where_they_are_open(self) -> None:
        for is_open in (True, False):
            security = openapi(True, is_open)["paths"][own.METRICS.path]["get"]["security"]
            self.assertEqual({} in security, is_open)

    def test_without_keys_nothing_needs_one(self) -> None:
        for item in openapi(needs_key=False)["paths"].values():
            self.assertEqual([operation["security"] for operation in item.values()], [[]] * len(item))

    def test_it_is_made_once(self) -> None:
        made = documents(True, False)
        self.assertIs(made, documents(True, False))
        self.assertNotEqual(made.document_tag, documents(False, False).document_tag)
        self.assertEqual(json.loads(made.document), openapi(True, False))


class RequestsTest(unittest.TestCase):
    """What a schema refuses is refused by the checks; what it takes is taken, but for what it cannot say."""

    def compare(self, schema: Any, base: Any, refusal: Callable[[Any], Optional[Exception]], extra: str = "") -> int:
        taken, checked = 0, compiled(schema, SCHEMAS)
        for name in (*schema["properties"], *filter(None, [extra])):
            for value in VALUES:
                request = {**base, name: value}
                with self.subTest(name, value=str(value)[:60]):
                    fit = not checked.check(request)
                    refused = refusal(request)
                    if not fit:
                        self.assertIsNotNone(refused)
                    elif refused is None:
                        taken += 1
        for name in schema.get("required", ()):
            without = {key: value for key, value in base.items() if key != name}
            self.assertTrue(checked.check(without))
            self.assertIsNotNone(refusal(without))
        self.assertFalse(checked.check(base))
        self.assertIsNone(refusal(base))
        return taken

    def test_of_engines(self) -> None:
        bases = {
            "/chat/completions": {"messages": [USER]},
            "/completions": {"prompt": "a"},
            "/embeddings": {"input": "a"},
        }
        for path, fields in BY_PATH.items():

            def refusal(request: Any, fields: Any = fields) -> Optional[Exception]:
                try:
                    fields.validate(request)
                except RequestRefused as error:
                    return error
                return None

            base = {} if fields.passes else bases[path]
            own = () if fields.passes else (fields.own,)
            self.assertEqual(fields.schema["properties"].keys(), {*own, *fields.optional})
            self.compare(fields.schema, base, refusal, "anything")
            checked = compiled(fields.schema, SCHEMAS)
            for name in fields.schema["properties"]:
                for value in VALUES:
                    request = {**base, name: value}
                    with self.subTest(path, name=name, value=str(value)[:60]):
                        self.assertEqual(not checked.check(request), refusal(request) is None)

    def test_of_several_models(self) -> None:
        ceilings = question.Ceilings(30.0, 256 << 20)
        optional = BY_PATH["/chat/completions"].optional

        def refusal(request: Any) -> Optional[Exception]:
            try:
                question.check_fields(request, lambda key, value: optional[key](value))
                question.check_prompt(request)
                question.check_models(request, ["m"])
                question.check_tests(request, question.check_entry_point(request))
                question.check_inputs(request)
                question.check_execution_config(request, ceilings)
                for flag in ("execute_code", "verify"):
                    question.check_flag(request, flag, True)
            except RequestRefused as error:
                return error
            return None

        schema = question.request_schema()
        self.assertEqual(schema["properties"].keys(), set(question.FIELDS))
        self.assertGreater(self.compare(schema, {"prompt": "a"}, refusal, "other"), 40)

    def test_of_clearing_the_cache(self) -> None:
        def refusal(request: Any) -> Optional[Exception]:
            try:
                checked(request)
            except RequestRefused as error:
                return error
            return None

        assert managing.CLEAR_CACHE.body is not None
        self.compare(managing.CLEAR_CACHE.body.schema, {}, refusal, "modle")

    def test_of_keys(self) -> None:
        def refusal(request: Any) -> Optional[Exception]:
            try:
                given = arguments_of(request)
                given.pop("expires_s", None)
                models = given.pop("models", ())
                record = replace(RECORD, **{**given, "models": tuple(models) if type(models) is list else models})
                faults = [*faults_of(record, ("user", "x"))]
                return KeyRefused(*faults) if faults else None
            except KeyRefused as error:
                return error

        schema = key_schema()
        self.assertEqual(schema["properties"].keys(), set(ARGUMENTS))
        self.assertGreater(self.compare(schema, {"name": "a"}, refusal, "other"), 30)


class AnswersTest(unittest.TestCase):
    def test_an_engine_is_described_as_it_is_shown(self) -> None:
        self.assertEqual(set(ENGINE["properties"]), set(EngineSnapshot._fields) - {"model"})

    def test_a_key_is_described_as_it_is_shown(self) -> None:
        self.assertEqual(list(to_public(RECORD, 1.0)), list(KEY))


class PageReader(HTMLParser):
    """What a browser would find: elements, their attributes, and whether each that is opened is closed."""

    EMPTY = frozenset(("meta", "link", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Optional[str]]]] = []
        self.style = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data


class PageTest(unittest.TestCase):
    def setUp(self) -> None:
        self.text = page_of(DOCUMENT).decode()
        self.page = PageReader()
        self.page.feed(self.text)
        self.page.close()

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.page.elements if "id" in attributes]

    def test_it_is_whole(self) -> None:
        self.assertEqual(self.page.open, [])
        self.assertEqual(len(self.ids()), len(set(self.ids())))

    def test_it_shows_every_operation_schema_and_error(self) -> None:
        wanted = {operation.name for operation in OPERATIONS}
        wanted |= {f"schema-{name}" for name in SCHEMAS} | {f"error-{code}" for code in ERRORS}
        self.assertEqual(wanted - set(self.ids()), set())

    def test_its_links_lead_somewhere(self) -> None:
        links = {str(attributes["href"]) for tag, attributes in self.page.elements if tag == "a"}
        self.assertEqual({link for link in links if link[1:] not in self.ids()}, {"/openapi.json"})

    def test_it_loads_nothing_and_runs_nothing(self) -> None:
        names = {name for _, attributes in self.page.elements for name in attributes}
        self.assertEqual({name for name in names if name in ("src", "style") or name.startswith("on")}, set())
        self.assertFalse({"script", "iframe", "img", "form"} & {tag for tag, _ in self.page.elements})
        self.assertEqual([a["href"] for tag, a in self.page.elements if tag == "link"], ["data:,"])
        self.assertNotIn("@import", self.page.style)
        self.assertNotIn("url(", self.page.style)

    def test_its_policy_allows_its_own_style_only(self) -> None:
        digest = base64.b64encode(hashlib.sha256(self.page.style.encode()).digest()).decode()
        self.assertIn(f"style-src 'sha256-{digest}';", PAGE_POLICY)
        self.assertTrue(PAGE_POLICY.startswith("default-src 'none';"))
        self.assertNotIn("unsafe", PAGE_POLICY)

    def test_what_a_description_says_is_text(self) -> None:
        document = {**DOCUMENT, "info": {**DOCUMENT["info"], "description": "<b>`<i>`"}}
        self.assertIn("&lt;b&gt;<code>&lt;i&gt;</code>", page_of(document).decode())


if __name__ == "__main__":
    unittest.main()
