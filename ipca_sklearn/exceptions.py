"""Errors and warnings of this package. Not-fitted errors are scikit-learn's (`sklearn.exceptions.NotFittedError`)."""

from __future__ import annotations

from sklearn.exceptions import InconsistentVersionWarning

__all__ = [
    "AlignmentWarning",
    "AspectRatioWarning",
    "FewImagesWarning",
    "ImageReadError",
    "InconsistentPackageVersionWarning",
    "MaskWarning",
    "MissingImageError",
    "MultiPageImageWarning",
    "SkippedImagesWarning",
]


class ImageReadError(OSError, ValueError):
    """An image cannot be read. The message names the image, the reason and the remedy."""


class _ImagesWarning(UserWarning):
    """Some images of a pass are not what was expected: how many, and in which way."""

    n_images: int
    remark: str


class AlignmentWarning(_ImagesWarning):
    """The part was not found in images, or not in those of the fit, so that they are not aligned (`align`).

    `reference_` of the extractor is the mean image that parts are aligned to.
    """


class AspectRatioWarning(_ImagesWarning):
    """Images have other proportions than the first image of the fit, and are stretched to its shape."""


class FewImagesWarning(UserWarning):
    """The images are too few for what was asked. The message says what was done, and how many images it takes."""


class MaskWarning(UserWarning):
    """Something of a mask is not marked, or a mask marks nothing. The message names the mask and says what to do."""


class MissingImageError(ImageReadError, FileNotFoundError):
    """There is no file where an image should be: it was never there, or it has been removed since it was listed."""


class InconsistentPackageVersionWarning(InconsistentVersionWarning):
    """A model was stored by another version of this package. A subclass of scikit-learn's warning."""

    def __str__(self) -> str:
        return (
            f"{self.estimator_name} was stored by ipca_sklearn {self.original_sklearn_version} and is loaded by "
            f"{self.current_sklearn_version}: it may fail or give other results. Fit it again, or load it with the "
            "version that stored it"
        )


class MultiPageImageWarning(_ImagesWarning):
    """Files have several pages or frames, and only the first of each is read. The message names some of them."""


class SkippedImagesWarning(_ImagesWarning):
    """Images could not be read and were skipped, as `on_error="skip"` asks. The message names some of them."""
