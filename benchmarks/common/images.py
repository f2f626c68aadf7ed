"""Folders of images, and how they are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}

# Images as the paper prepares them: 1/16 at each side is cut off.
PAPER_GEOMETRY: dict[str, Any] = {"image_size": 256, "crop_size": 224, "interpolation": "nearest"}


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the image files at any depth of a folder whose names match a pattern, sorted."""
    files = (path for path in folder.rglob(pattern) if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("._"))  # macOS writes `._x.png` beside `x.png`
