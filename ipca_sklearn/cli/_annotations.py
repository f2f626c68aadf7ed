"""What `predict` writes of an image besides its row: pictures, JSON lines, files of labelling tools (COCO, labelme)."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ipca_sklearn import __version__
from ipca_sklearn._utils._files import naming, printable, replacing
from ipca_sklearn._utils._tables import to_json
from ipca_sklearn.cli._terminal import warn
from ipca_sklearn.detection import Defect

_CATEGORY = "defect"
_LONGEST_NAME = 255  # bytes, on most file systems
_OURS = re.compile(r"\d{6,}_.*\.(png|npy|tiff)", re.DOTALL)


def picture_names(images: Sequence[Path], end: str = ".png") -> list[str]:
    """Return a name of a picture for each image; the number keeps images of one name in two folders apart."""
    names = []
    for number, path in enumerate(images, 1):
        start, stem = f"{number:06d}_", path.stem
        room = _LONGEST_NAME - len(start) - len(end)
        if len(os.fsencode(stem)) > room:  # cut at a whole character, if the name has these
            stem = os.fsencode(stem)[:room].decode("utf-8", "ignore")
        names.append(f"{start}{stem}{end}")
    return names


@contextmanager
def picture_folder(option: str, folder: Path) -> Iterator[Callable[[Image.Image | np.ndarray, str], None]]:
    """Yield what saves a picture under a name; at the end a warning counts those of earlier runs, which stay."""
    files = folder.iterdir() if folder.is_dir() else ()
    old = {file.name for file in files if _OURS.fullmatch(file.name)}

    def save(picture: Image.Image | np.ndarray, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder / name):
            if isinstance(picture, Image.Image):
                picture.save(folder / name)
            elif name.endswith(".npy"):
                np.save(folder / name, picture)
            else:
                Image.fromarray(picture).save(folder / name, compression="tiff_deflate")
        old.discard(name)

    try:
        yield save
    finally:
        if old:
            warn(
                f"{option} {folder} also holds {len(old)} pictures of an earlier run, such as "
                f"{printable(min(old))}: remove them, or name a new folder for each run"
            )


class DefectLines:
    """A file with a line of JSON for each image: path, size, defects, and why there are none if it was not read.

    With `append` it goes on with the lines that are there; what a killed writer has left of a last line is removed.
    """

    def __init__(self, path: Path, stack: ExitStack, *, append: bool = False) -> None:
        self._path = path
        stack.enter_context(naming(path))
        if append and path.exists() and path.stat().st_size:
            with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                end_of_last_line = content.rfind(b"\n") + 1
            os.truncate(path, end_of_last_line)
        self._stream = stack.enter_context(path.open("a" if append else "w", encoding="ascii"))

    def write(self, row: dict[str, Any]) -> None:
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


@contextmanager
def coco_file(
    path: Path, images: Sequence[Path]
) -> Iterator[Callable[[Path, tuple[int, int], Sequence[Defect]], None]]:
    """Yield what adds an image of a height and width, and its defects, to a file in the format of COCO.

    The file replaces an older one when the block ends without an error. Annotations have a `score`, the largest value
    of the map in the defect, and a `p_value`. Names are relative to the folder that all `images` are in.
    """
    root, image_numbers, numbers = None, count(1), count(1)
    with suppress(ValueError):  # on several drives
        root = Path(os.path.commonpath([image.parent.resolve() for image in images]))
    about = {"description": f"Defects found by ipca_sklearn {__version__}", "version": "1.0"}
    categories = to_json([{"id": 1, "name": _CATEGORY, "supercategory": _CATEGORY}])
    # In a file of its own, so that memory does not grow with the images.
    with replacing(path) as file, tempfile.TemporaryFile() as annotations:
        start = f'{{"info": {to_json(about)},\n"licenses": [],\n"categories": {categories},\n"images": ['
        file.write(start.encode())

        def add(image: Path, size: tuple[int, int], defects: Sequence[Defect]) -> None:
            image_id = next(image_numbers)
            facts = {"id": image_id, "file_name": _relative(image, root), "height": size[0], "width": size[1]}
            file.write(_listed(facts))
            for defect in defects:
                top, left, height, width = defect.box
                annotation = {
                    "id": next(numbers),
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [left, top, width, height],
                    "area": defect.area,
                    "segmentation": [polygon.ravel().tolist() for polygon in defect.outlines],
                    "iscrowd": 0,
                    "score": defect.max_value,
                    "p_value": defect.p_value,
                }
                with naming(tempfile.gettempdir()):
                    annotations.write(_listed(annotation))

        yield add
        file.write(b'\n],\n"annotations": [')
        annotations.seek(0)
        file.writelines(annotations)
        file.write(b"\n]}\n")


def write_labelme(file: Path, image: Path, size: tuple[int, int], defects: Sequence[Defect]) -> None:
    """Write the file of an image of this height and width as labelme has it: polygons, those of one defect a group."""
    shapes = [
        {
            "label": _CATEGORY,
            "points": polygon.astype(float).tolist(),
            "group_id": number if len(polygons) > 1 else None,
            "description": f"largest value {defect.max_value:.4g}, p-value {defect.p_value:.3g}",
            "shape_type": "polygon",
            "flags": {},
        }
        for number, defect in enumerate(defects, 1)
        for polygons in [defect.outlines]
        for polygon in polygons
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": _relative(image, file.parent.resolve()),
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
    with naming(file):
        file.write_text(to_json(content), encoding="ascii")


def labelme_names(images: Sequence[Path]) -> list[str]:
    """Return the names of files of labelme: those of the images, numbered where a name is not unique or too long."""
    plain, numbered = [f"{path.stem}.json" for path in images], picture_names(images, ".json")
    counts = Counter(name.casefold() for name in (*plain, *numbered))
    return [
        name if counts[name.casefold()] == 1 and len(os.fsencode(name)) <= _LONGEST_NAME else other
        for name, other in zip(plain, numbered, strict=True)
    ]


def _listed(element: dict[str, Any]) -> bytes:
    """Return an element of a list of JSON by its number."""
    return f"{'' if element['id'] == 1 else ','}\n{to_json(element)}".encode()


def _relative(path: Path, folder: Path | None) -> str:
    """Return the path of an image from a folder; absolute from another drive."""
    whole = path.parent.resolve() / path.name
    try:
        return whole.as_posix() if folder is None else Path(os.path.relpath(whole, folder)).as_posix()
    except ValueError:
        return whole.as_posix()
