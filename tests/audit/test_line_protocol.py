"""Points are written so that a reader of the line protocol finds what was decided, each as a point of its own."""

import random
import re
from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from chargegate.audit.line_protocol import as_points, places_of
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
    line, rest = as_points([row], {}).split("\n")
    assert rest == ""
    tags, fields = read(line)
    expected = shown(station.lower()).replace("\\", "/")
    assert tags == {"status": str(status)} | ({"station_id": expected} if station else {})
    assert fields == {
        "request_id": shown(request_id), "hash": shown(token_hash), "reason": shown(reason),
        "took": str(took), "time": str(at),
    }  # fmt: skip


def test_the_line_of_an_ordinary_decision(decide: Decide) -> None:
    assert as_points([AuditRow(1, decide("r", reason="token_blocked"))], {}) == (
        "authorization_decisions,station_id=123e4567-e89b-12d3-a456-426614174000,status=not_allowed "
        'request_id="r",driver_token_hash="0123456789abcdef",reason="token_blocked",processing_time_ms=12i '
        "1767225600123\n"
    )


@given(
    st.lists(st.tuples(st.sampled_from(["A", "a", "b"]), st.sampled_from(Status), st.integers(1, 3)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_decisions_of_one_moment_are_points_of_their_own(
    moments: list[tuple[str, Status, int]], order: random.Random
) -> None:
    """Whatever else is written with them, and in whatever order."""
    rows = [
        AuditRow(number, Decision(f"id-{number}", station, "0123456789abcdef", status, "", 12, at))
        for number, (station, status, at) in enumerate(moments, 1)
    ]
    places = places_of(rows)
    shuffled = order.sample(rows, len(rows))
    assert places_of(shuffled) == places
    for row in rows:
        same = [
            each
            for each in shuffled
            if (each.decision.station_id.lower(), each.decision.status, each.decision.timestamp)
            == (row.decision.station_id.lower(), row.decision.status, row.decision.timestamp)
        ]
        assert places_of(same).get(row.decision.request_id) == places.get(row.decision.request_id)
    points = [read(line) for line in as_points(rows, places).splitlines()]
    assert not [
        point for point, times in Counter((str(tags), fields["time"]) for tags, fields in points).items() if times > 1
    ]
    plain = [tags for tags, _ in points if "uniq" not in tags]
    assert len(plain) == len({(station.lower(), status, at) for station, status, at in moments})
