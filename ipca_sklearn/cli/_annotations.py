"""Lists of defects in files: JSON lines, and what labelling tools open (COCO, labelme)."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from ipca_sklearn._utils._files import naming, replacing
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn._version import __version__
from ipca_sklearn.cli._writing import picture_names
from ipca_sklearn.detection import Defect

_CATEGORY = "defect"


class DefectLines:
    """A file with a line of JSON for each image: path, size, defects, and why there are none if it was not read.

    Parameters
    ----------
    path : Path
        File to write.
    stack : ExitStack
        Closes the file.
    append : bool, default=False
        Go on with the lines that are there; what a killed writer has left of a last line is removed.
    """

    def __init__(self, path: Path, stack: ExitStack, *, append: bool = False) -> None:
        self._path = path
        stack.enter_context(naming(path))
        if append and path.exists():
            _cut_last_line(path)
        self._stream = stack.enter_context(path.open("a" if append else "w", encoding="ascii"))

    def write(self, row: dict[str, Any]) -> None:
        """Write the line of an image."""
        defects = row.get("defects")
        line = {
            "path": row["path"],
            "size": row.get("size"),
            "defects": None if defects is None else [defect.as_dict() for defect in defects],
            "error": row["error"],
        }
        with naming(self._path):
            self._stream.write(to_json(line) + "\n")
            self._stream.flush()


class CocoFile:
    """Images and their defects in the format of COCO: boxes, areas and polygons.

    Annotations have a `score`, the largest value of the map in the defect, and a `p_value`. Names of images are
    relative to the folder that all of them are in. Images that could not be read are left out.

    Parameters
    ----------
    path : Path
        File to write, which replaces an older one when the block ends without an error.
    images : sequence of Path
        All images.
    """

    def __init__(self, path: Path, images: Sequence[Path]) -> None:
        self._path = path
        self._root = _common_folder(images)
        self._n_images = self._n_annotations = 0
        self._closing = ExitStack()

    def __enter__(self) -> CocoFile:
        with ExitStack() as stack:
            self._file = stack.enter_context(replacing(self._path))
            self._annotations = stack.enter_context(tempfile.TemporaryFile())  # memory does not grow with the images
            self._closing = stack.pop_all()
        about = {"description": f"Defects found by ipca_sklearn {__version__}", "version": "1.0"}
        categories = [{"id": 1, "name": _CATEGORY, "supercategory": _CATEGORY}]
        self._file.write(
            f'{{"info": {to_json(about)},\n"licenses": [],\n"categories": {to_json(categories)},\n"images": ['.encode()
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.write(b'\n],\n"annotations": [')
                self._annotations.seek(0)
                self._file.writelines(self._annotations)
                self._file.write(b"\n]}\n")
        except BaseException as own:
            self._closing.__exit__(type(own), own, own.__traceback__)
            raise
        self._closing.__exit__(kind, error, traceback)

    def add(self, path: Path, size: tuple[int, int], defects: Sequence[Defect]) -> None:
        """Add an image of this height and width."""
        self._n_images += 1
        name = _relative(path, self._root)
        image = {"id": self._n_images, "file_name": name, "height": size[0], "width": size[1]}
        self._file.write(f"{_comma(self._n_images)}{to_json(image)}".encode())
        for defect in defects:
            self._n_annotations += 1
            top, left, height, width = defect.box
            annotation = {
                "id": self._n_annotations,
                "image_id": self._n_images,
                "category_id": 1,
                "bbox": [left, top, width, height],
                "area": defect.area,
                "segmentation": [polygon.ravel().tolist() for polygon in defect.outlines],
                "iscrowd": 0,
                "score": defect.max_value,
                "p_value": defect.p_value,
            }
            with naming(tempfile.gettempdir()):
                self._annotations.write(f"{_comma(self._n_annotations)}{to_json(annotation)}".encode())


class LabelmeFolder:
    """A folder with a file for each image, as labelme reads and writes them: polygons, those of one defect as a group.

    Parameters
    ----------
    folder : Path
        Made when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, path: Path, name: str, size: tuple[int, int], defects: Sequence[Defect]) -> None:
        """Write the file of an image of this height and width."""
        shapes = [
            {
                "label": _CATEGORY,
                "points": polygon.astype(float).tolist(),
                "group_id": number if len(defect.outlines) > 1 else None,
                "description": f"largest value {defect.max_value:.4g}, p-value {defect.p_value:.3g}",
                "shape_type": "polygon",
                "flags": {},
            }
            for number, defect in enumerate(defects, 1)
            for polygon in defect.outlines
        ]
        self._folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": _relative(path, self._folder.resolve()),
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }
        with naming(self._folder / name):
            (self._folder / name).write_text(to_json(content), encoding="ascii")


def labelme_names(images: Sequence[Path]) -> list[str]:
    """Return the names of files of labelme: those of the images, numbered where several have one name."""
    counts = Counter(path.stem.casefold() for path in images)
    numbered = picture_names(images, ".json")
    return [
        f"{path.stem}.json" if counts[path.stem.casefold()] == 1 else name
        for path, name in zip(images, numbered, strict=True)
    ]


def _cut_last_line(path: Path) -> None:
    """Remove what follows the last line break of a file."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start, rest = end, b""
        while start > 0 and b"\n" not in rest:
            start = max(0, start - 65_536)
            file.seek(start)
            rest = file.read(min(65_536, end - start))
        if not rest.endswith(b"\n") or start + len(rest) < end:
            file.truncate(start + rest.rfind(b"\n") + 1)


def _comma(number: int) -> str:
    return "\n" if number == 1 else ",\n"


def _common_folder(images: Sequence[Path]) -> Path | None:
    try:
        return Path(os.path.commonpath([image.parent.resolve() for image in images]))
    except ValueError:  # on several drives
        return None


def _relative(path: Path, folder: Path | None) -> str:
    """Return the path of an image from a folder; absolute from another drive."""
    whole = path.parent.resolve() / path.name
    try:
        return whole.as_posix() if folder is None else Path(os.path.relpath(whole, folder)).as_posix()
    except ValueError:
        return whole.as_posix()
