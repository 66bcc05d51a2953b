"""The address of the archive: ``s3://bucket/prefix?endpoint=https://…&region=…``."""

from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

_PARAMETERS: Final = frozenset({"endpoint", "region"})


class ArchiveAddress(msgspec.Struct, frozen=True):
    """``prefix`` has no slash at either end. Without ``endpoint`` the bucket is with AWS. Keys are never in the
    address: they come from where other programs have theirs."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""


def parse_address(url: str) -> ArchiveAddress:
    """Raises ``ValueError``, whose message does not repeat the address."""
    parts = _split(url)
    if parts.scheme != "s3" or not parts.netloc or parts.fragment:
        raise ValueError("must be an address such as 's3://bucket/prefix?endpoint=https://s3.example'")
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError("takes no user, password or port; keys come from AWS_ACCESS_KEY_ID and the like")
    given = parse_qsl(parts.query, keep_blank_values=True)
    values = dict(given)
    if values.keys() - _PARAMETERS:
        raise ValueError("knows no other parameter than endpoint and region")
    if len(values) < len(given):
        raise ValueError("has a parameter twice")
    endpoint = values.get("endpoint", "").rstrip("/")
    if "endpoint" in values:
        there = _split(endpoint, "endpoint ")
        if (
            there.scheme not in ("http", "https")
            or not there.hostname
            or "@" in endpoint
            or "?" in endpoint
            or there.port == 0
        ):
            raise ValueError("endpoint must be a URL such as 'https://s3.example:9000', without a user or a query")
    prefix = parts.path.strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise ValueError("must not have empty parts, '.' or '..' in its path")
    return ArchiveAddress(parts.netloc, prefix, endpoint, values.get("region", ""))


def _split(url: str, part: str = "") -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # whose message may repeat a password
        raise ValueError(f"{part}has a malformed host or port") from None
    return parts
