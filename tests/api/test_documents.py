"""/openapi.json and /docs say what the running service does."""

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

from tests.api.conftest import BODY, SESSION, Service

from chargegate.secrets import new_access_key


def document(service: Service) -> dict[str, Any]:
    answer = service.http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def test_every_operation_exists_and_no_other_method_does(service: Service) -> None:
    paths = document(service)["paths"]
    assert SESSION in paths
    assert "/docs" in paths
    for path, operations in paths.items():
        url = re.sub(r"\{\w+\}", "0", path)
        for method in ("get", "post", "put", "delete", "patch"):
            answer = service.http.request(method, url)
            assert (answer.status_code != 405) == (method in operations)
        allowed = {method.strip().lower() for method in service.http.options(url).headers["allow"].split(",")}
        assert allowed - {"head"} == set(operations)


def test_references_resolve_and_ids_are_unique(service: Service) -> None:
    found = document(service)
    ids = [operation["operationId"] for methods in found["paths"].values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    for reference in re.findall(r"'\$ref': '#/([^']+)'", str(found)):
        part: Any = found
        for name in reference.split("/"):
            part = part[name]


def test_examples_keep_the_documented_rules(service: Service) -> None:
    found = document(service)
    schema = found["components"]["schemas"]["ChargingRequest"]
    example = found["paths"][SESSION]["post"]["requestBody"]["content"]["application/json"]["example"]
    for body in (example, BODY):
        for name, value in body.items():
            assert re.search(schema["properties"][name]["pattern"], value)
    assert service.http.post(SESSION, json=example).status_code == 202


def test_errors_have_their_one_schema(service: Service) -> None:
    found = document(service)
    assert found["components"]["schemas"]["Error"]["required"] == ["status", "message", "timestamp"]
    for methods in found["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status.startswith("4"):
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}


def test_security_is_documented_only_where_it_is(service: Service, serve: Callable[..., Service]) -> None:
    assert "securitySchemes" not in document(service)["components"]
    guarded = document(serve(keys=[new_access_key("client")[1]]))
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    assert {"401", "403"} <= set(guarded["paths"]["/api/v1/acl"]["put"]["responses"])
    assert "401" in guarded["paths"][SESSION]["post"]["responses"]
    assert "security" not in guarded["paths"]["/health"]["get"]


def test_the_configuration_shows(serve: Callable[..., Service]) -> None:
    plain = document(serve())["paths"][SESSION]["post"]
    assert "429" not in plain["responses"]
    strict = document(serve(rate_limit_per_second=5.0, require_https=True, max_body_bytes=999))
    operation = strict["paths"][SESSION]["post"]
    assert "429" in operation["responses"]
    assert "999 bytes" in operation["description"]
    pattern = strict["components"]["schemas"]["ChargingRequest"]["properties"]["callback_url"]["pattern"]
    assert re.search(pattern, "https://example.com/a?b=c")
    assert not re.search(pattern, "http://example.com/")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_all_of_it_and_loads_nothing(service: Service) -> None:
    answer = service.http.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "form"}
    assert not any(name.startswith("on") or name == "src" for _, attributes in page.tags for name in attributes)
    found = document(service)
    shown = {attributes.get("id") for _, attributes in page.tags}
    assert {o["operationId"] for methods in found["paths"].values() for o in methods.values()} <= shown
    for text in (*found["paths"], "Idempotency-Key", "driver_token", "Dead letters"):
        assert text in answer.text


def test_the_page_has_a_strict_policy_that_its_style_fits(service: Service) -> None:
    answer = service.http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    [style] = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
