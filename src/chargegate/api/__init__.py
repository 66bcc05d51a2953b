"""The HTTP surface: ``build`` makes an ASGI application from ``Parts``, ``Server`` serves it."""

from chargegate.api.app import build
from chargegate.api.parts import Component, Parts
from chargegate.api.server import Server

__all__ = ["Component", "Parts", "Server", "build"]
