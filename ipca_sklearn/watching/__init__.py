"""Score images as they appear in a folder, when they are complete, in rows that survive a power cut."""

from ipca_sklearn.watching._command import run_command
from ipca_sklearn.watching._folder import FolderWatcher, NewImage
from ipca_sklearn.watching._rows import RowFile
from ipca_sklearn.watching._watch import watch

__all__ = ["FolderWatcher", "NewImage", "RowFile", "run_command", "watch"]
