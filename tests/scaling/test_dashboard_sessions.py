"""A session of the dashboard over two APIs of one service, as behind a load balancer that sends each request to any."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from outside import PLAIN, eventually
from scaling.cluster import COMMAND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scaling.cluster import Cluster, Process
    from scaling.engines import Engine

SESSION = "/api/v1/dashboard-session"
OVERVIEW = "/api/v1/overview"
REPLAY = "/api/v1/dead-letters/replay"
OWN = {"sec-fetch-site": "same-origin"}


def made_key(role: str, name: str) -> tuple[str, str]:
    """An access key, and the line for the settings."""
    command = [COMMAND, "keys", "create", "--role", role, "--name", name, "--json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return printed["key"], printed["hash"]


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[str, str]]:
    return {name: made_key(role, name) for role, name in (("admin", "ops"), ("client", "north"))}


@pytest.fixture(scope="module")
def pair(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], keys: dict[str, tuple[str, str]]
) -> Iterator[Cluster]:
    """Two APIs and a worker on PostgreSQL, with folders of their own."""
    queue = new_engine("postgres").new_queue()
    with clusters(queue, queue, security__api_keys=[line for _, line in keys.values()]) as cluster:
        for role in ("api", "api", "worker"):
            cluster.add(role)
        cluster.start()
        yield cluster


class Browser:
    """Goes to one API or to the other with the same cookie."""

    def __init__(self, cluster: Cluster, key: str, at: int) -> None:
        self._urls = [api.url for api in cluster.apis]
        answer = self.send(at, "POST", SESSION, json={"access_key": key})
        assert answer.status_code == 200, answer.text
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    cookie = ""

    def send(self, at: int, method: str, path: str, headers: dict[str, str] = OWN, **options: Any) -> httpx.Response:
        named = {**headers, "cookie": self.cookie}
        return httpx.request(
            method, self._urls[at] + path, headers=named, verify=PLAIN, trust_env=False, timeout=30, **options
        )

    def get(self, at: int, path: str = OVERVIEW) -> httpx.Response:
        return self.send(at, "GET", path)


@pytest.mark.parametrize("at", [0, 1])
def test_signed_in_at_one_is_signed_in_at_the_other(pair: Cluster, keys: dict[str, tuple[str, str]], at: int) -> None:
    browser = Browser(pair, keys["ops"][0], at)
    for api in (0, 1):
        assert browser.get(api).status_code == 200
        assert browser.get(api, SESSION).json() == {
            "signed_in": True, "keys_required": True, "name": "ops", "role": "admin",
        }  # fmt: skip


@pytest.mark.parametrize("at", [0, 1])
def test_signed_out_at_one_is_signed_out_at_the_other(pair: Cluster, keys: dict[str, tuple[str, str]], at: int) -> None:
    browser, other = Browser(pair, keys["ops"][0], 0), Browser(pair, keys["ops"][0], 0)
    assert browser.send(at, "DELETE", SESSION).status_code == 204
    for api in (0, 1):
        assert browser.get(api).status_code == 401
        assert browser.get(api, SESSION).json()["signed_in"] is False
        assert other.get(api).status_code == 200, "another session of the same key ended too"


def test_roles_are_the_same_at_both(pair: Cluster, keys: dict[str, tuple[str, str]]) -> None:
    client = Browser(pair, keys["north"][0], 0)
    for api in (0, 1):
        assert client.get(api, SESSION).json()["role"] == "client"
        assert client.get(api).status_code == 403
        assert client.send(api, "POST", REPLAY, json={}).status_code == 403


def test_other_pages_cannot_use_it_at_the_other_api(pair: Cluster, keys: dict[str, tuple[str, str]]) -> None:
    browser = Browser(pair, keys["ops"][0], 0)
    for api in (0, 1):
        for headers in ({}, {"sec-fetch-site": "cross-site"}, {"origin": "https://elsewhere.example"}):
            assert browser.send(api, "POST", REPLAY, headers, json={}).status_code == 403
        # The other API is another origin.
        theirs = {"origin": pair.apis[1 - api].url}
        assert browser.send(api, "POST", REPLAY, theirs, json={}).status_code == 403
        assert browser.send(api, "POST", REPLAY, json={}).status_code == 202


def without_key(api: Process, line: str) -> None:
    """Take a line out of the API's settings, and have it read them."""
    settings = api.folder / "chargegate.toml"
    text = settings.read_text()
    assert line in text
    settings.write_text(text.replace(f'"{line}", ', "").replace(f', "{line}"', ""))
    api.signal(signal.SIGHUP)


def test_a_session_ends_where_its_key_ends(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], keys: dict[str, tuple[str, str]]
) -> None:
    queue = new_engine("postgres").new_queue()
    with clusters(queue, queue, security__api_keys=[line for _, line in keys.values()]) as cluster:
        cluster.add("api")
        cluster.add("api")
        cluster.start()
        browser = Browser(cluster, keys["ops"][0], 0)
        without_key(cluster.apis[1], keys["ops"][1])
        eventually(lambda: browser.get(1).status_code == 401, 30, cluster.tails)
        assert browser.get(0).status_code == 200
        for api in cluster.apis:
            api.terminate()
            api.ended()
        cluster.apis[0].start()
        assert browser.get(0).status_code == 200, "a session outlives a restart"
