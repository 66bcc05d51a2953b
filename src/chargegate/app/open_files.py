"""Divides the files that the process may have open between clients and everything else."""

import contextlib
import resource
from typing import Final

RESERVE: Final = 64  # the database, the audit file, sockets that listen, connections that are being turned away
FEWEST: Final = 16
_WHERE_UNLIMITED: Final = 10_240  # macOS takes no more


def inbound_connections(outgoing: int) -> int:
    """Raise the soft limit of open files to the hard one. Returns how many connections clients may hold, so that
    ``outgoing`` ones can always be made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, _WHERE_UNLIMITED)
    with contextlib.suppress(OSError, ValueError):  # then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(FEWEST, soft - outgoing - RESERVE)
