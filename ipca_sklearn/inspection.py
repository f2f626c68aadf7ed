"""Pictures of what a detector sees, in scikit-learn's Display convention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils._optional_dependencies import check_matplotlib_support

from ipca_sklearn._images import check_images, to_rgb
from ipca_sklearn._patch_features import PatchFeatureExtractor

__all__ = ["AnomalyMapDisplay"]


class AnomalyMapDisplay:
    """Images, ground truth and heat maps side by side (paper, Fig. 2): one row per image.

    The heat map is laid over the part of the image that is inspected (the centre crop); the rest is shown grey. All
    rows share one colour scale, so that they can be compared. Create it with `from_estimator`.

    Parameters
    ----------
    images : list of ndarray of shape (H, W, 3), floats in [0, 1]
        Originals, of any sizes.
    maps : ndarray of shape (n, h, w)
        Anomaly maps, larger = more anomalous.
    boxes : list of (top, left, height, width)
        Where each map lies in its image, in pixels.
    masks : list of (ndarray of shape (H, W) or None), or None
        Ground truth: nonzero is anomalous; None in the list is an image without a defect.
    titles : list of str or None
        One per row.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
        After `plot`.
    axes_ : ndarray of Axes, shape (n, 2) or (n, 3)
        Image, ground truth if there is one, heat map.

    See Also
    --------
    AnomalyMapDisplay.from_estimator : Make the display from a fitted pipeline and images.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        maps: np.ndarray,
        boxes: Sequence[tuple[float, float, float, float]],
        *,
        masks: Sequence[np.ndarray | None] | None = None,
        titles: Sequence[str] | None = None,
    ) -> None:
        self.images = images
        self.maps = maps
        self.boxes = boxes
        self.masks = masks
        self.titles = titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Pipeline,
        images: Any,
        *,
        masks: Sequence[Any] | None = None,
        titles: Sequence[str] | None = None,
        **plot_options: Any,
    ) -> AnomalyMapDisplay:
        """Compute the maps of images and plot them.

        Parameters
        ----------
        estimator : Pipeline
            Fitted; its first step is a `PatchFeatureExtractor`, its last a `PatchGaussianDetector`.
        images : sequence of images
            As the extractor takes them.
        masks : sequence of (path, PIL image, array or None), or None
            Ground truth of the images' own sizes, nonzero where anomalous.
        titles : sequence of str or None
            One per image.
        **plot_options
            Passed to `plot`.

        Returns
        -------
        AnomalyMapDisplay
            Plotted.

        Raises
        ------
        ImportError
            Without matplotlib.
        TypeError, ValueError
            Another estimator, or `masks` or `titles` of another length than `images`.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if not isinstance(estimator, Pipeline) or not isinstance(estimator[0], PatchFeatureExtractor):
            raise TypeError("estimator must be a Pipeline whose first step is a PatchFeatureExtractor")
        images = check_images(images)
        for name, values in (("masks", masks), ("titles", titles)):
            if values is not None and len(values) != len(images):
                raise ValueError(f"{len(values)} {name} for {len(images)} images; pass one for each")
        pictures = [_picture(image, f"X[{index}]") for index, image in enumerate(images)]
        display = cls(
            pictures,
            np.asarray(estimator.transform(images)),
            [estimator[0].covered_box(picture.shape[:2]) for picture in pictures],
            masks=None if masks is None else [_mask(mask, f"masks[{index}]") for index, mask in enumerate(masks)],
            titles=titles,
        )
        return display.plot(**plot_options)

    def plot(
        self, *, cmap: str = "inferno", alpha: float = 0.6, vmin: float | None = None, vmax: float | None = None
    ) -> AnomalyMapDisplay:
        """Draw one row per image.

        Parameters
        ----------
        cmap : str, default="inferno"
            Colours of the heat map.
        alpha : float, default=0.6
            Opacity of the heat map over the image.
        vmin, vmax : float or None, default=None
            Ends of the colour scale; None is the smallest and the largest value of all maps.

        Returns
        -------
        AnomalyMapDisplay
            This display.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        headings = ["image", "heat map"] if self.masks is None else ["image", "ground truth", "heat map"]
        n_rows, n_columns = len(self.images), len(headings)
        figure, axes = plt.subplots(
            n_rows, n_columns, figsize=(2.6 * n_columns, 2.4 * n_rows), squeeze=False, layout="constrained"
        )
        vmin = float(self.maps.min()) if vmin is None else vmin
        vmax = float(self.maps.max()) if vmax is None else vmax
        for row, (image, anomaly_map, box) in enumerate(zip(self.images, self.maps, self.boxes, strict=True)):
            height, width = image.shape[:2]
            axes[row, 0].imshow(image)
            if self.masks is not None:
                mask = self.masks[row]
                shown = np.zeros((height, width)) if mask is None else mask
                axes[row, 1].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            top, left, covered_height, covered_width = box
            heat = axes[row, -1]
            heat.imshow(image.mean(2), cmap="gray", vmin=0, vmax=1)
            drawn = heat.imshow(
                anomaly_map,
                extent=(left - 0.5, left + covered_width - 0.5, top + covered_height - 0.5, top - 0.5),
                cmap=cmap,
                alpha=alpha,
                vmin=vmin,
                vmax=vmax,
                interpolation="bilinear",
            )
            heat.set_xlim(-0.5, width - 0.5)
            heat.set_ylim(height - 0.5, -0.5)
            figure.colorbar(drawn, ax=heat, fraction=0.046, pad=0.04)
            if self.titles is not None:
                axes[row, 0].set_ylabel(self.titles[row], fontsize="small")
        for heading, axis in zip(headings, axes[0], strict=True):
            axis.set_title(heading)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        self.figure_, self.axes_ = figure, axes
        return self


def _picture(image: Any, name: str) -> np.ndarray:
    """Return an image as (H, W, 3) floats in [0, 1]."""
    tensor = to_rgb(image, name)
    return tensor.permute(1, 2, 0).cpu().numpy() / (255 if not tensor.is_floating_point() else 1)


def _mask(mask: Any, name: str) -> np.ndarray | None:
    if mask is None:
        return None
    array = mask.astype(np.uint8) if isinstance(mask, np.ndarray) and mask.dtype == bool else mask
    return (to_rgb(array, name).amax(0) > 0).cpu().numpy()
