"""Builds the parts and joins them. The only place that does, and beside the command line the only one with settings."""

from chargegate.app.authorization import check_acl_file
from chargegate.app.moving import move_database, move_queue
from chargegate.app.offline import Offline, opened_store, prune_audit
from chargegate.app.replaying import Replayed, replay_from
from chargegate.app.serving import serve
from chargegate.app.start import Role, StartError
from chargegate.app.storage import DATABASE

__all__ = [
    "DATABASE",
    "Offline",
    "Replayed",
    "Role",
    "StartError",
    "check_acl_file",
    "move_database",
    "move_queue",
    "opened_store",
    "prune_audit",
    "replay_from",
    "serve",
]
