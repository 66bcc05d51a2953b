"""`chargegate acl` on a real database."""

import contextlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.usefixtures("database")

STATIONS = ["0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002"]


def entries(run: Run) -> list[Any]:
    return run("acl", "list", "--json").lines()


def test_an_entry_as_it_was_given(run: Run, token: str) -> None:
    result = run(
        *("acl", "add", token, "--blocked", "--valid-from", "2026-01-31", "--valid-until", "2026-02-01T12:30:00+01:00"),
        *("--allowed-station", STATIONS[1], "--allowed-station", STATIONS[0].upper(), "--denied-station", STATIONS[1]),
        *("--note", "van 7", "--json"),
    )
    assert (result.code, result.err) == (0, "")
    assert entries(run) == [result.json()]
    assert result.json() == {
        "driver_token_hash": result.json()["driver_token_hash"],
        "blocked": True,
        "valid_from": "2026-01-31T00:00:00.000Z",
        "valid_until": "2026-02-01T11:30:00.000Z",
        "allowed_stations": STATIONS,
        "denied_stations": STATIONS[1:],
        "note": "van 7",
    }
    assert len(result.json()["driver_token_hash"]) == 64


def test_a_token_from_standard_input_is_the_same_token(run: Run, token: str) -> None:
    first = run("acl", "add", token)
    second = run("acl", "add", "-", "--blocked", stdin=token + "\n")
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out
    assert [entry["blocked"] for entry in entries(run)] == [True]


def test_no_token_in_the_folder_or_the_output(run: Run, token: str, folder: Path) -> None:
    written = run("acl", "add", "-", stdin=token).out + run("acl", "list").out + run("acl", "list", "--json").out
    (folder / "drivers.csv").write_text(f"driver_token\n{token}\n")
    written += run("acl", "import", "drivers.csv").out
    (folder / "drivers.csv").unlink()
    assert token not in written
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if token.encode() in path.read_bytes()]


@pytest.mark.parametrize("named_by", ["token", "standard input", "hash"])
def test_remove(run: Run, token: str, named_by: str) -> None:
    token_hash = run("acl", "add", token, "--json").json()["driver_token_hash"]
    argument = {"token": token, "standard input": "-", "hash": token_hash.upper()}[named_by]
    result = run("acl", "remove", argument, stdin=token)
    assert (result.code, result.out) == (0, f"removed {token_hash}\n")
    assert entries(run) == []
    again = run("acl", "remove", argument, stdin=token)
    assert (again.code, again.out) == (1, "")
    assert again.err == "chargegate: the access list has no such entry\n"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--valid-from", "soon"], "valid_from"),
        (["--valid-from", "2026-02-01", "--valid-until", "2026-01-01"], "valid_until"),
        (["--allowed-station", "12"], "allowed_stations"),
        (["--denied-station", "12"], "denied_stations"),
        (["--note", "x" * 501], "note"),
    ],
)
def test_a_wrong_entry_names_the_field(run: Run, token: str, options: list[str], field: str) -> None:
    result = run("acl", "add", token, *options)
    assert result.code == 2
    assert result.err.startswith(f"chargegate: {field}: ")
    assert entries(run) == []


def test_a_wrong_token_is_not_repeated(run: Run) -> None:
    result = run("acl", "add", "-", stdin="a token with blanks in it")
    assert result.code == 2
    assert result.err.startswith("chargegate: driver_token: must be")
    assert "blanks" not in result.err


def test_import_adds_and_replaces(run: Run, token: str, folder: Path) -> None:
    run("acl", "add", token, "--blocked")
    (folder / "drivers.csv").write_text(
        "driver_token,blocked,allowed_stations,note\n"
        f"{token},,,\n"
        f'another-{token},yes,{STATIONS[0]};{STATIONS[1]},"van 8, depot"\n'
    )
    result = run("acl", "import", "drivers.csv")
    assert (result.code, result.out, result.err) == (0, "imported 2 entries\n", "")
    assert sorted((entry["blocked"], entry["note"], entry["allowed_stations"]) for entry in entries(run)) == [
        (False, "", []),
        (True, "van 8, depot", STATIONS),
    ]


def test_one_wrong_line_and_nothing_is_imported(run: Run, token: str, folder: Path) -> None:
    (folder / "drivers.csv").write_text(f"driver_token,blocked\n{token},no\n{token}2,perhaps\n")
    result = run("acl", "import", "drivers.csv")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("chargegate: drivers.csv: line 3: blocked: ")
    assert token not in result.err
    assert entries(run) == []


def test_a_file_that_is_not_there(run: Run) -> None:
    result = run("acl", "import", "drivers.csv")
    assert (result.code, result.err) == (1, "chargegate: drivers.csv: No such file or directory\n")


def test_a_long_list_is_complete(run: Run, token: str, folder: Path) -> None:
    (folder / "drivers.csv").write_text("driver_token\n" + "".join(f"{token}.{i}\n" for i in range(5201)))
    assert run("acl", "import", "drivers.csv", "--json").json() == {"imported": 5201}
    hashes = [entry["driver_token_hash"] for entry in entries(run)]
    assert len(set(hashes)) == 5201
    assert hashes == sorted(hashes)


def test_a_pipe_gets_whole_lines_with_tabs(run: Run, token: str) -> None:
    note = "a note that is far longer than any terminal is wide, " * 5
    run("acl", "add", token, "--note", note, "--allowed-station", STATIONS[0], "--allowed-station", STATIONS[1])
    header, line = run("acl", "list").out.splitlines()
    row = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert row["note"] == note
    assert row["blocked"] == "no"
    assert row["allowed_stations"] == ";".join(STATIONS)


HOSTILE = "".join(map(chr, (*range(1, 32), 127, *range(128, 160), 0x61C, *range(0x200B, 0x2010), 0x2028, 0x2029)))
HOSTILE += "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, 0xE0001, 0xE0041)))


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_that_moves_a_terminal_is_written_raw(run: Run, token: str, as_json: bool) -> None:
    note = f"a{HOSTILE}b"
    run("acl", "add", token, "--note", note)
    out = run("acl", "list", *(["--json"] if as_json else [])).out
    assert set("".join(c for c in out if not c.isprintable())) <= {"\n", "\t"}
    if as_json:
        assert "\t" not in out
        assert json.loads(out)["note"] == note


@pytest.mark.parametrize("columns", ["300", "60"])
def test_a_terminal_gets_everything_and_no_control_characters(run: Run, token: str, start: Start, columns: str) -> None:
    added = run("acl", "add", token, "--note", "red \x1b[31m\tor not", "--json").json()
    terminal, theirs = pty.openpty()
    process = start("acl", "list", stdout=theirs, env=os.environ | {"COLUMNS": columns})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that its last writer is gone
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert b"red  [31m or not" in shown
    plain = re.sub(r"\x1b\[\d*m", "", shown.decode())
    assert ("blocked" in plain.splitlines()[0]) is (columns == "300")
    assert "driver token hash" in plain
    assert added["driver_token_hash"] in "".join(plain.split())


def test_a_token_typed_at_the_prompt_is_not_echoed(start: Start, run: Run, token: str) -> None:
    terminal, theirs = pty.openpty()
    process = start("acl", "add", "-", stdin=theirs, start_new_session=True, stderr=subprocess.PIPE)
    assert process.stderr.read(len("Driver token: ")) == "Driver token: "
    os.write(terminal, token.encode() + b"\n")
    out, err = process.communicate(timeout=60)
    os.close(theirs)
    os.close(terminal)
    assert (process.returncode, err.strip()) == (0, "")
    assert out == f"added {entries(run)[0]['driver_token_hash']}\n"
