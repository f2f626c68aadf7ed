"""Maps of layers to the grid by numba: the matrix products without their zeros."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ipca_sklearn.features._grid import on_grid, resize_matrix, write_on_grid
from ipca_sklearn.linalg._execution import numba_works

pytestmark = pytest.mark.skipif(not numba_works(), reason="numba is not installed")


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_maps_of_any_size_are_where_the_matrices_bring_them(data: st.DataObject) -> None:
    side, patches = st.integers(1, 20), st.integers(1, 20)
    h, w, height, width = (data.draw(number) for number in (side, side, patches, patches))
    margin = data.draw(st.sampled_from([0, 0, 7]))
    interpolation = data.draw(st.sampled_from(["bilinear", "nearest"]))
    pooling_size = data.draw(st.sampled_from([1, 3, 7]))
    length = (40, 33)
    layer = torch.randn(2, 3, h, w)
    out = torch.full((2, height, width, 5), torch.nan)
    write_on_grid(
        layer, out[..., 1:4], interpolation=interpolation, pooling_size=pooling_size, margin=margin, length=length
    )
    cpu = torch.device("cpu")
    rows, columns = (
        resize_matrix(n, to, interpolation, pooling_size, margin, pixels, cpu)
        for n, to, pixels in zip((h, w), (height, width), length, strict=True)
    )
    torch.testing.assert_close(out[..., 1:4], on_grid(layer, rows, columns), rtol=1e-5, atol=1e-5)
    assert out[..., [0, 4]].isnan().all()  # other layers' columns
