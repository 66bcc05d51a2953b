"""A process that kills itself between two statements that were drawn before, for programs that tests start."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any


def kill_at_line(number: int, modules: tuple[ModuleType, ...]) -> None:
    """Die at the so many-th line that runs in these modules, in whichever thread."""
    traced_files = {module.__file__ for module in modules}
    left = number

    def traced(frame: Any, event: str, _argument: Any) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename not in traced_files:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return traced

    threading.settrace(traced)
    sys.settrace(traced)
