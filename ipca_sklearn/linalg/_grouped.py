"""Samples that come in groups: patches of an image that share a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor


class GroupedSamples:
    """Samples (n * s, C, m) of C Gaussians, each of which takes s of the P patches of n images, image by image.

    Behaves like a tensor where samples are read: those of some Gaussians are gathered when they are asked for.

    Parameters
    ----------
    images : Tensor of shape (n, P, m)
        In any strides; not changed.
    slots : Tensor of int64, shape (C, s)
        The patches of each Gaussian, on the same device.

    Examples
    --------
    >>> import torch
    >>> from ipca_sklearn.linalg import GroupedSamples
    >>> images = torch.arange(8.0).reshape(1, 4, 2)
    >>> samples = GroupedSamples(images, torch.tensor([[0, 1], [2, 3]]))
    >>> samples.shape, samples[:, 1:2].flatten().tolist()
    ((2, 2, 2), [4.0, 5.0, 6.0, 7.0])
    """

    def __init__(self, images: Tensor, slots: Tensor) -> None:
        self.images = images
        self.slots = slots

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(n * s, C, m)`."""
        n_gaussians, size = self.slots.shape
        return len(self.images) * size, n_gaussians, self.images.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Of the samples."""
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        """Of the samples."""
        return self.images.device

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device) -> GroupedSamples:
        """Return the samples on a device."""
        return self if device == self.device else GroupedSamples(self.images.to(device), self.slots.to(device))

    def __getitem__(self, key: tuple[slice, slice]) -> Tensor:
        """Return samples (n * s, c, m) of a slice of Gaussians; those of a Gaussian are contiguous."""
        samples, gaussians = key
        n_images, n_patches, n_features = self.images.shape
        slots = self.slots[gaussians]
        first = torch.arange(0, n_images * n_patches, n_patches, device=slots.device)
        rows = (slots[:, None] + first[:, None]).flatten()
        gathered = self.images.reshape(-1, n_features).index_select(0, rows)
        return gathered.view(len(slots), -1, n_features).transpose(0, 1)[samples]

    def split(self, size: int) -> tuple[Tensor, ...]:
        """Return the samples of all Gaussians in parts of so many."""
        return self[:, :].split(size)
