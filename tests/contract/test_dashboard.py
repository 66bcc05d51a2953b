"""The dashboard from outside, without a browser: its files, its sessions, and what a session may do."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from outside import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Reply, Service, Site

SESSION = "/api/v1/dashboard-session"
OVERVIEW = "/api/v1/overview"
PAGES = [
    "",
    "/",
    "/requests",
    "/requests/01890a5d-ac96-774b-bcce-b302099a8057",
    "/stations",
    "/dead-letters",
    "/access-list",
    "/anomalies",
]
OWN = {"sec-fetch-site": "same-origin"}


class Key(NamedTuple):
    secret: str
    line: str


@pytest.fixture(scope="module")
def keys(command: str) -> dict[str, Key]:
    made = {}
    for role, name in (("admin", "ops"), ("client", "north"), ("client", "south")):
        line = [command, "keys", "create", "--role", role, "--name", name, "--json"]
        printed = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        made[name] = Key(printed["key"], printed["hash"])
    return made


def lines(keys: dict[str, Key]) -> list[str]:
    return [key.line for key in keys.values()]


@pytest.fixture(scope="module")
def shared(shared_service: Callable[..., Service], keys: dict[str, Key]) -> Service:
    return shared_service(security__api_keys=lines(keys), callback__retry_delay_ms=10)


_clients: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """A test's connections end with it."""
    yield
    while _clients:
        _clients.pop().close()


def client(service: Service, **headers: str) -> httpx.Client:
    """A browser's requests, as far as they matter here; cookies are kept."""
    made = httpx.Client(base_url=service.url, headers={**OWN, **headers}, verify=PLAIN, trust_env=False, timeout=30)
    _clients.append(made)
    return made


def signed_in(service: Service, key: Key) -> httpx.Client:
    browser = client(service)
    answer = browser.post(SESSION, json={"access_key": key.secret})
    assert answer.status_code == 200, answer.text
    return browser


def cookie_of(browser: httpx.Client) -> str:
    return str(browser.cookies["chargegate_session"])


# Files


@pytest.mark.parametrize("page", PAGES)
def test_each_page_has_a_strict_policy_and_no_data(shared: Service, page: str) -> None:
    answer = client(shared).get("/dashboard" + page)
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|<style|\sstyle=|javascript:", answer.text)
    assert not re.search(r"(?:src|href)=\"(?!/dashboard|#)", answer.text), "it loads something from elsewhere"


def files(service: Service) -> dict[str, httpx.Response]:
    """Every file that the pages load, by its path."""
    browser = client(service)
    found: dict[str, httpx.Response] = {}
    waiting = re.findall(r'(?:src|href)="(/dashboard/files/[^"]+)"', browser.get("/dashboard").text)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = browser.get(path)
            assert found[path].status_code == 200, path
            names = re.findall(r'["\']\./([a-z_]+\.js)["\']', found[path].text)
            waiting += [path.rpartition("/")[0] + "/" + name for name in names]
    return found


def test_all_files_together_are_small_and_kept(shared: Service) -> None:
    loaded = files(shared)
    assert len(loaded) > 8
    assert sum(len(gzip.compress(answer.content)) for answer in loaded.values()) < 100_000
    for path, answer in loaded.items():
        assert "immutable" in answer.headers["cache-control"], path
        assert answer.headers["content-encoding"] == "gzip", path
        assert answer.headers["vary"] == "accept-encoding"
        plain = client(shared).get(path, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        refused = client(shared).get(path, headers={"accept-encoding": "gzip;q=0, br"})
        assert "content-encoding" not in refused.headers
        for tag in (answer.headers["etag"], f'"other", {answer.headers["etag"]}', "*"):
            again = client(shared).get(path, headers={"if-none-match": tag})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == answer.headers["etag"]
        assert client(shared).get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_head_is_get_without_a_body(shared: Service) -> None:
    for path in ["/dashboard", *list(files(shared))[:2]]:
        got, head = client(shared).get(path), client(shared).head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "etag", "content-type", "content-security-policy"):
            assert head.headers[name] == got.headers[name]


def test_a_page_of_another_version_gets_what_there_is(shared: Service) -> None:
    path = next(path for path in files(shared) if path.endswith("main.js"))
    other = re.sub(r"/files/[0-9a-f]+/", "/files/0123456789abcdef/", path)
    answer = client(shared).get(other)
    assert answer.status_code == 200
    assert "immutable" not in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/files/0123456789abcdef/../../../__init__.py",
        "/dashboard/files/0123456789abcdef/..%2f..%2fapp.py",
        "/dashboard/files/0123456789abcdef/%2e%2e/__init__.py",
        "/dashboard/files/0123456789abcdef//etc/passwd",
        "/dashboard/files/0123456789abcdef/main.js%00.css",
        "/dashboard/files/0123456789abcdef/main.js/",
        "/dashboard/files/0123456789abcdef/index.html",
        "/dashboard/files/0123456789abcdef/__init__.py",
        "/dashboard/files/",
        "/dashboard/files",
        "/dashboard//requests",
        "/dashboard/requests/%3Cscript%3E",
        "/dashboard/..%5cconfig.py",
        "/dashboardx",
    ],
)
def test_nothing_else_is_served(shared: Service, path: str) -> None:
    with client(shared) as browser:
        request = browser.build_request("GET", shared.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = browser.send(request)
    assert answer.status_code == 404
    assert answer.json()["status"] == "not_found"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_pages_are_only_read(shared: Service, method: str) -> None:
    answer = client(shared).request(method, "/dashboard")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_link_from_elsewhere_opens_a_page_and_nothing_else(shared: Service) -> None:
    """A page holds no data, and a link to it can be sent. In a frame, or without being a page, it is refused."""
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client(shared, **followed).get("/dashboard/requests").status_code == 200
    for path in (OVERVIEW, SESSION, "/health"):
        assert client(shared, **followed).get(path).status_code == 403
    for changed in ({"sec-fetch-dest": "iframe"}, {"sec-fetch-mode": "cors"}, {"origin": "https://elsewhere.example"}):
        assert client(shared, **{**followed, **changed}).get("/dashboard").status_code == 403


def test_it_can_be_turned_off(service: Callable[..., Service], keys: dict[str, Key]) -> None:
    gate = service(security__api_keys=lines(keys), dashboard__enabled=False)
    for path in ("/dashboard", "/dashboard/requests", SESSION):
        assert client(gate).get(path).status_code == 404
    assert "/api/v1/dashboard-session" not in gate.client.get("/openapi.json").json()["paths"]


# Sessions


def test_a_session_is_a_cookie_for_pages_of_the_service_alone(shared: Service, keys: dict[str, Key]) -> None:
    answer = client(shared).post(SESSION, json={"access_key": keys["ops"].secret})
    assert answer.json() == {"signed_in": True, "keys_required": True, "name": "ops", "role": "admin"}
    [cookie] = answer.headers.get_list("set-cookie")
    attributes = {part.strip().partition("=")[0].lower(): part.partition("=")[2] for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite", "path", "max-age"} <= attributes.keys()
    assert attributes["samesite"] == "Strict"
    assert attributes["path"] == "/api/v1"
    assert "domain" not in attributes
    assert "secure" not in attributes, "on plain HTTP a browser would throw it away"
    assert keys["ops"].secret not in cookie
    assert keys["ops"].secret not in answer.text


def test_behind_tls_the_cookie_is_secure(shared: Service, keys: dict[str, Key]) -> None:
    """A proxy ends TLS here, and the browser says of the page that it came over HTTPS."""
    origin = {"origin": f"https://127.0.0.1:{shared.port}"}
    answer = client(shared, **origin).post(SESSION, json={"access_key": keys["ops"].secret})
    assert "; Secure" in answer.headers["set-cookie"]


def test_behind_tls_a_renewed_cookie_is_secure_too(
    service: Callable[..., Service], keys: dict[str, Key], eventually: Callable[..., Any]
) -> None:
    """A browser says no Origin with a GET of its own page. Without ``Secure`` the renewed cookie would go over plain
    HTTP as well."""
    gate = service(security__api_keys=lines(keys), dashboard__session_idle_ms=2000)
    signing_in = client(gate, origin=f"https://127.0.0.1:{gate.port}")
    first = signing_in.post(SESSION, json={"access_key": keys["ops"].secret}).headers["set-cookie"]
    assert "; Secure" in first
    page = client(gate, cookie=first.partition(";")[0])

    def renewed() -> str:
        answer = page.get(OVERVIEW)
        assert answer.status_code == 200
        return str(answer.headers.get("set-cookie", ""))

    again = eventually(renewed)
    assert "; Secure" in again
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in again.split(";")}


WRONG = ["", " ", "x", "cg_admin_" + "A" * 43, "cg_admin_" + "ü" * 43, 7, None, ["x"], "x" * 501]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_key_opens_no_session(shared: Service, wrong: Any) -> None:
    answer = client(shared).post(SESSION, json={"access_key": wrong})
    assert answer.status_code in (400, 401, 429)
    assert "set-cookie" not in answer.headers
    assert client(shared).get(OVERVIEW).status_code == 401


def test_many_wrong_keys_are_refused_and_right_ones_are_not(
    service: Callable[..., Service], keys: dict[str, Key]
) -> None:
    gate = service(security__api_keys=lines(keys))
    answers = [client(gate).post(SESSION, json={"access_key": f"wrong-{number}"}) for number in range(40)]
    assert {answer.status_code for answer in answers} == {401, 429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 429)
    signed_in(gate, keys["ops"])
    assert gate.client.get("/health").status_code == 200


def test_signing_out_ends_the_session_everywhere(shared: Service, keys: dict[str, Key]) -> None:
    browser = signed_in(shared, keys["ops"])
    stolen = cookie_of(browser)
    assert browser.get(OVERVIEW).status_code == 200
    assert browser.get(SESSION).json()["name"] == "ops"
    answer = browser.delete(SESSION)
    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["set-cookie"]
    thief = client(shared, cookie=f"chargegate_session={stolen}")
    assert thief.get(OVERVIEW).status_code == 401
    assert thief.get(SESSION).json()["signed_in"] is False
    shared.restart()
    assert client(shared, cookie=f"chargegate_session={stolen}").get(OVERVIEW).status_code == 401
    other = signed_in(shared, keys["ops"])
    assert other.get(OVERVIEW).status_code == 200


def test_a_session_outlives_a_restart(service: Callable[..., Service], keys: dict[str, Key]) -> None:
    gate = service(security__api_keys=lines(keys))
    browser = signed_in(gate, keys["ops"])
    gate.restart()
    with client(gate, cookie=f"chargegate_session={cookie_of(browser)}") as again:
        assert again.get(OVERVIEW).status_code == 200


def test_a_session_ends_when_nobody_does_anything(
    service: Callable[..., Service], keys: dict[str, Key], eventually: Callable[..., Any]
) -> None:
    """What a page asks by itself does not keep it alive; what somebody does, does."""
    gate = service(security__api_keys=lines(keys), dashboard__session_idle_ms=2000)
    browser = signed_in(gate, keys["ops"])
    first = cookie_of(browser)
    eventually(lambda: browser.get(OVERVIEW).status_code == 401 or cookie_of(browser) != first)
    assert cookie_of(browser) != first, "what was done did not renew the session"
    idle = client(gate, cookie=f"chargegate_session={cookie_of(browser)}")
    background = {"x-background": "1"}
    eventually(lambda: idle.get(OVERVIEW, headers=background).status_code == 401)


def test_a_session_does_not_last_for_ever(
    service: Callable[..., Service], keys: dict[str, Key], eventually: Callable[..., Any]
) -> None:
    gate = service(security__api_keys=lines(keys), dashboard__session_max_ms=1500)
    browser = signed_in(gate, keys["ops"])
    eventually(lambda: browser.get(OVERVIEW).status_code == 401)


def test_a_session_ends_with_its_key(
    service: Callable[..., Service], keys: dict[str, Key], eventually: Callable[..., Any]
) -> None:
    gate = service(security__api_keys=lines(keys))
    north, ops = signed_in(gate, keys["north"]), signed_in(gate, keys["ops"])
    gate.configure(**{"security.api_keys": [keys["north"].line, keys["south"].line]})
    assert gate.process is not None
    gate.process.send_signal(1)  # SIGHUP
    eventually(lambda: ops.get(OVERVIEW).status_code == 401)
    assert north.get(SESSION).json()["name"] == "north"


@pytest.mark.parametrize("change", ["", "x", "cut", "flipped", "other role", "long", "dots", "latin"])
def test_a_changed_cookie_is_none(shared: Service, keys: dict[str, Key], change: str) -> None:
    value = cookie_of(signed_in(shared, keys["north"]))
    session_id, _, *rest = value.split(".")
    forged = {
        "cut": value[:-1],
        "flipped": value[:-1] + ("0" if value[-1] != "0" else "1"),
        "other role": ".".join([session_id, keys["ops"].line.split(":")[-1], *rest]),
        "long": value + "0" * 5000,
        "dots": "." * 4,
        "latin": "\xe9" * 90,
    }.get(change, change)
    browser = client(shared)
    answer = browser.get(OVERVIEW, headers={"cookie": f"chargegate_session={forged}".encode("latin-1")})
    assert answer.status_code == 401


# What a session may do


CHANGES = [
    ("POST", "/api/v1/dead-letters/replay", {}),
    ("POST", "/api/v1/dead-letters/discard", {}),
    ("PUT", "/api/v1/acl", {"driver_token": "forged-0123456789-forged"}),
    ("POST", "/api/v1/acl/import", {"csv": "driver_token\nforged-0123456789-forged\n", "store": True}),
    ("DELETE", f"/api/v1/acl/{'0' * 64}", None),
    ("DELETE", SESSION, None),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_only_own_pages_may_use_a_session(
    shared: Service, keys: dict[str, Key], method: str, path: str, body: Any
) -> None:
    cookie = f"chargegate_session={cookie_of(signed_in(shared, keys['ops']))}"
    host = f"http://127.0.0.1:{shared.port}"
    for page in (
        {},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": host, "sec-fetch-site": "cross-site"},
        {"origin": "https://elsewhere.example", "sec-fetch-site": "same-origin"},
    ):
        with httpx.Client(
            base_url=shared.url, headers={"cookie": cookie, **page}, verify=PLAIN, trust_env=False
        ) as browser:
            assert browser.request(method, path, json=body).status_code == 403, page
    assert shared.client.get("/health").status_code == 200
    with httpx.Client(
        base_url=shared.url, headers={"cookie": cookie, "origin": host}, verify=PLAIN, trust_env=False
    ) as browser:
        assert browser.request(method, path, json=body).status_code in (200, 202, 204, 404)


@pytest.mark.parametrize("path", ["/api/v1/dead-letters/replay", "/api/v1/dead-letters/discard"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_changes_nothing(shared: Service, keys: dict[str, Key], path: str, kind: str) -> None:
    browser = signed_in(shared, keys["ops"])
    answer = browser.post(path, content=b"" if not kind else b"{}", headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415


def test_an_allowed_origin_does_not_get_to_use_sessions(service: Callable[..., Service], keys: dict[str, Key]) -> None:
    gate = service(security__api_keys=lines(keys), server__allowed_origins=["https://desk.example"])
    value = cookie_of(signed_in(gate, keys["ops"]))
    page = client(gate, cookie=f"chargegate_session={value}", origin="https://desk.example")
    assert page.get("/api/v1/decisions").status_code == 403
    assert page.post("/api/v1/dead-letters/replay", json={}).status_code == 403


def test_a_client_reaches_with_a_session_what_its_key_reaches(
    shared: Service, keys: dict[str, Key], receiver: Site
) -> None:
    document = shared.client.get("/openapi.json").json()
    asked = {}
    for who in ("north", "south"):
        headers = {"x-api-key": keys[who].secret}
        answer = shared.client.post("/api/v1/charging-session", json=shared.body(receiver.url()), headers=headers)
        asked[who] = answer.json()["request_id"]
    browser = signed_in(shared, keys["north"])
    assert browser.get(f"/api/v1/charging-session/{asked['north']}").status_code == 200
    assert browser.get(f"/api/v1/charging-session/{asked['south']}").status_code == 404
    for path, methods in document["paths"].items():
        if path in ("/api/v1/charging-session", "/api/v1/charging-session/{request_id}"):
            continue
        for method, operation in methods.items():
            if "security" in operation:
                place = path.replace("{request_id}", asked["south"]).replace("{driver_token_hash}", "0" * 64)
                answer = browser.request(method, place, json={} if method in ("post", "put") else None)
                assert answer.status_code == 403, (method, path)


def test_a_session_sends_no_charging_requests(shared: Service, keys: dict[str, Key], receiver: Site) -> None:
    answer = signed_in(shared, keys["north"]).post("/api/v1/charging-session", json=shared.body(receiver.url()))
    assert answer.status_code == 401


def test_a_key_goes_before_a_session(shared: Service, keys: dict[str, Key]) -> None:
    browser = signed_in(shared, keys["ops"])
    assert browser.get(OVERVIEW, headers={"x-api-key": keys["north"].secret}).status_code == 403
    assert browser.get(OVERVIEW, headers={"x-api-key": "wrong"}).status_code == 401


def test_without_keys_nobody_signs_in(service: Callable[..., Service]) -> None:
    gate = service()
    everybody = {"signed_in": True, "keys_required": False, "name": "anonymous", "role": "admin"}
    assert client(gate).get(SESSION).json() == everybody
    answer = client(gate).post(SESSION, json={"access_key": "whatever"})
    assert answer.json() == everybody
    assert "set-cookie" not in answer.headers
    assert client(gate).get(OVERVIEW).status_code == 200
    assert client(gate, host="evil.example").get("/dashboard").status_code == 403


# The overview, and what else the pages ask for


def test_the_overview_counts_what_happens(
    service: Callable[..., Service], receiver: Site, reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    gate = service(callback__retry_delay_ms=10, authorization__cache_ttl_ms=0)
    token = gate.allow()
    good = [gate.ask(receiver.url(), driver_token=token) for _ in range(6)]
    bad = [gate.ask(receiver.planned(reply(410))) for _ in range(2)]
    for asked in (*good, *bad):
        gate.finished(asked)

    def overview() -> dict[str, Any] | None:
        seen = client(gate).get(OVERVIEW).json()
        sums = {name: sum(point[name] for point in seen["hour"]["points"]) for name in ("allowed", "not_allowed")}
        whole = seen["now"]["accepted"] == 8 and sums == {"allowed": 6, "not_allowed": 2}
        return seen if whole and seen["now"]["dead_letters"] == 2 and seen["now"]["p95_ms"] is not None else None

    seen = eventually(overview)
    assert len(seen["hour"]["points"]) == 60
    assert sum(point["allowed"] for point in seen["day"]["points"]) == 6
    assert seen["components"].keys() == client(gate).get("/health").json()["components"].keys()
    assert {circuit["name"] for circuit in seen["circuits"]} == {"authorization", "callbacks"}
    text = json.dumps(seen)
    assert token not in text
    assert receiver.url("/") not in text


def sentences(gate: Service) -> str:
    return " ".join(problem["text"] for problem in client(gate).get(OVERVIEW).json()["problems"])


def test_what_is_wrong_is_said_and_goes_by_itself(
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    site: Callable[..., Site],
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    gate = service(
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        authorization__cache_ttl_ms=0,
        callback__retry_delay_ms=10,
        callback__circuit__failure_threshold=2,
        callback__circuit__probe_interval_ms=200,
        callback__circuit__forget_after_ms=500,
    )
    eventually(lambda: sentences(gate) == "")
    body = gate.body(receiver.url())
    authorizer.plan(body["driver_token"], reply(200, how="held"))
    assert gate.post(body).status_code == 202
    eventually(lambda: "authorizer has not answered" in sentences(gate))
    authorizer.release(body["driver_token"])
    eventually(lambda: "has not answered" not in sentences(gate), 40)
    dead = site()
    dead.down()
    for _ in range(3):
        gate.ask(dead.url())
    eventually(lambda: "cannot be reached" in sentences(gate))
    dead.up()
    eventually(lambda: "cannot be reached" not in sentences(gate), 40)


def test_stations_with_most_decisions_and_most_errors(service: Callable[..., Service], receiver: Site) -> None:
    gate = service(
        authorization__backend="simulated",
        authorization__simulated_latency_ms=[1, 2],
        authorization__simulated_error_share=1.0,
        authorization__circuit_breaker__enabled=False,
    )
    busy, quiet = str(uuid.uuid4()), str(uuid.uuid4())
    for station, count in ((busy, 6), (quiet, 2)):
        for asked in [gate.ask(receiver.url(), station_id=station) for _ in range(count)]:
            gate.finished(asked)
    path = "/api/v1/statistics/busiest-stations"
    assert [one["station_id"] for one in client(gate).get(path).json()["items"]] == [busy, quiet]
    [worst] = client(gate).get(path, params={"by": "error_rate"}).json()["items"]
    assert (worst["station_id"], worst["error_rate"], worst["total"]) == (busy, 1.0, 6)
    for wrong in ({"by": "name"}, {"hours": "0"}, {"hours": "745"}, {"limit": "101"}, {"limit": "1e2"}):
        assert client(gate).get(path, params=wrong).status_code == 400


def test_dead_letters_are_discarded(service: Callable[..., Service], receiver: Site, reply: type[Reply]) -> None:
    gate = service(callback__retry_delay_ms=10)
    letters = [gate.ask(receiver.planned(reply(410))) for _ in range(3)]
    for asked in letters:
        gate.finished(asked)
    path = "/api/v1/dead-letters"
    first = f"{path}/{letters[0].request_id}"
    assert gate.client.post(f"{first}/discard", json={}).json()["discarded"] == 1
    assert gate.client.post(f"{first}/discard", json={}).status_code == 404
    assert gate.client.post(f"{first}/replay", json={}).status_code == 404
    assert gate.client.post(f"{path}/discard", params={"form": "2020-01-01"}).status_code == 400
    assert gate.client.post(f"{path}/discard", params={"to": "2020-01-01"}).json()["discarded"] == 0
    assert gate.client.post(f"{path}/discard").json()["discarded"] == 2
    assert gate.client.get(path).json()["items"] == []
    assert gate.session(letters[1].request_id)["status"] == "FAILED"


def test_decisions_by_reason(service: Callable[..., Service], receiver: Site) -> None:
    gate = service()
    blocked = gate.allow(blocked=True)
    asked = [gate.ask(receiver.url(), driver_token=blocked), gate.ask(receiver.url())]
    for each in asked:
        gate.finished(each)
    for reason, each in (("token_blocked", asked[0]), ("driver_not_in_acl", asked[1])):
        [item] = gate.client.get("/api/v1/decisions", params={"reason": reason}).json()["items"]
        assert item["request_id"] == each.request_id
    assert gate.client.get("/api/v1/decisions", params={"reason": "circuit_open"}).json()["items"] == []
    assert gate.client.get("/api/v1/decisions", params={"reason": "not a reason"}).status_code == 400


def test_an_entry_is_found_blocked_and_imported(service: Callable[..., Service]) -> None:
    gate = service()
    token = gate.allow(note="depot")
    found = gate.client.post("/api/v1/acl/search", json={"driver_token": token}).json()
    assert (found["note"], found["blocked"]) == ("depot", False)
    assert gate.client.post("/api/v1/acl/search", json={"driver_token": token + "x"}).status_code == 404
    assert gate.client.post("/api/v1/acl/search", json={"driver_token": "short"}).status_code == 400
    place = f"/api/v1/acl/{found['driver_token_hash']}/blocked"
    assert gate.client.post(place, json={"blocked": True}).json()["blocked"] is True
    verdict = gate.client.post(
        "/api/v1/acl/check", json={"driver_token": token, "station_id": str(uuid.uuid4())}
    ).json()
    assert verdict["reason"] == "token_blocked"
    assert gate.client.post(place, json={}).status_code == 400
    assert gate.client.post(f"/api/v1/acl/{'0' * 64}/blocked", json={"blocked": True}).status_code == 404
    new = f"imported-{uuid.uuid4().hex}"
    csv = f"driver_token,note\n{token},other\n{new},\n"
    for store in (False, False, True):
        changes = gate.client.post("/api/v1/acl/import", json={"csv": csv, "store": store}).json()
        assert (changes["added"], changes["changed"], changes["unchanged"], changes["stored"]) == (1, 1, 0, store)
    again = gate.client.post("/api/v1/acl/import", json={"csv": csv}).json()
    assert (again["added"], again["changed"], again["unchanged"], again["items"]) == (0, 0, 2, [])
    wrong = gate.client.post("/api/v1/acl/import", json={"csv": csv + "short,\n", "store": True})
    assert wrong.json()["stored"] is False
    assert wrong.json()["fault"].startswith("line 4: driver_token")
    assert gate.client.get("/api/v1/acl").json()["items"][0]["note"] != "short"
    ill = gate.client.post("/api/v1/acl/import", json={"csv": ["x"], "store": "yes"}).json()
    assert ill["details"].keys() == {"csv", "store"}
    many = "driver_token\n" + "".join(f"many-{number:020d}\n" for number in range(3000))
    assert gate.client.post("/api/v1/acl/import", json={"csv": many}).json()["added"] == 3000
    assert gate.client.post("/api/v1/acl/import", json={"csv": "x" * 1_100_000}).status_code == 413
    for answer in (changes, again, wrong.json()):
        assert token not in json.dumps(answer)
        assert new not in json.dumps(answer)
