"""Works through the queue."""

from chargegate.worker.working import Worker

__all__ = ["Worker"]
