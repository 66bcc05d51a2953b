"""The command, which kills itself at the so many-th line that runs in the modules of the daily export:
``kill_at_line.py NUMBER audit export …``. Beside ``kill_at.py`` the only file in this folder that knows the code."""

import sys

from chargegate import cli
from chargegate.audit.life import compressing, exporting, files
from chargegate.operations import audit_life
from killing import kill_at_line

if __name__ == "__main__":
    kill_at_line(int(sys.argv[1]), (compressing, exporting, files, audit_life))
    sys.exit(cli.main(sys.argv[2:]))
