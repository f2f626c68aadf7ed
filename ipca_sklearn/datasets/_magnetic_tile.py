"""The magnetic tile defects, split as in the paper that this package implements; a download is verified before use."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from sklearn.utils import Bunch

from ipca_sklearn._utils._files import naming, printable
from ipca_sklearn._utils._messages import first_few
from ipca_sklearn.datasets._folders import NORMAL_TYPE, Sample, existing_root, list_images, make_bunch, require_images
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.images._formats import IMAGE_SUFFIXES, open_image

LAYOUT = "MT_Free/Imgs/*.jpg and MT_<type>/Imgs/*.jpg, each with a mask *.png of the same name"
NORMAL_FOLDER = "MT_Free"
# Masks and images are in one folder and differ only by their suffix.
MASK_SUFFIXES = (".png",)
PHOTO_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in MASK_SUFFIXES)

# The whole set has about a tenth of this.
_MAX_BYTES = 2_000_000_000
_FOLDER_NAME = "magnetic_tile"
_BASE_URL = "https://github.com/abin24/Magnetic-tile-defect-datasets."
# The host packs archives on request and may pack the same files to other bytes later, so a fixed checksum would fail.
# The content is checked instead: the number of images of each type, each with its mask.
_EXPECTED_COUNTS = {
    "MT_Blowhole": 115,
    "MT_Break": 85,
    "MT_Crack": 57,
    "MT_Fray": 32,
    "MT_Free": 952,
    "MT_Uneven": 103,
}

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
    tests = [Sample(path, NORMAL_TYPE, None) for path in held_out] + _defective_images(folder)
    return make_bunch(train_paths, tests, _DESCR, test_prefix=test_prefix)


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


def fetch_magnetic_tile(
    data_home: str | os.PathLike[str] | None = None,
    *,
    base_url: str = _BASE_URL,
    ref: str = "master",
    sha256: str | None = None,
    test_prefix: str = "exp1",
    download_if_missing: bool = True,
) -> Bunch:
    """Load the magnetic tile defects, and download them first if they are absent.

    The archive is unpacked into a temporary folder, which is renamed to ``data_home/magnetic_tile`` when it has as many
    images of each type as published, each with its mask, and each file is an image. Else nothing is left behind.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder for data sets. None is scikit-learn's, see :func:`sklearn.datasets.get_data_home`.
    base_url : str, default=the authors' repository on GitHub
        Address of the repository, for a mirror of it; the archive is ``<base_url>/archive/<ref>.zip``.
    ref : str, default="master"
        Branch, tag or commit of the repository.
    sha256 : str, default=None
        Checksum that the archive must have, in hexadecimal digits. None verifies the content alone.
    test_prefix : str, default="exp1"
        Normal images whose file names begin with this are for the test, as in :func:`load_magnetic_tile`.
    download_if_missing : bool, default=True
        If False, raise instead of downloading.

    Returns
    -------
    sklearn.utils.Bunch
        As of :func:`load_magnetic_tile`.

    Raises
    ------
    ImportError
        If a download is needed and pooch is not installed.
    FileNotFoundError
        If the set is missing and `download_if_missing` is False.
    OSError
        If the download fails.
    ValueError
        If the download or the folder is not the whole set; the message says what is wrong.

    Notes
    -----
    The repository of the authors gives no licence, welcomes use and asks for the citation in ``DESCR``.

    Examples
    --------
    >>> from ipca_sklearn.datasets import fetch_magnetic_tile
    >>> tiles = fetch_magnetic_tile()  # doctest: +SKIP
    >>> len(tiles.train_paths), len(tiles.test_paths)  # doctest: +SKIP
    (795, 549)
    """
    from sklearn.datasets import get_data_home  # it imports more of scikit-learn than listing images needs

    target = Path(get_data_home(data_home)) / _FOLDER_NAME
    if not target.exists():
        if not download_if_missing:
            raise FileNotFoundError(
                f"the magnetic tile defects are not in {target} and download_if_missing=False; pass True, or use "
                "load_magnetic_tile(root) for a copy elsewhere."
            )
        _download(f"{base_url.rstrip('/')}/archive/{ref}.zip", sha256, target)
    elif problems := _count_problems(target):
        raise ValueError(
            f"{target} is not the whole set: {first_few(problems, 5, '; ')}. Delete that folder and call again, or use "
            "load_magnetic_tile(root) if it is meant to be so."
        )
    return load_magnetic_tile(target, test_prefix=test_prefix)


def _download(url: str, sha256: str | None, target: Path) -> None:
    try:
        import pooch
    except ImportError as error:
        raise ImportError("fetch_magnetic_tile needs pooch to download; run pip install pooch.") from error

    # Beside the target: the last step is then a rename within one file system, which happens entirely or not at all.
    with tempfile.TemporaryDirectory(prefix=f".{_FOLDER_NAME}-", dir=target.parent) as scratch:
        try:
            archive = pooch.retrieve(
                url,
                known_hash=None if sha256 is None else f"sha256:{sha256}",
                fname="archive.zip",
                path=scratch,
                downloader=pooch.HTTPDownloader(chunk_size=1 << 16),
            )
        except OSError as error:  # errors of requests are OSErrors too
            raise OSError(
                f"could not download {url}: {error}. Check the connection and base_url, or fetch the archive by other "
                "means, unpack it and use load_magnetic_tile(root)."
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{url} does not have the checksum sha256={sha256!r}; nothing was kept. {error}"
            ) from error
        unpacked = Path(scratch) / _FOLDER_NAME
        try:
            _unpack(Path(archive), unpacked)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{url} is not a whole zip archive: {error}. Nothing was kept; call again.") from error
        except ValueError as error:
            raise ValueError(f"{url}: {error} Nothing was kept.") from error
        if problems := _count_problems(unpacked) or _file_problems(unpacked):
            raise ValueError(f"{url} does not hold the whole set: {first_few(problems, 5, '; ')}. Nothing was kept.")
        try:
            unpacked.rename(target)
        except OSError:
            # Another process that fetched at the same time may have been first; its content was verified too.
            if not target.is_dir():
                raise


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the files in each ``MT_<type>``, without the folders that the host adds above them."""
    with zipfile.ZipFile(archive) as members:
        for name in members.namelist():  # all of them before the first file is written
            if ".." in name.replace("\\", "/").split("/") or name.startswith(("/", "\\")) or ":" in name:
                raise ValueError(f"the archive's member {name!r} would leave the folder and is refused.")
        if sum(info.file_size for info in members.infolist()) > _MAX_BYTES:
            raise ValueError(f"the archive would unpack to more than {_MAX_BYTES / 1e9:g} GB and is refused.")
        for info in members.infolist():
            parts = PurePosixPath(info.filename).parts
            depth = next((i for i, part in enumerate(parts) if part in _EXPECTED_COUNTS), None)
            if depth is None or info.is_dir():
                continue
            path = folder.joinpath(*parts[depth:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with naming(path):
                path.write_bytes(members.read(info))


def _count_problems(root: Path) -> list[str]:
    problems = []
    for name, expected in _EXPECTED_COUNTS.items():
        photos, masks = photos_and_masks(root / name)
        if len(photos) != expected:
            problems.append(f"{name} holds {len(photos)} images instead of {expected}")
        without = [path.name for path in photos if path.stem not in masks]
        if without:
            problems.append(f"{len(without)} images in {name} have no mask, the first is {without[0]}")
    return problems


def _file_problems(root: Path) -> list[str]:
    """List the files that are not images. Only headers are read: the checksums of the zip file cover the rest."""
    problems = []
    for name in _EXPECTED_COUNTS:
        photos, masks = photos_and_masks(root / name)
        for path in [*photos, *masks.values()]:
            try:
                with open_image(path):
                    pass
            except ImageReadError:
                problems.append(f"{name}/Imgs/{path.name} is not an image")
    return problems
