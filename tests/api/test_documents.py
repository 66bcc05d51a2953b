"""/openapi.json and /docs say what the running service does."""

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.conftest import BODY, SESSION, Service

from chargegate.api.schemas import charging_request
from chargegate.keys import new_access_key
from chargegate.model import parse_callback_url


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


def test_an_entry_may_begin_and_end(service: Service) -> None:
    schema = document(service)["components"]["schemas"]["AccessEntryInput"]
    entry = {"driver_token": BODY["driver_token"], "valid_from": "2026-01-01T00:00:00Z", "valid_until": "2027-01-01"}
    assert service.http.put("/api/v1/acl", json=entry).status_code == 200
    assert set(entry) <= set(schema["properties"])
    assert schema["required"] == ["driver_token"]
    assert not set(schema) & {"anyOf", "allOf", "oneOf", "not"}


def test_the_key_is_a_parameter_like_others(service: Service) -> None:
    found = document(service)
    parameters = {parameter["name"]: parameter for parameter in found["paths"][SESSION]["post"]["parameters"]}
    key = parameters["Idempotency-Key"]
    assert (key["in"], key["required"]) == ("header", False)
    assert '"x-' not in service.http.get("/openapi.json").text
    for text, status in (("!" * 255, 202), ("!" * 256, 400), ("a b", 400), ("", 400)):
        assert (re.search(key["schema"]["pattern"], text) is not None) == (status == 202)
        assert service.http.post(SESSION, json=BODY, headers={"idempotency-key": text}).status_code == status


def test_what_clients_implement(service: Service) -> None:
    found = document(service)
    [callback] = found["paths"][SESSION]["post"]["callbacks"].values()
    post = callback["{$request.body#/callback_url}"]["post"]
    assert {parameter["name"]: parameter["required"] for parameter in post["parameters"]} == {
        "webhook-id": True,
        "webhook-timestamp": True,
        "webhook-signature": False,
        "traceparent": False,
    }
    assert set(post["responses"]) == {"2XX", "410", "default"}
    schema = found["components"]["schemas"]["CallbackPayload"]
    assert list(schema["properties"]) == schema["required"] == ["station_id", "driver_token", "status"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["status"]["enum"] == ["allowed", "not_allowed", "unknown", "invalid"]


HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address.exploded}]"),
    st.sampled_from(["0x7f.1", "2130706433", "0177.0.0.1", "[::ffff:192.0.2.1]", "_dmarc.x-.", "a" * 63, "a" * 64]),
    st.from_regex(r"[A-Za-z0-9._-]{1,80}", fullmatch=True),
)
PORTS = st.just("") | st.integers(0, 70_000).map(lambda port: f":{port}") | st.from_regex(":[0-9]{0,6}", fullmatch=True)
PATHS = st.just("") | st.from_regex(r"[/?#][ -~]{0,12}", fullmatch=True)


@given(scheme=st.sampled_from(["http", "HTTPS", "ftp"]), host=HOSTS, port=PORTS, path=PATHS)
def test_no_callback_url_that_is_accepted_breaks_the_documented_pattern(
    scheme: str, host: str, port: str, path: str
) -> None:
    url = f"{scheme}://{host}{port}{path}"
    try:
        target = parse_callback_url(url)
    except ValueError:
        return
    for require_https in {False, target.scheme == "https"}:
        pattern = charging_request(require_https=require_https).schema["properties"]["callback_url"]["pattern"]
        assert re.search(pattern, url)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a/", "http:///", "http://a b/", "http://u@a/", "http://a/#", "http://a:0/", "http://a:65536/"),
        *("http://a..b/", "http://a\\b", "http://" + "a" * 64 + "/", "http://é/", "x http://a/"),
    ],
)
def test_what_the_pattern_can_say_it_says(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|has) "):
        parse_callback_url(url)
    assert not re.search(charging_request(require_https=False).schema["properties"]["callback_url"]["pattern"], url)


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
    for text in (*found["paths"], "Idempotency-Key", "driver_token", "Dead letters", "receiveDecision", "webhook-id"):
        assert text in answer.text


def test_the_page_has_a_strict_policy_that_its_style_fits(service: Service) -> None:
    answer = service.http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    [style] = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
