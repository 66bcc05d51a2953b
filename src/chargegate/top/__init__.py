"""``chargegate top``: how a running service is, read over HTTP and shown in a terminal."""

from chargegate.top.figures import Figures, figures_of
from chargegate.top.reading import Reader, Reading
from chargegate.top.screen import view

__all__ = ["Figures", "Reader", "Reading", "figures_of", "view"]
