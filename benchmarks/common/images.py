"""Folders of images."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the image files at any depth of a folder whose names match a pattern, sorted."""
    files = (path for path in folder.rglob(pattern) if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("._"))  # macOS writes `._x.png` beside `x.png`
