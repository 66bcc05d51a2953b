"""The pages of the dashboard: plain files, read once, and served with nothing added to them.

A page holds no data. What it shows it asks from the same routes as everybody. The files' own folder has their hash in
its name, so that a browser may keep them for as long as it likes.
"""

import gzip
import hashlib
import re
from importlib.resources import files
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as RoutedPath
from starlette.types import Receive, Scope, Send

from chargegate.api.errors import Refused, not_found

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGES: Final = "requests|requests/[0-9A-Fa-f-]{36}|stations|dead-letters|access-list|anomalies"
_is_page = re.compile(f"(?:/(?:{_PAGES}))?/?").fullmatch
_asked_file = re.compile(r"/files/([0-9a-f]{16})/([a-z_]+\.[a-z]+)").fullmatch
_FOREVER: Final = "public, max-age=31536000, immutable"
_ASK_AGAIN: Final = "no-cache"
_VERSION: Final = b"{version}"


class _File(NamedTuple):
    content: bytes
    compressed: bytes
    tag: str
    media_type: str


class Dashboard:
    """Everything under ``/dashboard``."""

    def __init__(self) -> None:
        contents = {
            each.name: each.read_bytes()
            for each in files(__package__).joinpath("files").iterdir()
            if f".{each.name.rpartition('.')[2]}" in _TYPES
        }
        self.version = _hash(b"".join(name.encode() + contents[name] for name in sorted(contents)))
        contents["index.html"] = contents["index.html"].replace(_VERSION, self.version.encode())
        self._files = {name: _file(name, content) for name, content in contents.items()}

    def routes(self) -> list[RoutedPath]:
        return [RoutedPath(path, self) for path in ("/dashboard", "/dashboard/{rest:path}")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise Refused(405, "method_not_allowed", "This path answers GET, HEAD.", headers={"allow": "GET, HEAD"})
        await self._answer(Request(scope))(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix("/dashboard")
        if _is_page(path):
            return _respond(request, self._files["index.html"], _ASK_AGAIN)
        if not path.startswith("/files/") and "text/html" in request.headers.get("accept", ""):
            return _respond(request, self._files["index.html"], _ASK_AGAIN, 404)
        asked = _asked_file(path)
        if asked is None or asked[2] not in self._files or asked[2] == "index.html":
            raise not_found()
        # Another process, of another version, may have sent the page: it gets what there is here, but does not keep it.
        return _respond(request, self._files[asked[2]], _FOREVER if asked[1] == self.version else _ASK_AGAIN)


def _respond(request: Request, file: _File, caching: str, status: int = 200) -> Response:
    headers = {**_HEADERS, "cache-control": caching, "etag": file.tag, "vary": "accept-encoding"}
    if status == 404:  # others get it as JSON
        headers["vary"] = "accept, accept-encoding"
    elif _has(request.headers.get("if-none-match", ""), file.tag):
        return Response(status_code=304, headers=headers)
    content = file.content
    if _takes_gzip(request.headers.get("accept-encoding", "")):
        content, headers["content-encoding"] = file.compressed, "gzip"
    return Response(content, status, headers=headers, media_type=file.media_type)


def _has(tags: str, tag: str) -> bool:
    """Weak comparison (RFC 9110, 13.1.2)."""
    return any(each.strip().removeprefix("W/") in (tag.removeprefix("W/"), "*") for each in tags.split(","))


def _takes_gzip(accepted: str) -> bool:
    for coding in accepted.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() in ("gzip", "*"):
            return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight) is None
    return False


def _file(name: str, content: bytes) -> _File:
    compressed = gzip.compress(content, 9, mtime=0)
    # Weak, because the compressed bytes have the same one.
    return _File(content, compressed, f'W/"{_hash(content)}"', _TYPES[f".{name.rpartition('.')[2]}"])


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
