"""The ``Retry-After`` header (RFC 9110, 10.2.3)."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def asked_wait_ms(value: str | None, now: int) -> int | None:
    """How long a header's value, seconds or a date, asks to wait from ``now`` (Unix ms); None where it does not say."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return int(value[:9]) * 1000
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, round((moment - datetime.fromtimestamp(now / 1000, UTC)).total_seconds() * 1000))
