"""Builds the parts and joins them. The only place that does, and beside the command line the only one with settings."""

from chargegate.app.authorization import check_acl_file
from chargegate.app.serving import Offline, opened_store, serve
from chargegate.app.storage import DATABASE, StartError

__all__ = ["DATABASE", "Offline", "StartError", "check_acl_file", "opened_store", "serve"]
