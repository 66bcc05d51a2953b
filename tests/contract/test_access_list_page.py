"""The page of the access list: what is imported is what the file has, and what was typed in does not stay."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Locator, Page, expect

from browsing import Visit, accessible, heading, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.contract.conftest import Service

PATH = "/dashboard/access-list"
PREVIEW = "Show what would change"
STATIONS = [str(uuid.UUID(int=number, version=4)) for number in (1, 2, 3)]
pytestmark = pytest.mark.servers  # it needs what `make servers` installs


@pytest.fixture(scope="module")
def gate(shared_service: Callable[..., Service]) -> Service:
    return shared_service()


@pytest.fixture(scope="module")
def offline(shared_service: Callable[..., Service]) -> Service:
    """A folder for the command line, without a service."""
    return shared_service(started=False)


@pytest.fixture(scope="module")
def window(browser: Any, gate: Service) -> Iterator[Page]:
    """Shared, because to open one costs more than most tests do in it."""
    opened = Visit(browser, gate)
    yield opened.page
    opened.close()


@pytest.fixture
def page(window: Page) -> Iterator[Page]:
    """The page anew, in the window that the tests share."""
    window.goto(PATH)
    yield window
    window.unroute_all()


@pytest.fixture
def on_command_line(command: str, offline: Service) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CHARGEGATE_")}
        return subprocess.run(
            [command, "acl", *arguments], cwd=offline.folder, env=environ, capture_output=True, text=True, check=False
        )

    return run


def section(page: Page, title: str) -> Locator:
    return page.locator("section").filter(has=page.get_by_role("heading", name=title))


def token() -> str:
    return f"driver-{uuid.uuid4().hex}"


ONE = b"driver_token,note\n" + token().encode() + b","
ILL = {
    "Latin-1": ONE + b"M\xfcller\n",
    "Latin-1 in a driver_token": b"driver_token\nM\xfcller-01234567890123456789\n",
    "Latin-1 in the header": b"driver_token,n\xf6te\n",
    "half a character at the end": ONE + b"M\xc3",
    "a surrogate": ONE + b"\xed\xa0\x80\n",
    "NUL": ONE + b"a\x00b\n",
    "NUL at the start": b"\x00" + ONE + b"\n",
    "UTF-16 with its mark": (ONE + b"\n").decode().encode("utf-16"),
    "UTF-16 without a mark": (ONE + b"\n").decode().encode("utf-16-le"),
    "UTF-32": (ONE + b"\n").decode().encode("utf-32"),
    "empty": b"",
    "a mark and nothing else": b"\xef\xbb\xbf",
    "line ends and nothing else": b"\r\n\r\n",
    "semicolons": ONE.replace(b",", b";") + b"x\n",
    "not closed": ONE + b'"Mueller\n',
}  # fmt: skip


@pytest.mark.parametrize("name", ILL)
def test_a_file_has_the_same_fault_as_on_the_command_line(
    page: Page, gate: Service, offline: Service, on_command_line: Callable[..., Any], name: str
) -> None:
    file = offline.folder / "drivers.csv"
    file.write_bytes(ILL[name])
    ended = on_command_line("import", "drivers.csv")
    assert ended.returncode == 1
    fault = ended.stderr.strip().partition("drivers.csv: ")[2]
    assert fault.startswith("line "), ended.stderr
    before = gate.client.get("/api/v1/acl").json()["items"]
    importing = section(page, "Import a CSV file")
    importing.get_by_label("File").set_input_files(file)
    importing.get_by_role("button", name=PREVIEW).click()
    expect(importing.get_by_role("alert")).to_have_text(f"Nothing can be imported: {fault}.")
    expect(importing.get_by_role("button", name="Import this")).to_have_count(0)
    assert gate.client.get("/api/v1/acl").json()["items"] == before


WELL = {
    "a mark": ("\ufeff", "\n", "", "M\u00fcller"),
    "CRLF": ("", "\r\n", "", "M\u00fcller"),
    "CR": ("", "\r", "", "depot"),
    "no end of the last line": ("", "\n", "cut", "\u65e5\u672c \U0001f50c"),
    "the sign for a wrong byte": ("", "\n", "", "M\ufffdller"),
}


@pytest.mark.parametrize("name", WELL)
def test_a_file_is_stored_as_the_command_line_stores_it(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    offline: Service,
    on_command_line: Callable[..., Any],
    name: str,
) -> None:
    mark, end, cut, note = WELL[name]
    driver = token()
    text = mark + f"driver_token,note{end}{driver},{note}" + ("" if cut else end)
    file = offline.folder / "drivers.csv"
    file.write_bytes(text.encode())
    assert on_command_line("import", "drivers.csv").returncode == 0
    assert note in [json.loads(line)["note"] for line in on_command_line("list", "--json").stdout.splitlines()]
    gate = service()
    page = visit(gate, PATH)
    importing = section(page, "Import a CSV file")
    importing.get_by_label("File").set_input_files(file)
    importing.get_by_role("button", name=PREVIEW).click()
    importing.get_by_role("button", name="Import this").click()
    expect(section(page, "Entries").locator("tbody tr")).to_contain_text(note)
    [entry] = gate.client.get("/api/v1/acl").json()["items"]
    assert entry["note"] == note


def test_a_file_that_is_too_large_is_not_sent(visit: Callable[..., Page], gate: Service, tmp_path: Path) -> None:
    page = visit(gate, PATH)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    importing = section(page, "Import a CSV file")
    row = b"%s," % token().encode()
    for size, told in ((1024 * 1024, "line 2"), (1024 * 1024 + 1, "larger than 1 MiB")):
        file = tmp_path / f"{size}.csv"
        file.write_bytes(b"driver_token,note\n" + row + b"x" * (size - 18 - len(row)))
        sent.clear()
        importing.get_by_label("File").set_input_files(file)
        importing.get_by_role("button", name=PREVIEW).click()
        expect(importing.get_by_role("alert")).to_contain_text(told)
        assert any("acl/import" in url for url in sent) == (told == "line 2")


def changed(page: Page, file: Path, content: str) -> Locator:
    file.write_text(content)
    importing = section(page, "Import a CSV file")
    importing.get_by_label("File").set_input_files(file)
    importing.get_by_role("button", name=PREVIEW).click()
    return importing.locator("tbody tr")


FIELDS = {
    "allowed_stations": (
        {"allowed_stations": STATIONS[:1]},
        ";".join(STATIONS[1:]),
        f"allowed_stations: {STATIONS[0]} \u2192 {STATIONS[1]}, {STATIONS[2]}",
    ),
    "denied_stations": ({"denied_stations": STATIONS[:1]}, "", f"denied_stations: {STATIONS[0]} \u2192 none"),
    "valid_from": ({}, "2026-01-31T10:00:07Z", re.compile(r"valid_from: always \u2192 2026-01-3\d")),
    "valid_until": ({"valid_until": "2031-01-31"}, "", re.compile(r"valid_until: 203\d-\S+ \S+ \u2192 for ever")),
    "blocked": ({"blocked": True}, "no", "blocked: yes \u2192 no"),
    "note": ({"note": "depot"}, "<b>van</b>", "note: depot \u2192 <b>van</b>"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_each_changed_field_is_shown_with_both_values(page: Page, gate: Service, tmp_path: Path, field: str) -> None:
    entry, value, told = FIELDS[field]
    driver = gate.allow(**entry)
    rows = changed(page, tmp_path / "list.csv", f"driver_token,{field}\n{driver},{value}\n")
    expect(rows).to_have_count(1)
    expect(rows.get_by_role("listitem")).to_have_text([told])
    expect(rows).to_contain_text("changed")
    assert driver not in page.content()


def test_what_an_added_entry_says_is_shown(visit: Callable[..., Page], gate: Service, tmp_path: Path) -> None:
    page = visit(gate, PATH)
    first, second = token(), token()
    rows = changed(
        page,
        tmp_path / "list.csv",
        f"driver_token,blocked,allowed_stations,note\n{first},yes,{STATIONS[0]},night\n{second},,,\n",
    )
    expect(rows).to_have_count(2)
    expect(rows.nth(0).get_by_role("listitem")).to_have_text(
        ["blocked: yes", f"allowed_stations: {STATIONS[0]}", "note: night"]
    )
    expect(rows.nth(1)).to_contain_text("everywhere and always")
    accessible(page)


def test_a_preview_belongs_to_the_file_that_is_chosen(
    visit: Callable[..., Page], service: Callable[..., Service], tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    gate = service()
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text(f"driver_token,note\n{token()},first\n")
    second.write_text(f"driver_token,note\n{token()},second\n")
    page = visit(gate, PATH)
    importing = section(page, "Import a CSV file")
    choose, show = importing.get_by_label("File"), importing.get_by_role("button", name=PREVIEW)
    store = importing.get_by_role("button", name="Import this")
    choose.set_input_files(first)
    show.click()
    expect(importing.locator("tbody tr")).to_contain_text("first")
    choose.set_input_files(second)
    expect(importing.locator("tbody tr")).to_have_count(0)
    expect(store).to_have_count(0)
    show.click()
    expect(importing.locator("tbody tr")).to_contain_text("second")
    choose.set_input_files([])
    expect(store).to_have_count(0)
    # An answer about the first file that comes when the second is chosen is shown to nobody.
    kept_back: list[Any] = []

    def keep_back(route: Any) -> None:
        kept_back.append(route)

    page.route(re.compile("acl/import"), keep_back)
    choose.set_input_files(first)
    show.click()
    eventually(lambda: page.wait_for_timeout(20) or kept_back)
    choose.set_input_files(second)
    with page.expect_response(re.compile("acl/import")):
        kept_back.pop().continue_()
    show.click()
    eventually(lambda: page.wait_for_timeout(20) or kept_back)
    kept_back.pop().continue_()
    expect(importing.locator("tbody tr")).to_contain_text("second")
    # A file that changed since it was shown: what was shown is imported.
    second.write_text(f"driver_token,note\n{token()},third\n")
    page.unroute(re.compile("acl/import"))
    store.click()
    expect(section(page, "Entries").locator("tbody tr")).to_contain_text("second")
    assert [entry["note"] for entry in gate.client.get("/api/v1/acl").json()["items"]] == ["second"]


def test_a_file_that_can_no_longer_be_read(visit: Callable[..., Page], gate: Service, tmp_path: Path) -> None:
    page = visit(gate, PATH)
    file = tmp_path / "gone.csv"
    file.write_text("driver_token\n")
    importing = section(page, "Import a CSV file")
    importing.get_by_label("File").set_input_files(file)
    file.unlink()
    importing.get_by_role("button", name=PREVIEW).click()
    expect(importing.get_by_role("alert")).to_contain_text("cannot be read")


def typed(page: Page) -> list[str]:
    """What stands in the page's fields, and the page itself."""
    fields = page.evaluate("() => Array.from(document.querySelectorAll('input'), (each) => each.value)")
    return [page.content(), *fields]


FORMS = {"Find a token": "Find", "Add or replace an entry": "Store"}


@pytest.mark.parametrize("end", ["done", "refused", "no answer", "server error"])
@pytest.mark.parametrize("form", FORMS)
def test_a_typed_token_does_not_stay(page: Page, form: str, end: str) -> None:
    driver = token()
    part = section(page, form)
    field = part.get_by_label("Driver token")
    if end == "refused":
        part.get_by_label(re.compile("^(Station|Only at these)")).fill("nonsense")
    if end == "no answer":
        page.route(re.compile("/api/v1/acl"), lambda route: route.abort())
    if end == "server error":
        page.route(re.compile("/api/v1/acl"), lambda route: route.fulfill(status=503, body="{}"))
    field.fill(driver)
    part.get_by_role("button", name=FORMS[form]).click()
    if end == "done":
        expect(page.get_by_text(re.compile("not in the access list|entry is stored"))).to_be_visible()
    else:
        expect(part.get_by_role("alert")).to_be_visible()
    assert not [text for text in typed(page) if driver in text]


def test_one_entry_after_another_is_stored_by_keyboard(visit: Callable[..., Page], gate: Service) -> None:
    page = visit(gate, PATH)
    tokens = [token() for _ in range(3)]
    field = section(page, "Add or replace an entry").get_by_label("Driver token")
    field.focus()
    for each in tokens:
        before = field.element_handle()
        page.keyboard.type(each)
        page.keyboard.press("Enter")
        page.wait_for_function("(field) => !field.isConnected", arg=before)  # the page is made anew
        expect(field).to_be_focused()
    assert all(
        gate.client.post("/api/v1/acl/search", json={"driver_token": each}).status_code == 200 for each in tokens
    )


def test_a_refused_entry_can_be_mended_without_its_token(
    visit: Callable[..., Page], service: Callable[..., Service]
) -> None:
    gate = service()
    page = visit(gate, PATH)
    part = section(page, "Add or replace an entry")
    driver, other = token(), token()
    for asked in (driver, other):
        part.get_by_label("Driver token").fill(asked)
        part.get_by_label("Only at these").fill("nonsense")
        part.get_by_role("button", name="Store").click()
        expect(part.get_by_role("alert")).to_contain_text("allowed_stations")
    part.get_by_label("Only at these").fill("")
    part.get_by_role("button", name="Store").click()
    expect(section(page, "Entries").locator("tbody tr")).to_have_count(1)
    assert gate.client.post("/api/v1/acl/search", json={"driver_token": other}).status_code == 200
    assert gate.client.post("/api/v1/acl/search", json={"driver_token": driver}).status_code == 404
    part.get_by_role("button", name="Store").click()
    assert part.get_by_label("Driver token").evaluate("(each) => each.validity.valueMissing")


@pytest.mark.parametrize("form", FORMS)
def test_a_session_that_ended_takes_the_typed_token_along(
    visit: Callable[..., Page], service: Callable[..., Service], command: str, form: str
) -> None:
    made = keys(command)
    gate = service(security__api_keys=[made["ops"][1]], dashboard__session_idle_ms=3000)
    page = visit(gate, PATH)
    page.get_by_label("Access key").fill("wrong-access-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not a valid access key")
    assert not [text for text in typed(page) if "wrong-access-key" in text]
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Access list")
    driver = token()
    section(page, form).get_by_label("Driver token").fill(driver)
    expect(page.get_by_role("heading", level=1, name="Sign in")).to_be_visible(timeout=40_000)
    assert not [text for text in typed(page) if driver in text]
    page.get_by_label("Access key").fill(made["ops"][0])
    page.keyboard.press("Enter")
    heading(page, "Access list")
    assert not [text for text in typed(page) if driver in text]
