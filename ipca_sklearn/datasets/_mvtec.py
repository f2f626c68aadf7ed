"""MVTec AD, and all data sets with its layout of folders."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn.utils import Bunch

from ipca_sklearn.datasets._folders import NORMAL_TYPE, Sample, existing_root, list_images, make_bunch, require_images

_LAYOUT = "<category>/{train/good, test/<type>, ground_truth/<type>/<name>_mask.png}"

_DESCR = """\
Images in the layout of MVTec AD, category "{category}".

Split: given by the folders. Training: {n_train} normal images. Test: {n_normal} normal and {n_anomalous} anomalous
images ({types}). Each anomalous image has a mask (0 = normal).

Source: MVTec Software GmbH, https://www.mvtec.com/company/research/datasets/mvtec-ad
Licence: CC BY-NC-SA 4.0, not for commercial use. A set of your own in this layout has its own licence.
Citation: P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger. "The MVTec Anomaly Detection Dataset: A
Comprehensive Real-World Dataset for Unsupervised Anomaly Detection". International Journal of Computer Vision 129,
2021.
"""


def load_mvtec_ad(root: str | os.PathLike[str], category: str) -> Bunch:
    """Load the file names of one category of MVTec AD, or of any set in its layout.

    No image is opened. The expected layout is ``root/category/train/good/*``, ``root/category/test/<type>/*`` with
    ``good`` for normal images, and ``root/category/ground_truth/<type>/<name>_mask.*`` for every anomalous image.
    Images have the suffix of a format that is read (PNG, JPEG, BMP, TIFF, WebP, PPM/PGM), in any case.

    Parameters
    ----------
    root : str or path-like
        Folder that holds the categories.
    category : str
        Name of one category, for example ``"leather"``.

    Returns
    -------
    sklearn.utils.Bunch
        With the attributes

        - ``train_paths`` : list of pathlib.Path, all normal, sorted.
        - ``test_paths`` : list of n_test pathlib.Path: the normal images, then the defects by name of their type.
        - ``test_labels`` : int ndarray of shape (n_test,), +1 normal, -1 anomalous.
        - ``mask_paths`` : list of n_test pathlib.Path, None for a normal image.
        - ``defect_types`` : str ndarray of shape (n_test,), "good" for a normal image.
        - ``DESCR`` : str, the source, licence, citation and split.

    Raises
    ------
    FileNotFoundError
        If `root` or the category does not exist (the message lists the existing categories), if there is no training
        or no test image, or if an anomalous image has no mask.

    See Also
    --------
    load_magnetic_tile : Another set of real surfaces, with its own layout.
    make_textures : Generated surfaces, without files.

    Examples
    --------
    >>> from ipca_sklearn.datasets import load_mvtec_ad
    >>> leather = load_mvtec_ad("mvtec", "leather")  # doctest: +SKIP
    >>> detector.fit(leather.train_paths).score_samples(leather.test_paths)  # doctest: +SKIP
    """
    folder = _category_folder(existing_root(root, _LAYOUT), category)
    train_paths = require_images(folder / "train" / NORMAL_TYPE, "normal training image")
    tests = _list_test_images(folder)
    return make_bunch(train_paths, tests, _DESCR, category=category)


def load_test_images(folder: str | os.PathLike[str]) -> Bunch:
    """Load the file names of the test images of one category in MVTec AD's layout.

    Unlike `load_mvtec_ad` it needs neither training images nor a mask for every anomalous image.

    Parameters
    ----------
    folder : str or path-like
        Folder of the category, with ``test/good`` and ``test/<type>``.

    Returns
    -------
    sklearn.utils.Bunch
        As `load_mvtec_ad`; ``mask_paths`` is None where an anomalous image has no mask too, and ``train_paths`` is
        empty.

    Raises
    ------
    FileNotFoundError
        There is no test image.

    Examples
    --------
    >>> from ipca_sklearn.datasets import load_test_images
    >>> images = load_test_images("mvtec/leather")  # doctest: +SKIP
    >>> pipe.score_samples(images.test_paths)  # doctest: +SKIP
    """
    return make_bunch([], _list_test_images(Path(folder).expanduser(), all_masks=False), "")


def _category_folder(root: Path, category: str) -> Path:
    # The name is compared with the existing ones: joined to root, "" and "leather/.." would be accepted too.
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if category in [path.name for path in folders]:
        return root / category
    categories = [path.name for path in folders if (path / "train").is_dir()]
    if categories:
        advice = f"the categories there are {', '.join(categories)}"
    elif (root / "train").is_dir():
        advice = f"root looks like a category itself; pass its parent folder and category={root.name!r}"
    else:
        advice = f"it has no categories; the expected layout is {_LAYOUT}"
    raise FileNotFoundError(f"category={category!r} is not in root={str(root)!r}: {advice}.")


def _list_test_images(folder: Path, *, all_masks: bool = True) -> list[Sample]:
    """List the test images of a category, at least one: the normal ones, then the defects by name of their type.

    Unless `all_masks`, anomalous images without a mask have ``mask_path`` None.
    """
    test_folder = folder / "test"
    types = sorted(path.name for path in test_folder.iterdir() if path.is_dir()) if test_folder.is_dir() else []
    tests = [Sample(path, NORMAL_TYPE, None) for path in list_images(test_folder / NORMAL_TYPE)]
    for defect_type in types:
        if defect_type == NORMAL_TYPE:
            continue
        mask_folder = folder / "ground_truth" / defect_type
        masks = {path.stem: path for path in list_images(mask_folder)}
        for path in list_images(test_folder / defect_type):
            mask_path = masks.get(f"{path.stem}_mask")
            if mask_path is None and all_masks:
                raise FileNotFoundError(
                    f"the anomalous image {path} has no mask: {mask_folder / path.stem}_mask.png does not exist. "
                    f"Add the mask, or move the image out of {test_folder}."
                )
            tests.append(Sample(path, defect_type, mask_path))
    if not tests:
        raise FileNotFoundError(f"no test image found under {test_folder}; the expected layout is {_LAYOUT}.")
    return tests
