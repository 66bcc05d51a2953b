"""Sessions of the dashboard: an access key, presented once, becomes a cookie that only the service's own pages may use.

The cookie is signed and holds all there is to know, so that every process takes it. Which sessions were ended before
their time stands in the database. While that is away, a process knows those that it ended itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from starlette.types import Scope

from chargegate.api.access import RateLimit, network_of, require_role
from chargegate.api.errors import Refused
from chargegate.api.origins import is_own_page
from chargegate.keys import AccessKey, AccessKeys, Keyring, Role, Session, read_session, sign_session
from chargegate.ledger.base import LedgerUnavailable, NamedValues
from chargegate.model import now_ms

COOKIE: Final = "chargegate_session"
PATH: Final = "/api/v1"
BACKGROUND: Final = b"x-background"
"""A header: a page asks by itself, and nobody did anything in it."""

_ENDED: Final = "session_ended:"
_WRONG_KEYS_PER_SECOND: Final = 0.5
_WRONG_KEYS_AT_ONCE: Final = 10
_RENEWED_AT_MOST_EVERY_MS: Final = 60_000
_MAX_REMEMBERED: Final = 10_000


class Sessions:
    """Opens sessions, finds whose a request is, and ends them."""

    def __init__(
        self,
        *,
        keys: AccessKeys,
        keyring: Keyring,
        values: NamedValues,
        idle_ms: int,
        max_ms: int,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._keys = keys
        self._keyring = keyring
        self._values = values
        self._idle_ms = idle_ms
        self._max_ms = max_ms
        self._clock = clock
        self._ended: dict[str, int] = {}
        # A key has 256 random bits, so that nobody guesses one. This keeps the log and the processor from being filled.
        # A right key is never held up by the wrong ones that somebody else sends from the same address.
        self._wrong_keys = RateLimit(_WRONG_KEYS_PER_SECOND, _WRONG_KEYS_AT_ONCE)

    def open(self, presented: str, scope: Scope) -> tuple[AccessKey, str]:
        """Sign in: the key's owner, and the value of ``Set-Cookie``. Raises ``Refused``: 401, or 429 after many wrong
        keys from one address."""
        key = self._keys.find(presented)
        if key is None:
            self._wrong_keys.take("", (network_of(scope["client"]), 0))
            raise Refused(
                401,
                "unauthorized",
                "This is not a valid access key.",
                {"access_key": "is not a configured key"},
                {"www-authenticate": "Bearer"},
            )
        return key, self._cookie(Session.opened(key.digest, self._clock(), over_tls=_is_over_tls(scope)))

    async def caller(self, scope: Scope, headers: Mapping[bytes, bytes], role: Role) -> AccessKey | None:
        """Whose request this is by its session; None where it has no session that holds. Raises ``Refused`` (403) for
        a page that is not the service's own, and where the role is not enough."""
        found = await self._find(headers)
        if found is None:
            return None
        session, key = found
        if not is_own_page(scope, headers):
            raise Refused(403, "forbidden", "A session may only be used by the service's own pages.")
        require_role(key, role)
        if BACKGROUND not in headers and self._clock() - session.seen_at >= self._renewed_every_ms:
            scope["set_cookie"] = self._cookie(msgspec.structs.replace(session, seen_at=self._clock()))
        return key

    async def end(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """Sign out: the session holds no more, in no process. Returns the value of ``Set-Cookie``. Raises
        ``LedgerUnavailable`` where the other processes cannot be told, and ``Refused`` as ``caller`` does."""
        found = await self._find(headers)
        if found is not None:
            if not is_own_page(scope, headers):
                raise Refused(403, "forbidden", "A session may only be used by the service's own pages.")
            session, _ = found
            until = session.opened_at + self._max_ms
            if len(self._ended) >= _MAX_REMEMBERED:
                del self._ended[next(iter(self._ended))]
            self._ended[session.id] = until
            await self._values.put_value(_ENDED + session.id, str(until))
            await self._forget_ended()
        return _attributes("", 0, over_tls=_is_over_tls(scope))

    async def _forget_ended(self) -> None:
        """Those that would be over by now in any case."""
        now = self._clock()
        ended = await self._values.values_of(_ENDED)
        await self._values.drop_values([name for name, until in ended.items() if int(until) < now])

    async def _find(self, headers: Mapping[bytes, bytes]) -> tuple[Session, AccessKey] | None:
        text = cookie_in(headers)
        session = read_session(self._keyring, text) if text else None
        if session is None or session.id in self._ended:
            return None
        now = self._clock()
        if now - session.seen_at >= self._idle_ms or now - session.opened_at >= self._max_ms:
            return None
        key = self._keys.with_digest(session.key_digest)
        if key is None:
            return None
        try:
            ended = await self._values.value(_ENDED + session.id)
        except LedgerUnavailable:
            ended = None  # whoever looks for the fault must be able to see it
        return None if ended is not None else (session, key)

    @property
    def _renewed_every_ms(self) -> int:
        return min(_RENEWED_AT_MOST_EVERY_MS, self._idle_ms // 10)

    def _cookie(self, session: Session) -> str:
        left_ms = min(self._idle_ms, session.opened_at + self._max_ms - self._clock())
        return _attributes(sign_session(self._keyring, session), max(1, left_ms // 1000), over_tls=session.over_tls)


def _attributes(value: str, max_age_s: int, *, over_tls: bool) -> str:
    secure = "; Secure" if over_tls else ""
    return f"{COOKIE}={value}; Path={PATH}; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"


def cookie_in(headers: Mapping[bytes, bytes]) -> str:
    """The value of the session's cookie (RFC 6265, 4.2.1); empty where there is none."""
    for pair in headers.get(b"cookie", b"").split(b";"):
        name, _, value = pair.strip().partition(b"=")
        if name == COOKIE.encode():
            return value.decode("latin-1")
    return ""


def _is_over_tls(scope: Scope) -> bool:
    """Also where a proxy ends TLS: the browser says so in ``Origin``, which was compared with ``Host``. It sends none
    with a GET, so that a session keeps what was said as it was opened."""
    headers: dict[bytes, Any] = dict(scope["headers"])
    return bool(scope["scheme"] == "https" or headers.get(b"origin", b"").lower().startswith(b"https://"))
