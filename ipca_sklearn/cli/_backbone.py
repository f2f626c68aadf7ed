"""The option `--backbone`: a name, or the question which names there are."""

from __future__ import annotations

import typer

from ipca_sklearn.features.backbones._catalogue import list_backbones
from ipca_sklearn.features.backbones._efficientnet_lite import LITE_NAMES
from ipca_sklearn.features.backbones._networks import known_layers, torchvision_names
from ipca_sklearn.features.backbones._weights import nearest

_LIST = "list"
_SEE = f"`--backbone {_LIST}` prints which there are"


def choose_backbone(name: str) -> str:
    """Return a name, or print the backbones and exit if it is `list` or a pattern.

    Names of timm are checked when the network is made: timm takes more names than it lists.
    """
    if name == _LIST or any(sign in name for sign in "*?["):
        _print_backbones(None if name == _LIST else name)
        raise typer.Exit
    names = [*LITE_NAMES, *torchvision_names()]
    with_layers = [known for known in names if known_layers(known) is not None]
    if name in with_layers or name.startswith("timm:"):
        return name
    if name in names:
        raise typer.BadParameter(
            f"no layers are known for {name!r}; name some in Python, with PatchFeatureExtractor(layers=[...])"
        )
    raise typer.BadParameter(f"{name!r} is unknown{nearest(name, with_layers)}; {_SEE}")


def _print_backbones(pattern: str | None) -> None:
    rows = list_backbones(pattern)
    if not rows:
        raise typer.BadParameter(f"no backbone matches {pattern!r}; {_SEE}")
    width = max(len(name) for name, _ in rows)
    for name, weights in rows:
        typer.echo(f"{name:<{width}}  {weights}")
