"""Who runs engines, and what need not be said of theirs: the presets behind an engine's `provider`.

Owns one table, `PROVIDERS`, and what follows of it for one engine: the path and the headers that a dialect has, and
whether a provider's key may go to an address. No state, no lock, no I/O; a key variable is a name here, never a key.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from gateway.routing.checks import EngineAddress, parse_engine_url

OPENAI, ANTHROPIC = "openai", "anthropic"
DIALECTS = (OPENAI, ANTHROPIC)
BEARER, X_API_KEY, API_KEY = "Authorization: Bearer", "x-api-key:", "api-key:"
ANTHROPIC_VERSION = "2023-06-01"
AZURE_DATED = "/openai/deployments/"  # in the path of an endpoint that wants `api-version`; /openai/v1 does not
AZURE_API_VERSION = "2024-10-21"

_API = "/v1"
BESIDE_API = frozenset(("/tokenize", "/detokenize", "/props", "/slots"))
"""Endpoints of llama.cpp, vLLM and SGLang, at the root of the server."""
ENDPOINTS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/moderations"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"),
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/variations", *sorted(BESIDE_API)),
)
"""What an engine may be said to serve, as the gateway's clients name it."""

CAPABILITIES = ("completion", "tools", "insert", "vision", "embedding", "thinking")
"""What a model may be said to do, in the words of Ollama's API."""

CHAT = "/chat/completions"
RESPONSES = "/responses"
OF_MODELS = (CHAT, "/completions", "/embeddings")

_PATHS = {ANTHROPIC: {CHAT: "/messages"}}
_HEADERS = {ANTHROPIC: (f"anthropic-version: {ANTHROPIC_VERSION}",)}


class Provider(NamedTuple):
    """What a provider's engines have in common.

    `url` is where they are, "" where each has its own; `path` what stands behind an address that has none. `key_env` is
    the variable that usually holds the key (None: no key), `key_header` how it is sent. `health` is what a probe asks
    for, without the key: a path of the server, or behind the base path where it begins without a slash; any answer
    below 500 will do. `key_domains`: where the key may go besides the host of `url`.

    Quirks: `list_query` makes the list of models a whole one, `list_prefix` stands before the names in it,
    `lists_served` False: it lists what there is, not what can be asked for. `has_responses`: it has OpenAI's
    Responses, which keeps conversations. `remote`: somebody else pays attention to
    how often it is asked.
    """

    url: str = ""
    path: str = "/v1"
    key_env: Optional[str] = None
    key_header: str = BEARER
    health: str = "models"
    dialect: str = OPENAI
    key_domains: tuple[str, ...] = ()
    list_query: str = ""
    list_prefix: str = ""
    lists_served: bool = True
    has_responses: bool = False
    remote: bool = True

    def may_have_key(self, address: EngineAddress) -> bool:
        """Whether the key in `key_env` may be sent there without being asked for: it is the provider's own place."""
        if address.scheme != "https":
            return False
        if self.key_domains and address.port == 443 and address.host.endswith(self.key_domains):
            return True
        return bool(self.url) and address[:3] == parse_engine_url(self.url)[:3]


def _local(port: int, health: str) -> Provider:
    return Provider(f"http://127.0.0.1:{port}/v1", health=health, remote=False)


PROVIDERS: dict[str, Provider] = {
    "openai": Provider("https://api.openai.com/v1", key_env="OPENAI_API_KEY", has_responses=True),
    "groq": Provider("https://api.groq.com/openai/v1", "/openai/v1", "GROQ_API_KEY"),
    "gemini": Provider(
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "/v1beta/openai",
        "GEMINI_API_KEY",
        list_prefix="models/",
    ),
    "huggingface": Provider("https://router.huggingface.co/v1", key_env="HF_TOKEN"),
    "ollama": _local(11434, "/api/version"),
    "llamacpp": _local(8080, "/health"),
    "vllm": _local(8000, "/health"),
    "sglang": _local(30000, "/health"),
    "lmstudio": _local(1234, "models"),
    "mistral": Provider("https://api.mistral.ai/v1", key_env="MISTRAL_API_KEY"),
    "openrouter": Provider("https://openrouter.ai/api/v1", "/api/v1", "OPENROUTER_API_KEY", health="key"),
    "together": Provider("https://api.together.ai/v1", key_env="TOGETHER_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY"),
    "azure": Provider(
        path="/openai/v1",
        key_env="AZURE_OPENAI_API_KEY",
        key_header=API_KEY,
        key_domains=(".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"),
        lists_served=False,
        has_responses=True,
    ),
    "anthropic": Provider(
        "https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        key_header=X_API_KEY,
        dialect=ANTHROPIC,
        list_query="limit=1000",
    ),
}
OTHER = {
    OPENAI: Provider(health="/health", remote=False),
    ANTHROPIC: Provider(health="/health", remote=False, key_header=X_API_KEY, dialect=ANTHROPIC),
}
"""Engines of nobody in particular, by their dialect."""


def path_in(dialect: str, path: str) -> str:
    """What an endpoint of OpenAI's is called in a dialect."""
    return _PATHS.get(dialect, {}).get(path, path)


def has_path(dialect: str, path: str) -> bool:
    """Whether a dialect has anything like an endpoint of OpenAI's."""
    return dialect == OPENAI or path in _PATHS[dialect]


def endpoint_of(path: str) -> str:
    """The one of ENDPOINTS that an endpoint of OpenAI's is."""
    return path if path in BESIDE_API else f"{_API}{path}"


def base_of(base_path: str, path: str) -> str:
    """Behind which path of its server an endpoint is: what no provider has in its API is beside it."""
    return base_path[: -len(_API)] if path in BESIDE_API and base_path.endswith(_API) else base_path


def header_lines(provider: Provider, dialect: str, secret: str) -> list[str]:
    """What says who asks, and in which words; `secret` "": there is no key."""
    key = [f"{provider.key_header} {secret}"] if secret else []
    return [*key, *_HEADERS.get(dialect, ())]


def with_query(target: str, *queries: str) -> str:
    """A target with those queries that are none of nothing."""
    query = "&".join(filter(None, queries))
    return f"{target}?{query}" if query else target
