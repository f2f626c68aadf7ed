"""Memory of this process. Imports the standard library only, because the interpreter of a rival imports it too."""

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
    """Reset the peak and return the megabytes held now; where the peak cannot be reset, return the peak."""
    try:
        REFERENCES.write_text("5")
        return _status("VmRSS")
    except OSError:
        return peak_mb()


def peak_mb() -> float:
    """Return the peak of the resident megabytes since `restart_peak`; where it could not be reset, since the start."""
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
