"""How full the disks are that the service writes to."""

import os
import threading
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge


class Disks:
    """``disk_free_bytes`` and ``disk_size_bytes`` of each folder that is watched.

    A thread measures, because a network disk that is away may hold up whoever asks for hours. Until it answers, the
    last values stand, and no second thread is started.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._free = Gauge(
            "disk_free_bytes",
            "Free space, for a process without privileges, on the disk of a folder.",
            ["folder"],
            registry=registry,
        )
        self._size = Gauge("disk_size_bytes", "Size of the disk of a folder.", ["folder"], registry=registry)
        self._folders: dict[str, Path] = {}
        self._measuring: threading.Thread | None = None

    def watch(self, name: str, folder: Path) -> None:
        """Measure the folder's disk now, and at each ``refresh``. ``name`` is the label."""
        self._folders[name] = folder
        self._measure()

    def refresh(self) -> None:
        """Begin to measure, without waiting for it: the next reading of the metrics sees it."""
        if self._measuring is None or not self._measuring.is_alive():
            self._measuring = threading.Thread(target=self._measure, name="disks", daemon=True)
            self._measuring.start()

    def _measure(self) -> None:
        for name, folder in tuple(self._folders.items()):
            try:
                disk = os.statvfs(folder)
            except OSError:  # the folder was moved away; the last values stand
                continue
            self._free.labels(name).set(disk.f_bavail * disk.f_frsize)
            self._size.labels(name).set(disk.f_blocks * disk.f_frsize)
