"""``chargegate demo``: real services on real sockets, shown live, with every result checked."""

from chargegate.demo.instance import DemoError
from chargegate.demo.run import run

__all__ = ["DemoError", "run"]
