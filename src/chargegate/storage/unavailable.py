"""The two ways in which a database, a broker or a cache can fail us."""

from types import TracebackType


class Unavailable(Exception):
    """It cannot be written or read now. Nothing was changed, or what was asked for may safely be asked for again.

    The message is one line that says why, without a value and without a secret.
    """


class Unusable(Exception):
    """It cannot be used at all until somebody changes a setting or the server: a wrong URL, a file that another process
    uses, tables of a newer release. The message is one line without a secret."""


class RaisedAs:
    """``with RaisedAs(QueueUnavailable): …``: an engine's ``Unavailable`` leaves the block as that kind of it.

    It keeps nothing of a block, so that one object serves all of them, also at the same time.
    """

    __slots__ = ("_kind",)

    def __init__(self, kind: type[Unavailable]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Unavailable) and not isinstance(error, self._kind):
            raise self._kind(str(error)) from None
