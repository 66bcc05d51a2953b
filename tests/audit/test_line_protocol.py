"""Points are written so that a reader of the line protocol finds what was decided, each with a time of its own."""

import re
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.audit.line_protocol import as_points, point_time
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, Status

Decide = Callable[..., Decision]

text = st.text(max_size=12) | st.text("\\ ,=\"'\n\x00é/a", max_size=12)
whole_line = re.compile(
    r"(?P<measurement>(?:\\.|[^\\, ])+)(?P<tags>(?:,(?:\\.|[^\\,= ])+=(?:\\.|[^\\,= ])+)*) "
    r'request_id="(?P<request_id>(?:\\["\\]|[^"\\])*)",driver_token_hash="(?P<hash>(?:\\["\\]|[^"\\])*)",'
    r'reason="(?P<reason>(?:\\["\\]|[^"\\])*)",processing_time_ms=(?P<took>-?\d+)i (?P<time>\d+)'
)


def read(line: str) -> tuple[dict[str, str], dict[str, str]]:
    """The tags and the fields of a line, by the rules of the protocol's reference."""
    match = whole_line.fullmatch(line)
    assert match is not None, line
    assert match["measurement"] == "authorization_decisions"
    parts = re.findall(r",((?:\\.|[^\\,= ])+)=((?:\\.|[^\\,= ])+)", match["tags"])
    tags = {name: re.sub(r"\\(.)", r"\1", value) for name, value in parts}
    fields = {name: re.sub(r'\\(["\\])', r"\1", match[name]) for name in ("request_id", "hash", "reason")}
    return tags, fields | {"took": match["took"], "time": match["time"]}


def shown(given_text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", " ", given_text)


@given(text, text, text, text, st.sampled_from(Status), st.integers(-5, 10**9), st.integers(0, 2 * 10**12))
def test_what_is_written_can_be_read(
    request_id: str, station: str, token_hash: str, reason: str, status: Status, took: int, at: int
) -> None:
    row = AuditRow(7, Decision(request_id, station, token_hash, status, reason, took, at))
    line, rest = as_points([row]).split("\n")
    assert rest == ""
    tags, fields = read(line)
    expected = shown(station.lower()).replace("\\", "/")
    assert tags == {"status": str(status)} | ({"station_id": expected} if station else {})
    assert fields == {
        "request_id": shown(request_id), "hash": shown(token_hash), "reason": shown(reason),
        "took": str(took), "time": str(point_time(row)),
    }  # fmt: skip
    assert point_time(row) // 1_000_000 == at


def test_the_line_of_an_ordinary_decision(decide: Decide) -> None:
    assert as_points([AuditRow(1, decide("r", reason="token_blocked"))]) == (
        "authorization_decisions,station_id=123e4567-e89b-12d3-a456-426614174000,status=not_allowed "
        'request_id="r",driver_token_hash="0123456789abcdef",reason="token_blocked",processing_time_ms=12i '
        "1767225600123021301\n"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 10**12), st.sampled_from(["", "host-serve-1", "host-worker-a"]))
def test_a_million_rows_of_a_writer_within_a_millisecond_have_different_times(
    decide: Decide, first: int, writer: str
) -> None:
    decision = decide("r")
    ends = (0, 1, 2, 499_999, 999_998, 999_999)
    assert len({point_time(AuditRow(first + number, decision, writer)) for number in ends}) == len(ends)


def test_writers_differ_and_the_embedded_database_keeps_its_times_when_it_is_moved(decide: Decide) -> None:
    decision = decide("r")
    times = [point_time(AuditRow(5, decision, writer)) for writer in ("", "embedded", "a", "b")]
    assert times[0] == times[1]
    assert len(set(times)) == 3
