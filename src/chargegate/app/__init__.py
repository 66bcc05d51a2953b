"""Builds the parts and joins them. The only place that does, and beside the command line the only one with settings."""

from chargegate.app.authorization import check_acl_file
from chargegate.app.backfilling import SinkName, backfill_sink
from chargegate.app.commands import (
    Offline,
    check_queue,
    check_target,
    move_database,
    move_queue,
    opened_store,
    replay_from,
    tell_story,
)
from chargegate.app.life import audit_exporter, audit_heads, audit_life, audit_lives, audit_verdicts
from chargegate.app.opening import StartError
from chargegate.app.process import Role
from chargegate.app.serving import serve

__all__ = [
    "Offline",
    "Role",
    "SinkName",
    "StartError",
    "audit_exporter",
    "audit_heads",
    "audit_life",
    "audit_lives",
    "audit_verdicts",
    "backfill_sink",
    "check_acl_file",
    "check_queue",
    "check_target",
    "move_database",
    "move_queue",
    "opened_store",
    "replay_from",
    "serve",
    "tell_story",
]
