"""``python -m chargegate`` is the same as ``chargegate``."""

import sys

from chargegate.cli import main

sys.exit(main())
