"""A broker may bring any text as a station. Each decision is one line all the same, and the chain holds."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

import outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

ODD = [
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\r",
    "\n",
    "\r\n",
    '"',
    ",",
    "\x00",
    "é",
    "",
]


@pytest.mark.parametrize("settings", [{}, {"audit.chain": True}, {"audit.chain": True, "audit.csv_shards": 3}])
def test_each_decision_is_one_line(
    service: Callable[..., Service],
    receiver: Site,
    audit: Callable[..., list[dict[str, Any]]],
    settings: dict[str, Any],
) -> None:
    running = service(audit__csv_path="")
    asked = [running.ask(receiver.url()) for _ in ODD]
    for each in asked:
        running.finished(each)
    running.stop()
    with contextlib.closing(sqlite3.connect(running.data / "chargegate.db")) as database, database:
        for each, odd in zip(asked, ODD, strict=True):
            database.execute(
                "UPDATE authorization_audit SET station_id = ? WHERE request_id = ?", (f"=a{odd}b", each.request_id)
            )
    running.configure(**settings, **{"audit.export_dir": "exports"})
    running.start()

    def lines() -> list[bytes]:
        files = running.folder.glob("authorization_audit*.log")
        return [line for file in files for line in file.read_bytes().split(b"\n")[1:-1]]

    outside.eventually(lambda: len(lines()) >= len(ODD), 30, "they were not written")
    audit(running, "export", "--all")
    running.stop()
    assert sorted(line.split(b",")[1].decode() for line in lines()) == sorted(each.request_id for each in asked)
    assert audit(running, "verify")[0]["problems"] == []
    for arguments in ((), ("--exports",)):
        rows = audit(running, "restore", *arguments)
        assert len({row["request_id"] for row in rows}) == len(rows) == len(ODD)
