"""Makes docs/demo.svg from a real run of `make demo` in tmux. Run: python docs/picture.py."""

import io
import re
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
WIDTH = 118


def tmux(*arguments: str) -> str:
    """Run a tmux command on a separate tmux server. Returns its output."""
    return subprocess.run(
        ["tmux", "-L", "chargegate-picture", *arguments], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    """Run the demo, wait for its end, and draw the last screen."""
    tmux("new-session", "-d", "-x", str(WIDTH), "-y", "60", f"cd {HERE.parent} && make demo; echo ENDED $?; read wait")
    try:
        limit = time.monotonic() + 180
        while "ENDED " not in tmux("capture-pane", "-p"):
            if time.monotonic() > limit:
                raise SystemExit("the demo did not end")
            time.sleep(0.2)
        screen = tmux("capture-pane", "-p", "-e").rstrip().rsplit("\n", 1)[0]
    finally:
        tmux("kill-server")
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("$ make demo\n" + screen))
    drawing = console.export_svg(title="make demo")
    # Without this, a viewer would fetch fonts from the internet.
    (HERE / "demo.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL))


if __name__ == "__main__":
    main()
