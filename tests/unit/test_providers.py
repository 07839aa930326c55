"""Providers: what an engine has when only its provider is named, where keys may go, what a dialect changes."""

from __future__ import annotations

import unittest

from gateway.fleetlines import provider_fleet
from gateway.routing.providers import PROVIDERS
from gateway.routing.specs import EngineSpec
from gateway.upstream.endpoint import Endpoint

NAMES = (
    *("openai", "groq", "gemini", "huggingface", "ollama", "llamacpp", "vllm", "sglang", "lmstudio", "mistral"),
    *("openrouter", "together", "deepseek", "azure", "anthropic"),
)
SECRET = "sk-hunter2"
RESOURCE = "https://mine.openai.azure.com"


def head_of(spec: EngineSpec, path: str = "/chat/completions") -> list[str]:
    """The lines of a request's head, where every variable holds the secret."""
    secrets = dict.fromkeys((spec.api_key_env or "none", "MY_KEY"), SECRET)
    return Endpoint(spec, secrets, 1.0).wire(path, b"", b"").decode("latin-1").split("\r\n")


class PresetTest(unittest.TestCase):
    def test_the_providers_are_those_of_the_contract(self) -> None:
        self.assertEqual(tuple(PROVIDERS), NAMES)

    def test_the_name_alone_says_where_to_ask_and_with_which_key(self) -> None:
        for name, url, variable in (
            ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
            ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
            ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
            ("huggingface", "https://router.huggingface.co/v1", "HF_TOKEN"),
            ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
            ("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
            ("together", "https://api.together.ai/v1", "TOGETHER_API_KEY"),
            ("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
            ("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
            ("ollama", "http://127.0.0.1:11434/v1", None),
            ("llamacpp", "http://127.0.0.1:8080/v1", None),
            ("lmstudio", "http://127.0.0.1:1234/v1", None),
            ("vllm", "http://127.0.0.1:8000/v1", None),
            ("sglang", "http://127.0.0.1:30000/v1", None),
        ):
            with self.subTest(name):
                spec = EngineSpec(provider=name)
                self.assertEqual((spec.url, spec.api_key_env), (url, variable))

    def test_probes_ask_for_what_is_free(self) -> None:
        for name, path in (
            ("ollama", "/api/version"),
            ("vllm", "/health"),
            ("lmstudio", "/v1/models"),
            ("groq", "/openai/v1/models"),
            ("openrouter", "/api/v1/key"),
        ):
            self.assertEqual(EngineSpec(provider=name).health_path, path)

    def test_what_is_said_goes_before_the_preset(self) -> None:
        spec = EngineSpec("https://eu.example/v2", provider="groq", api_key_env="MY_KEY", health_path="/up")
        self.assertEqual((spec.url, spec.api_key_env, spec.health_path), ("https://eu.example/v2", "MY_KEY", "/up"))
        self.assertEqual(EngineSpec(provider="openrouter", dialect="anthropic").dialect, "anthropic")

    def test_an_address_without_a_path_gets_the_providers(self) -> None:
        for provider, url, expected in (
            ("azure", RESOURCE, f"{RESOURCE}/openai/v1"),
            ("azure", f"{RESOURCE}/", f"{RESOURCE}/openai/v1"),
            ("groq", "https://api.groq.com", "https://api.groq.com/openai/v1"),
            ("ollama", "http://gpu:11434", "http://gpu:11434/v1"),
            ("groq", "http://127.0.0.1:9000/x", "http://127.0.0.1:9000/x"),
        ):
            with self.subTest(url):
                self.assertEqual(EngineSpec(url, provider=provider).url, expected)

    def test_one_without_an_address_of_its_own_has_to_be_given_one(self) -> None:
        with self.assertRaisesRegex(ValueError, "url: must be"):
            EngineSpec(provider="azure")

    def test_a_provider_that_is_none_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "provider: must be one of openai, groq"):
            EngineSpec("http://a", provider="grok")

    def test_without_a_provider_nothing_is_different(self) -> None:
        spec = EngineSpec("http://a:1")
        self.assertEqual((spec.dialect, spec.api_key_env, spec.health_path), ("openai", None, None))
        head = head_of(EngineSpec("http://a:1", api_key_env="MY_KEY"))
        self.assertEqual(head[0], "POST /v1/chat/completions HTTP/1.1")
        self.assertIn(f"Authorization: Bearer {SECRET}", head)


class KeyTest(unittest.TestCase):
    def test_a_key_goes_to_its_own_providers_host_only(self) -> None:
        for provider, url in (
            ("groq", "https://api.groq.com.evil.example/openai/v1"),
            ("groq", "https://evil.example/openai/v1"),
            ("groq", "http://api.groq.com/openai/v1"),
            ("groq", "https://api.groq.com:8443/openai/v1"),
            ("openai", "http://127.0.0.1:8000/v1"),
            ("azure", "https://openai.azure.com.evil.example"),
            ("azure", "https://evilopenai.azure.com"),
            ("azure", "http://mine.openai.azure.com"),
            ("azure", "http://mine.openai.azure.com:443"),
            ("anthropic", "https://proxy.example/v1"),
        ):
            with self.subTest(url):
                spec = EngineSpec(url, provider=provider)
                self.assertIsNone(spec.api_key_env)
                self.assertNotIn(SECRET, "".join(head_of(spec)))

    def test_there_it_goes_whatever_the_path(self) -> None:
        self.assertEqual(EngineSpec("https://API.groq.com/v9", provider="groq").api_key_env, "GROQ_API_KEY")
        for host in ("mine.openai.azure.com", "mine.cognitiveservices.azure.com", "mine.services.ai.azure.com"):
            self.assertEqual(EngineSpec(f"https://{host}", provider="azure").api_key_env, "AZURE_OPENAI_API_KEY")

    def test_it_goes_elsewhere_when_that_is_said(self) -> None:
        spec = EngineSpec("https://proxy.example/v1", provider="groq", api_key_env="MY_KEY")
        self.assertIn(f"Authorization: Bearer {SECRET}", head_of(spec))

    def test_each_has_its_header(self) -> None:
        for spec, expected in (
            (EngineSpec(provider="groq"), f"Authorization: Bearer {SECRET}"),
            (EngineSpec(provider="anthropic"), f"x-api-key: {SECRET}"),
            (EngineSpec(RESOURCE, provider="azure"), f"api-key: {SECRET}"),
            (EngineSpec("http://a", dialect="anthropic", api_key_env="MY_KEY"), f"x-api-key: {SECRET}"),
            (EngineSpec(provider="openrouter", dialect="anthropic"), f"Authorization: Bearer {SECRET}"),
        ):
            with self.subTest(spec):
                self.assertEqual([line for line in head_of(spec) if SECRET in line], [expected])


class DialectTest(unittest.TestCase):
    def test_anthropic_is_asked_at_its_path_in_its_version(self) -> None:
        for spec in (EngineSpec(provider="anthropic"), EngineSpec("http://a", dialect="anthropic")):
            head = head_of(spec)
            self.assertEqual(head[0], "POST /v1/messages HTTP/1.1")
            self.assertIn("anthropic-version: 2023-06-01", head)
        self.assertNotIn("anthropic-version", "".join(head_of(EngineSpec(provider="groq"))))

    def test_its_list_is_asked_for_as_a_whole(self) -> None:
        self.assertEqual(EngineSpec(provider="anthropic").list_target(), "/v1/models?limit=1000")
        self.assertEqual(EngineSpec(provider="groq").list_target(), "/openai/v1/models")

    def test_only_azures_dated_endpoints_get_a_version(self) -> None:
        for url, version, expected in (
            (RESOURCE, None, "/openai/v1/chat/completions"),
            (RESOURCE, "preview", "/openai/v1/chat/completions?api-version=preview"),
            (
                f"{RESOURCE}/openai/deployments/gpt",
                None,
                "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            ),
            (
                f"{RESOURCE}/openai/deployments/gpt",
                "2025-01-01-preview",
                "/openai/deployments/gpt/chat/completions?api-version=2025-01-01-preview",
            ),
        ):
            with self.subTest(expected):
                spec = EngineSpec(url, provider="azure", api_version=version)
                self.assertEqual(spec.target("/chat/completions"), expected)


class EnvironmentTest(unittest.TestCase):
    def test_providers_whose_key_is_set_are_offered_behind_their_names(self) -> None:
        fleet = provider_fleet({"GROQ_API_KEY", "ANTHROPIC_API_KEY"}.__contains__)
        assert fleet is not None
        self.assertEqual([(m.name, m.prefix) for m in fleet.models], [("groq", "groq/"), ("anthropic", "anthropic/")])
        self.assertEqual([m.fallbacks for m in fleet.models], [(), ()])  # nobody else knows the names
        self.assertTrue(fleet.by_engines)
        self.assertIsNone(fleet.default_model)

    def test_one_that_needs_an_address_is_not(self) -> None:
        self.assertIsNone(provider_fleet({"AZURE_OPENAI_API_KEY"}.__contains__))

    def test_no_key_is_no_fleet(self) -> None:
        self.assertIsNone(provider_fleet(lambda name: False))


if __name__ == "__main__":
    unittest.main()
