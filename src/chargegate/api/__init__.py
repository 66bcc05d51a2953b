"""The HTTP surface: ``build`` makes an ASGI application from ``Parts``, ``Server`` serves it."""

from chargegate.api.app import build, build_monitoring
from chargegate.api.dashboard_sessions import Sessions
from chargegate.api.parts import Parts
from chargegate.api.server import Server

__all__ = ["Parts", "Server", "Sessions", "build", "build_monitoring"]
