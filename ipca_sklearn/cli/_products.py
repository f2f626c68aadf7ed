"""Folders of several products, and a model of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchGaussianDetector, ProductRouter
from ipca_sklearn._utils._files import printable
from ipca_sklearn.cli._common import find_images
from ipca_sklearn.datasets._folders import list_images


def images_of_products(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the images of each product: of its folder, or of train/good in it, as MVTec AD's layout has it.

    Raises
    ------
    FileNotFoundError
        A folder of a product has no image, or there is none.
    ValueError
        An image lies beside the folders, a root is none, or two folders have one name.
    """
    found: dict[str, list[Path]] = {}
    for root in roots:
        if not root.is_dir():
            raise ValueError(
                f"--products: {printable(root)} is no folder: name one that holds a folder for each product"
            )
        loose = list_images(root)
        if loose:
            raise ValueError(f"--products: {printable(loose[0])} lies beside the folders of products: of which is it?")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise FileNotFoundError(f"--products: {printable(root)} holds no folder: it takes one for each product")
        for folder in folders:
            if folder.name in found:
                raise ValueError(f"--products: there are two folders {folder.name!r}: give each product a name")
            good = folder / "train" / "good"
            found[folder.name] = find_images([good if good.is_dir() else folder], "--products")
    return found


def learn_products(
    extractor: Any, detector: PatchGaussianDetector, images: dict[str, list[Path]], show: Callable[[int], None]
) -> Pipeline:
    """Learn each product in turn; `show` is told how many images are learnt."""
    router = ProductRouter(detector)
    features = extractor.transform([path for paths in images.values() for path in paths])
    start = 0
    for name, paths in images.items():
        stop = start + len(paths)
        router.partial_fit(features[start:stop], np.full(len(paths), name, dtype=object))
        show(stop)
        start = stop
    return Pipeline([("features", extractor), ("products", router)])
