"""Features of pictures that pass through the network tile by tile, read by bands: rows of tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ipca_sklearn._utils._surroundings import own_surroundings
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.features._cache import StoredFeatures
from ipca_sklearn.features._lazy import PatchFeatures, _run_network
from ipca_sklearn.features._loader import read_batches
from ipca_sklearn.features._remarks import Remarks


@dataclass(frozen=True, eq=False)
class Bands:
    """The features of one picture, as bands (p, m) of its patches from the first row on, computed when read."""

    features: TiledFeatures
    index: int
    stored: list[StoredFeatures]
    remarks: Remarks

    def __iter__(self) -> Iterator[Tensor]:
        return self.features._bands(self.index, self.stored, self.remarks)


class TiledFeatures(PatchFeatures):
    """Features of large pictures, of which only a band exists at a time (`read_bands`)."""

    @property
    def memory_needed(self) -> int:
        """Bytes that computing them takes, about: the network, a picture as it is decoded and as floats, and bands."""
        pixels = 2 * 3 * 4 * math.prod(self._settings.images.crop_size)
        in_network = self._settings.of_network.bytes_of_network(self.device)
        return in_network + pixels + self._bytes_of_decoding() + 3 * self.bytes_of_band

    @property
    def bytes_of_band(self) -> int:
        """Bytes of the features of a row of tiles."""
        return 4 * self._settings.of_network.grid_size[0] * self._settings.grid_size[1] * self._settings.n_features

    @property
    def _images_at_once(self) -> int:
        return 1

    def read_bands(self, size: int) -> Iterator[tuple[list[Bands | None], dict[int, str]]]:
        """Yield the pictures like `read`, `size` at a time; None is one that could not be read."""
        remarks = Remarks()
        return self._with_remarks(self._pictures(size, remarks), remarks)

    def _pictures(self, size: int, remarks: Remarks) -> Iterator[tuple[list[Bands | None], dict[int, str]]]:
        stored = self._stored_bands()
        for start in range(0, len(self), size):
            chosen = self._indices[start : start + size].tolist()
            reasons = [self._reason(index, stored, remarks) for index in chosen]
            skipped = {row: reason for row, reason in enumerate(reasons) if reason is not None}
            bands = [
                None if row in skipped else Bands(self, index, stored, remarks) for row, index in enumerate(chosen)
            ]
            yield bands, skipped

    def _reason(self, index: int, stored: list[StoredFeatures], remarks: Remarks) -> str | None:
        """Return why a picture cannot be read, where such are skipped: it is decoded once more for that."""
        if not self.may_skip or (stored and not any(len(band.missing(np.array([index]))) for band in stored)):
            return None
        return self._picture(index, remarks)[1]

    def _rows_of_tiles(self) -> list[tuple[int, slice, np.ndarray | None]]:
        """Return the rows of tiles that are inspected: number, rows of patches, and which of their patches."""
        tiling, region = self._settings.tiling, self._settings.region
        assert tiling is not None
        height = tiling.picture[0] // self._settings.grid_size[0]
        found = []
        for number in range(len(tiling.starts[0])):
            rows = tiling.patches(0, number, height)
            inside = None if region is None else region[rows]
            if inside is None or inside.any():
                found.append((number, rows, inside))
        return found

    def _stored_bands(self) -> list[StoredFeatures]:
        """Return the files of each band; none without a cache."""
        stored = self._stored()
        if stored is None:
            return []
        _, columns, n_features = self._settings.shape
        sizes = [
            (rows.stop - rows.start) * columns if inside is None else int(inside.sum())
            for _, rows, inside in self._rows_of_tiles()
        ]
        return [stored.band(number, (size, n_features)) for number, size in enumerate(sizes)]

    def _read(self, size: int, reuse: bool, remarks: Remarks) -> Iterator[tuple[Tensor, dict[int, str]]]:
        memory = torch.empty(min(size, len(self)), *self._settings.kept_shape, dtype=torch.float32, device=self.device)
        for pictures, skipped in self._pictures(size, remarks):
            batch = (memory if reuse else torch.empty_like(memory))[: len(pictures)]
            for picture, out in zip(pictures, batch.flatten(1, -2), strict=True):
                start = 0
                out.fill_(torch.nan)
                for band in () if picture is None else picture:
                    out[start : start + len(band)] = band
                    start += len(band)
            yield batch, skipped

    def _picture(self, index: int, remarks: Remarks) -> tuple[Tensor, str | None]:
        """Return a picture (3, h, w) as floats in [0, 1], or the reason why it cannot be read."""
        # By the reader itself: decoding takes far less time than the tiles.
        alone = replace(self._settings.images, n_jobs=1, processes=False)
        (batch,) = read_batches(self._images, [np.array([index])], alone)
        remarks.add(batch)
        return batch.images[0], batch.skipped.get(0)

    def _bands(self, index: int, stored: list[StoredFeatures], remarks: Remarks) -> Iterator[Tensor]:
        picture: Tensor | None = None
        for place, row_of_tiles in enumerate(self._rows_of_tiles()):
            if stored:
                values = np.empty(stored[place].shape, np.float32)
                if stored[place].read(index, values):
                    yield torch.from_numpy(values).to(self.device)
                    continue
            if picture is None:
                picture, reason = self._picture(index, remarks)
                if reason is not None:  # it could be read a moment ago
                    raise ImageReadError(reason)
            band = self._band(picture, *row_of_tiles)
            if stored:
                stored[place].write(index, band)
            yield band

    def _band(self, picture: Tensor, number: int, rows: slice, inside: np.ndarray | None) -> Tensor:
        """Compute a band (p, m) of a picture: a row of tiles, or its patches in the region."""
        settings, device = self._settings, self.device
        tiling = settings.tiling
        assert tiling is not None
        with own_surroundings():
            settings.backbone.to(device)
        pixels = picture[:, tiling.pixels(0, number, device)]
        shape = (rows.stop - rows.start, settings.grid_size[1], settings.n_features)
        band = torch.empty(shape, dtype=torch.float32, device=device)
        height, width = (side // n for side, n in zip(tiling.picture, settings.grid_size, strict=True))
        columns = [tiling.patches(1, column, width) for column in range(len(tiling.starts[1]))]
        wanted = [c for c, taken in enumerate(columns) if inside is None or inside[:, taken].any()]
        of_tile = settings.of_network
        size = of_tile.network_batch(device)
        for first in range(0, len(wanted), size):
            some = wanted[first : first + size]
            tiles = torch.stack([pixels[..., tiling.pixels(1, column, device)] for column in some])
            found = band.new_empty(len(some), *of_tile.shape)
            _run_network(tiles.contiguous(memory_format=torch.channels_last), found, of_tile)
            for column, features in zip(some, found, strict=True):
                band[:, columns[column]] = features[tiling.within(0, number, height), tiling.within(1, column, width)]
        return band.flatten(0, 1) if inside is None else band[torch.from_numpy(inside).to(device)]
