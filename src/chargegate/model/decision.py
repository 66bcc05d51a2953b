"""What is decided about a request, and what its callback says."""

from enum import StrEnum
from typing import Final

import msgspec

from chargegate.model.shown import Millis, ShortHash


class Status(StrEnum):
    """What was decided. The value is what the callback says."""

    ALLOWED = "allowed"
    NOT_ALLOWED = "not_allowed"
    UNKNOWN = "unknown"
    INVALID = "invalid"


class Reason(StrEnum):
    """Why it was decided so. These codes are stable; a plain ``allowed`` has an empty one."""

    NONE = ""
    NOT_IN_ACL = "driver_not_in_acl"
    BLOCKED = "token_blocked"
    EXPIRED = "token_expired"
    NOT_YET_VALID = "token_not_yet_valid"
    NOT_AT_THIS_LOCATION = "not_at_this_location"
    TIMEOUT = "authorization_timeout"
    ERROR = "authorization_error"
    CIRCUIT_OPEN = "circuit_open"
    EXPIRED_IN_QUEUE = "expired_in_queue"
    MALFORMED = "malformed_request"


NO_USABLE_ADDRESS: Final = "no_usable_address"
"""The error of a callback whose host has no address that may be called. Whether there is none, or only one inside, is
for the log: clients would learn from it which names exist inside."""


class RequestStatus(StrEnum):
    """Where a request stands. The last three are final, until a dead letter is replayed."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """An authorizer's answer.

    ``good_until``: when the answer would change by itself, in Unix milliseconds; None where that is not known.
    ``cached``: the answer comes from the cache.
    """

    status: Status
    reason: str = ""
    good_until: int | None = None
    cached: bool = False


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The one decision about a request. ``timestamp`` is in Unix milliseconds.

    It does not hold the driver token, only the token's short hash.
    """

    request_id: str
    station_id: str
    driver_token_hash: ShortHash
    status: Status
    reason: str
    processing_time_ms: int
    timestamp: Millis


AUDIT_COLUMNS: Final = ("timestamp", *(name for name in Decision.__struct_fields__ if name != "timestamp"))
"""A decision's fields in the order in which the audit shows them."""


class CallbackPayload(msgspec.Struct, frozen=True, gc=False):
    """The callback's body: these three members in this order, and nothing else."""

    station_id: str
    driver_token: str
    status: Status
