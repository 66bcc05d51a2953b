"""What is told of what was seen."""

from chargegate.ledger.counts import MINUTE_MS, UnitCounts
from chargegate.operations.looks import Look, Looks, Recent

START = 1_800_000_000_000 // MINUTE_MS * MINUTE_MS


def look(
    after_s: float, letters: int | None = 0, accepted: int = 0, *, refused: int = 0, p50_ms: int | None = None
) -> Look:
    at = START + round(after_s * 1000)
    return Look(at, accepted, refused, 0, 0, letters, p50_ms, None, None, letters or 0, 0, None)


def minute(number: int, total: int, unknown: int = 0) -> UnitCounts:
    start = START + number * MINUTE_MS
    return UnitCounts(start, total, total - unknown, 0, unknown, 0, unknown, 0, 0, 0, 0)


def test_recent_decisions_are_those_of_half_a_minute() -> None:
    looks = Looks()
    assert looks.recent() == Recent(0, 0, 0, 0, 0, 0)
    looks.note(look(50), [minute(0, 100, 90)])
    assert looks.recent().total == 0, "what was before the first look is not known to be recent"
    looks.note(look(58), [minute(0, 110, 95)])
    looks.note(look(62), [minute(1, 7, 1), minute(0, 112, 95)])
    assert looks.recent() == Recent(19, 6, 6, 0, 0, 0)
    looks.note(look(81), None)  # the database is away
    looks.note(look(89), [minute(1, 8, 1), minute(0, 112, 95)])
    assert looks.recent() == Recent(10, 1, 1, 0, 0, 0)
    looks.note(look(200), [])
    looks.note(look(300), [])
    assert looks.recent() == Recent(0, 0, 0, 0, 0, 0)


def test_what_was_seen_before_the_clock_was_set_back_is_not_recent() -> None:
    looks = Looks()
    for after_s in range(3600, 3660, 2):
        looks.note(look(after_s, after_s - 3600, after_s * 100, refused=after_s), [minute(60, after_s, after_s)])
    assert looks.recent().unknown
    assert looks.more_dead_letters()
    for after_s in range(0, 60, 2):
        looks.note(look(after_s, 58, 365_800, refused=3658), [minute(0, 10)])
        assert looks.recent().unknown == 0
        assert looks.more_dead_letters() == 0
        assert looks.refused() == (0, 0)
        assert looks.since(START).timestamp == START
    points = looks.series(MINUTE_MS, 120, START + 60_000, []).points
    assert [point.timestamp for point in points if point.dead_letters is not None] == [START]


def test_refused_requests_are_those_of_half_a_minute() -> None:
    looks = Looks()
    for after_s, accepted, refused in ((0, 5, 3), (31, 20, 4), (60, 22, 10)):
        looks.note(look(after_s, accepted=accepted, refused=refused), [])
    assert looks.refused() == (6, 8)


def test_accepted_requests_without_any_callback_for_a_minute() -> None:
    looks = Looks()
    for after_s in range(0, 80, 2):  # one is accepted each second from 10 s on, and none answered
        looks.note(look(after_s, accepted=max(0, after_s - 10)), [])
        assert bool(looks.unanswered()) == (after_s >= 60), after_s
    looks.note(look(80, accepted=70, p50_ms=900), [])
    assert looks.unanswered() == 0
    looks.note(look(82, None, accepted=72), [])
    assert looks.unanswered() == 0, "what was delivered is not known while the database is away"


def test_nobody_waits_for_an_answer_where_nobody_asks() -> None:
    looks = Looks()
    for after_s in range(0, 200, 2):
        looks.note(look(after_s, accepted=7, p50_ms=12 if after_s < 60 else None), [])
        assert looks.unanswered() == 0, after_s


def test_dead_letters_that_are_new() -> None:
    looks = Looks()
    for after_s, letters in ((0, 5), (10, 7), (20, None), (29, 7)):
        looks.note(look(after_s, letters), [])
    assert looks.more_dead_letters() == 2
    looks.note(look(41, 7), [])
    assert looks.more_dead_letters() == 0
    looks.note(look(42, 3), [])
    assert looks.more_dead_letters() == 0
    looks.note(look(100, None), [])
    assert looks.more_dead_letters() == 0


def test_a_series_has_the_worst_of_each_length_and_what_was_accepted_in_it() -> None:
    looks = Looks()
    for after_s, letters, accepted in ((1, 5, 10), (30, 9, 25), (50, 2, 30), (61, 1, 31)):
        looks.note(look(after_s, letters, accepted), [])
    series = looks.series(MINUTE_MS, 3, START + 61_000, [minute(1, 4, 1), minute(0, 6)])
    assert [point.timestamp for point in series.points] == [START - MINUTE_MS, START, START + MINUTE_MS]
    assert [point.dead_letters for point in series.points] == [None, 9, 1]
    assert [point.open_circuits for point in series.points] == [None, 9, 1]
    assert [point.anomalies for point in series.points] == [None, None, None]
    assert [point.accepted for point in series.points] == [None, 30, 1]
    assert [(point.allowed, point.unknown) for point in series.points] == [(0, 0), (6, 0), (3, 1)]
    assert looks.since(START + 45_000).timestamp == START + 50_000
