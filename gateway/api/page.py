"""The page at `/docs`: the OpenAPI document as HTML, for people.

Pure: the document in, bytes out. One page without scripts, which loads nothing: what opens and closes are `<details>`,
what it links to is on it. Light or dark as the reader's system is.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gateway.api.operation import Json

_STYLE = """\
:root{color-scheme:light dark;--text:#1b1f24;--soft:#57606a;--back:#fff;--box:#f6f8fa;--line:#d0d7de;--link:#0550ae;
--get:#0a5c2f;--post:#0550ae;--delete:#a40e26}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#9aa4af;--back:#0d1117;--box:#161b22;--line:#30363d;
--link:#79b8ff;--get:#56d37e;--post:#79b8ff;--delete:#ff8f87}}
*{box-sizing:border-box}
html{scroll-padding-top:1rem}
body{margin:0;font:16px/1.55 system-ui,sans-serif;color:var(--text);background:var(--back)}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;padding:.4rem .8rem;background:var(--back)}
.page{display:grid;grid-template-columns:17rem minmax(0,1fr);max-width:76rem;margin:0 auto}
nav{position:sticky;top:0;align-self:start;max-height:100vh;overflow:auto;padding:1.5rem 1rem;font-size:.875rem}
nav h2{margin:1.1rem 0 .3rem;font-size:.8rem;color:var(--soft)}
nav ul{list-style:none;margin:0;padding:0}nav li{margin:.15rem 0;overflow-wrap:anywhere}
main{padding:1.5rem 1.5rem 6rem}
a{color:var(--link)}nav a{text-decoration:none}nav a:hover{text-decoration:underline}
:focus-visible{outline:2px solid var(--link);outline-offset:2px;border-radius:3px}
h1{margin:.2rem 0}h2{margin:2.5rem 0 .6rem}h3{margin:1.2rem 0 .4rem;font-size:1rem}
code,pre{font:.875em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{overflow-wrap:break-word}
pre{padding:.7rem .9rem;overflow:auto;background:var(--box);border:1px solid var(--line);border-radius:6px}
details{margin:.5rem 0;border:1px solid var(--line);border-radius:6px}
summary{padding:.5rem .9rem;cursor:pointer;background:var(--box);border-radius:6px}
details>div{padding:.2rem .9rem .8rem}
.at{display:block;scroll-margin-top:4rem}
.method{display:inline-block;min-width:4.2rem;font-weight:700}
.get{color:var(--get)}.post,.put{color:var(--post)}.delete{color:var(--delete)}
.soft{color:var(--soft)}
.wide{overflow-x:auto}
table{width:100%;border-collapse:collapse;font-size:.9rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{white-space:nowrap}td:first-child{width:1%;white-space:nowrap}
@media(max-width:52rem){.page{display:block}main{padding:1rem}
nav{position:static;max-height:15rem;border-bottom:1px solid var(--line)}}
@media print{nav{display:none}.page{display:block}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""The Content-Security-Policy under which the page works."""
_METHODS = ("get", "put", "post", "delete")


def page_of(document: Json) -> bytes:
    """The whole page in UTF-8."""
    info = document["info"]
    parts = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<title>{_text(info["title"])}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>',
        '<a class="skip" href="#top">To the text</a><div class="page">',
        _contents(document),
        f'<main id="top"><h1>{_text(info["title"])}</h1>',
        f'<p class="soft">Version {_text(info["version"])}. As OpenAPI {_text(document["openapi"])}:'
        ' <a href="/openapi.json">/openapi.json</a></p>',
        _prose(info["description"]),
        _access(document),
        *_sections(document),
        _schemas(document),
        _errors(document["x-errors"]),
        "</main></div></body></html>\n",
    )
    return "".join(parts).encode()


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method, path, item[method]


def _contents(document: Json) -> str:
    parts = ['<nav aria-label="Contents">']
    for tag in document["tags"]:
        parts.append(f"<h2>{_text(tag['name'])}</h2><ul>")
        for method, path, operation in _operations(document):
            if tag["name"] in operation["tags"]:
                name = operation["operationId"]
                parts.append(
                    f'<li><a href="#{name}"><span class="{method}">{method.upper()}</span> {_text(path)}</a></li>'
                )
        parts.append("</ul>")
    others = (("access", "Access"), ("schemas", "Schemas"), ("errors", "Errors"))
    parts.append("<h2>Beside them</h2><ul>")
    parts += [f'<li><a href="#{name}">{title}</a></li>' for name, title in others]
    return "".join((*parts, "</ul></nav>"))


def _access(document: Json) -> str:
    rows = [
        (f"<code>{_text(scheme.get('name') or 'Authorization: Bearer')}</code>", _inline(scheme["description"]))
        for scheme in document["components"]["securitySchemes"].values()
    ]
    return f'<h2 id="access">Access</h2>{_table(("header", "meaning"), rows)}'


def _sections(document: Json) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{_text(tag['name'])}</h2>"
        for method, path, operation in _operations(document):
            if tag["name"] in operation["tags"]:
                yield _operation(method, path, operation, document)


def _operation(method: str, path: str, operation: Json, document: Json) -> str:
    parts = [
        f'<details><summary><code class="method {method}">{method.upper()}</code> <code>{_text(path)}</code>'
        f' <span class="soft">{_inline(operation["summary"])}</span></summary>'
        f'<div><span class="at" id="{operation["operationId"]}"></span>'
    ]
    if "description" in operation:
        parts.append(_prose(operation["description"]))
    parts.append(f'<p class="soft">{_key_needed(operation["security"])}</p>')
    if "parameters" in operation:
        rows = [
            (f"<code>{_text(p['name'])}</code>", _text(p["in"]), _inline(p["description"]))
            for p in operation["parameters"]
        ]
        parts.append(f"<h3>Parameters</h3>{_table(('name', 'in', 'meaning'), rows)}")
    if "requestBody" in operation:
        parts.append(_body(operation["requestBody"]))
    parts.append(_responses(operation["responses"], document["components"]["responses"]))
    return "".join((*parts, "</div></details>"))


def _key_needed(security: list[Json]) -> str:
    if not security:
        return "No key is needed."
    return "A key is needed where a proxy passes on the request." if {} in security else "A key is needed."


def _body(body: Json) -> str:
    ((kind, content),) = body["content"].items()
    must = "" if body["required"] else ", may be left out"
    parts = [f"<h3>Body</h3><p><code>{_text(kind)}</code>{must}</p>", _schema(content["schema"])]
    if "example" in content:
        example = json.dumps(content["example"], indent=2, ensure_ascii=False)
        parts.append(f'<h3>Example</h3><pre tabindex="0">{_text(example)}</pre>')
    return "".join(parts)


def _responses(responses: Mapping[str, Json], shared: Mapping[str, Json]) -> str:
    rows = []
    for status, response in sorted(responses.items()):
        if "$ref" in response:
            response = shared[response["$ref"].rpartition("/")[2]]
        if "x-codes" in response:
            links = ", ".join(f'<a href="#error-{code}"><code>{code}</code></a>' for code in response["x-codes"])
            rows.append((status, links))
        else:
            kinds = "".join(
                f"<br><code>{_text(kind)}</code>: {_type(content['schema'])}"
                for kind, content in response.get("content", {}).items()
            )
            rows.append((status, _inline(response["description"]) + kinds))
    return f"<h3>Answers</h3>{_table(('status', 'what it is'), rows)}"


def _schemas(document: Json) -> str:
    parts = ['<h2 id="schemas">Schemas</h2>']
    for name, schema in document["components"]["schemas"].items():
        parts.append(
            f'<details><summary><code>{name}</code></summary><div><span class="at" id="schema-{name}"></span>'
            f"{_schema(schema)}</div></details>"
        )
    return "".join(parts)


def _schema(schema: Json) -> str:
    """A schema, and what its members are."""
    parts = [_prose(schema["description"])] if "description" in schema else []
    rows = list(_members(schema, ""))
    if rows:
        parts.append(_table(("member", "type", "meaning"), rows))
        if schema.get("additionalProperties") is False:
            parts.append('<p class="soft">There are no other members.</p>')
    else:
        parts.append(f"<p>{_type(schema)}</p>")
    return "".join(parts)


def _members(schema: Json, above: str) -> Iterator[tuple[str, str, str]]:
    required = schema.get("required", ())
    for name, member in schema.get("properties", {}).items():
        needed = ' <span class="soft">needed</span>' if name in required else ""
        path = f"{above}{name}"
        yield f"<code>{_text(path)}</code>{needed}", _type(member), _inline(member.get("description", ""))
        yield from _members(member, f"{path}.")
        yield from _members(member.get("items", {}), f"{path}[].")


def _type(schema: Json) -> str:
    """A type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{name}"><code>{name}</code></a>'
    for key in ("const", "enum"):
        if key in schema:
            values = [schema[key]] if key == "const" else schema[key]
            return " or ".join(f"<code>{_text(json.dumps(value))}</code>" for value in values)
    several = schema.get("anyOf")
    if several and "type" not in schema:
        return ", or ".join(_type(one) for one in several)
    kinds = schema.get("type", "anything")
    words = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    if "items" in schema:
        words = words.replace("array", f"array of {_type(schema['items'])}")
    return words + "".join(f", {told}" for told in _bounds(schema))


def _bounds(schema: Json) -> Iterator[str]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None or most is not None:
        yield " ".join(([f"from {least}"] if least is not None else []) + ([f"to {most}"] if most is not None else []))
    if "exclusiveMaximum" in schema:
        yield f"below {schema['exclusiveMaximum']}"
    for kind, unit in (("Items", ""), ("Length", " characters")):
        if f"min{kind}" in schema:
            yield f"at least {schema[f'min{kind}']}{unit}"
        if f"max{kind}" in schema:
            yield f"at most {schema[f'max{kind}']}{unit}"
    if "pattern" in schema:
        yield f"<code>{_text(schema['pattern'])}</code>"


def _errors(errors: Mapping[str, Json]) -> str:
    rows = [
        (
            str(row["status"]),
            f'<code id="error-{code}">{code}</code>',
            f'{_inline(row["meaning"])}<br><span class="soft">{_inline(row["action"])}</span>',
        )
        for code, row in errors.items()
    ]
    return f'<h2 id="errors">Errors</h2>{_table(("status", "code", "what it means, and what to do"), rows)}'


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells in HTML."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _prose(text: str) -> str:
    """Paragraphs and lists of Markdown."""
    parts = []
    for block in text.split("\n\n"):
        if block.startswith("* "):
            items = "".join(f"<li>{_inline(item)}</li>" for item in block[2:].split("\n* "))
            parts.append(f"<ul>{items}</ul>")
        else:
            parts.append(f"<p>{_inline(block)}</p>")
    return "".join(parts)


def _inline(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", _text(text))


def _text(value: Any) -> str:
    return html.escape(str(value))
