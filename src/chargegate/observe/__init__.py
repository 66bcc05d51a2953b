"""What operators see of a running service: metrics and the log."""

from chargegate.observe.event_log import Log, configure_logging, log
from chargegate.observe.metrics import Metrics

__all__ = ["Log", "Metrics", "configure_logging", "log"]
