"""The dashboard's list of requests by their state."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from browsing import accessible

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Reply, Service, Site

pytestmark = pytest.mark.servers  # it needs what `make servers` installs


@pytest.mark.parametrize("hours", [-1, 1])
def test_the_clock_of_the_browser_does_not_count(
    visit: Callable[..., Page],
    service: Callable[..., Service],
    authorizer: Site,
    receiver: Site,
    reply: type[Reply],
    hours: int,
) -> None:
    gate = service(authorization__backend="http", authorization__url=authorizer.url("/decide"))
    token = f"held-{uuid.uuid4().hex}"
    authorizer.plan(token, reply(200, how="held"))
    gate.ask(receiver.url(), driver_token=token)
    page = visit(gate, "/dashboard/requests")
    page.clock.set_system_time(dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours))
    page.get_by_label("State").select_option("under way")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("tbody td").last).to_have_text(re.compile(r"^[0-9.]+ m?s$"))
    authorizer.release(token)


def test_requests_are_found_by_their_state(
    visit: Callable[..., Page], service: Callable[..., Service], authorizer: Site, receiver: Site, reply: type[Reply]
) -> None:
    gate = service(
        authorization__backend="http", authorization__url=authorizer.url("/decide"), authorization__timeout_ms=60_000
    )
    stations = [str(uuid.uuid4()) for _ in range(2)]
    lost = gate.ask(receiver.planned(reply(410)))
    gate.finished(lost)
    held = [f"held-{uuid.uuid4().hex}" for _ in stations]
    for token in held:
        authorizer.plan(token, reply(200, how="held"))
    asked = [
        gate.ask(receiver.url(), driver_token=token, station_id=station)
        for token, station in zip(held, stations, strict=True)
    ]
    page = visit(gate, "/dashboard/requests")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_label("State").select_option("under way")
    expect(page.get_by_label("Reason")).to_be_disabled()
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("the authorizer is asked")
    expect(rows.first).to_contain_text(asked[1].request_id)
    assert "state=under_way" in page.url
    accessible(page)
    rows.last.get_by_role("link", name=stations[0]).click()
    expect(rows).to_have_count(1)
    expect(page.get_by_label("State")).to_have_value("under_way")
    expect(page.get_by_label("Station")).to_have_value(stations[0])
    page.reload()
    expect(rows).to_have_count(1)
    for token in held:
        assert token not in page.content()
        authorizer.release(token)
    gate.finished(asked[0], 60)
    page.reload()
    expect(page.get_by_text("No request that matches is under way.")).to_be_visible()
    page.get_by_label("State").select_option("given up")
    page.get_by_role("button", name="Filter").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(lost.request_id)
    expect(rows).to_contain_text("HTTP 410")
    page.get_by_label("State").select_option("timed out")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No decision matches.")).to_be_visible()
    page.goto("/dashboard/requests?state=constructor")
    expect(rows).to_have_count(3)
