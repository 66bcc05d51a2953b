"""Telling the client what was decided, at a URL that is not trusted."""
