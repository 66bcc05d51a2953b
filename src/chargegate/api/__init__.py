"""The HTTP surface: ``build`` makes an ASGI application from ``Parts``, ``Server`` serves it."""

from chargegate.api.app import build, build_watched
from chargegate.api.parts import Component, Parts, Watched
from chargegate.api.server import Server

__all__ = ["Component", "Parts", "Server", "Watched", "build", "build_watched"]
