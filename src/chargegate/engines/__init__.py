"""The table of engines."""
