"""The service against its own document, with every check that schemathesis has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema_rs
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
HOOKS = Path(__file__).with_name("openapi_hooks.py")
FEW, MANY = 8, 50
LONG = [pytest.mark.soak, pytest.mark.timeout(1800)]


def examine(service: Service, examples: int, *options: str) -> None:
    command = [str(SCHEMATHESIS), "run", f"{service.url}/openapi.json", "--checks", "all", "--seed", "1", "--no-color"]
    command += ["--max-examples", str(examples), "--continue-on-failure", "--generation-database", "none", *options]
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    examined = subprocess.run(command, cwd=service.folder, env=environ, capture_output=True, text=True, check=False)
    assert examined.returncode == 0, examined.stdout + examined.stderr
    assert service.ready() == 200
    assert '"level":"error"' not in service.log


@pytest.mark.parametrize("examples", [pytest.param(number, marks=LONG) for number in (FEW, MANY)])
def test_anyone_may_do_everything(service: Callable[..., Service], examples: int) -> None:
    examine(service(), examples)


@pytest.mark.parametrize(
    "examples", [pytest.param(FEW, marks=pytest.mark.timeout(600)), pytest.param(MANY, marks=LONG)]
)
def test_with_keys(service: Callable[..., Service], command: str, examples: int) -> None:
    create = [command, "keys", "create", "--role", "admin", "--json"]
    made = json.loads(subprocess.run(create, check=True, capture_output=True, text=True).stdout)
    header = f"Authorization: Bearer {made['key']}"
    examine(service(security__api_keys=[made["hash"]]), examples, "--header", header)


def test_callbacks_are_as_documented(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    gate = service(callback__retry_delay_ms=10, callback__signing_secrets=["whsec_" + "c2VjcmV0" * 4])
    document = gate.client.get("/openapi.json").json()
    [callback] = document["paths"]["/api/v1/charging-session"]["post"]["callbacks"].values()
    post = callback["{$request.body#/callback_url}"]["post"]
    reference = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body = jsonschema_rs.validator_for(document["components"]["schemas"][reference.rpartition("/")[2]])
    headers = {parameter["name"]: jsonschema_rs.validator_for(parameter["schema"]) for parameter in post["parameters"]}
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for answer, status, calls in ((204, "COMPLETED", 1), (410, "FAILED", 1), (302, "FAILED", 3)):
        asked = gate.ask(receiver.planned(reply(answer)), headers={"traceparent": parent})
        assert gate.finished(asked)["status"] == status
        sent = receiver.calls_to(asked.callback_url)
        assert len(sent) == calls
        for call in sent:
            body.validate(call.json)
            assert call.headers["content-type"] == "application/json"
            for name, rule in headers.items():
                rule.validate(call.headers[name])


def test_the_document_forbids_nothing_that_is_accepted(service: Callable[..., Service]) -> None:
    gate = service()
    schemas = gate.client.get("/openapi.json").json()["components"]["schemas"]
    request, entry = (jsonschema_rs.validator_for(schemas[name]) for name in ("ChargingRequest", "AccessEntryInput"))
    for url in ("http://127.0.0.1:1/", "http://0x7f.1:1/", "http://[::ffff:127.0.0.1]:1", "http://a_b.example.:1?x"):
        body = gate.body(url)
        request.validate(body)
        assert gate.post(body).status_code == 202
    span = {"valid_from": "2026-01-01T00:00:00Z", "valid_until": "2027-01-01T00:00:00Z"}
    lasting = {"driver_token": "driver-0123456789.0123456789", **span}
    entry.validate(lasting)
    assert gate.client.put("/api/v1/acl", json=lasting).status_code == 200
