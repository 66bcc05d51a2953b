"""``chargegate demo``: the main job on real processes and real sockets, seen live and checked."""

from chargegate.demo.instance import DemoError
from chargegate.demo.play import run

__all__ = ["DemoError", "run"]
