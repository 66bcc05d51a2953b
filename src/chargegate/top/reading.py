"""Reads a running service's health, metrics and overview. What it does not answer is a reason, and no exception."""

import http.client
import math
import ssl
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from chargegate.model import now_ms
from chargegate.operations.troubles import Problem

_LIMIT_S: Final = 10
_MAX_BYTES: Final = 10_000_000
_DECODE: Final = msgspec.json.Decoder(dict[str, Any]).decode

_UNREAD: Final = {
    401: "it wants an access key, an administrator's",
    403: "it wants an administrator's access key",
    404: "there is none at this port: a worker has none, and `dashboard.enabled` turns it off",
}

Labels = frozenset[tuple[str, str]]


class _Overview(msgspec.Struct):
    problems: list[Problem]


_OVERVIEW: Final = msgspec.json.Decoder(_Overview).decode


class Reading(NamedTuple):
    """What a service said at one moment. ``health`` is None where it said nothing, and ``fault`` says why; ``samples``
    are its metrics, by name and labels. ``problems`` are those of its overview, None where that could not be read, and
    ``unread`` says why. ``clock`` is in seconds, for differences."""

    at: int
    clock: float
    health: dict[str, Any] | None
    samples: dict[str, dict[Labels, float]]
    fault: str = ""
    problems: list[Problem] | None = None
    unread: str = ""

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one of its labels, summed over the others."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(name, {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found


class Reader:
    """Asks one service, over a connection of its own each time."""

    def __init__(self, url: str, key: str, ca_file: str | None = None) -> None:
        """``url`` is its base URL, http or https. ``key`` is an access key in printable ASCII, or empty. Raises
        ``ValueError`` for what is no such URL, and ``OSError`` for a file of authorities that cannot be read."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:  # whose text repeats the URL
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or port == 0:
            raise ValueError("must be an http or https URL without user information")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def read(self) -> Reading:
        at, clock = now_ms(), time.monotonic()
        try:
            status, body = self._get("/health")
            health = _health(status, body)
            status, body = self._get("/metrics")
            samples = parsed(body.decode()) if status == 200 else {}
            # What has no components is asked no further.
            asked = isinstance(health, dict) and health["components"]
            problems, unread = self._overview() if asked else (None, "it was not asked for")
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            return Reading(at, clock, None, {}, _why(error))
        if isinstance(health, str):
            return Reading(at, clock, None, samples, health)
        fault = "" if samples else f"/metrics is answered {status}"
        return Reading(at, clock, health, samples, fault, problems, unread)

    def _overview(self) -> tuple[list[Problem] | None, str]:
        status, body = self._get("/api/v1/overview")
        if status == 200:
            return _OVERVIEW(body).problems, ""
        return None, _UNREAD.get(status, f"it is answered {status}")

    def _get(self, path: str) -> tuple[int, bytes]:
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=_LIMIT_S)
        else:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=_LIMIT_S, context=self._tls)
        try:
            connection.request("GET", self._path + path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MAX_BYTES)
        finally:
            connection.close()


def _health(status: int, body: bytes) -> dict[str, Any] | str:
    """What ``/health`` says; or why it says nothing."""
    if status not in (200, 503):
        return f"/health is answered {status}"
    health = _DECODE(body)
    components = health.get("components")
    if health.get("status") not in ("UP", "DEGRADED", "DOWN") or not isinstance(components, dict):
        return "/health is not that of chargegate"
    return health


def parsed(text: str) -> dict[str, dict[Labels, float]]:
    """Metrics in the text format of Prometheus, by name and labels. Raises ``ValueError`` or ``LookupError``."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        samples: Iterable[Any] = family.samples
        for sample in samples:
            if not math.isnan(sample.value):
                found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def _why(error: Exception) -> str:
    """The reason in few words. What is no error of the system's is told by its class alone, because its text may show
    what was received."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {_LIMIT_S} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"what answers is not this service ({type(error).__name__})"
