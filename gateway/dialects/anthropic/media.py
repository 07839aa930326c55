"""Images and documents: Anthropic's blocks with a `source`, chat's parts with a URL. Pure functions, both ways.

A document that is a text stays one where engines need not know what a document is.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from gateway.dialects.dialect import Json
from gateway.dialects.reading import refused, required, text_in, unsupported

PDF = "application/pdf"
WEB = ("http://", "https://")


# --- a client's blocks ---------------------------------------------------------------------------------------------


def image_part(block: Json, path: str) -> Json:
    """The part of a chat message that shows an `image`. Raises RequestRefused."""
    path = f"{path}.source"
    return {"type": "image_url", "image_url": {"url": _url_of(required(block.get("source"), dict, path), path)}}


def document_parts(block: Json, path: str) -> list[Json]:
    """The parts that a `document` becomes: its text, with title and context before it, or a file. Raises
    RequestRefused."""
    source = required(block.get("source"), dict, f"{path}.source")
    citations = block.get("citations")
    if type(citations) is dict and citations.get("enabled"):
        raise unsupported(f"{path}.citations", "cannot be enabled: answers are given without citations")
    title, kind = text_in(block, "title"), source.get("type")
    if kind in ("base64", "url"):
        url = _url_of(source, f"{path}.source")
        return [{"type": "file", "file": {"filename": title or "document.pdf", "file_data": url}}]
    head = [line for line in (title, text_in(block, "context")) if line]
    if kind == "text":
        return [{"type": "text", "text": "\n".join([*head, required(source.get("data"), str, f"{path}.source.data")])}]
    if kind != "content":
        raise unsupported(f"{path}.source.type", "must be text, content, base64 or url")
    content = source.get("content")
    if type(content) is str:
        return [{"type": "text", "text": "\n".join([*head, content])}]
    parts: list[Json] = [{"type": "text", "text": "\n".join(head)}] if head else []
    if type(content) is not list:
        raise refused(f"{path}.source.content", "must be a text or a list of blocks")
    for at, inner in enumerate(content):
        where = f"{path}.source.content.{at}"
        if type(inner) is not dict or inner.get("type") not in ("text", "image"):
            raise refused(where, "must be a text or an image")
        if inner["type"] == "text":
            parts.append({"type": "text", "text": required(inner.get("text"), str, f"{where}.text")})
        else:
            parts.append(image_part(inner, where))
    return parts


def _url_of(source: Json, path: str) -> str:
    kind = source.get("type")
    if kind == "url":
        return required(source.get("url"), str, f"{path}.url")
    if kind == "base64":
        media_type = required(source.get("media_type"), str, f"{path}.media_type")
        return f"data:{media_type};base64," + required(source.get("data"), str, f"{path}.data")
    raise unsupported(f"{path}.type", "must be base64 or url")


# --- a chat request's parts ----------------------------------------------------------------------------------------


def image_block(part: Json, path: str) -> Json:
    """The block for an `image_url`. Raises RequestRefused."""
    image: Any = part.get("image_url")
    if type(image) is dict:
        url = required(image.get("url"), str, f"{path}.image_url.url")
    else:
        url = text_in(part, "image_url")
    return {"type": "image", "source": _source_of(url, f"{path}.image_url.url")}


def document_block(part: Json, path: str) -> Json:
    """The block for a `file`. Raises RequestRefused."""
    path = f"{path}.file"
    file = required(part.get("file"), dict, path)
    if type(file.get("file_data")) is not str:
        raise unsupported(f"{path}.file_data", "is missing: this engine has no files of its own")
    path = f"{path}.file_data"
    source = _source_of(file["file_data"], path)
    media_type = source.get("media_type", PDF)
    if media_type.startswith("text/"):
        try:
            words = base64.b64decode(source["data"], validate=True).decode()
        except (binascii.Error, ValueError):
            raise refused(path, "must be UTF-8 in base64") from None
        source = {"type": "text", "media_type": "text/plain", "data": words}
    elif media_type != PDF:
        raise unsupported(path, "must be a text or a PDF")
    title = text_in(file, "filename")
    return {"type": "document", "source": source, **({"title": title} if title else {})}


def _source_of(url: str, path: str) -> Json:
    if url.startswith(WEB):
        return {"type": "url", "url": url}
    head, comma, data = url.partition(",")
    scheme, _, described = head.partition(":")
    media_type, *parameters = described.split(";")
    if not comma or scheme != "data" or not media_type or "base64" not in parameters:
        raise refused(path, "must be an http, https or base64 data URL")
    return {"type": "base64", "media_type": media_type, "data": data}
