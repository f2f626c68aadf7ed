"""Resizing is the same for every form of a picture, and that of torch for floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from sklearn.pipeline import make_pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.images._decode import check_images, load_batch, resize_and_crop, to_rgb
from ipca_sklearn.images._resize import resize, sampled


def smooth(n, height, width, noise, seed=0):
    """Pictures of slow waves, whose levels differ by less than rounding moves them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = 0.5 + 0.3 * np.sin(6 * columns + 0.02 * rng.normal(size=(n, 1, 1))) * np.cos(5 * rows)
    pixels = waves[..., None] * [1, 0.9, 0.8] + noise * rng.normal(size=(n, height, width, 3))
    return (255 * pixels.clip(0, 1)).round().astype(np.uint8)


def channels_first(images):
    return np.ascontiguousarray(np.moveaxis(images, 3, 1))


def with_alpha(images, opaque):
    return np.concatenate([images, np.full_like(images[..., :1], opaque)], axis=3)


FORMS = {
    "uint8": lambda x: x,
    "uint16": lambda x: x.astype(np.uint16) * 257,
    "float32": lambda x: x.astype(np.float32) / 255,
    "float64": lambda x: x / 255,
    "foreign float64": lambda x: (x / 255).astype(">f8"),
    "Fortran order": np.asfortranarray,
    "every second pixel": lambda x: np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)[:, ::2, ::2],
    "list": list,
    "PIL": lambda x: [Image.fromarray(one) for one in x],
    "uint8 tensor": lambda x: torch.from_numpy(channels_first(x)),
    "channels last": lambda x: torch.from_numpy(x).movedim(3, 1),
    "uint16 tensor": lambda x: torch.from_numpy(channels_first(x).astype(np.uint16) * 257),
    "float tensor": lambda x: torch.from_numpy(channels_first(x)) / 255,
    "double tensors": lambda x: list(torch.from_numpy(channels_first(x) / 255)),
    "opaque uint8": lambda x: with_alpha(x, 255),
    "opaque float": lambda x: with_alpha(x / 255, 1),
    "opaque PIL": lambda x: [Image.fromarray(one) for one in with_alpha(x, 255)],
}


def seen(X, size, interpolation):
    """What the network would see of images: (n, 3, *size) floats."""
    X = check_images(X)
    if isinstance(X, list):
        read = [resize_and_crop(to_rgb(one, f"X[{i}]"), size, size, interpolation) for i, one in enumerate(X)]
    else:
        read = resize_and_crop(to_rgb(X, [f"X[{i}]" for i in range(len(X))]), size, size, interpolation)
    return load_batch(read, torch.device("cpu")).numpy()


sides = st.integers(1, 90)


@given(
    size=st.tuples(sides, sides),
    new_size=st.tuples(sides, sides),
    interpolation=st.sampled_from(["nearest", "bilinear"]),
    noise=st.sampled_from([0, 0.004, 0.05]),
    form=st.sampled_from(list(FORMS)),
)
@example((90, 90), (32, 32), "bilinear", 0, "float32")
@example((1, 1), (90, 1), "bilinear", 0.05, "uint16")
@example((40, 60), (40, 30), "bilinear", 0.004, "channels last")
@example((40, 60), (20, 60), "bilinear", 0.004, "uint8 tensor")
@example((50, 50), (50, 50), "bilinear", 0.004, "opaque float")
def test_a_picture_has_the_same_pixels_in_any_form(size, new_size, interpolation, noise, form):
    pictures = smooth(2, *size, noise)
    expected = seen(pictures, new_size, interpolation)
    np.testing.assert_allclose(seen(FORMS[form](pictures), new_size, interpolation), expected, atol=1e-6, rtol=0)


@given(size=st.tuples(sides, sides), new_size=st.tuples(sides, sides), noise=st.sampled_from([0, 0.05]))
def test_grey_pictures_and_transparent_ones_have_the_same_pixels_in_any_form(size, new_size, noise):
    pictures = smooth(2, *size, noise)
    grey, alpha = pictures[..., :1], np.concatenate([pictures, pictures[..., :1]], axis=3)
    for stored in (grey, alpha):
        as_pil = [Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in stored]
        expected = seen(stored / 255, new_size, "bilinear")
        for X in (stored, as_pil, FORMS["uint16"](stored), FORMS["uint8 tensor"](stored)):
            np.testing.assert_allclose(seen(X, new_size, "bilinear"), expected, atol=1e-6, rtol=0)


SIZES = [((90, 70), (32, 24)), ((700, 31), (64, 64)), ((64, 64), (17, 64)), ((64, 64), (64, 200)), ((9, 1), (3, 50))]


@pytest.mark.parametrize(("size", "new_size"), SIZES)
@pytest.mark.parametrize("layout", ["planes", "channels last", "batch", "grey"])
def test_bilinear_is_that_of_torch_for_floats(layout, size, new_size):
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    image = {
        "planes": image[0],
        "channels last": image[0].movedim(0, 2).contiguous().movedim(2, 0),
        "batch": image.contiguous(memory_format=torch.channels_last),
        "grey": image[0, :1].expand(3, -1, -1),
    }[layout]
    expected = tvf.resize(image, list(new_size), antialias=True)
    torch.testing.assert_close(
        resize(image, new_size, "bilinear"), expected, atol=1e-5, rtol=0
    )  # its weights are float32
    as_bytes = (image * 255).round().byte()
    expected = tvf.resize(as_bytes.float() / 255, list(new_size), antialias=True)
    torch.testing.assert_close(resize(as_bytes, new_size, "bilinear"), expected, atol=1e-5, rtol=0)


def test_settings_of_the_program_do_not_change_a_bit():
    image = torch.randint(0, 256, (3, 150, 130), dtype=torch.uint8)
    expected = resize(image, (32, 40), "bilinear")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(resize(image, (32, 40), "bilinear"), expected)
        assert resize(image, (33, 41), "bilinear").dtype == torch.float32
    first_made_in_inference_mode = resize(image, (33, 41), "bilinear")
    assert not first_made_in_inference_mode.is_inference()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(resize(image, (32, 40), "bilinear"), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_gradient_passes_through_a_resize():
    image = torch.rand(3, 30, 30, requires_grad=True)
    resize(image, (10, 12), "bilinear").sum().backward()
    assert image.grad is not None and bool((image.grad > 0).all())


@pytest.mark.parametrize("layout", ["planes", "channels last"])
def test_eight_bits_and_their_floats_have_the_same_bits(layout):
    """A detector of a few very similar pictures turns the last bit into the fourth digit of a score."""
    image = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).movedim(
        2, 0
    )
    image = image.contiguous() if layout == "planes" else image
    for floats in (image / 255, (image.to(torch.int32) * 257).to(torch.uint16).to(torch.float32) / 65535):
        assert torch.equal(resize(image, (32, 24), "bilinear"), resize(floats, (32, 24), "bilinear"))


@pytest.mark.parametrize("noise", [0, 0.004])
def test_the_form_that_a_model_learnt_from_changes_no_score(noise):
    train, test = smooth(24, 100, 80, noise), smooth(6, 100, 80, noise, seed=1)
    scores = {}
    forms = ("uint8", "float32", "uint16", "PIL")
    for learnt in forms:
        extractor = PatchFeatureExtractor("resnet18", weights=None, random_state=0, image_size=32)
        pipe = make_pipeline(extractor, PatchGaussianDetector(4)).fit(FORMS[learnt](train))
        scores |= {(learnt, form): pipe.score_samples(FORMS[form](test)) for form in forms}
    expected = scores["uint8", "uint8"]
    assert np.ptp(expected) > 0
    for found in scores.values():
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [32, 40])
def test_a_callable_augments_floats_whatever_the_form(size):
    X = smooth(2, 40, 40, 0.05)
    dtypes = []

    def darker(image):
        dtypes.append(image.dtype)
        assert image.shape == (3, size, size) and 0 <= image.min() <= image.max() <= 1 + 1e-6
        return image.mul_(0.5)  # in place

    extractor = PatchFeatureExtractor("resnet18", weights=None, random_state=0, image_size=size, augment=darker)
    expected = np.asarray(extractor.fit_transform(X))
    for form in ("uint16", "PIL", "float32", "float tensor"):
        images = FORMS[form](X)
        for _ in range(2):  # the images are not written to
            found = np.asarray(extractor.fit_transform(images))
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.isfinite(np.asarray(extractor.fit_transform(X[..., 0]))).all()  # grey is one channel three times
    assert set(dtypes) == {torch.float32}


def test_beyond_its_edges_an_image_is_sampled_as_mirrored_with_the_edge():
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    y, x = (np.arange(side) - (side - 1) / 2 for side in image.shape[1:])
    found = sampled(image, np.broadcast_to(y[:, None] + 2, (5, 7)), np.broadcast_to(x - 3, (5, 7)))
    mirrored = np.pad(image.numpy(), ((0, 0), (0, 2), (3, 0)), mode="symmetric")[:, 2:, :7]
    np.testing.assert_allclose(found, mirrored, atol=1e-5)
