"""Copies of the decisions outside the database."""
