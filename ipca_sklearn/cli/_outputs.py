"""What a command will write, checked before it does any work: no output may destroy an input or another output."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipca_sklearn._utils._files import identity_of, printable, shown_bytes

MODELS = (".joblib", ".model", ".pickle", ".pkl", "")
ONNX = (".onnx",)
OPENVINO = (".xml",)
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")
REPORTS = (".html", ".htm")
TABLES = (".csv", ".jsonl")
LINES = (".jsonl",)
COCO = (".json",)


@dataclass(frozen=True)
class Output:
    """A file that a command will write, or a folder with the files of these `names`.

    `option` is what the user calls it, and `suffixes` what the name of a file may end in: "" is none, () any.
    """

    option: str
    path: Path
    suffixes: tuple[str, ...] = ()
    names: Sequence[str] | None = None
    replaces: bool = True  # files that are there
    n_bytes: int = 0  # where the size is known in advance

    def __str__(self) -> str:
        return f"{self.option} {printable(self.path)}"

    @property
    def existing_folder(self) -> Path:
        """The nearest folder that exists: where the file, or the first new folder, is made."""
        path = _resolved(self.path)
        start = path if self.names is not None else path.parent
        return next(folder for folder in (start, *start.parents) if folder.exists())

    def files(self) -> Iterable[Path]:
        """Yield the files that will be written."""
        yield from [self.path] if self.names is None else (self.path / name for name in self.names)


def optional_output(option: str, path: Path | None, *form: Any, **details: Any) -> list[Output]:
    """Return the output of an option, if it is used."""
    return [] if path is None else [Output(option, path, *form, **details)]


def check_outputs(
    outputs: Sequence[Output], *, files: Iterable[Path | None] = (), folders: Iterable[Path] = ()
) -> None:
    """Raise if an output cannot be written, or would destroy or join what a command reads.

    Links and hard links are followed: what counts is which file is meant, not how it is named. No output may be one of
    the `files` that are read (None is an option that is not used), and no picture may be written among images that are
    read, in `folders` or as files: the next run would read it.
    """
    inputs, sources = [file for file in files if file is not None], list(folders)
    for output in outputs:
        _check_kind(output)
        _check_place(output)
    old = [(output, file) for output in outputs for file in output.files() if file.exists()]
    read = {identity_of(path): path for path in inputs if path.exists()} if old else {}
    for output, file in old:
        if identity_of(file) in read:
            name = printable(read[identity_of(file)])
            raise ValueError(f"{output} would overwrite {name}, which is read: write to another place")
        if not output.replaces:
            raise FileExistsError(
                f"{output}: {printable(file)} is there, and may hold somebody's work: name a new folder"
            )
    for output in outputs:
        _check_apart(output, inputs, sources)
    for number, output in enumerate(outputs):
        for other in outputs[:number]:
            if _same(output.path, other.path):
                raise ValueError(f"{other} and {output} are the same place: name another one for {output.option}")
    check_space(outputs)


def changed_model(model: Path, output: Path | None) -> Output:
    """Return where a changed model goes: to `output`, or in place of the old one when the new one is complete."""
    n_bytes = model.stat().st_size if model.is_file() else 0
    if output is None:
        return Output("MODEL", model, n_bytes=n_bytes)
    return Output("--output", output, MODELS, n_bytes=n_bytes)


def check_space(outputs: Iterable[Output]) -> None:
    """Raise an OSError if a disk has less free space than what is known of the sizes of the outputs."""
    on_disk: dict[int, list[Output]] = defaultdict(list)
    for output in outputs:
        if output.n_bytes:
            on_disk[output.existing_folder.stat().st_dev].append(output)
    for together in on_disk.values():
        needed, free = sum(output.n_bytes for output in together), shutil.disk_usage(together[0].existing_folder).free
        if free < needed:
            raise OSError(
                f"{' and '.join(map(str, together))} will take about {shown_bytes(needed)} and the disk has "
                f"{shown_bytes(free)} left: make space, or write to another disk"
            )


def _check_kind(output: Output) -> None:
    """Refuse names of other kinds of files, and what exists and is something else."""
    path, is_folder = output.path, output.names is not None
    if is_folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder")
    if not is_folder and path.is_dir():
        raise IsADirectoryError(f"{output} is a folder: name a file in it")
    if not is_folder and path.exists() and not path.is_file():
        raise OSError(f"{output} is a device or a pipe: name a file")
    if output.suffixes and path.suffix.lower() not in output.suffixes:
        known = [suffix for suffix in output.suffixes if suffix]
        ending = f"ends in neither {' nor '.join(known)}" if len(known) > 1 else f"does not end in {known[0]}"
        raise ValueError(f"{output} {ending}: give it the name of what is written")


def _check_place(output: Output) -> None:
    """Refuse places that cannot be written to: the way to find out is to write there."""
    folder = output.existing_folder
    if output.names is None and folder != _resolved(output.path).parent:
        raise FileNotFoundError(f"{output} cannot be written: there is no folder {printable(output.path.parent)}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{output} cannot be written: {printable(folder)} is a file and no folder")
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"\0" * 4096)
    except OSError as error:
        raise type(error)(f"{output} cannot be written: {printable(folder)}: {error.strerror}") from error
    for file in output.files():
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(f"{output}: {printable(file)} is write-protected: name another place")


def _check_apart(output: Output, files: Sequence[Path], folders: Sequence[Path]) -> None:
    """Refuse pictures among the images that are read: they would be images of the next run."""
    if not any(_is_image(file) for file in output.files()):
        return
    if output.names is None:
        for folder in folders:
            if _lies_in(output.path, folder):
                raise ValueError(
                    f"{output} lies in the folder {printable(folder)}, whose images are read: the next run would read "
                    "this picture too. Write it to another place"
                )
        return
    parents = {file.parent for file in files if _is_image(file)}
    # Links inside a folder lead to others, which are searched with it.
    searched = {parent for parent in parents if any(parent.is_relative_to(folder) for folder in folders)}
    for folder in (*folders, *sorted(searched)):
        if _lies_in(output.path, folder) or _lies_in(folder, output.path):
            raise ValueError(
                f"{output} is, contains or lies in the folder {printable(folder)}, whose images are read: the next "
                "run would read these pictures too. Name a folder of its own"
            )
    for folder in sorted(parents):
        if _lies_in(folder, output.path):
            raise ValueError(
                f"{output} holds images that are read (in {printable(folder)}): pictures written there are taken "
                "for images in the next run. Name a folder of its own"
            )


def _is_image(path: Path) -> bool:
    from ipca_sklearn.datasets import IMAGE_SUFFIXES

    return path.suffix.lower() in IMAGE_SUFFIXES


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # Python before 3.13
        raise OSError(f"{printable(path)} is a link that leads to itself") from error


def _same(path: Path, other: Path) -> bool:
    if _resolved(path) == _resolved(other):
        return True
    return path.exists() and other.exists() and os.path.samefile(path, other)


def _lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or lies in it, at any depth."""
    whole = _resolved(path)
    return any(_same(part, folder) for part in (whole, *whole.parents))
