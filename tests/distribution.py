"""Which tests run in one worker of pytest-xdist, and which begin first."""

from xdist.scheduler import LoadScopeScheduling

ALONE = ("kafka", "rabbitmq")
"""All tests of such a server run in one worker: each worker starts its own servers, and these take seconds of
processor time."""
FIRST = (
    *ALONE,
    "test_faults.py",
    "scaling",
    "test_every_sink.py",
    "test_audit_life_troubles.py",
    "test_what_is_wrong.py",
    "test_dashboard_pages.py",
    "engines",
    "queues",
    "test_retention.py",
    "contract",
)
"""Files and folders, those that take longest first. The small files come last, so that all workers end at about the
same time."""


def unit(nodeid: str) -> str:
    """Tests of one unit run in one worker, one after another: those of a server, and else those of a file."""
    return next((server for server in ALONE if server in nodeid), nodeid.partition("::")[0])


def place(nodeid: str) -> int:
    """Where a test stands in the order."""
    names = unit(nodeid).split("/")
    return next((place for place, name in enumerate(FIRST) if name in names), len(FIRST))


class Units(LoadScopeScheduling):
    """Gives units to workers."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)
