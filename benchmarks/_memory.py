"""Memory of this process; imports nothing beyond the standard library."""

from __future__ import annotations

import resource
from pathlib import Path

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(name: str) -> float:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"no {name}")


def restart_peak() -> float:
    """Forget the peak so far and return the megabytes held now."""
    try:
        REFERENCES.write_text("5")
        return _status("VmRSS")
    except OSError:
        return peak_mb()


def peak_mb() -> float:
    """Return the peak of the resident megabytes since `restart_peak`, or where that cannot be, ever."""
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
