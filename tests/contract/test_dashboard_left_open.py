"""Pages that stay open: with the keyboard in them, over a restart, and while somebody signs in elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, expect

from browsing import heading, keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

OVERVIEW = "**/api/v1/overview"
STALE = re.compile("^This page is not up to date")
pytestmark = pytest.mark.servers  # it needs what `make servers` installs


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    """A service without access keys."""
    return shared_service(callback__retry_delay_ms=10)


def asked_again(page: Page, times: int = 3) -> None:
    """Wait until the overview was asked for some more times, and shown."""
    for _ in range(times):
        with page.expect_response(OVERVIEW):
            pass
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def test_the_keyboard_stays_where_it_is(visit: Callable[..., Page], gate: Service) -> None:
    page = visit(gate)
    for name, title in (("Dead letters", "Dead letters"), ("Decided a second", "Requests")):
        link = page.locator(".tile").get_by_role("link", name=name)
        link.focus()
        asked_again(page)
        expect(link).to_be_focused()
        page.keyboard.press("Enter")
        heading(page, title)
        page.go_back()
        heading(page, "Overview")


def test_the_keyboard_stays_on_a_sentence_whose_numbers_change(
    visit: Callable[..., Page], service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply]
) -> None:
    authorizer = site(lambda _call: reply(how="held"))
    gate = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    gate.ask(authorizer.url())
    page = visit(gate)
    link = page.get_by_role("list", name="What is wrong").get_by_role("link").first
    expect(link).to_have_text(re.compile("has not answered a request for"))
    link.focus()
    before = link.text_content()
    expect(link).not_to_have_text(before or "")
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#components")).to_be_focused()
    page.get_by_label("Last day").check()
    link.click()
    expect(page.locator("#components")).to_be_focused()
    expect(page.get_by_label("Last day")).to_be_checked()


def test_the_keyboard_stays_on_the_choice_of_hours(visit: Callable[..., Page], gate: Service) -> None:
    page = visit(gate, "/dashboard/stations")
    page.get_by_label("24 hours").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("7 days")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_label("this hour")).to_be_focused()
    assert page.url.endswith("?hours=1")


def test_back_leads_to_a_page_also_to_a_place_in_it(visit: Callable[..., Page], gate: Service) -> None:
    """The link that skips the navigation puts a place into the address."""
    page = visit(gate)
    heading(page, "Overview")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("navigation").get_by_role("link", name="Stations").click()
    heading(page, "Stations")
    page.go_back()
    heading(page, "Overview")
    page.go_forward()
    heading(page, "Stations")


BROKEN = {
    "cut off": {
        "how": "cut",
        "raw": b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{"st',
    },
    "a page of a proxy": {"status": 200, "body": b"<html>sign in here</html>"},
    "of another release": {"status": 200, "body": b'{"status": "UP"}'},
    "forbidden": {"status": 403, "body": b'{"status": "forbidden", "message": "Not you."}'},
    "nothing there": {"status": 404, "body": b'{"status": "not_found", "message": "There is none."}'},
    "too often": {"status": 429, "body": b"", "headers": {"retry-after": "1"}},
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_overview_that_cannot_be_renewed_says_so_and_goes_on(
    visit: Callable[..., Page], gate: Service, site: Callable[..., Site], reply: type[Reply], how: str
) -> None:
    other = site(lambda _call: reply(**BROKEN[how]))
    page = visit(gate)
    sentences = page.get_by_role("list", name="What is wrong")
    expect(sentences).to_have_text("Everything works.")
    page.route(OVERVIEW, lambda route: route.continue_(url=other.url("/overview")))
    expect(sentences).to_have_text(STALE)
    page.unroute(OVERVIEW)
    expect(sentences).to_have_text("Everything works.")


def test_a_page_that_cannot_be_shown_says_so(visit: Callable[..., Page], service: Callable[..., Service]) -> None:
    """The service is away when somebody goes to another page."""
    gate = service()
    page = visit(gate)
    heading(page, "Overview")
    gate.stop()
    page.get_by_role("navigation").get_by_role("link", name="Stations").click()
    heading(page, "Stations")
    expect(page.get_by_role("alert").first).to_have_text("The service does not answer.")
    expect(page.locator(".tile")).to_have_count(0)
    gate.start()
    page.get_by_label("7 days").check()
    expect(page.get_by_text("No station got a decision.")).to_be_visible()


def test_what_a_session_showed_goes_with_it_while_the_service_is_away(
    visit: Callable[..., Page], service: Callable[..., Service], command: str
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()])
    page = visit(gate)
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    expect(page.locator(".tile")).to_have_count(7)
    # It answers the sign-out, and nothing after it.
    page.route(
        "**/api/v1/dashboard-session",
        lambda route: route.continue_() if route.request.method == "DELETE" else route.abort(),
    )
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator(".tile")).to_have_count(0)
    expect(page.get_by_role("alert")).to_be_visible()
    page.unroute("**/api/v1/dashboard-session")
    page.get_by_role("button", name="Try again").click()
    heading(page, "Sign in")


def test_another_visitor_does_not_see_the_page_of_the_one_before(
    visit: Callable[..., Page], service: Callable[..., Service], command: str
) -> None:
    """Two windows of a browser have one session."""
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()])
    page = visit(gate, "/dashboard/dead-letters")
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Dead letters")
    expect(page.locator("#visitor")).to_contain_text("ops (admin)")
    other = page.context.new_page()
    other.goto("/dashboard")
    other.get_by_role("button", name="Sign out").click()
    other.get_by_label("Access key").fill(made["north"][0])
    other.keyboard.press("Enter")
    heading(other, "Requests")
    page.bring_to_front()
    expect(page.locator("#visitor")).to_contain_text("north (client)")
    expect(page.get_by_text("This page needs an admin's access key.")).to_be_visible()


def test_work_that_ends_later_leaves_the_next_page_alone(
    visit: Callable[..., Page], service: Callable[..., Service], receiver: Site, reply: type[Reply]
) -> None:
    gate = service(callback__retry_delay_ms=10)
    lost = gate.ask(receiver.planned(reply(410)))
    gate.finished(lost)
    page = visit(gate, "/dashboard/dead-letters")
    kept_back: list[Any] = []
    page.route("**/discard", lambda route: kept_back.append(route))  # noqa: PLW0108 - Playwright takes no method of a list
    with page.expect_request("**/discard"):
        page.get_by_role("button", name=f"Discard: {lost.request_id}").click()
        page.get_by_role("dialog").get_by_role("button", name="Discard").click()
    page.get_by_role("navigation").get_by_role("link", name="Access list").click()
    page.get_by_label("Note").fill("typed meanwhile")
    with page.expect_response("**/discard"):
        kept_back[0].continue_()
    expect(page.locator("#said")).to_have_text("1 dead letter discarded.")
    expect(page.get_by_label("Note")).to_have_value("typed meanwhile")


@pytest.mark.parametrize("way", ["back", "session"])
def test_a_question_does_not_outlive_its_page(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    command: str,
    receiver: Site,
    reply: type[Reply],
    way: str,
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[line for _, line in made.values()], callback__retry_delay_ms=10)
    gate.sign_in(made["ops"][0])
    lost = gate.ask(receiver.planned(reply(500)))
    assert gate.finished(lost)["status"] == "FAILED"
    page = visit(gate, "/dashboard/requests")
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Requests")
    page.get_by_role("navigation").get_by_role("link", name="Dead letters").click()
    page.get_by_role("button", name=f"Discard: {lost.request_id}").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    if way == "back":
        page.go_back()
        heading(page, "Requests")
    else:
        page.context.clear_cookies()
        heading(page, "Sign in")
    expect(page.get_by_role("dialog")).to_have_count(0)
    letters: Any = gate.client.get("/api/v1/dead-letters").json()["items"]
    assert [letter["request_id"] for letter in letters] == [lost.request_id]
