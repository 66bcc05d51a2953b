import asyncio
import datetime as dt
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from chargegate.observe import Log, Metrics
from outside import eventually


class Written:
    """A log of its own, and what it wrote."""

    def __init__(self, *, console: bool = False, level: int = logging.INFO, colours: bool = False) -> None:
        self.stream = io.BytesIO()
        self.log = Log()
        self.log.configure(level, self.stream, console=console, colours=colours)

    @property
    def text(self) -> str:
        return self.stream.getvalue().decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.text.endswith("\n")
        return [json.loads(line) for line in self.text.split("\n")[:-1]]


def test_a_line_of_json_has_time_level_event_and_fields_in_order() -> None:
    written = Written()
    written.log.info("decided", request_id="r", attempts=2, share=0.5, gone=None, ok=True)
    (line,) = written.lines
    assert list(line) == ["timestamp", "level", "event", "request_id", "attempts", "share", "gone", "ok"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert (line["level"], line["event"], line["attempts"], line["gone"]) == ("info", "decided", 2, None)


def test_a_step_of_a_request_is_written_as_any_line_is() -> None:
    written = Written()
    written.log.info("decided", request_id="r", attempts=2)
    written.log.step("decided", {"request_id": "r", "attempts": 2})
    first, second = ({name: line[name] for name in line if name != "timestamp"} for line in written.lines)
    assert list(first.items()) == list(second.items())
    quiet = Written(level=logging.WARNING)
    quiet.log.step("decided", {"request_id": "r"})
    assert not quiet.text


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary() | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(st.characters(exclude_categories=["Cs"])), anything)
def test_whatever_is_logged_is_one_line_of_json(event: str, value: object) -> None:
    written = Written()
    written.log.warning(event, value=value)
    assert written.stream.getvalue().count(b"\n") == 1
    assert written.lines[0]["event"] == event


@pytest.mark.parametrize("console", [True, False])
@pytest.mark.parametrize("value", ["\udcff", 2**70, object(), OSError("x"), {1: object()}, {(1, 2): 3}])
def test_a_value_of_any_kind_raises_nothing(console: bool, value: object) -> None:
    written = Written(console=console)
    written.log.error("event", value=value)
    assert "event" in written.text
    assert written.text.count("\n") == 1


@pytest.mark.parametrize("console", [True, False])
@pytest.mark.parametrize("value", ["two\nlines", "two\r\nlines", "a\x1b[2Jb"])
def test_a_value_can_forge_no_line_and_no_colour(console: bool, value: str) -> None:
    written = Written(console=console)
    written.log.info("event", value=value)
    assert len(written.text.splitlines()) == 1
    assert "\x1b" not in written.text


def test_an_exception_stands_inside_its_line() -> None:
    written = Written()
    try:
        raise ValueError("deep down")
    except ValueError:
        written.log.exception("it broke", request_id="r")
    (line,) = written.lines
    assert line["level"] == "error"
    assert "ValueError: deep down" in line["traceback"]
    assert "Traceback" in line["traceback"]


def test_levels_below_the_chosen_one_are_silent() -> None:
    for number, level in enumerate([logging.INFO, logging.WARNING, logging.ERROR]):
        written = Written(level=level)
        for name in ("info", "warning", "error"):
            getattr(written.log, name)(name)
        assert [line["level"] for line in written.lines] == ["info", "warning", "error"][number:]


def test_people_see_time_level_event_and_what_there_is_to_say() -> None:
    written = Written(console=True)
    written.log.info("decided", request_id="r", reason="", status="allowed")
    assert re.fullmatch(r"\d\d:\d\d:\d\d info +decided +request_id=r status=allowed\n", written.text)
    assert "\x1b" not in written.text


def test_people_see_warnings_in_colour_and_tracebacks_as_they_are() -> None:
    written = Written(console=True, colours=True)
    written.log.warning("careful")
    assert written.text.startswith("\x1b[")
    try:
        raise ValueError("deep down")
    except ValueError:
        written.log.exception("it broke")
    assert written.text.endswith("ValueError: deep down\n")


def test_a_thread_writes_lines_together_and_none_is_left() -> None:
    class Counting(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            return super().write(data)

    stream, log = Counting(), Log()
    log.configure(logging.INFO, stream, console=False, colours=False)
    log.attach()
    for number in range(1_000):
        log.info("event", number=number)
    log.info("last words")
    log.detach()
    log.info("after")
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["event"] * 1_000 + ["last words", "after"]
    assert stream.writes < 500


def test_lines_that_nobody_takes_are_bounded_and_counted() -> None:
    stuck, taken = threading.Event(), threading.Event()

    class Stuck(io.BytesIO):
        def write(self, data: Any) -> int:
            stuck.set()
            taken.wait()
            return super().write(data)

    stream, log = Stuck(), Log()
    log.configure(logging.INFO, stream, console=False, colours=False)
    log.attach()
    log.info("event", number=0)
    assert stuck.wait(20)
    for number in range(1, 25_000):
        log.info("event", number=number)
    taken.set()
    eventually(lambda: b"log lines lost" in stream.getvalue())
    log.detach()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    lost = [event["lines"] for event in events if event["event"].startswith("log lines lost")]
    written = [event["number"] for event in events if event["event"] == "event"]
    assert written == list(range(10_001))
    assert lost == [25_000 - 10_001]


def test_threads_and_a_loop_at_once_lose_no_line() -> None:
    each, threads = 2_400, 3  # fewer than the bound in all, so that none may be lost however slowly they are written

    def shout(name: int) -> None:
        for number in range(each):
            written.log.info("event", name=name, number=number)

    async def main() -> None:
        written.log.attach()
        running = [threading.Thread(target=shout, args=(name,)) for name in range(threads)]
        for thread in running:
            thread.start()
        for number in range(each):
            written.log.info("event", name="loop", number=number)
            if not number % 10:
                await asyncio.sleep(0)
        for thread in running:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(eventually, lambda: written.text.count("\n") >= each * (threads + 1))
        written.log.detach()

    written = Written()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(before)
    seen = [(line["name"], line["number"]) for line in written.lines]
    assert len(seen) == len(set(seen)) == each * (threads + 1)


# As the process sets it up


def child(code: str, stderr: int = subprocess.PIPE) -> str:
    script = "import logging\nfrom chargegate.observe import configure_logging, log\n" + code
    process = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=stderr, check=True, timeout=30
    )
    return (process.stderr or b"").decode()


def test_events_of_libraries_are_lines_of_ours() -> None:
    text = child("""
configure_logging("info")
log.info("ours")
library = logging.getLogger("some.library")
library.info("not of interest")
library.warning("take %s", "care")
library.log(35, "between levels")
try:
    raise ValueError("deep down")
except ValueError:
    library.exception("broke")
library.warning("no number: %d", "x")
log.info("still here")
""")
    lines = [json.loads(line) for line in text.splitlines()]
    events = [line["event"] for line in lines]
    assert events[:4] == ["ours", "take care", "between levels", "broke"]
    assert events[-1] == "still here"
    assert [line.get("logger") for line in lines[:2]] == [None, "some.library"]
    assert [line["level"] for line in lines[:4]] == ["info", "warning", "warning", "error"]
    assert "deep down" in lines[3]["traceback"]


def test_where_nobody_watches_it_is_json_and_in_a_terminal_it_is_for_people() -> None:
    assert json.loads(child("configure_logging('info'); log.info('x')"))["event"] == "x"
    assert not child("configure_logging('info', 'console'); log.info('x')").startswith("{")
    code = "configure_logging('info', {form!r}); log.info('event', a=1)"
    for form, people in (("auto", True), ("json", False)):
        reader, terminal = os.openpty()
        child(code.format(form=form), stderr=terminal)
        os.close(terminal)
        text = os.read(reader, 4096).decode()
        os.close(reader)
        assert text.startswith("{") is not people
        assert "event" in text


def test_the_level_is_for_libraries_too() -> None:
    assert child("configure_logging('error'); log.warning('x'); logging.getLogger('y').warning('z')") == ""
    debug = child("configure_logging('debug'); log.info('x'); logging.getLogger('y').debug('chatter')")
    assert [json.loads(line)["event"] for line in debug.splitlines()] == ["x"]


# Metrics


def test_the_contracts_metrics_are_there_with_bounded_labels() -> None:
    metrics = Metrics()
    metrics.circuit("callbacks")
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    kinds = {
        "charging_requests": "counter",
        "authorization_status": "counter",
        "authorization_processing_time_seconds": "histogram",
        "audit_log_entries": "counter",
        "callback_deliveries": "counter",
        "callback_duration_seconds": "histogram",
        "end_to_end_seconds": "histogram",
        "queue_depth": "gauge",
        "queue_oldest_age_seconds": "gauge",
        "requests_in_flight": "gauge",
        "circuit_breaker_state": "gauge",
        "circuit_breaker_transitions": "counter",
        "dead_letters": "gauge",
        "process_resident_memory_bytes": "gauge",
    }
    assert {name: families[name].type for name in kinds} == kinds


def test_two_registries_are_apart() -> None:
    first, second = Metrics(), Metrics()
    first.dead_letters.set(3)
    assert first.registry.get_sample_value("dead_letters") == 3
    assert second.registry.get_sample_value("dead_letters") == 0


def test_a_circuits_state_and_changes_are_counted() -> None:
    metrics = Metrics()
    changed = metrics.circuit("authorization")
    value = metrics.registry.get_sample_value
    assert value("circuit_breaker_state", {"name": "authorization"}) == 0
    for to, state in (("open", 2), ("half_open", 1), ("open", 2), ("closed", 0)):
        changed(to)
        assert value("circuit_breaker_state", {"name": "authorization"}) == state
    assert value("circuit_breaker_transitions_total", {"name": "authorization", "to": "open"}) == 2
    assert value("circuit_breaker_transitions_total", {"name": "authorization", "to": "closed"}) == 1


def test_a_cache_that_is_looked_into_counts_hits_and_misses() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    assert value("decision_cache_total", {"outcome": "hit"}) == value("decision_cache_total", {"outcome": "miss"}) == 0
    for hit in (True, False, True):
        metrics.cache_looked(hit)
    assert value("decision_cache_total", {"outcome": "hit"}) == 2
    assert value("decision_cache_total", {"outcome": "miss"}) == 1


def test_the_end_of_a_certificate_is_there_once_it_is_known() -> None:
    metrics = Metrics()
    name = "tls_certificate_expiration_timestamp_seconds"
    metrics.certificate_in_use(None)
    assert metrics.registry.get_sample_value(name) is None
    for year in (2030, 2031):
        end = dt.datetime(year, 1, 1, tzinfo=dt.UTC)
        metrics.certificate_in_use(end)
        assert metrics.registry.get_sample_value(name) == end.timestamp()


def test_disks_are_measured_again_and_one_that_is_away_keeps_its_last_values(tmp_path: Path) -> None:
    metrics = Metrics()
    folder = tmp_path / "data"
    folder.mkdir()
    metrics.disks.watch("data", folder)
    expected = os.statvfs(folder)
    value = metrics.registry.get_sample_value
    assert value("disk_size_bytes", {"folder": "data"}) == expected.f_blocks * expected.f_frsize
    assert 0 < (value("disk_free_bytes", {"folder": "data"}) or 0) <= expected.f_blocks * expected.f_frsize
    folder.rmdir()
    metrics.disks.refresh()
    eventually(lambda: not any(thread.name == "disks" for thread in threading.enumerate()))
    assert value("disk_size_bytes", {"folder": "data"}) == expected.f_blocks * expected.f_frsize
