"""One trace over processes: the API of one machine, a queue, the worker of another."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Browser, expect

from browsing import chromium
from collector import collectors
from outside import Reply, eventually, sites
from scaling.cluster import COMMAND, ENVIRONMENT
from scaling.engines import ENGINES
from trying import some_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaling.cluster import Cluster
    from scaling.engines import Engine

WHOLE = ["accept", "decide", "deliver", "queue", "record"]
SYSTEM = {"kafka": "kafka", "postgres": "postgresql", "rabbitmq": "rabbitmq", "redis": "redis"}


@some_of("engine", ENGINES, ["kafka", "postgres"], indirect=True)
def test_three_attempts_are_one_trace_and_one_story(engine: Engine, clusters: Callable[..., Cluster]) -> None:
    with collectors() as make, sites() as site:
        collector, receiver = make(), site()
        settings: dict[str, Any] = {"tracing__otlp_endpoint": collector.url, "tracing__sample_ratio": 0}
        with clusters(engine.new_queue(), **settings) as cluster:
            api, worker = cluster.add("api"), cluster.add("worker")
            cluster.start()
            given = f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"
            url = receiver.planned(Reply(500), Reply(503), Reply(200))
            body = {"station_id": str(uuid.uuid4()), "driver_token": f"token-{uuid.uuid4().hex}", "callback_url": url}
            answer = api.post(body, traceparent=given)
            assert answer.status_code == 202, answer.text
            request_id = answer.json()["request_id"]
            ended = {"COMPLETED", "FAILED", "TIMEOUT"}
            eventually(lambda: cluster.status(request_id) in ended, 60, cluster.tails)
            trace_id = given.split("-")[1]
            eventually(lambda: len(collector.spans(trace_id)) >= len(WHOLE), 60, cluster.tails)
            spans = {span.name: span for span in collector.spans(trace_id)}
            assert sorted(collector.names(trace_id)) == WHOLE
            assert len(collector.spans()) == len(WHOLE)
            assert spans["accept"].parent_id == given.split("-")[2]
            assert {spans[name].parent_id for name in WHOLE[1:]} == {spans["accept"].span_id}
            assert spans["queue"].attributes["messaging.system"] == SYSTEM[engine.name]
            assert spans["queue"].links == [(trace_id, spans["accept"].span_id)]
            assert len(spans["deliver"].events) == 3
            roles = {name: span.resource["chargegate.role"] for name, span in spans.items()}
            assert roles == dict.fromkeys(WHOLE, "worker") | {"accept": "api"}
            carried = {call.headers["traceparent"] for call in receiver.calls_to(url)}
            assert carried == {f"00-{trace_id}-{spans['deliver'].span_id}-01"}
            assert body["driver_token"].encode() not in b"".join(collector.bodies)
            told = subprocess.run(
                [COMMAND, "trace", request_id, "--json", "--config", "chargegate.toml", "--log", "log"],
                cwd=worker.folder,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert told.returncode == 0, told.stderr
            story = json.loads(told.stdout)
            assert story["trace_id"] == trace_id
            attempts = [step for step in story["steps"] if step["what"] == "attempt"]
            assert [step["details"]["status_code"] for step in attempts] == [500, 503, 200]
            with chromium() as browser:
                on_its_page(browser, api.url, request_id)


def on_its_page(browser: Browser, url: str, request_id: str) -> None:
    """The dashboard tells the same story."""
    page = browser.new_page(base_url=url)
    page.goto(f"/dashboard/requests/{request_id}")
    steps = page.locator("ol.timeline > li strong")
    expect(steps).to_have_text(
        [
            "Accepted",
            "Taken by a worker",
            re.compile("^Decided: "),
            "Attempt 1: HTTP 500",
            "Attempt 2: HTTP 503",
            "Attempt 3: HTTP 200",
            "Delivered",
        ]
    )
    page.close()
