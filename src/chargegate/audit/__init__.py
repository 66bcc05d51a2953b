"""Copies of the decisions beside the database."""
