"""What was rotated while the clock was behind is not deleted as old once the clock is right."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Service, Site

DAY_MS = 86_400_000


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("chain", [False, True])
def test_a_file_with_an_old_name_and_new_rows_stays(
    service: Callable[..., Service],
    receiver: Site,
    audit: Callable[..., list[dict[str, Any]]],
    *,
    chain: bool,
    compressed: bool,
) -> None:
    running = service(audit__chain=chain, audit__retention_ms=DAY_MS, audit__rotate_bytes=10**9)  # so it looks often
    asked = [running.ask(receiver.url()) for _ in range(3)]
    ids = {each.request_id for each in asked if running.finished(each)}
    audit(running, "rotate", "--at", "1971-01-01")
    if compressed:
        audit(running, "compress", "--all")
    running.stop()
    old = running.folder / "authorization_audit.log.19700201T000000.000Z"
    old.write_text(
        "timestamp,request_id,station_id,driver_token_hash,status,reason,processing_time_ms\n"
        "1970-01-31T00:00:00.000Z,1,2,0123456789abcdef,allowed,,1\n"
    )
    assert audit(running, "prune", "--dry-run")[0]["files"] == [old.name]
    running.start()
    outside.eventually(lambda: not old.exists(), 60, "what is old was not deleted")
    assert audit(running, "prune")[0]["files"] == []
    assert Counter(row["request_id"] for row in audit(running, "restore")) == Counter(ids)
    assert audit(running, "verify")[0]["problems"] == []
    assert len(audit(running, "prune", "--at", "2126-01-01")[0]["files"]) == 1
