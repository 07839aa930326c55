"""How far estimates of tokens are off, against OpenAI's tokenizers, and what they cost. In this process.

Owns nothing. Needs `tiktoken` (PyPI) and its files of ranks, which it fetches from the web, or finds by the names of
its cache in `TIKTOKEN_CACHE_DIR`: the wheel of `litellm` has both there, in `litellm/litellm_core_utils/tokenizers`.
"""

from __future__ import annotations

import time

from .processes import BenchError
from .texts import texts

ENCODINGS = ("o200k_base", "cl100k_base")
_TIMED_CHARS = 1_000_000
_TIMED_TIMES = 5


def estimate_errors() -> dict[str, dict[str, float]]:
    """Returns, by kind of text, characters a token, the estimate divided by the real number of tokens for each
    encoding, and the milliseconds that estimating a million characters takes.

    Raises BenchError without tiktoken or its ranks.
    """
    from gateway.upstream.estimates import tokens_of, weigh

    try:
        import tiktoken

        encodings = {name: tiktoken.get_encoding(name) for name in ENCODINGS}
    except Exception as exc:  # a missing package, or whatever fails when it fetches
        raise BenchError(f"estimates: needs tiktoken and its ranks (see {__name__}): {exc}") from exc
    found = {}
    for kind, text in texts().items():
        estimate = tokens_of(weigh(text))
        metrics = {"ms_per_million": _cost_ms(text)}
        for name, encoding in encodings.items():
            real = len(encoding.encode(text))
            metrics[f"chars_{name}"] = len(text) / real
            metrics[f"ratio_{name}"] = estimate / real
        found[kind] = metrics
    return found


def _cost_ms(text: str) -> float:
    from gateway.upstream.estimates import weigh

    long = (text * (_TIMED_CHARS // len(text) + 1))[:_TIMED_CHARS]
    best_s = float("inf")
    for _ in range(_TIMED_TIMES):
        began_s = time.perf_counter()
        weigh(long)
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s * 1e3
