"""InfluxDB 1.x, 2.x and 3.x, over HTTP: a point for each decision."""

import asyncio
import base64
import re
import zlib
from typing import Final
from urllib.parse import urlencode

import msgspec

from chargegate.audit.base import SinkUnavailable
from chargegate.audit.line_protocol import Places, as_points, places_of
from chargegate.http1 import CallFailed, HttpClient, Response, asked_wait_ms
from chargegate.ledger.records import AuditRow
from chargegate.model import CallbackTarget, now_ms, one_line
from chargegate.observe import log

_GZIP: Final = 16 + zlib.MAX_WBITS  # zlib's own sign for the format of gzip
_TIMEOUT_S: Final = 30.0
_LONGEST_MESSAGE: Final = 300
_MOST_SUSPECTS: Final = 20
_MOST_POINTS: Final = 2000  # in one request
_ABOUT_POINTS: Final = (400, 413, 422)
"""Answers that may be about some of the points only, as ``partial write`` is."""

_too_old = re.compile(r"points beyond retention policy dropped=(\d+)").search


class InfluxTarget(msgspec.Struct, frozen=True):
    """Where points are written to, and with which header. ``secrets`` are left out of what the server says."""

    target: CallbackTarget
    authorization: str
    secrets: tuple[str, ...]


def database_target(url: CallbackTarget, database: str, user: str, password: str) -> InfluxTarget:
    """A database of InfluxDB 1.x, written to at ``/write``."""
    if not user:
        return _target(url, "/write", {"db": database}, "", ())
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    return _target(url, "/write", {"db": database}, f"Basic {basic}", (password, basic))


def bucket_target(url: CallbackTarget, org: str, bucket: str, token: str) -> InfluxTarget:
    """A bucket of InfluxDB 2.x, or a database of 3.x, written to at ``/api/v2/write``. The latter has no ``org``."""
    query = {"bucket": bucket} | ({"org": org} if org else {})
    return _target(url, "/api/v2/write", query, f"Token {token}" if token else "", (token,))


def _target(
    url: CallbackTarget, path: str, query: dict[str, str], authorization: str, secrets: tuple[str, ...]
) -> InfluxTarget:
    whole = f"{url.path.rstrip('/')}{path}?{urlencode(query | {'precision': 'ms'})}"
    return InfluxTarget(msgspec.structs.replace(url, path=whole), authorization, tuple(filter(None, secrets)))


class _Tally:
    """What became of the rows of one write. ``places``: see ``places_of``."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.taken = self.too_old = 0
        self.suspects: list[tuple[AuditRow, str]] = []


class InfluxSink:
    """Writes points. The sink owns the client, and closes it.

    A row that the server refuses while it takes others is logged, counted as refused and left out. To find it, a batch
    that was refused is written again in halves. Where the server takes no row at all, it is not a row's fault.
    """

    name = "influx"

    def __init__(self, client: HttpClient, where: InfluxTarget) -> None:
        self._client = client
        self._where = where
        self._headers = b"content-encoding: gzip\r\n"
        if where.authorization:
            self._headers += f"authorization: {where.authorization}\r\n".encode()
        self._said_too_old = False

    async def write(self, rows: list[AuditRow]) -> int:
        """Returns how many rows the server will never take. Raises ``SinkUnavailable``."""
        tally = _Tally(await asyncio.to_thread(places_of, rows))
        await self._write([rows[start : start + _MOST_POINTS] for start in range(0, len(rows), _MOST_POINTS)], tally)
        if tally.suspects and not tally.taken:
            raise SinkUnavailable(tally.suspects[0][1])
        for row, reason in tally.suspects:
            request_id = row.decision.request_id
            log.error("audit sink refuses a decision for good", sink=self.name, request_id=request_id, error=reason)
        if tally.too_old and not self._said_too_old:
            log.warning("audit sink keeps no decisions as old as these", sink=self.name, decisions=tally.too_old)
        self._said_too_old = bool(tally.too_old)
        return tally.too_old + len(tally.suspects)

    async def _write(self, parts: list[list[AuditRow]], tally: _Tally) -> None:
        waiting = parts[::-1]
        while waiting:
            part = waiting.pop()
            reason = await self._write_part(part, tally)
            if not reason:
                continue
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
                continue
            tally.suspects.append((part[0], reason))
            if len(tally.suspects) == _MOST_SUSPECTS and not tally.taken and not await self._takes_any(waiting, tally):
                raise SinkUnavailable(reason)

    async def _write_part(self, rows: list[AuditRow], tally: _Tally) -> str:
        """Why the server refuses some or all of the rows; empty where it has all that it will ever take."""
        response = await self._post(await asyncio.to_thread(_body, rows, tally.places))
        if 200 <= response.status < 300:
            tally.taken += len(rows)
            return ""
        reason = self._reason(response)
        if response.status not in _ABOUT_POINTS:
            asked = asked_wait_ms(response.retry_after, now_ms())
            raise SinkUnavailable(reason, None if asked is None else asked / 1000)
        if old := _too_old(reason):  # The server says this only once it has written all the others.
            tally.too_old += min(int(old[1]), len(rows))
            tally.taken += len(rows)
            return ""
        return reason

    async def _takes_any(self, parts: list[list[AuditRow]], tally: _Tally) -> bool:
        """Whether the server takes a row of these, of which it is given one each. Many rows in a sequence may be at
        fault, such as all of a week in which somebody wrote a field of another type."""
        for part in parts:
            if not await self._write_part(part[-1:], _Tally(tally.places)):
                return True
        return False

    async def _post(self, body: bytes) -> Response:
        try:
            return await self._client.post(self._where.target, self._headers, body, _TIMEOUT_S)
        except CallFailed as error:
            raise SinkUnavailable(error.reason.replace("_", " ")) from None

    def _reason(self, response: Response) -> str:
        """The status and what the server says, on one line, without the secrets that it was given."""
        try:
            said = msgspec.json.decode(response.body, type=dict[str, object])
            text = str(said.get("error") or said.get("message") or said)
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = response.body.decode(errors="replace")
        for secret in self._where.secrets:
            text = text.replace(secret, "***")
        return f"{response.status}: {one_line(text.strip())[:_LONGEST_MESSAGE]}"

    async def close(self) -> None:
        await self._client.close()


def _body(rows: list[AuditRow], places: Places) -> bytes:
    packing = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return packing.compress(as_points(rows, places).encode()) + packing.flush()
