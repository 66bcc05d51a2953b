"""Callbacks: how a client is told what was decided, at a URL that is not trusted."""
