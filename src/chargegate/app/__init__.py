"""Builds the parts and joins them. The only place that does, and beside the command line the only one with settings."""
