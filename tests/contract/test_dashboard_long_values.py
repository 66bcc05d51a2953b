"""Values that are as long as they may be, in any writing: no page is wider than the window, whatever it is."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, NamedTuple

import pytest
from playwright.sync_api import Page, expect

from browsing import accessible, heading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Asked, Reply, Service, Site

pytestmark = pytest.mark.servers  # it needs what `make servers` installs


class Told(NamedTuple):
    gate: Service
    key: str
    given_up: Asked


@pytest.fixture(scope="module")
def told(
    shared_service: Callable[..., Service],
    command: str,
    receiver: Site,
    authorizer: Site,
    reply: type[Reply],
    answer: Callable[..., Reply],
) -> Told:
    """Clients with the longest names, and a long reason of the authorizer's; notes without a blank."""
    made = {}
    for role in ("admin", "client"):
        line = [command, "keys", "create", "--role", role, "--name", role[0] * 64, "--json"]
        made[role] = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    gate = shared_service(
        security__api_keys=[each["hash"] for each in made.values()],
        authorization__backend="http",
        authorization__url=authorizer.url("/decide"),
        callback__retry_delay_ms=10,
    )
    gate.sign_in(made["admin"]["key"])
    gate.allow(note="x" * 500, allowed_stations=[str(uuid.uuid4()) for _ in range(60)])
    gate.allow(note="\u202eabc \u05d0\u05d1 " + "\U0001f600" * 200)
    gate.sign_in(made["client"]["key"])
    body = gate.body(receiver.planned(reply(500)))
    authorizer.plan(body["driver_token"], answer("not_allowed", "r" * 64))
    given_up = gate.ask(**body)
    assert gate.finished(given_up)["decision"]["reason"] == "r" * 64
    return Told(gate, made["admin"]["key"], given_up)


@pytest.mark.parametrize("width", [360, 720, 1280])
def test_no_page_is_wider_than_the_window(visit: Callable[..., Page], told: Told, width: int) -> None:
    page = visit(told.gate, viewport={"width": width, "height": 800})
    page.get_by_label("Access key").fill(told.key)
    page.keyboard.press("Enter")
    expect(page.locator(".tile")).to_have_count(7)
    accessible(page)
    for name in ("Requests", "Stations", "Dead letters", "Access list", "Anomalies"):
        page.get_by_role("navigation").get_by_role("link", name=name).click()
        heading(page, name)
        expect(page.locator(".loading")).to_have_count(0)
        accessible(page)
    page.goto(f"/dashboard/requests/{told.given_up.request_id}")
    expect(page.get_by_text("Given up")).to_be_visible()
    accessible(page)


def test_an_old_value_does_not_turn_the_new_one_around(
    visit: Callable[..., Page], shared_service: Callable[..., Service], tmp_path: Path
) -> None:
    """A note may hold characters that turn the direction of what follows them."""
    gate = shared_service()
    driver = gate.allow(note="\u202eold")
    page = visit(gate, "/dashboard/access-list")
    file = tmp_path / "list.csv"
    file.write_text(f"driver_token,note\n{driver},new one\n")
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Show what would change").click()
    old, new = page.locator("li del"), page.locator("li ins")
    expect(new).to_have_text("new one")
    left, right = old.bounding_box(), new.bounding_box()
    assert left is not None
    assert right is not None
    assert left["x"] < right["x"]
