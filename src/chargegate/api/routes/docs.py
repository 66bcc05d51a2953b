"""``/openapi.json``, and ``/docs``: the same document as a page that loads nothing and runs nothing."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, Final

import msgspec
from starlette.responses import Response

from chargegate.api.openapi import document
from chargegate.api.parts import Parts
from chargegate.api.routing import Answer, Call, Route, Routes
from chargegate.keys import AccessKeys

_STYLE: Final = files(__package__).joinpath("docs.css").read_text(encoding="utf-8")
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_RULES: Final = ("format", "pattern", "minimum", "maximum", "maxLength", "default")

_Document = Mapping[str, Any]


def with_document(routes: Sequence[Route], *, keys: AccessKeys) -> list[Route]:
    """The routes, and those that show the document of them all. It is true to the keys that there are when it is
    read."""
    route = Routes("Documentation", access="open")

    @route("GET", "/openapi.json", "This document", answers={200: Answer("OpenAPI 3.1.", schema={"type": "object"})})
    async def get_document(_call: Call, _parts: Parts) -> Response:
        return Response(shown(bool(keys))[0], media_type="application/json")

    @route(
        "GET",
        "/docs",
        "This document as a page",
        answers={200: Answer("HTML.", schema={"type": "string"}, media_type="text/html")},
    )
    async def get_docs(_call: Call, _parts: Parts) -> Response:
        return Response(shown(bool(keys))[1], media_type="text/html", headers={"content-security-policy": _POLICY})

    every = [*routes, *route.declared]

    @cache
    def shown(keys_required: bool) -> tuple[bytes, str]:
        described = document(every, keys_required=keys_required)
        return msgspec.json.encode(described), "".join(_page(described))

    shown(bool(keys))
    return every


def _page(document: _Document) -> Iterator[str]:
    info = document["info"]
    by_tag = {tag["name"]: list(_tagged(document, tag["name"])) for tag in document["tags"]}
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body><div class=page><nav>"
    )
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2><ul>"
        yield from (f'<li><a href="#{o["operationId"]}">{escape(o["summary"])}</a></li>' for _, _, o in operations)
        yield "</ul>"
    yield f"</nav><main><h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
    yield f"<p>{escape(info['summary'])} {escape(info['description'])}</p>"
    yield f'<p>{_security(document)} The document itself: <a href="/openapi.json">/openapi.json</a>.</p>'
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, operation in operations:
            yield from _operation(document, method, path, operation)
    yield "</main></div></body></html>"


def _tagged(document: _Document, tag: str) -> Iterator[tuple[str, str, _Document]]:
    for path, methods in document["paths"].items():
        yield from ((method, path, operation) for method, operation in methods.items() if tag in operation["tags"])


def _security(document: _Document) -> str:
    if "securitySchemes" in document["components"]:
        return "Send an access key as <code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>."
    return "No access keys are configured: every caller may do everything."


def _operation(document: _Document, method: str, path: str, operation: _Document) -> Iterator[str]:
    yield f'<section id="{operation["operationId"]}"><h3><span class={method}>{method.upper()}</span> {escape(path)}'
    yield f"</h3><p>{escape(operation['summary'])}. {escape(operation.get('description', ''))}</p>"
    if operation.get("parameters"):
        yield "<h4>Parameters</h4><table>"
        for parameter in operation["parameters"]:
            yield _row(
                f"{parameter['name']} <small>{parameter['in']}</small>", parameter["description"], parameter["schema"]
            )
        yield "</table>"
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        yield "<h4>Body</h4><table>"
        required = _resolved(document, content["schema"]).get("required", ())
        for name, rule in _resolved(document, content["schema"])["properties"].items():
            yield _row(
                f"{name} <small>required</small>" if name in required else name, rule.get("description", ""), rule
            )
        yield f"</table>{_example(content['example'])}"
    yield "<h4>Answers</h4><table>"
    for status, answer in operation["responses"].items():
        yield _row(status, answer["description"], {})
    yield "</table>"
    for answer in operation["responses"].values():
        content = answer.get("content", {}).get("application/json", {})
        if "example" in content and content["schema"] != {"$ref": "#/components/schemas/Error"}:
            yield _example(content["example"])
    yield from _callbacks(document, operation)
    yield "</section>"


def _callbacks(document: _Document, operation: _Document) -> Iterator[str]:
    for callback in operation.get("callbacks", {}).values():
        yield "<h4>Callback</h4>"
        for url, methods in callback.items():
            for method, request in methods.items():
                yield from _operation(document, method, url, request)


def _row(name: str, description: str, schema: _Document) -> str:
    rules = ", ".join(f"{rule}: {schema[rule]}" for rule in _RULES if rule in schema)
    return f"<tr><td><code>{name}</code></td><td>{escape(description)} <small>{escape(rules)}</small></td></tr>"


def _example(content: object) -> str:
    return f"<pre>{escape(json.dumps(content, indent=2))}</pre>"


def _resolved(document: _Document, schema: _Document) -> _Document:
    found: _Document = document["components"]["schemas"][_named(schema)]
    return found


def _named(reference: _Document) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
