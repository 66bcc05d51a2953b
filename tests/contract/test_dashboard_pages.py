"""The dashboard's pages in a real browser: each page and each action, in light and dark, on a desk and on a phone."""

from __future__ import annotations

import contextlib
import copy
import re
import sqlite3
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

from browsing import PLAIN_HOST, accessible, heading, keys
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Asked, Reply, Service, Site

PHONE = {"width": 360, "height": 740}
HOSTILE = '<img src=x onerror="document.title=1"><b>note</b>'
pytestmark = pytest.mark.servers  # it needs what `make servers` installs


@pytest.fixture(scope="module")
def station() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="module")
def open_gate(shared_service: Callable[..., Service]) -> Service:
    """A service without access keys."""
    return shared_service(callback__retry_delay_ms=10, authorization__cache_ttl_ms=0)


@pytest.fixture(scope="module")
def told(open_gate: Service, receiver: Site, reply: type[Reply], station: str) -> dict[str, Asked]:
    """What has happened before anybody looks."""
    token = open_gate.allow(note=HOSTILE)
    asked = {
        "allowed": open_gate.ask(receiver.url(), driver_token=token, station_id=station),
        "denied": open_gate.ask(receiver.url()),
        "given up": open_gate.ask(receiver.planned(reply(500)), station_id=station),
    }
    for each in asked.values():
        open_gate.finished(each)
    return asked


LOOKS = {
    "light": {},
    "dark": {"color_scheme": "dark", "reduced_motion": "reduce"},
    "phone": {"viewport": PHONE, "has_touch": True},
    "dark phone": {"viewport": PHONE, "color_scheme": "dark"},
}


# Each of light and dark, of a desk and a phone.
SOME_LOOKS = some_of("look", LOOKS, ["light", "dark phone"])


@SOME_LOOKS
def test_every_page_can_be_used_by_everybody(
    visit: Callable[..., Page], open_gate: Service, told: dict[str, Asked], look: str
) -> None:
    page = visit(open_gate, **LOOKS[look])
    heading(page, "Overview")
    expect(page.locator(".tile")).to_have_count(7)
    page.get_by_text("As a table").first.click()
    accessible(page)
    for name in ("Requests", "Stations", "Dead letters", "Access list", "Anomalies"):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        heading(page, name)
        expect(page.locator(".loading")).to_have_count(0)
        expect(page.locator("main table:visible, main p:visible").first).to_be_visible()
        accessible(page)
    page.goto(f"/dashboard/requests/{told['given up'].request_id}")
    expect(page.get_by_text("Given up")).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="Send the callback again").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    accessible(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_overview_says_what_happens(visit: Callable[..., Page], open_gate: Service, told: dict[str, Asked]) -> None:
    page = visit(open_gate)
    dead = page.locator(".tile").filter(has_text="Dead letters").locator("dd").first
    expect(dead).to_have_text("1")
    chart = page.get_by_role("img", name=re.compile("^Decisions"))
    expect(chart).to_have_attribute("aria-label", re.compile(r"allowed \d"))
    figure = page.locator("figure").filter(has_text="Decisions")
    figure.get_by_text("As a table").click()
    rows = figure.locator("tbody tr")
    expect(rows).to_have_count(60)
    numbers = [int(text) for text in rows.locator("td:nth-child(2)").all_text_contents()]
    assert sum(numbers) == 1
    first = figure.locator(".legend li").first
    last_minute = first.text_content()
    chart.hover(position={"x": 5, "y": 50})
    expect(first).not_to_have_text(last_minute or "")
    page.mouse.move(1, 1)
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(figure.locator(".mark")).to_have_count(1)
    page.get_by_label("Last day").check()
    expect(rows).to_have_count(48)
    assert page.url.endswith("?range=day")


CHARTS = [
    "Decisions", "From accepted to delivered", "Waiting for a worker", "Accepted, and dead letters",
    "The audit sink furthest behind", "Open circuits, and anomalies that go on",
]  # fmt: skip


@pytest.mark.parametrize(("length", "points"), [("Last hour", 60), ("Last day", 48)])
def test_each_chart_is_read_by_mouse_by_keyboard_and_as_a_table(
    visit: Callable[..., Page], open_gate: Service, told: dict[str, Asked], length: str, points: int
) -> None:
    page = visit(open_gate)
    page.get_by_label(length).check()
    for title in CHARTS:
        is_read(page, title, points)


def is_read(page: Page, title: str, points: int) -> None:
    figure = page.locator("figure").filter(has=page.locator("figcaption", has_text=re.compile(f"^{title}$")))
    chart = figure.get_by_role("img")
    expect(chart).to_have_attribute("aria-label", re.compile(rf"^{title}\. .+: \D+\S"))
    figure.get_by_text("As a table").click()
    rows = figure.locator("tbody tr")
    expect(rows).to_have_count(points)
    times = figure.locator("tbody th").all_text_contents()
    chart.hover(position={"x": 2, "y": 40})
    expect(figure.locator(".mark")).to_have_count(1)
    expect(figure.locator(".legend li").first).to_have_text(times[-1])
    page.mouse.move(1, 1)
    expect(figure.locator(".mark")).to_have_count(0)
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(figure.locator(".legend li").first).to_have_text(times[1])
    names = figure.locator("thead th").all_text_contents()[1:]
    assert [item.partition(":")[0] for item in figure.locator(".legend li").all_text_contents()[1:]] == names


def test_one_sentence_says_what_is_wrong(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
) -> None:
    gate = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    page = visit(gate)
    sentences = page.get_by_role("list", name="What is wrong")
    expect(sentences).to_have_text("Everything works.")
    body = gate.body(receiver.url())
    authorizer.plan(body["driver_token"], reply(200, how="held"))
    assert gate.post(body).status_code == 202
    expect(sentences).to_contain_text("The authorizer has not answered a request")
    accessible(page)
    page.get_by_role("link", name="The authorizer has not answered").click()
    expect(page.get_by_role("heading", level=2, name="Components")).to_be_in_viewport()
    heading(page, "Overview")
    authorizer.release(body["driver_token"])
    expect(sentences).not_to_contain_text("has not answered", timeout=40_000)
    gate.stop()
    expect(sentences).to_contain_text("not up to date")


def test_what_the_sentence_links_to_says_the_same(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
) -> None:
    gate = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    page = visit(gate)
    body = gate.body(receiver.url())
    authorizer.plan(body["driver_token"], reply(200, how="held"))
    assert gate.post(body).status_code == 202
    link = page.get_by_role("link", name="The authorizer has not answered")
    link.click()
    part = page.locator("#components dt").filter(has_text="authorization")
    expect(part).to_contain_text("DEGRADED")
    expect(link).to_be_visible()
    authorizer.release(body["driver_token"])
    expect(part).to_contain_text("UP", timeout=40_000)
    expect(link).to_have_count(0, timeout=40_000)


def test_requests_are_found_by_an_address_that_can_be_sent(
    visit: Callable[..., Page], open_gate: Service, told: dict[str, Asked], station: str
) -> None:
    page = visit(open_gate, "/dashboard/requests")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(3)
    page.get_by_label("Station").fill(station)
    page.get_by_label("Status").select_option("allowed")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(1)
    assert f"station_id={station}" in page.url
    assert "status=allowed" in page.url
    again = visit(open_gate, page.url)
    expect(again.locator("tbody tr")).to_have_count(1)
    expect(again.get_by_label("Station")).to_have_value(station)
    page.go_back()
    expect(rows).to_have_count(3)
    page.get_by_label("Reason").fill("driver_not_in_acl")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(2)
    page.get_by_label("Station").fill("no station")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("alert").filter(has_text="station_id")).to_be_visible()
    page.get_by_label("Request id").fill("nonsense")
    page.get_by_role("button", name="Show this request").click()
    expect(page.get_by_text("A request id looks like")).to_be_visible()
    page.get_by_label("Request id").fill(told["allowed"].request_id.upper())
    page.keyboard.press("Enter")
    expect(page.get_by_text("Delivered", exact=True)).to_be_visible()
    assert page.url.endswith(told["allowed"].request_id)


def test_every_filter_of_requests_is_in_the_address(
    visit: Callable[..., Page], service: Callable[..., Service], command: str, receiver: Site
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()])
    for name in ("north", "ops"):
        gate.sign_in(made[name][0])
        gate.finished(gate.ask(receiver.url()))
    page = visit(gate, "/dashboard/requests")
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    filters = {
        "Client": ("north", 1), "Station": (str(uuid.uuid4()), 0), "Reason": ("driver_not_in_acl", 2),
        "From": ("2020-01-31T10:00:07", 2), "To": ("2020-01-31T10:00:07", 0),
    }  # fmt: skip
    for label, (value, found) in filters.items():
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_role("button", name="Filter").click()
        expect(page).to_have_url(re.compile(r"\?"))
        expect(rows).to_have_count(found)
        page.reload()
        expect(page.get_by_label(label, exact=True)).to_have_value(value)
        expect(rows).to_have_count(found)
        page.get_by_role("link", name="Show all").click()
        expect(rows).to_have_count(2)
    page.get_by_label("Status").select_option("unknown")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No decision matches.")).to_be_visible()
    page.go_back()
    expect(rows).to_have_count(2)


def test_the_story_of_one_request(
    visit: Callable[..., Page], service: Callable[..., Service], receiver: Site, reply: type[Reply]
) -> None:
    gate = service(callback__retry_delay_ms=10)
    asked = gate.ask(receiver.planned(*[reply(500)] * 3, reply(204)))
    gate.finished(asked)
    page = visit(gate, f"/dashboard/requests/{asked.request_id}")
    steps = page.locator("ol.timeline > li")
    expect(steps.filter(has_text="Accepted")).to_be_visible()
    expect(steps.filter(has_text="Taken by a worker")).to_contain_text("in the queue")
    expect(steps.filter(has_text="Decided: not_allowed")).to_contain_text("driver_not_in_acl")
    expect(steps.filter(has_text="Given up")).to_be_visible()
    for number in (1, 2, 3):
        expect(steps.filter(has_text=f"Attempt {number}: HTTP 500")).to_contain_text("took")
    page.get_by_role("button", name="Copy the request id").click()
    expect(page.locator("#said")).to_have_text("Copied the request id.")
    assert page.evaluate("() => navigator.clipboard.readText()") == asked.request_id
    replay = page.get_by_role("button", name="Send the callback again")
    replay.click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert gate.session(asked.request_id)["status"] == "FAILED"
    replay.click()
    page.get_by_role("button", name="Send it again").click()
    expect(steps.filter(has_text="Delivered")).to_be_visible()
    expect(steps.filter(has_text="Sent again by an operator")).to_be_visible()
    expect(steps.filter(has_text="Attempt 4: HTTP 204")).to_be_visible()
    expect(replay).to_have_count(0)
    assert gate.session(asked.request_id)["status"] == "COMPLETED"
    page.goto(f"/dashboard/requests/{uuid.uuid4()}")
    expect(page.get_by_text("There is no request with this id")).to_be_visible()


def test_copying_works_over_plain_http_too(
    visit: Callable[..., Page], service: Callable[..., Service], receiver: Site
) -> None:
    """A browser gives pages over plain HTTP no clipboard, unless they are of its own machine."""
    gate = service(server__allowed_hosts=[PLAIN_HOST])
    asked = gate.ask(receiver.url())
    gate.finished(asked)
    here = visit(gate, f"/dashboard/requests/{asked.request_id}")
    elsewhere = copy.copy(gate)
    elsewhere.url = f"http://{PLAIN_HOST}:{gate.port}"
    page = visit(elsewhere, f"/dashboard/requests/{asked.request_id}", permissions=[])
    assert page.evaluate("() => isSecureContext") is False
    for name, text in (("Copy the station id", asked.station_id), ("Copy the link", page.url)):
        button = page.get_by_role("button", name=name)
        button.click()
        expect(page.locator("#said")).to_have_text(re.compile("^Copied "))
        expect(button).to_be_focused()
        here.bring_to_front()
        assert here.evaluate("() => navigator.clipboard.readText()") == text
        page.bring_to_front()
    accessible(page)


def test_each_replay_stands_in_its_place_with_its_time(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    gate = service(callback__max_attempts=1)
    asked = gate.ask(receiver.planned(*[reply(500)] * 3, reply(204)))
    gate.finished(asked)
    for _ in range(3):
        ended = gate.session(asked.request_id)["processed_at"]
        assert gate.client.post(f"/api/v1/dead-letters/{asked.request_id}/replay", json={}).status_code == 202

        def again(ended: str = ended) -> bool:
            return gate.session(asked.request_id)["processed_at"] not in (None, ended)

        eventually(again, 40)
    page = visit(gate, f"/dashboard/requests/{asked.request_id}")
    titles = page.locator("ol.timeline > li > strong")
    expect(titles.last).to_have_text("Delivered")
    found = titles.all_inner_texts()
    rounds = [[f"Attempt {number}: HTTP 500", "Given up", "Sent again by an operator"] for number in (1, 2, 3)]
    assert found[-11:] == [*(title for each in rounds for title in each), "Attempt 4: HTTP 204", "Delivered"]
    for step in page.locator("ol.timeline > li").filter(has_text="Sent again by an operator").all():
        expect(step.locator("span")).to_contain_text(re.compile(r"\d:\d\d"))


def test_dead_letters_are_sent_again_and_discarded(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    gate = service(callback__retry_delay_ms=10)
    letters = [gate.ask(receiver.planned(reply(410), reply(204))) for _ in range(6)]
    for asked in letters:
        gate.finished(asked)
    page = visit(gate, "/dashboard/dead-letters")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(6)
    marked = page.get_by_role("button", name="Send the marked ones again")
    expect(marked).to_be_disabled()
    for asked in letters[:2]:
        page.get_by_role("checkbox", name=f"Mark {asked.request_id}").check()
    marked.click()
    expect(page.get_by_role("heading", name="Send 2 dead letters again?")).to_be_visible()
    page.get_by_role("button", name="Send again", exact=True).last.click()
    expect(page.locator("#said")).to_have_text("2 dead letters sent again.")
    for asked in letters[:2]:
        eventually(lambda asked=asked: gate.session(asked.request_id)["status"] == "COMPLETED")
    page.reload()
    expect(rows).to_have_count(4)
    page.get_by_role("button", name=f"Discard: {letters[2].request_id}").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    expect(rows).to_have_count(3)
    page.get_by_role("checkbox", name="Mark all of this page").check()
    page.get_by_role("checkbox", name=f"Mark {letters[3].request_id}").uncheck()
    page.get_by_role("button", name="Discard the marked ones").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Send all that match again").click()
    page.get_by_role("dialog").get_by_role("button", name="Send again").click()
    expect(page.locator("#said")).to_have_text("1 dead letter sent again.")
    eventually(lambda: gate.session(letters[3].request_id)["status"] == "COMPLETED")
    for asked in letters[4:]:
        assert gate.session(asked.request_id)["status"] == "FAILED"


def held(page: Page, path: str) -> list[Any]:
    """Calls of this path are kept back until the test lets each of them go on."""
    waiting: list[Any] = []

    def hold(route: Any) -> None:
        waiting.append(route)

    page.route(re.compile(path), hold)
    return waiting


def test_dead_letters_that_match_a_filter(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    command: str,
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()])
    letters: dict[str, list[Asked]] = {"north": [], "ops": []}
    for name, asked in letters.items():
        gate.sign_in(made[name][0])
        asked += [gate.ask(receiver.planned(reply(410), reply(204))) for _ in range(2)]
        for each in asked:
            gate.finished(each)
    page = visit(gate, "/dashboard/dead-letters")
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(4)
    page.get_by_label("To", exact=True).fill("2020-01-31T10:00:07")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("There are no dead letters here.")).to_be_visible()
    expect(page.get_by_role("button", name="Discard all that match")).to_be_disabled()
    page.get_by_role("link", name="Show all").click()
    page.get_by_label("Client").fill("north")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(2)
    assert page.url.endswith("?client=north")
    accessible(page)
    kept_back = held(page, "dead-letters/replay")
    page.get_by_role("button", name="Send all that match again").click()
    expect(page.get_by_role("heading", name="Send all dead letters that match the filter again?")).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Send again").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("button", name="Discard all that match")).to_be_disabled()
    accessible(page)
    eventually(lambda: page.wait_for_timeout(20) or kept_back)
    kept_back.pop().continue_()
    expect(page.locator("#said")).to_have_text("2 dead letters sent again.")
    gate.sign_in(made["ops"][0])
    for each in letters["north"]:
        assert gate.finished(each)["status"] == "COMPLETED"
    page.get_by_label("Client").fill("ops")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Discard all that match").click()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    expect(page.locator("#said")).to_have_text("2 dead letters discarded.")
    expect(rows).to_have_count(0)
    assert [gate.session(each.request_id)["status"] for each in letters["ops"]] == ["FAILED"] * 2
    assert gate.client.get("/api/v1/dead-letters").json()["items"] == []


def test_the_progress_of_many(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    gate = service()
    for asked in [gate.ask(receiver.planned(reply(410))) for _ in range(6)]:
        gate.finished(asked)
    page = visit(gate, "/dashboard/dead-letters")
    page.get_by_label("Mark all of this page").first.check()
    kept_back = held(page, "/discard")
    page.get_by_role("button", name="Discard the marked ones").click()
    expect(page.get_by_role("heading", name="Discard 6 dead letters for good?")).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    bar = page.get_by_role("progressbar")
    for ended in range(1, 7):
        eventually(lambda: page.wait_for_timeout(20) or kept_back)
        kept_back.pop(0).continue_()
        if ended < 6:
            expect(page.get_by_text(f"Discarding: {ended}")).to_be_visible()
            assert float(bar.get_attribute("value") or 0) == pytest.approx(ended / 6)
    expect(page.locator("#said")).to_have_text("6 dead letters discarded.")


def test_letters_of_one_moment_are_sent_again_once(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    receiver: Site,
    reply: type[Reply],
    eventually: Callable[..., Any],
) -> None:
    """More than a page of them may have been given up in the same millisecond."""
    gate = service(queue__consumer_concurrency=1)
    url = receiver.planned(reply(410))
    letters = [gate.ask(url).request_id for _ in range(450)]

    def given_up() -> float:
        return gate.metrics()["dead_letters"]

    eventually(lambda: given_up() == len(letters), 60)
    assert gate.stop() == 0
    with contextlib.closing(sqlite3.connect(gate.data / "chargegate.db")) as database, database:
        first = database.execute("SELECT min(processed_at) FROM charging_requests").fetchone()[0]
        for number, each in enumerate(letters):
            later = 0 if number < 100 else 1 if number < 350 else 2
            values = (first + later, each)
            database.execute("UPDATE charging_requests SET processed_at = ? WHERE request_id = ?", values)
    receiver.plan(url, reply(how="held"))  # so that they still wait when the next page of them is asked for
    gate.start()
    before = len(receiver.calls_to(url))
    page = visit(gate, "/dashboard/dead-letters")
    page.get_by_role("button", name="Send all that match again").click()
    page.get_by_role("dialog").get_by_role("button", name="Send again").click()
    expect(page.locator("#said")).to_have_text("450 dead letters sent again.")
    receiver.release(url)
    eventually(lambda: given_up() == 0, 60)
    assert len(receiver.calls_to(url)) == before + len(letters)


def test_the_access_list(visit: Callable[..., Page], service: Callable[..., Service], tmp_path: Path) -> None:
    gate = service()
    token, other = f"typed-in-{uuid.uuid4().hex}", f"imported-{uuid.uuid4().hex}"
    page = visit(gate, "/dashboard/access-list")
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    adding = page.locator("section").filter(has_text="Add or replace an entry")
    adding.get_by_label("Driver token").fill(token)
    adding.get_by_label("Note").fill(HOSTILE)
    adding.get_by_label("Only at these stations").fill("not a station")
    adding.get_by_role("button", name="Store").click()
    expect(adding.get_by_role("alert")).to_contain_text("allowed_stations")
    adding.get_by_label("Only at these stations").fill("")
    adding.get_by_role("button", name="Store").click()
    rows = page.locator("section").filter(has_text="Entries").locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(HOSTILE)
    searching = page.locator("section").filter(has_text="Find a token")
    searching.get_by_label("Driver token").fill(token)
    searching.get_by_label("Station").fill(str(uuid.uuid4()))
    searching.get_by_role("button", name="Find").click()
    expect(searching.locator("tbody tr")).to_have_count(1)
    expect(searching).to_contain_text("it would be allowed")
    assert token not in page.content()
    assert not any(token in page.locator("input").nth(at).input_value() for at in range(page.locator("input").count()))
    rows.get_by_role("button", name="Block").click()
    expect(rows.get_by_text("blocked")).to_be_visible()
    expect(rows.get_by_role("button", name="Unblock")).to_be_visible()
    (tmp_path / "wrong.csv").write_text("driver_token\nshort\n")
    (tmp_path / "list.csv").write_text(f"driver_token,note\n{token},changed\n{other},new\n")
    importing = page.locator("section").filter(has_text="Import a CSV file")
    importing.get_by_label("File").set_input_files(tmp_path / "wrong.csv")
    importing.get_by_role("button", name="Show what would change").click()
    expect(importing.get_by_role("alert")).to_contain_text("line 2")
    importing.get_by_label("File").set_input_files(tmp_path / "list.csv")
    importing.get_by_role("button", name="Show what would change").click()
    expect(importing).to_contain_text("would add 1, change 1 and leave 0 as they are")
    expect(importing.locator("tbody tr")).to_have_count(2)
    accessible(page)
    assert len(gate.client.get("/api/v1/acl").json()["items"]) == 1
    importing.get_by_role("button", name="Import this").click()
    expect(rows).to_have_count(2)
    rows.filter(has_text="new").get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(rows).to_have_count(1)
    assert token not in page.content()
    assert not [address for address in addresses if token in address or other in address]


def test_stations_lead_to_their_requests(
    visit: Callable[..., Page], open_gate: Service, told: dict[str, Asked], station: str
) -> None:
    page = visit(open_gate, "/dashboard/stations")
    busiest = page.locator("section").filter(has_text="Busiest").locator("tbody tr")
    expect(busiest).to_have_count(2)
    expect(busiest.first).to_contain_text(station)
    page.get_by_label("7 days").check()
    expect(page).to_have_url(re.compile("hours=168"))
    expect(busiest).to_have_count(2)
    busiest.first.get_by_role("link").click()
    heading(page, "Requests")
    expect(page.locator("tbody tr")).to_have_count(2)


@SOME_LOOKS
def test_anomalies(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    receiver: Site,
    eventually: Callable[..., Any],
    look: str,
) -> None:
    gate = service(analysis__interval_ms=200, analysis__token_stations=3)
    token = f"stolen-{uuid.uuid4().hex}"
    for asked in [gate.ask(receiver.url(), driver_token=token) for _ in range(3)]:
        gate.finished(asked)
    eventually(lambda: gate.client.get("/api/v1/anomalies").json()["items"], 40)
    page = visit(gate, **LOOKS[look])
    page.get_by_role("link", name="1 anomaly goes on, 1 of them critical.").click()
    heading(page, "Anomalies")
    rows = page.locator("tbody tr")
    expect(rows).to_contain_text("TOKEN_DENIED_WIDELY")
    expect(page.get_by_label("Only those that go on")).to_be_checked()
    accessible(page)
    page.get_by_label("Type").select_option("STATION_SILENT")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No anomalies.")).to_be_visible()
    assert page.url.endswith("?type=STATION_SILENT&open=true")
    page.reload()
    expect(page.get_by_label("Type")).to_have_value("STATION_SILENT")
    page.get_by_role("link", name="Show all").click()
    expect(rows).to_have_count(1)
    assert token not in page.content()


def test_signing_in_and_out_by_keyboard(
    visit: Callable[..., Page], service: Callable[..., Service], command: str, receiver: Site
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()])
    gate.sign_in(made["north"][0])
    asked = gate.ask(receiver.url())
    page = visit(gate, "/dashboard/dead-letters")
    heading(page, "Sign in")
    accessible(page)
    expect(page.get_by_label("Access key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is not a valid access key.")
    expect(page.get_by_label("Access key")).to_be_focused()
    page.keyboard.type(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Dead letters")
    expect(page.get_by_text("There are no dead letters here.")).to_be_visible()
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/api/v1")
    assert (
        page.evaluate("() => document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)") == "{}{}"
    )
    assert made["ops"][0] not in page.content()
    page.keyboard.press("Tab")
    for _ in range(30):
        if page.evaluate("() => document.activeElement.textContent") == "Sign out":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    heading(page, "Sign in")
    assert page.context.cookies() == []
    page.get_by_label("Access key").fill(made["north"][0])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This page needs an admin's access key.")).to_be_visible()
    page.goto("/dashboard")
    heading(page, "Requests")
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_count(1)
    page.get_by_label("Request id").fill(asked.request_id)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Delivered", exact=True)).to_be_visible()
    assert asked.driver_token not in page.content()
    assert asked.callback_url not in page.content()


def test_a_session_that_ended_asks_for_the_key_and_goes_on(
    visit: Callable[..., Page], service: Callable[..., Service], command: str
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()], dashboard__session_idle_ms=4000)
    page = visit(gate, "/dashboard")
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Overview")
    heading(page, "Sign in")
    expect(page.locator("#said")).to_have_text("Your session is over.")
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Overview")


def test_the_first_stop_of_the_keyboard_skips_the_navigation(visit: Callable[..., Page], open_gate: Service) -> None:
    page = visit(open_gate)
    heading(page, "Overview")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


@pytest.mark.parametrize("path", ["/dashboard/x", "/dashboard/requests/nonsense", "/dashboard/Stations"])
def test_an_address_without_a_page_says_so(visit: Callable[..., Page], open_gate: Service, path: str) -> None:
    page = visit(open_gate, path)
    heading(page, "Not found")
    accessible(page)
    answer = page.context.request.get(f"{open_gate.url}{path}", headers={"accept": "text/html,*/*;q=0.8"})
    assert answer.status == 404
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert page.context.request.get(f"{open_gate.url}{path}", headers={"accept": "*/*"}).json()["status"] == "not_found"
    page.get_by_role("link", name="To the overview").click()
    heading(page, "Overview")
    page.go_back()
    heading(page, "Not found")


def test_words_and_buttons_stay_whole(visit: Callable[..., Page], open_gate: Service, told: dict[str, Asked]) -> None:
    """No button has two lines, no row of tools a last one of its own, and no code is cut within a word."""
    page = visit(open_gate, "/dashboard/dead-letters")
    expect(page.get_by_label("Mark all of this page").first).to_be_visible()
    tools = page.locator(".tools")
    tops = {round(each.bounding_box()["y"]) for each in tools.get_by_role("button").all()}  # type: ignore[index]
    assert len(tops) == 1, tops
    page.goto("/dashboard/access-list")
    preview = page.get_by_role("button", name="Show what would change").bounding_box()
    assert preview is not None
    assert preview["height"] < 45
    page.set_viewport_size(PHONE)
    page.goto("/dashboard/requests?reason=driver_not_in_acl")
    expect(page.locator("tbody tr")).to_have_count(2)
    cut = page.evaluate("""() => [...document.querySelectorAll("td wbr")].map((mark) => mark.parentElement).flatMap(
        (code) => [...code.childNodes].filter((each) => each.nodeType === 3).map((text) => {
            const range = document.createRange();
            range.selectNodeContents(text);
            return range.getClientRects().length;
        })).filter((lines) => lines > 1)""")
    assert cut == []
