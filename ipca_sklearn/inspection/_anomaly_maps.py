"""AnomalyMapDisplay: images, ground truth and heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from ipca_sklearn._utils._labels import check_labels
from ipca_sklearn._utils._precision import above
from ipca_sklearn._utils._sklearn_compat import check_matplotlib_support
from ipca_sklearn._utils._typing import ArrayLike, Image, Images
from ipca_sklearn.features._extractor import PatchFeatureExtractor
from ipca_sklearn.images._decode import check_images, to_rgb
from ipca_sklearn.images._masks import check_proportions, read_masks, shrink_mask

_SIDE = 2.3  # inches
_ROOM_FOR_TITLE = 1.8  # inches that a title of several words needs when it stands on its end


@dataclass(eq=False, repr=False)
class AnomalyMapDisplay:
    """Images, ground truth and heat maps side by side (paper, Fig. 2): one row per image.

    The heat map covers the part of the image that is inspected, and of that the region of interest; the rest is grey.
    All rows share one colour scale. Create it with `from_estimator` or `from_false_positives` (paper, Fig. 3).

    Parameters
    ----------
    images : list of ndarray of shape (H, W, 3), floats in [0, 1]
        Originals, of any sizes.
    maps : ndarray of shape (n, h, w)
        Anomaly maps, larger = more anomalous.
    boxes : list of (top, left, height, width)
        Where each map lies in its image, in pixels.
    masks : list of (ndarray of shape (H, W) or None), or None
        Ground truth: True is anomalous; None in the list is an image without a defect.
    titles : list of str or None
        One per row.
    region : ndarray of bool, shape (h, w), or None
        Patches of the region of interest; None if all are inspected.

    Attributes
    ----------
    figure_ : matplotlib.figure.Figure
        After `plot`.
    axes_ : ndarray of Axes, shape (n, 2) or (n, 3)
        Image, ground truth if there is one, heat map.

    See Also
    --------
    AnomalyMapDisplay.from_estimator : Make the display from a fitted pipeline and images.
    AnomalyMapDisplay.from_false_positives : The normal images that look most anomalous.
    """

    images: Sequence[np.ndarray]
    maps: np.ndarray
    boxes: Sequence[tuple[float, float, float, float]]
    _: KW_ONLY
    masks: Sequence[np.ndarray | None] | None = None
    titles: Sequence[str] | None = None
    region: np.ndarray | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Pipeline,
        images: Images,
        *,
        masks: Sequence[Image | None] | None = None,
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
            Ground truth, read as by `PatchFeatureExtractor.transform_masks`: anomalous is what is not zero. A mask has
            the proportions of its image. None is an image without a defect.
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
            Another estimator; `masks` or `titles` of another length than `images`; a mask of other proportions than
            its image.

        Examples
        --------
        >>> from sklearn.pipeline import make_pipeline
        >>> from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
        >>> from ipca_sklearn.datasets import make_textures
        >>> from ipca_sklearn.inspection import AnomalyMapDisplay
        >>> data = make_textures(8, 2, size=64)
        >>> extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=64, random_state=0)
        >>> pipe = make_pipeline(extractor, PatchGaussianDetector(2)).fit(data.train_images)
        >>> display = AnomalyMapDisplay.from_estimator(pipe, data.test_images, masks=list(data.test_masks))
        >>> display.maps.shape, display.axes_.shape
        ((2, 16, 16), (2, 3))
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        checked = _check_input(estimator, images, masks=masks, titles=titles)
        limit = estimator[0].max_pixels
        pictures = [_picture(image, f"X[{index}]", limit) for index, image in enumerate(checked)]
        display = cls(
            pictures,
            np.asarray(estimator.transform(checked)),
            [estimator[0].covered_box(picture.shape[:2]) for picture in pictures],
            masks=None if masks is None else _masks(masks, pictures, limit),
            titles=titles,
            region=estimator[-1].map_region_,
        )
        return display.plot(**plot_options)

    @classmethod
    def from_false_positives(
        cls,
        estimator: Pipeline,
        images: Images,
        y: ArrayLike | None = None,
        *,
        masks: Sequence[Image | None] | None = None,
        titles: Sequence[str] | None = None,
        n_images: int = 4,
        **plot_options: Any,
    ) -> AnomalyMapDisplay:
        """Plot the normal images that look most anomalous, the worst first (paper, Fig. 3).

        The title of each row gives the image's score and the threshold, both larger = more anomalous like the maps,
        and whether the image is called anomalous. Without false positives, the rows are the nearest misses.

        Parameters
        ----------
        estimator : Pipeline
            As in `from_estimator`.
        images : sequence of images
            As in `from_estimator`.
        y : array-like of shape (n,) or None, default=None
            +1 for a normal image, -1 for an anomalous one. None if all images are normal.
        masks, titles
            One per image of `images`, as in `from_estimator`. A title comes before the score.
        n_images : int, default=4
            Number of rows; fewer if there are fewer normal images.
        **plot_options
            Passed to `plot`. By default the colours are scaled to the maps of these rows.

        Returns
        -------
        AnomalyMapDisplay
            Plotted.

        Raises
        ------
        ImportError, TypeError, ValueError
            As `from_estimator`, also for `y`; no image is normal; `n_images` is less than one.

        Notes
        -----
        The network runs once on every normal image for the scores, and again on the `n_images` chosen images for their
        maps. Keeping all maps would take memory that grows with the number of images.

        Examples
        --------
        >>> from sklearn.pipeline import make_pipeline
        >>> from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
        >>> from ipca_sklearn.datasets import make_textures
        >>> from ipca_sklearn.inspection import AnomalyMapDisplay
        >>> data = make_textures(8, 8, size=64)
        >>> extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=64, random_state=0)
        >>> pipe = make_pipeline(extractor, PatchGaussianDetector(2)).fit(data.train_images)
        >>> display = AnomalyMapDisplay.from_false_positives(pipe, data.test_images, data.test_labels, n_images=2)
        >>> display.axes_.shape
        (2, 2)
        """
        check_matplotlib_support(f"{cls.__name__}.from_false_positives")
        y = None if y is None else check_labels(y)
        checked = _check_input(estimator, images, y=y, masks=masks, titles=titles)
        if n_images < 1:
            raise ValueError(f"n_images={n_images}; show at least one")
        normal = np.arange(len(checked)) if y is None else np.flatnonzero(y == 1)
        if len(normal) == 0:
            raise ValueError(f"none of the {len(checked)} images is normal, so there is none to show")
        scores = -estimator[1:].score_samples(estimator[0].transform(checked)[normal])
        worst = np.argsort(-scores, kind="stable")[:n_images]
        chosen = normal[worst]
        threshold = -estimator[-1].offset_
        rows = []
        for score, index in zip(scores[worst], chosen, strict=True):
            called = "anomalous" if above(score, threshold) else "normal"
            title = "" if titles is None else f"{titles[index]}\n"
            rows.append(f"{title}score {score:.3g}, threshold {threshold:.3g}:\ncalled {called}")
        return cls.from_estimator(
            estimator,
            [checked[index] for index in chosen],
            masks=None if masks is None else [masks[index] for index in chosen],
            titles=rows,
            **plot_options,
        )

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
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.cm import ScalarMappable

        headings = ["image", "heat map"] if self.masks is None else ["image", "ground truth", "heat map"]
        n_rows, n_columns = len(self.images), len(headings)
        column_width, row_heights = _sizes(self.images)
        # The title of a low row lies beside it, and at the other side are the numbers of the colour bar.
        lying = [self.titles is not None and height < _ROOM_FOR_TITLE for height in row_heights]
        margins = 0.9 + 1.4 * any(lying)
        figure, axes = plt.subplots(
            n_rows,
            n_columns,
            figsize=(column_width * n_columns + margins, sum(row_heights) + 0.1 * n_rows + 0.3),
            height_ratios=row_heights,
            squeeze=False,
            layout="constrained",
        )
        maps = np.ma.MaskedArray(self.maps, mask=np.zeros(self.maps.shape, bool))
        if self.region is not None:
            maps[:, ~self.region] = np.ma.masked  # it is not drawn
        vmin = float(maps.min()) if vmin is None else vmin
        vmax = float(maps.max()) if vmax is None else vmax
        for row, (image, anomaly_map, box) in enumerate(zip(self.images, maps, self.boxes, strict=True)):
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
            # The bar is opaque: half transparent on white, its dark end would be grey.
            figure.colorbar(ScalarMappable(drawn.norm, cmap), cax=heat.inset_axes((1.04, 0, 0.05, 1)))
            if self.titles is not None:
                direction = {"rotation": "horizontal", "ha": "right", "va": "center"} if lying[row] else {}
                axes[row, 0].set_ylabel(self.titles[row], fontsize="small", **direction)
        for heading, axis in zip(headings, axes[0], strict=True):
            axis.set_title(heading)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
        self.figure_, self.axes_ = figure, axes
        return self


def _sizes(images: Sequence[np.ndarray]) -> tuple[float, list[float]]:
    """Return the width of the columns and the heights of the rows, in inches, for pictures of these shapes.

    A picture has about the area of a square of `_SIDE`, whatever its shape, but is not more than four times as long.
    """
    slopes = [float(np.clip(image.shape[0] / image.shape[1], 0.25, 4)) for image in images]
    width = _SIDE / float(np.sqrt(np.median(slopes))) if slopes else _SIDE
    return width, [min(width * slope, 2 * _SIDE) for slope in slopes] or [_SIDE]


def _check_input(estimator: Any, images: Any, **per_image: Any) -> Any:
    if not isinstance(estimator, Pipeline) or not isinstance(estimator[0], PatchFeatureExtractor):
        raise TypeError("estimator must be a Pipeline whose first step is a PatchFeatureExtractor")
    images = check_images(images)
    for name, values in per_image.items():
        if values is not None and len(values) != len(images):
            raise ValueError(
                f"{len(values)} {'labels y' if name == 'y' else name} for {len(images)} images; pass one for each"
            )
    return images


def _picture(image: Any, name: str, max_pixels: int) -> np.ndarray:
    """Return an image as (H, W, 3) floats in [0, 1]."""
    tensor = to_rgb(image, name, max_pixels=max_pixels)
    return tensor.permute(1, 2, 0).cpu().numpy() / (255 if not tensor.is_floating_point() else 1)


def _masks(masks: Sequence[Any], pictures: Sequence[np.ndarray], max_pixels: int) -> list[np.ndarray | None]:
    """Return masks as bool arrays of the sizes of their images, which have the same proportions."""
    shown: list[np.ndarray | None] = [None] * len(pictures)
    for index, marked, name in read_masks(masks, max_pixels=max_pixels):
        height, width = pictures[index].shape[:2]
        check_proportions((marked.shape[0], marked.shape[1]), name, (height, width))
        shown[index] = shrink_mask(marked, (height, width))
    return shown
