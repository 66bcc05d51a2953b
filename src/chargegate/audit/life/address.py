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
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.fragment:
        raise ValueError("must be an address such as 's3://bucket/prefix?endpoint=https://s3.example'")
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError("takes no user, password or port; keys come from AWS_ACCESS_KEY_ID and the like")
    given = parse_qsl(parts.query, keep_blank_values=True)
    values = dict(given)
    if unknown := sorted(values.keys() - _PARAMETERS):
        raise ValueError(f"knows no parameter {unknown[0]!r}, only endpoint and region")
    if len(values) < len(given):
        raise ValueError("has a parameter twice")
    endpoint = values.get("endpoint", "").rstrip("/")
    if "endpoint" in values:
        there = urlsplit(endpoint)
        if there.scheme not in ("http", "https") or not there.hostname or "@" in there.netloc or not _has_port(there):
            raise ValueError("endpoint must be a URL such as 'https://s3.example:9000', without a user")
    prefix = parts.path.strip("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise ValueError("must not have empty parts, '.' or '..' in its path")
    return ArchiveAddress(parts.netloc, prefix, endpoint, values.get("region", ""))


def _has_port(there: SplitResult) -> bool:
    """Whether the port, if there is one, is one to connect to."""
    try:
        return there.port != 0
    except ValueError:
        return False
