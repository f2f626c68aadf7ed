"""Layers side by side or averaged, and the middle blocks of transformers."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.export import to_torch
from ipca_sklearn.features._settings import settings_of
from ipca_sklearn.features.backbones._backbone import Backbone
from ipca_sklearn.features.backbones._networks import default_layers, middle_blocks
from ipca_sklearn.features.engines import ENGINES
from ipca_sklearn.persistence import load_skops, save_skops

SAME = ["layer1.0", "layer1.1"]  # of resnet18: 64 channels each


def pictures(n: int = 2, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)


def fitted(pooling: str = "mean", backbone: Any = "resnet18", layers: Any = SAME, **options: Any) -> Any:
    options = {"weights": None, "image_size": 64, "random_state": 0, **options}
    return PatchFeatureExtractor(backbone, layers=layers, layer_pooling=pooling, **options).fit(pictures())


def read(extractor: PatchFeatureExtractor) -> np.ndarray:
    return np.asarray(extractor.transform(pictures()))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "options", [{}, {"margin": 0, "pooling_size": 1}, {"grid_size": (5, 3)}, {"region": np.triu(np.ones((64, 64)))}]
)
def test_the_mean_is_that_of_the_parts_that_stand_side_by_side(options):
    one, both = fitted(**options), fitted("concat", **options)
    assert (one.n_features_out_, both.n_features_out_) == (64, 128)
    parts = np.split(read(both), 2, axis=-1)
    assert_close(read(one), (parts[0] + parts[1]) / 2)
    assert list(one.get_feature_names_out()[:2]) == ["mean_0", "mean_1"]
    assert one.layers_ == both.layers_ == tuple(SAME)
    assert settings_of(one).digest() != settings_of(both).digest()


def test_convolutional_networks_keep_their_layers_side_by_side():
    auto, concat = (fitted(pooling, "mobilenet_v3_small", None) for pooling in ("auto", "concat"))
    np.testing.assert_array_equal(read(auto), read(concat))
    assert auto.n_features_out_ == 88


def test_layers_of_other_shapes_have_no_mean():
    with pytest.raises(ValueError, match=r"layer_pooling='mean' needs layers.*'resnet18'.*layer1 \(64,.*layer2 \(128,"):
        fitted(layers=["layer1", "layer2"])
    with pytest.raises(ValueError, match="The 'layer_pooling' parameter"):
        fitted("max")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_averages_as_torch_does(engine):
    pytest.importorskip("onnxscript")
    pytest.importorskip(engine)
    extractor = fitted(engine=engine)
    found = read(extractor)
    assert extractor.engine_.startswith(engine)
    assert_close(found, read(extractor.set_params(engine="torch")))


def test_a_model_keeps_the_mean_in_files_and_exports(tmp_path):
    pytest.importorskip("skops")
    steps = [("features", fitted()), ("detector", PatchGaussianDetector(4, n_gaussians=4))]
    pipe = Pipeline(steps).fit(pictures(12))
    expected = pipe.score_samples(pictures())
    save_skops(pipe, tmp_path / "model.skops")
    for stored in (load_skops(tmp_path / "model.skops"), pickle.loads(pickle.dumps(pipe))):
        np.testing.assert_allclose(stored.score_samples(pictures()), expected, rtol=1e-5)
    exported = io.BytesIO()
    torch.save(to_torch(pipe), exported)  # it is a whole module
    exported.seek(0)
    scores, _ = torch.load(exported, weights_only=False)(torch.from_numpy(pictures()).movedim(-1, 1))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_the_middle_blocks_are_those_of_subspacead_at_any_depth():
    assert middle_blocks(40) == list(range(21, 28))  # 22 to 28, counted from 1
    assert middle_blocks(12) == [5, 6, 7]
    for depth in range(1, 49):
        blocks = middle_blocks(depth)
        assert blocks and blocks[0] >= 0 and blocks[-1] < depth
        if depth >= 6:
            assert (blocks[0] + 1) / depth >= 0.4 and (blocks[-1] + 1) / depth <= 0.7


@pytest.mark.parametrize(
    ("name", "blocks"), [("vit_b_16", range(5, 8)), ("vit_l_32", range(12, 16)), ("vit_h_14", range(16, 22))]
)
def test_transformers_of_torchvision_have_middle_blocks(name, blocks):
    assert default_layers(name) == tuple(f"encoder.layers.encoder_layer_{block}" for block in blocks)


def test_the_default_of_a_transformer_is_the_mean_of_its_middle_blocks():
    one = fitted("auto", "vit_b_32", None)
    assert one.n_features_out_ == 768 and one.layers_ == default_layers("vit_b_32")
    named = fitted("auto", "vit_b_32", default_layers("vit_b_32"))
    assert named.n_features_out_ == 3 * 768  # as they are where the user names them
    assert_close(read(one), np.mean(np.split(read(named), 3, axis=-1), axis=0))


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize(
    ("name", "side", "n_extra"),
    [
        ("vit_small_patch14_dinov2", 14, 1),
        ("vit_small_patch14_reg4_dinov2", 14, 5),
        ("vit_small_patch16_dinov3", 16, 5),
        ("test_vit", 16, 1),
    ],
)
def test_tokens_of_timm_lie_as_the_patches_do_without_class_and_registers(name, side, n_extra, size):
    timm = pytest.importorskip("timm", reason="pip install timm")
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    rows, columns = (length // 16 for length in size)
    backbone = Backbone(f"timm:{name}", None, None, 0, (rows * side, columns * side), layer_pooling="auto")
    tokens = []
    blocks = [backbone.network.model.blocks[layer] for layer in backbone.layers]
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: tokens.append(output))
    images = torch.randn(1, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (found,) = backbone(images)
    n_channels = tokens[0].shape[-1]
    assert backbone.layers == tuple(middle_blocks(6 if name == "test_vit" else 12))
    assert tokens[0].shape[1] == rows * columns + n_extra
    expected = torch.stack(tokens).mean(0)[:, n_extra:].reshape(1, rows, columns, n_channels)
    assert_close(found.permute(0, 2, 3, 1).numpy(), expected.numpy())


def test_pyramids_and_convolutions_of_timm_keep_their_layers():
    pytest.importorskip("timm", reason="pip install timm")
    pyramid = Backbone("timm:resnet10t", None, None, 0, (64, 64), layer_pooling="auto")
    assert (pyramid.layers, pyramid.layer_pooling) == ((1, 2, 3), "concat")


@pytest.mark.parametrize("size", [448, 672])
def test_the_usual_sizes_of_transformers_give_a_token_for_each_patch(size):
    pytest.importorskip("timm", reason="pip install timm")
    extractor = fitted("auto", "timm:vit_tiny_patch16_224", None, image_size=size)
    assert extractor.grid_size_ == (size // 16,) * 2
    assert extractor.n_features_out_ == 192
    names = {"timm:vit_small_patch14_dinov2": 14, "timm:vit_small_patch16_dinov3": 16}
    for name, side in names.items():
        backbone = Backbone(name, None, None, 0, (size, size), layer_pooling="auto")
        assert backbone.shapes_of_maps() == [(384, size // side, size // side)]
