"""The HTTP surface: ``build`` makes an ASGI application from ``Parts``, ``Server`` serves it."""

from chargegate.api.app import build, build_watched
from chargegate.api.parts import Parts, Watched
from chargegate.api.server import Server

__all__ = ["Parts", "Server", "Watched", "build", "build_watched"]
