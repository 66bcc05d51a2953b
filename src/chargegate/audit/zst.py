"""Zstandard: in the standard library from Python 3.14 on, and its backport before."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd as zstd  # noqa: PLC0414 - others find it here
else:
    from backports import zstd as zstd  # noqa: PLC0414 - as above

MAGIC = b"\x28\xb5\x2f\xfd"
"""How a compressed file begins (RFC 8878, 3.1.1)."""
