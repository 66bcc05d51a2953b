import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.audit.base import EndLost
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.csv_lines import CHAINED_HEADER
from chargegate.audit.life.rotating import clear
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision

Decide = Callable[..., Decision]
ReadLog = Callable[[Path], list[list[str]]]
Limit = Callable[[int], AbstractContextManager[None]]
HEADER = "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
hostile = st.tuples(st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", '"', ",", "", "'"]), text).map("".join)


def rows(*decisions: Decision) -> list[AuditRow]:
    return [AuditRow(number, decision) for number, decision in enumerate(decisions, 1)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def log(path: Path) -> Iterator[CsvFile]:
    sink = CsvFile(path)
    yield sink
    sink.close()


def test_one_line_a_decision_below_one_header(log: CsvFile, path: Path, decide: Decide) -> None:
    log.write(rows(decide("a"), decide("b", reason="token_blocked")))
    log.write(rows(decide("c")))
    log.sync()
    station = "123e4567-e89b-12d3-a456-426614174000"
    assert path.read_text() == (
        HEADER + f"2026-01-01T00:00:00.123Z,a,{station},0123456789abcdef,not_allowed,,12\n"
        f"2026-01-01T00:00:00.123Z,b,{station},0123456789abcdef,not_allowed,token_blocked,12\n"
        f"2026-01-01T00:00:00.123Z,c,{station},0123456789abcdef,not_allowed,,12\n"
    )


def test_a_later_process_goes_on_below_the_same_header(path: Path, decide: Decide, read_log: ReadLog) -> None:
    for request_id in ("a", "b"):
        sink = CsvFile(path)
        sink.resume()
        sink.write(rows(decide(request_id)))
        sink.close()
        sink.close()
    assert [record[1] for record in read_log(path)] == ["a", "b"]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hostile, hostile, hostile)
def test_no_field_is_run_as_a_formula_or_breaks_its_line(
    path: Path, decide: Decide, read_log: ReadLog, request_id: str, station: str, reason: str
) -> None:
    path.unlink(missing_ok=True)
    sink = CsvFile(path)
    sink.write(rows(decide(request_id or "r", station=station, reason=reason), decide("next")))
    sink.close()
    (record, following) = read_log(path)
    assert path.read_bytes().count(b"\n") == 3
    assert following[1] == "next"
    assert not any(field.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for field in record)
    for field, given_text in ((record[1], request_id or "r"), (record[2], station), (record[5], reason)):
        shown = given_text.replace("\r", " ").replace("\n", " ")
        assert field in (shown, "'" + shown)


def test_a_field_that_looks_like_lines_of_the_file_is_one_field(
    log: CsvFile, path: Path, decide: Decide, read_log: ReadLog
) -> None:
    forged = "x,1\n2026-01-01T00:00:00.123Z,forged,s,h,allowed,"
    log.write(rows(decide("a", reason=forged)))
    (record,) = read_log(path)
    assert (record[1], record[5]) == ("a", forged.replace("\n", " "))


def test_a_line_that_a_crash_left_unfinished_is_cut_off(path: Path, decide: Decide, read_log: ReadLog) -> None:
    sink = CsvFile(path)
    sink.write(rows(decide("a"), decide("b")))
    sink.close()
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in (last, last + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        sink = CsvFile(path)
        sink.resume()
        known = sink.held()
        assert "a" in known
        assert "b" not in known
        sink.write(rows(decide("c")))
        sink.close()
        assert [record[1] for record in read_log(path)] == ["a", "c"]


def test_a_torn_header_is_written_anew(path: Path, decide: Decide, read_log: ReadLog) -> None:
    path.write_text(HEADER[:20])
    sink = CsvFile(path)
    sink.resume()
    assert not sink.held() - {"request_id", ""}
    sink.write(rows(decide("a")))
    sink.close()
    assert [record[1] for record in read_log(path)] == ["a"]


def test_what_the_file_holds_is_told_on_resume(path: Path, decide: Decide) -> None:
    odd = ["plain", "=formula", 'with "quotes"', "with,comma", "-"]
    sink = CsvFile(path)
    sink.write(rows(*(decide(request_id) for request_id in odd)))
    sink.close()
    again = CsvFile(path)
    again.resume()
    assert again.held() >= set(odd)
    again.close()


@pytest.mark.parametrize("torn", [b"", b"half a li"])
def test_a_log_of_many_megabytes_is_resumed(path: Path, decide: Decide, torn: bytes) -> None:
    line = b"2026-01-01T00:00:00.123Z,%d,s,0123456789abcdef,allowed,,1\n"
    with path.open("wb") as file:
        file.write(HEADER.encode())
        for number in range(100_000):
            file.write(line % number)
        file.write(torn)
    sink = CsvFile(path)
    sink.resume()
    known = sink.held()
    sink.close()
    assert {"0", "99999"} <= known
    assert path.read_bytes().endswith(line % 99_999)


def test_a_renamed_log_is_left_and_a_new_one_begun(
    log: CsvFile, path: Path, tmp_path: Path, decide: Decide, read_log: ReadLog
) -> None:
    log.write(rows(decide("a")))
    path.rename(tmp_path / "audit.log.1")
    log.write(rows(decide("b"), decide("c")))
    assert [record[1] for record in read_log(tmp_path / "audit.log.1")] == ["a"]
    assert [record[1] for record in read_log(path)] == ["b", "c"]


def test_a_truncated_log_begins_with_its_header(log: CsvFile, path: Path, decide: Decide, read_log: ReadLog) -> None:
    log.write(rows(decide("a")))
    os.truncate(path, 0)
    log.write(rows(decide("b")))
    assert [record[1] for record in read_log(path)] == ["b"]


@pytest.mark.parametrize("room", [0, 1, 40, 100])
def test_a_full_disk_takes_all_rows_or_none(
    log: CsvFile, path: Path, decide: Decide, read_log: ReadLog, no_file_beyond: Limit, room: int
) -> None:
    log.write(rows(decide("a")))
    before = path.read_bytes()
    with no_file_beyond(len(before) + room), pytest.raises(OSError, match=r".+"):
        log.write(rows(decide("b"), decide("c")))
    assert path.read_bytes() == before
    log.write(rows(decide("b"), decide("c")))
    assert [record[1] for record in read_log(path)] == ["a", "b", "c"]


def test_a_folder_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CsvFile(tmp_path / "missing" / "audit.log")


def test_the_log_is_not_for_everyone(path: Path, decide: Decide) -> None:
    before = os.umask(0)
    try:
        CsvFile(path).close()
    finally:
        os.umask(before)
    assert not stat.S_IMODE(path.stat().st_mode) & 0o007


@pytest.mark.parametrize(
    ("below", "left"),
    [
        ("", ""),
        ("\n \n", ""),
        ("\nunfinished", ""),
        ("x\n", None),
        ("x\n" * 400, None),
        ("2026-01-01T00:00:00.123Z,a,s,h,allowed,,1,\n", "unchanged"),
    ],
)
def test_room_is_made_for_another_header(tmp_path: Path, below: str, left: str | None) -> None:
    """But for rows that can be read: then another process has begun the file anew."""
    path = tmp_path / "audit.log"
    text = CHAINED_HEADER + below
    path.write_text(text)
    renamed = clear(path, 0)
    if left is None:
        assert renamed is not None
        assert (renamed.name, renamed.read_text(), path.exists()) == ("audit.log.19700101T000000.000Z", text, False)
    else:
        assert renamed is None
        assert path.read_text() == (text if left else "")


@pytest.mark.parametrize("ends", ["closed", "killed"])
@pytest.mark.parametrize("left", [40, len(HEADER), len(HEADER) + 30], ids=["half a header", "a header", "half a line"])
def test_a_cut_stays_known_until_all_that_was_lost_is_written_again(
    path: Path, tmp_path: Path, decide: Decide, read_log: ReadLog, left: int, ends: str
) -> None:
    """Each process that finds it ends before it has written all. Without a line the file looks like a new one, and with
    some of them like one that lacks nothing; the ledger's position is behind them all meanwhile."""
    notes = tmp_path / "notes"
    lost = [AuditRow(number, decide(f"r{number}")) for number in (1, 2, 3)]
    sink = CsvFile(path, notes)
    sink.resume()
    sink.write(lost)
    os.truncate(path, left)
    with pytest.raises(EndLost):
        sink.write([AuditRow(4, decide("r4"))])
    assert sink.resume(3, remembered=True) == 0
    processes = [sink]
    for written in range(4):
        if ends == "closed":
            processes[-1].close()
        processes.append(CsvFile(path, notes))
        assert processes[-1].last_written() == ((written, f"r{written}") if written else (3, "r3"))
        assert processes[-1].resume(3, remembered=True) == written
        if written < 3:
            processes[-1].write(lost[written : written + 1])
    for each in processes:
        each.close()
    assert [record[1] for record in read_log(path)] == ["r1", "r2", "r3"]


def test_a_log_that_was_emptied_while_nothing_was_written_has_lost_nothing(
    path: Path, tmp_path: Path, decide: Decide
) -> None:
    """As an outside rotation does that copies it first; another shard may be the reason to look."""
    sink = CsvFile(path, tmp_path / "notes")
    sink.resume()
    sink.write([AuditRow(1, decide("r1"))])
    os.truncate(path, 0)
    assert sink.resume(1, remembered=True) == 1
    assert not sink.lost_rows
    sink.close()
