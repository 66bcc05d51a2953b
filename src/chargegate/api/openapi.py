"""The OpenAPI 3.1 document, made from the same routes as the router."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from chargegate import __version__
from chargegate.api.errors import Error
from chargegate.api.routing import Answer, Body, Callback, Parameter, Route

_ERRORS: Final[dict[int, tuple[str, str, tuple[str, ...]]]] = {
    400: ("validation_error", "Something is missing or against its rule; details names every field at fault.", ()),
    401: ("unauthorized", "The access key is missing or unknown.", ("WWW-Authenticate",)),
    403: ("forbidden", "The access key is not enough, or the host or the origin is not allowed.", ()),
    404: ("not_found", "There is no such thing.", ()),
    413: ("payload_too_large", "The body is over the limit, with a length or in chunks.", ()),
    415: ("unsupported_media_type", "The body is not application/json.", ()),
    422: ("idempotency_conflict", "The idempotency key was used with another body.", ()),
    429: ("rate_limited", "Over the client's rate.", ("Retry-After",)),
    503: ("service_unavailable", "Queue or database is full or out of reach, or the service stops.", ("Retry-After",)),
}
_HEADERS: Final[dict[str, tuple[str, str]]] = {
    "X-Request-ID": ("The client's X-Request-ID, or one made for this request.", "^[!-~]{1,128}$"),
    "Retry-After": ("Seconds to wait.", "^[1-9][0-9]*$"),
    "WWW-Authenticate": ("How to authenticate.", "^Bearer$"),
}
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def document(routes: Sequence[Route], *, keys_required: bool) -> dict[str, Any]:
    """The document as plain data. Security schemes are in it only if access keys are configured."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, keys_required)
    components: dict[str, Any] = {
        "schemas": _schemas(routes),
        "headers": {
            _component(name): {"description": text, "required": True, "schema": {"type": "string", "pattern": pattern}}
            for name, (text, pattern) in _HEADERS.items()
        },
    }
    if keys_required:
        components["securitySchemes"] = _SCHEMES
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "chargegate",
            "version": __version__,
            "summary": "The asynchronous authorization gate for EV charging.",
            "description": "Accepts a request at once, decides behind a durable queue, and calls back. Every error has"
            " the shape of Error. A timestamp is Unix milliseconds; every other time is ISO 8601 in UTC.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": components,
    }


def _operation(route: Route, keys_required: bool) -> dict[str, Any]:
    answers: dict[str, Any] = {str(status): _answer(answer) for status, answer in route.answers.items()}
    answers.update({str(status): _error(status) for status in route.refusals(keys_required=keys_required)})
    described: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": route.summary,
        "responses": answers,
    }
    if route.description:
        described["description"] = route.description
    if route.parameters:
        described["parameters"] = [_parameter(p) for p in route.parameters]
    if route.body:
        described["requestBody"] = _body(route.body)
    if route.callback:
        described["callbacks"] = {route.callback.name: _callback(route.callback)}
    if keys_required and route.access != "open":
        described["security"] = [{name: []} for name in _SCHEMES]
    return described


def _callback(callback: Callback) -> dict[str, Any]:
    post = {
        "operationId": callback.name,
        "summary": callback.summary,
        "description": callback.description,
        "parameters": [_parameter(p) for p in callback.parameters],
        "requestBody": _body(callback.body),
        "responses": {status: {"description": meaning} for status, meaning in callback.answers.items()},
    }
    return {callback.url: {"post": post}}


def _body(body: Body) -> dict[str, Any]:
    content = {"schema": _reference(body.name), "example": body.example}
    return {"required": not body.may_be_empty, "content": {"application/json": content}}


def _parameter(parameter: Parameter[Any]) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required or parameter.place == "path",
        "description": parameter.description,
        "schema": parameter.schema,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description, "headers": _headers("X-Request-ID")}
    schema = answer.schema if answer.model is None else _reference(answer.model.__name__)
    if schema is not None:
        example = {} if answer.example is None else {"example": answer.example}
        described["content"] = {answer.media_type: {"schema": schema, **example}}
    return described


def _error(status: int) -> dict[str, Any]:
    code, description, headers = _ERRORS[status]
    example: dict[str, Any] = {"status": code, "message": description, "timestamp": 1769860800000}
    if status == 400:
        example["details"] = {"station_id": "must be a UUID in its canonical 8-4-4-4-12 form"}
    return {
        "description": description,
        "headers": _headers("X-Request-ID", *headers),
        "content": {"application/json": {"schema": _reference("Error"), "example": example}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{_component(name)}"} for name in names}


def _component(header: str) -> str:
    return header.replace("-", "")


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    models = {answer.model for route in routes for answer in route.answers.values() if answer.model}
    _, schemas = msgspec.json.schema_components(
        sorted({Error, *models}, key=lambda model: model.__name__), ref_template="#/components/schemas/{name}"
    )
    bodies = [route.body for route in routes if route.body]
    bodies += [route.callback.body for route in routes if route.callback]
    return dict(sorted({**schemas, **{body.name: dict(body.schema) for body in bodies}}.items()))
