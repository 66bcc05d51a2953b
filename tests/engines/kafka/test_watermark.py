import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.engines.kafka.watermark import Watermark

ROOM = 4096

positions = st.integers(0, 2**40)
logs = st.sets(st.integers(0, 80), max_size=60).map(sorted)  # offsets that exist: a log may have gaps


@st.composite
def used(draw: st.DrawFn) -> tuple[Watermark, list[int], set[int], set[int]]:
    """A watermark after some of a log was taken and some of that was done: with the log, the taken and the done."""
    base = draw(positions)
    log = [base + offset for offset in draw(logs)]
    watermark = Watermark(base)
    taken: list[int] = []
    done: set[int] = set()
    for offset in log[: draw(st.integers(0, len(log)))]:
        assert watermark.take(offset)
        taken.append(offset)
        for finished in draw(st.sets(st.sampled_from(taken), max_size=3)):
            watermark.done(finished)
            done.add(finished)
    return watermark, log, set(taken), done


@given(used())
def test_all_below_the_position_is_done_and_the_position_itself_is_not(
    case: tuple[Watermark, list[int], set[int], set[int]],
) -> None:
    watermark, _, taken, done = case
    assert {offset for offset in taken if offset < watermark.position} <= done
    open_ones = taken - done
    assert watermark.position == (min(open_ones) if open_ones else watermark.head)
    assert watermark.in_flight == len(open_ones)


@given(used(), st.integers(0, 40))
def test_the_next_owner_gets_what_was_not_done_and_nothing_else(
    case: tuple[Watermark, list[int], set[int], set[int]], beyond: int
) -> None:
    watermark, log, _, done = case
    end = max([watermark.head, *(offset + 1 for offset in log)]) + beyond
    heir = Watermark.restored(watermark.position, watermark.note(ROOM), end)
    assert heir.position == watermark.position
    got = [offset for offset in log if offset >= heir.position and heir.take(offset)]
    assert got == [offset for offset in log if offset not in done]


@given(used(), st.integers(0, 30))
def test_a_note_without_room_costs_repeats_and_skips_nothing(
    case: tuple[Watermark, list[int], set[int], set[int]], room: int
) -> None:
    watermark, log, _, done = case
    note = watermark.note(room)
    assert len(note) <= room
    heir = Watermark.restored(watermark.position, note, 2**62)
    got = {offset for offset in log if offset >= heir.position and heir.take(offset)}
    assert got >= set(log) - done
    assert not any(offset in got for offset in log if offset < watermark.position)


@given(used(), st.data())
def test_what_is_done_stays_done_through_several_owners(
    case: tuple[Watermark, list[int], set[int], set[int]], data: st.DataObject
) -> None:
    watermark, log, _, done = case
    for _ in range(data.draw(st.integers(1, 4))):
        watermark = Watermark.restored(watermark.position, watermark.note(ROOM), 2**62)
        coming = [offset for offset in log if offset >= watermark.position]
        for offset in coming[: data.draw(st.integers(0, len(coming)))]:
            assert watermark.take(offset) == (offset not in done)
            if data.draw(st.booleans()):
                watermark.done(offset)
                done.add(offset)
    assert {offset for offset in log if offset < watermark.position} <= done


@given(used(), st.integers(0, 40))
def test_what_nobody_took_is_counted(case: tuple[Watermark, list[int], set[int], set[int]], more: int) -> None:
    watermark, _, taken, done = case
    end = watermark.head + more
    assert watermark.waiting(end) == more
    heir = Watermark.restored(watermark.position, watermark.note(ROOM), end)
    free = set(range(watermark.position, end)) - done
    last = max(taken, default=-1)
    assert heir.waiting(end) == len([offset for offset in free if offset in taken or offset > last])


def test_holes_that_the_log_lost_hold_nothing_back() -> None:
    watermark = Watermark(0)
    for offset in range(10):
        watermark.take(offset)
    for offset in (1, 2, 5):
        watermark.done(offset)
    heir = Watermark.restored(watermark.position, watermark.note(ROOM), 10)
    assert heir.take(7)  # retention removed what was before
    assert heir.position == 7


@given(st.text(max_size=40) | st.from_regex(r"1;([0-9a-f]{1,3},?){0,8}", fullmatch=True), st.integers(0, 300))
def test_a_note_that_is_not_ours_or_tells_of_what_is_not_there_skips_nothing_new(note: str, size: int) -> None:
    heir = Watermark.restored(0, note, size)
    assert heir.position == 0
    assert heir.head <= size
    assert all(heir.take(offset) for offset in range(size, size + 3))


@pytest.mark.parametrize("done", [[], [0], [3], [0, 1, 2, 3]])
def test_doing_twice_or_what_is_unknown_changes_nothing(done: list[int]) -> None:
    watermark = Watermark(0)
    for offset in range(4):
        watermark.take(offset)
    for offset in done:
        watermark.done(offset)
    before = watermark.position, watermark.note(ROOM)
    for offset in [*done, 17]:
        watermark.done(offset)
    assert (watermark.position, watermark.note(ROOM)) == before
