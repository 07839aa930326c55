"""In which of the two shapes of contract 7, or of its own dialect, a client reads errors. Pure."""

from __future__ import annotations

import re
from typing import Optional

from gateway.dialects.bypath import error_format_at
from gateway.server.parsing import RequestHead

# What OpenAI's own SDKs call themselves, in whatever way the rest is written: OpenAI/Python 1.2, AsyncAzureOpenAI/JS 4,
# OpenAI/2.8.0 (.NET), OpenAI/v1 PythonBindings/0.28, azsdk-net-AI.OpenAI/2.1. It is the first product that counts.
_OPENAI_SDK = re.compile(rb"[^\s/]*OpenAI/")


def error_format_of(configured: str, head: Optional[RequestHead]) -> str:
    """`simple`, `openai` or a dialect's: the shape of an error of the request with this `head`.

    `configured` is ERROR_FORMAT.

    None: nothing is known of the request. To be asked where an error is written: no other request needs to know.
    """
    of_dialect = None if head is None else error_format_at(head.path)
    if of_dialect is not None:
        return of_dialect
    if configured != "auto":
        return configured
    if head is None:
        return "simple"
    headers = head.headers
    if b"x-stainless-lang" in headers or _OPENAI_SDK.match(headers.get(b"user-agent", b"")):
        return "openai"
    return "simple"
