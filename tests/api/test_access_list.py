"""The access list over HTTP."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.api.conftest import SESSION, STATION, TOKEN, Service

PATH = "/api/v1/acl"
OTHER = "123e4567-e89b-12d3-a456-426614174000"


def put(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.put(PATH, json={"driver_token": TOKEN, **fields})


def test_an_entry_comes_back_with_its_hash_and_never_the_token(service: Service, client: httpx.Client) -> None:
    answer = put(
        client,
        valid_from="2026-01-31T12:00:00+01:00",
        valid_until="2027-01-01",
        allowed_stations=[STATION, OTHER],
        denied_stations=[],
        note="depot fleet",
    )
    assert answer.status_code == 200
    entry = answer.json()
    assert entry == {
        "driver_token_hash": service.keyring.token_hash(TOKEN),
        "blocked": False,
        "valid_from": "2026-01-31T11:00:00.000Z",
        "valid_until": "2027-01-01T00:00:00.000Z",
        "allowed_stations": [OTHER, STATION.lower()],
        "denied_stations": [],
        "note": "depot fleet",
    }
    assert client.get(PATH).json() == {"items": [entry], "next_cursor": None}
    assert service.changed == [frozenset({entry["driver_token_hash"]})]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            {"blocked": "yes", "valid_from": "soon", "allowed_stations": ["x"]},
            {"blocked", "valid_from", "allowed_stations"},
        ),
        ({"colour": "red"}, {"colour"}),
    ],
)
def test_a_wrong_entry_names_its_fields(
    service: Service, client: httpx.Client, fields: dict[str, Any], names: set[str]
) -> None:
    answer = put(client, **fields)
    assert (answer.status_code, answer.json()["status"]) == (400, "validation_error")
    assert set(answer.json()["details"]) == names
    assert TOKEN not in answer.text
    assert client.get(PATH).json()["items"] == []
    assert service.changed == []


@pytest.mark.parametrize("path", [PATH, PATH + "/check"])
def test_bodies_obey_the_same_rules_as_everywhere(client: httpx.Client, path: str) -> None:
    method = "PUT" if path == PATH else "POST"
    answers = [
        client.request(method, path, content=b"{}", headers={"content-type": "text/plain"}),
        client.request(method, path, json={"driver_token": TOKEN, "note": "x" * 17000}),
        client.request(method, path, content=b"[]", headers={"content-type": "application/json"}),
        client.request(method, path, content=b"{", headers={"content-type": "application/json"}),
        client.request(method, path, content=b"[" * 10000, headers={"content-type": "application/json"}),
    ]
    assert [answer.status_code for answer in answers] == [415, 413, 400, 400, 400]


def test_the_request_id_never_carries_the_token(client: httpx.Client) -> None:
    headers = {"x-request-id": "id-" + TOKEN}
    for answer in (
        client.put(PATH, json={"driver_token": TOKEN}, headers=headers),
        client.put(PATH, json={"driver_token": TOKEN, "blocked": 1}, headers=headers),
        client.post(PATH + "/check", json={"station_id": STATION, "driver_token": TOKEN}, headers=headers),
    ):
        assert TOKEN not in str(answer.headers) + answer.text


def test_a_defect_shows_nothing(serve: Callable[..., Service], capfd: pytest.CaptureFixture[str]) -> None:
    def broken(_hashes: frozenset[str]) -> None:
        raise RuntimeError(TOKEN)

    service = serve(access_changed=broken)
    answer = service.http.put(PATH, json={"driver_token": TOKEN})
    assert (answer.status_code, answer.json()["status"]) == (500, "internal_error")
    assert set(answer.json()) == {"status", "message", "timestamp"}
    assert answer.headers["x-request-id"]
    assert service.counted("internal_error") == 0  # it is no request to charge
    logged = "".join(capfd.readouterr())
    assert "RuntimeError" in logged
    assert TOKEN not in logged + answer.text


def test_removing(service: Service, client: httpx.Client) -> None:
    token_hash = put(client).json()["driver_token_hash"]
    answer = client.delete(f"{PATH}/{token_hash.upper()}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert service.changed == [frozenset({token_hash})] * 2
    again = client.delete(f"{PATH}/{token_hash}")
    assert (again.status_code, again.json()["status"]) == (404, "not_found")
    for bad in ("check", token_hash[1:], TOKEN):
        answer = client.delete(f"{PATH}/{bad}")
        assert answer.status_code in (400, 405)
        assert TOKEN not in answer.text


def test_checking_decides_and_records_nothing(service: Service, client: httpx.Client) -> None:
    question = {"station_id": STATION, "driver_token": TOKEN}
    answer = client.post(PATH + "/check", json=question)
    assert answer.status_code == 200
    assert answer.json() == {"station_id": STATION, "status": "not_allowed", "reason": "driver_not_in_acl"}
    put(client, denied_stations=[OTHER])
    assert client.post(PATH + "/check", json=question).json()["status"] == "allowed"
    denied = client.post(PATH + "/check", json={**question, "station_id": OTHER.upper()}).json()
    assert denied == {"station_id": OTHER.upper(), "status": "not_allowed", "reason": "not_at_this_location"}
    put(client, blocked=True)
    assert client.post(PATH + "/check", json=question).json()["reason"] == "token_blocked"
    assert client.get("/api/v1/decisions").json()["items"] == []
    assert service.accepted() == 0


def test_checking_needs_both_fields(client: httpx.Client) -> None:
    answer = client.post(PATH + "/check", json={})
    assert answer.status_code == 400
    assert answer.json()["details"] == {"station_id": "is required", "driver_token": "is required"}
    answer = client.post(PATH + "/check", json={"station_id": 1, "driver_token": [TOKEN]})
    assert set(answer.json()["details"]) == {"station_id", "driver_token"}
    assert TOKEN not in answer.text


def test_a_token_in_a_path_is_not_repeated(client: httpx.Client) -> None:
    for path in (f"{SESSION}/{TOKEN}", f"/{TOKEN}", f"/api/v1/dead-letters/{TOKEN}/replay"):
        assert TOKEN not in client.post(path).text + client.get(path).text
