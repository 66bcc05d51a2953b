"""A log that is a symbolic link: what was rotated lies beside the file that it leads to, and is found there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import outside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.contract.conftest import Service, Site


def ids_in(folder: Path) -> Counter[str]:
    files = [*folder.glob("real*"), *folder.glob("authorization_audit_shard_*")]
    lines = [line for file in files for line in file.read_text().splitlines()[1:]]
    return Counter(line.split(",")[1] for line in lines)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("chain", [False, True])
def test_backfill_finds_what_was_rotated(
    service: Callable[..., Service],
    receiver: Site,
    tmp_path: Path,
    audit: Callable[..., list[dict[str, Any]]],
    shards: int,
    *,
    chain: bool,
) -> None:
    running = service(started=False, audit__chain=chain, audit__csv_shards=shards)
    running.csv_file.symlink_to(tmp_path / "real.csv")
    running.start()
    ids = running.decided(receiver, 3)
    assert audit(running, "rotate")

    def all_are_looked_at() -> bool:
        return bool(audit(running, "backfill", "--sink", "csv", "--dry-run")[0]["decisions"] == 3)

    outside.eventually(all_are_looked_at, 60, "the position was not saved")
    assert audit(running, "backfill", "--sink", "csv")[0]["written"] == 0
    assert ids_in(tmp_path) == Counter(ids)
    told = audit(running, "verify")[0]
    assert (told["problems"], told["rows"] + told["unchained"]) == ([], 3)


def test_a_power_cut_soon_after_a_rotation_doubles_no_line(
    service: Callable[..., Service], receiver: Site, tmp_path: Path, audit: Callable[..., list[dict[str, Any]]]
) -> None:
    """After it the notes are not believed; here they are gone."""
    running = service(started=False)
    running.csv_file.symlink_to(tmp_path / "real.csv")
    running.start()
    ids = running.decided(receiver, 3)
    audit(running, "rotate")
    running.kill()
    for notes in running.data.glob("*.csv-notes*"):
        notes.unlink()
    running.start()
    ids |= running.decided(receiver, 1)
    running.stop()
    assert ids_in(tmp_path) == Counter(ids)
