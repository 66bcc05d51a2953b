"""The service, with one place where it kills itself: ``kill_at.py POINT NTH serve …``.

It knows the code, as no other kind of file in this folder does, because no client can tell one durable step from the
next.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from chargegate import cli
from chargegate.audit.feed import AuditFeed
from chargegate.engines.sqlite import batches, counting, queue
from chargegate.engines.sqlite import writes as ledger
from chargegate.engines.sqlite.together import _end as end_together
from chargegate.engines.sqlite.together import _put as put_together


def countdown(nth: int) -> Callable[[], None]:
    """To be called at the point; the ``nth`` call does not return."""
    left = nth

    def arrived() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return arrived


PUT = {queue._insert, put_together}
RECORD = {ledger.record, put_together}
FINISH = {ledger.finish, end_together}


def around_commits(before: set[Any], after: set[Any], arrived: Callable[[], None]) -> None:
    """Arrive before, or after, each commit that holds such work."""
    commit = batches.commit

    def attempt(connection: Any, batch: Any) -> Any:
        kinds = {operation.apply for operation in batch}
        if before & kinds:
            arrived()
        answers = commit(connection, batch)
        if after & kinds:
            arrived()
        return answers

    batches.commit = attempt


def before_csv(arrived: Callable[[], None]) -> None:
    offer = AuditFeed.offer

    def offered(feed: AuditFeed, rows: Any) -> None:
        arrived()
        offer(feed, rows)

    AuditFeed.offer = offered  # type: ignore[method-assign]  # what this script is for


def main(point: str, nth: int, arguments: list[str]) -> int:
    arrived = countdown(nth)
    match point:
        case "accepted":
            around_commits(set(), PUT, arrived)
        case "decided":
            around_commits(set(), RECORD, arrived)
        case "counting":
            around_commits({counting._count}, set(), arrived)
        case "counted":
            around_commits(set(), {counting._count}, arrived)
        case "decided_not_logged":
            before_csv(arrived)
        case "delivered_not_finished":
            around_commits(FINISH, set(), arrived)
        case "finished_not_acked":
            around_commits(set(), FINISH, arrived)
        case _:
            raise SystemExit(f"no such point: {point}")
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
