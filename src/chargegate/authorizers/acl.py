"""The authorizer that decides by the access list."""

from collections.abc import Callable
from typing import Final, Protocol

from chargegate.authorizers.base import AuthorizationError
from chargegate.ledger.base import AccessList, LedgerUnavailable
from chargegate.ledger.records import AccessEntry
from chargegate.model import ChargingRequest, Reason, Status, Verdict, now_ms

_ALLOWED, _PLAINLY = Status.ALLOWED, Reason.NONE  # most requests need these, and Python 3.11 looks them up slowly
_ABSENT: Final = Verdict(Status.NOT_ALLOWED, Reason.NOT_IN_ACL)
_BLOCKED: Final = Verdict(Status.NOT_ALLOWED, Reason.BLOCKED)
_EXPIRED: Final = Verdict(Status.NOT_ALLOWED, Reason.EXPIRED)


def judge(entry: AccessEntry | None, station_id: str, now: int) -> Verdict:
    """The verdict for a driver's entry at a station and a time (Unix milliseconds). The first rule that fits decides.

    The rules and their order are those of the HTTP contract ("Deciding"). ``valid_until`` itself is too late. The
    verdict's ``good_until`` is when ``valid_from`` or ``valid_until`` would change it.
    """
    if entry is None:
        return _ABSENT
    if entry.blocked:
        return _BLOCKED
    start, end = entry.valid_from, entry.valid_until
    if start is not None and now < start:
        return Verdict(Status.NOT_ALLOWED, Reason.NOT_YET_VALID, start)
    if end is not None and now >= end:
        return _EXPIRED
    station = station_id.lower()
    if station in entry.denied_stations or (entry.allowed_stations and station not in entry.allowed_stations):
        return Verdict(Status.NOT_ALLOWED, Reason.NOT_AT_THIS_LOCATION, end)
    return Verdict(_ALLOWED, _PLAINLY, end)


class KeptEntries(Protocol):
    """Where entries are kept. ``epoch`` changes whenever one of them is dropped because it was changed."""

    epoch: int

    def keep_entry(self, entry: AccessEntry, epoch: int) -> None: ...


class AclAuthorizer:
    """Decides by the current access list. Its caller closes the list."""

    def __init__(
        self, access_list: AccessList, kept: KeptEntries | None = None, *, now: Callable[[], int] = now_ms
    ) -> None:
        """``kept`` is given what was looked up. It is not asked."""
        self._list = access_list
        self._kept = kept
        self._now = now

    async def decide(self, request: ChargingRequest, token_hash: str) -> Verdict:
        epoch = 0 if self._kept is None else self._kept.epoch
        entry = await self._entry(token_hash)
        if entry is not None and self._kept is not None:
            self._kept.keep_entry(entry, epoch)
        return judge(entry, request.station_id, self._now())

    async def check(self) -> None:
        await self._entry("")

    async def close(self) -> None:
        pass

    async def _entry(self, token_hash: str) -> AccessEntry | None:
        try:
            return await self._list.entry(token_hash)
        except LedgerUnavailable as error:
            raise AuthorizationError(f"the access list cannot be read: {error}") from error
