"""What Ollama's clients are told that a model can do."""

from __future__ import annotations

import json
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from gateway.configuration import ConfigurationError
from gateway.dialects.ollama.request import read_show
from gateway.dialects.ollama.times import Times
from gateway.fleet import load_engines_file
from gateway.routing.capabilities import capabilities_at, capabilities_of
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.routing.splits import SplitSpec
from gateway.telling import Telling

CHAT, EMBEDDINGS, RERANK = "/v1/chat/completions", "/v1/embeddings", "/v1/rerank"


def model(*endpoints: Optional[tuple[str, ...]], **fields: Any) -> ModelSpec:
    """A model whose engines are said to serve these alone; None: nothing is said."""
    engines = tuple(EngineSpec(f"http://m{at}:1/v1", endpoints=served) for at, served in enumerate(endpoints))
    return ModelSpec("m", engines, **fields)


class CapabilitiesTest(unittest.TestCase):
    def test_who_may_chat_is_given_tools(self) -> None:
        for spec in (model(None), model((CHAT,)), model((EMBEDDINGS,), (CHAT,)), model((EMBEDDINGS,), None)):
            self.assertEqual(capabilities_of(spec), ("completion", "tools"))
        claude = ModelSpec("m", (EngineSpec(provider="anthropic"),))
        self.assertEqual(capabilities_of(claude), ("completion", "tools"))

    def test_who_only_embeds_is_not_offered_for_chats(self) -> None:
        for spec in (model((EMBEDDINGS,)), model((EMBEDDINGS, RERANK), (EMBEDDINGS,))):
            self.assertEqual(capabilities_of(spec), ("embedding",))

    def test_who_does_neither_is_offered_for_nothing(self) -> None:
        self.assertEqual(capabilities_of(model((RERANK,))), ())

    def test_what_the_file_says_holds(self) -> None:
        told = ("completion", "vision")
        self.assertEqual(capabilities_of(model((EMBEDDINGS,), capabilities=told)), told)

    def test_where_several_may_answer_it_is_what_all_can(self) -> None:
        sees = model(None, capabilities=("completion", "vision", "tools"))
        models = (
            replace(sees, name="sees"),
            replace(model(None), name="chats"),
            replace(model((EMBEDDINGS,)), name="e"),
        )
        shares = {"a": ("sees", "chats"), "b": ("sees",), "c": ("sees", "e")}
        splits = tuple(SplitSpec(name, tuple((one, 1) for one in of)) for name, of in shares.items())
        router = Router(FleetSpec(models, splits=splits))
        told = {name: capabilities_at(router, name) for name in ("a", "b", "c", "chats", None)}
        tools = ("completion", "tools")
        sees_too = ("completion", "vision", "tools")
        self.assertEqual(told, {"a": tools, "b": sees_too, "c": (), "chats": tools, None: sees_too})

    def test_a_model_is_shown_with_them(self) -> None:
        telling = Telling(read_show({"model": "m"}, Times(lambda: 0.0, lambda: 0.0, 0.0)))
        for given, told in (((), ["completion", "tools"]), ((("embedding",),), ["embedding"])):
            shown = json.loads(telling.immediate(9, *given).body)
            self.assertEqual((shown["capabilities"], shown["model_info"]["unknown.context_length"]), (told, 9))


class FileTest(unittest.TestCase):
    def loaded(self, capabilities: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engines.json")
            path.write_text(json.dumps({"models": {"m": {"engines": ["echo:"], "capabilities": capabilities}}}))
            return load_engines_file(path).models[0].capabilities

    def test_they_are_read(self) -> None:
        self.assertEqual(self.loaded(["completion", "tools", "thinking"]), ("completion", "tools", "thinking"))

    def test_what_is_none_is_refused_by_its_place(self) -> None:
        for wrong, where in (("tools", "capabilities"), (["chat"], "capabilities[0]"), ([], "capabilities")):
            with self.assertRaises(ConfigurationError) as caught:
                self.loaded(wrong)
            self.assertIn(f"models.m.{where}", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
