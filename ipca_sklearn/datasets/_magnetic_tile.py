"""The magnetic tile defects, split as in the paper that this package implements."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn.utils import Bunch

from ipca_sklearn._utils._files import printable
from ipca_sklearn.datasets._folders import (
    NORMAL_TYPE,
    Sample,
    existing_root,
    list_images,
    make_bunch,
    require_images,
)
from ipca_sklearn.images._formats import IMAGE_SUFFIXES

LAYOUT = "MT_Free/Imgs/*.jpg and MT_<type>/Imgs/*.jpg, each with a mask *.png of the same name"
NORMAL_FOLDER = "MT_Free"
# Masks and images are in one folder and differ only by their suffix.
MASK_SUFFIXES = (".png",)
PHOTO_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in MASK_SUFFIXES)

_DESCR = """\
Magnetic tile defects: grey images, of many sizes, of the surface of magnetic tiles.

Split: training on {n_train} normal images. Test: the {n_normal} normal images whose names begin with "{test_prefix}",
and all {n_anomalous} defective images ({types}). With the whole set and "exp1" this is the split of the paper by Lee,
Nagai and Minezawa, with 795 training images.

Masks are grey PNG images with smoothed edges (0 = normal, 255 = defect, values between along the edges): use a
threshold such as 127 instead of 255. The masks of four images of the type "uneven" are empty.

Source: https://github.com/abin24/Magnetic-tile-defect-datasets. (the final dot belongs to the name)
Licence: none is given; the authors welcome use and ask for the citation.
Citation: Y. Huang, C. Qiu, Y. Guo, X. Wang, K. Yuan. "Surface defect saliency of magnetic tile". IEEE 14th
International Conference on Automation Science and Engineering (CASE), 2018.
"""


def load_magnetic_tile(root: str | os.PathLike[str], *, test_prefix: str = "exp1") -> Bunch:
    """Load the file names of the magnetic tile defects from a folder on disk.

    No image is opened. The layout is that of the public repository: ``root/MT_Free/Imgs`` has the normal images,
    ``root/MT_<type>/Imgs`` the defective ones, and each ``.jpg`` has a mask ``.png`` of the same name. Images may also
    have another suffix of a format that is read (JPEG, BMP, TIFF, WebP, PPM/PGM), in any case.

    Parameters
    ----------
    root : str or path-like
        Folder with MT_Free and the others.
    test_prefix : str, default="exp1"
        Normal images whose file names begin with this are for the test, the others for training. Names begin with
        the number of a recording, so a prefix holds out whole recordings.

    Returns
    -------
    sklearn.utils.Bunch
        As of :func:`load_mvtec_ad`. The type of a defect is that of its folder in lower case, for example "blowhole";
        a normal image has no mask even where an empty one is on disk.

    Raises
    ------
    FileNotFoundError
        If `root` does not exist, if there is no normal or no defective image, or if a defective image has no mask.
    ValueError
        If `test_prefix` matches none or all of the normal images; the message lists the existing prefixes.

    See Also
    --------
    fetch_magnetic_tile : Download the set first if it is absent.

    Examples
    --------
    >>> from ipca_sklearn.datasets import load_magnetic_tile
    >>> tiles = load_magnetic_tile("magnetic_tile")  # doctest: +SKIP
    >>> len(tiles.train_paths)  # doctest: +SKIP
    795
    """
    folder = existing_root(root, LAYOUT)
    normals = require_images(folder / NORMAL_FOLDER / "Imgs", "normal image", PHOTO_SUFFIXES)
    held_out = [path for path in normals if path.name.startswith(test_prefix)]
    if len(held_out) in (0, len(normals)):
        prefixes = sorted({path.name.split("_")[0] for path in normals})
        raise ValueError(
            f"test_prefix={test_prefix!r} matches {'all' if held_out else 'none'} of the {len(normals)} normal images "
            f"in {normals[0].parent}, so there would be none to {'fit on' if held_out else 'test'}; the prefixes there "
            f"are {', '.join(prefixes)}."
        )
    train_paths = [path for path in normals if not path.name.startswith(test_prefix)]
    defective = _defective_images(folder)
    tests = [Sample(path, NORMAL_TYPE, None) for path in held_out] + defective
    descr = _DESCR.format(
        n_train=len(train_paths),
        n_normal=len(held_out),
        n_anomalous=len(defective),
        test_prefix=test_prefix,
        types=", ".join(sorted({test.defect_type for test in defective})),
    )
    return make_bunch(train_paths, tests, descr)


def photos_and_masks(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """List the images of one type, and its masks by the stem of their file names, which is that of the image."""
    images = folder / "Imgs"
    return list_images(images, PHOTO_SUFFIXES), {path.stem: path for path in list_images(images, MASK_SUFFIXES)}


def _defective_images(root: Path) -> list[Sample]:
    tests = []
    for folder in sorted(path for path in root.glob("MT_*") if path.name != NORMAL_FOLDER and path.is_dir()):
        photos, masks = photos_and_masks(folder)
        for path in photos:
            if path.stem not in masks:
                raise FileNotFoundError(
                    f"the defective image {printable(path)} has no mask: {printable(path.with_suffix('.png'))} does "
                    "not exist. Add the mask, or remove the image."
                )
            tests.append(Sample(path, folder.name.removeprefix("MT_").lower(), masks[path.stem]))
    if not tests:
        raise FileNotFoundError(f"no defective image found in root={str(root)!r}; expected {LAYOUT}.")
    return tests
