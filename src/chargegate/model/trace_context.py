"""W3C Trace Context (Level 2): what of a client's headers is carried, and what it is carried as.

A context is one text: the ``traceparent`` and, where there is a ``tracestate``, a blank and that. Empty, there is none.
"""

import re
from typing import Final

MAX_TRACESTATE: Final = 512
"""Characters. This many must be carried (section 3.3.1.5); a longer list is dropped."""

_MOST_MEMBERS: Final = 32
_LENGTH: Final = 55  # of a traceparent
_IDS: Final = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-"
_traceparent = re.compile(rf"(?!ff)[0-9a-f]{{2}}{_IDS}[0-9a-f]{{2}}").fullmatch
_later_version = re.compile(rf"(?!00|ff)[0-9a-f]{{2}}({_IDS})([0-9a-f]{{2}})-[ -~]*").fullmatch
_KEY: Final = r"[a-z0-9][a-z0-9_*/@-]{0,255}"
_VALUE: Final = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_member = re.compile(rf"({_KEY})={_VALUE}").fullmatch


def valid_traceparent(text: str) -> str:
    """The ``traceparent`` header if it is well formed (section 3.2), else an empty string. One of a later version that
    has further fields goes on as version 00, with the flag that this version knows."""
    if _traceparent(text):
        return text
    later = _later_version(text)
    return f"00{later[1]}{int(later[2], 16) & 1:02x}" if later else ""


def valid_tracestate(text: str) -> str:
    """The ``tracestate`` header if it is well formed (section 3.3) and not too long, else an empty string."""
    if len(text) > MAX_TRACESTATE:
        return ""
    members = [member for member in (part.strip(" \t") for part in text.split(",")) if member]
    keys = [found[1] for found in map(_member, members) if found]
    if len(members) > _MOST_MEMBERS or len(keys) != len(members) or len(set(keys)) != len(keys):
        return ""
    return ",".join(members)


def trace_context(traceparents: list[bytes], tracestates: list[bytes], token: str) -> str:
    """The context that these headers say. Several lines of tracestate are one list, and two traceparents are none. What
    holds the driver's token is dropped, because traces and logs show it."""
    parent = valid_traceparent(traceparents[0].decode("latin-1")) if len(traceparents) == 1 else ""
    if not parent or token.lower() in parent:
        return ""
    state = valid_tracestate(b",".join(tracestates).decode("latin-1")) if tracestates else ""
    return f"{parent} {state}" if state and token.lower() not in state.lower() else parent


def parent_of(context: str) -> str:
    """The traceparent of a context."""
    return context[:_LENGTH]


def within(span: str, context: str) -> str:
    """The context of what happens within our own span, whose traceparent this is: the client's where it is empty."""
    return span + context[_LENGTH:] if span else context


def trace_headers(context: str) -> bytes:
    """The context as lines of a request's head; nothing where it is not valid."""
    parent, _, state = context.partition(" ")
    if not (parent := valid_traceparent(parent)):
        return b""
    head = f"traceparent: {parent}\r\n"
    return f"{head}tracestate: {state}\r\n".encode() if state and (state := valid_tracestate(state)) else head.encode()
