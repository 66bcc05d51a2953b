"""What is passed on: a charging request, its decision and its callback, with the rules that they obey."""

from chargegate.model.callback_url import (
    MAX_CALLBACK_URL,
    CallbackTarget,
    IPAddress,
    callback_url_pattern,
    parse_callback_url,
)
from chargegate.model.decision import (
    AUDIT_COLUMNS,
    NO_USABLE_ADDRESS,
    CallbackPayload,
    Decision,
    Reason,
    RequestStatus,
    Status,
    Verdict,
)
from chargegate.model.ids import UUID_PATTERN, UUID_RULE, is_uuid, new_request_id
from chargegate.model.invalid import Invalid, broken
from chargegate.model.json_text import doubled_fields
from chargegate.model.random_bytes import RandomPieces
from chargegate.model.request import (
    ACCEPTED_MESSAGE,
    DRIVER_TOKEN_PATTERN,
    MAX_DRIVER_TOKEN,
    MIN_DRIVER_TOKEN,
    OTHER_SPELLINGS,
    ChargingRequest,
    parse_body,
    station_fault,
    token_fault,
)
from chargegate.model.shown import Hidden, Iso, Millis, Moment, ShortHash, TokenHash, Without
from chargegate.model.text import one_line, printable_json
from chargegate.model.times import clock, from_iso, machine_ms, month_start, now_ms, to_iso
from chargegate.model.trace_context import parent_of, trace_context, trace_headers, valid_traceparent, within

__all__ = [
    "ACCEPTED_MESSAGE",
    "AUDIT_COLUMNS",
    "DRIVER_TOKEN_PATTERN",
    "MAX_CALLBACK_URL",
    "MAX_DRIVER_TOKEN",
    "MIN_DRIVER_TOKEN",
    "NO_USABLE_ADDRESS",
    "OTHER_SPELLINGS",
    "UUID_PATTERN",
    "UUID_RULE",
    "CallbackPayload",
    "CallbackTarget",
    "ChargingRequest",
    "Decision",
    "Hidden",
    "IPAddress",
    "Invalid",
    "Iso",
    "Millis",
    "Moment",
    "RandomPieces",
    "Reason",
    "RequestStatus",
    "ShortHash",
    "Status",
    "TokenHash",
    "Verdict",
    "Without",
    "broken",
    "callback_url_pattern",
    "clock",
    "doubled_fields",
    "from_iso",
    "is_uuid",
    "machine_ms",
    "month_start",
    "new_request_id",
    "now_ms",
    "one_line",
    "parent_of",
    "parse_body",
    "parse_callback_url",
    "printable_json",
    "station_fault",
    "to_iso",
    "token_fault",
    "trace_context",
    "trace_headers",
    "valid_traceparent",
    "within",
]
