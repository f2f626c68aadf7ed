"""Images: every kind of input is the same picture, and what is no picture is named."""

from __future__ import annotations

import copy
import io
import os
import resource
import socket
import struct
import subprocess
import warnings
import zlib
from pathlib import Path
from unittest import mock

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from torch import nn
from torchvision.transforms.v2 import functional

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.exceptions import ImageReadError, MissingImageError, MultiPageImageWarning
from ipca_sklearn.images import _decode as _images
from ipca_sklearn.images._decode import center_crop, check_images, load_batch, resize_and_crop, size_of, to_rgb
from ipca_sklearn.images._masks import read_mask

SHAPE = (48, 40)


def picture(*channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, *channels), dtype=np.uint8)


def as_array(image):
    """The image as the network would see it before the resize: float (H, W, 3) in [0, 1]."""
    return load_batch([to_rgb(image, "X[7]")], torch.device("cpu"))[0].permute(1, 2, 0).cpu().numpy()


def features(X, **params):
    network = nn.Sequential(nn.AvgPool2d(8))
    extractor = PatchFeatureExtractor(network, layers=["0"], image_size=64, crop_size=64, **params)
    return np.asarray(extractor.fit(X).transform(X))


@pytest.fixture(scope="module")
def pictures():
    return np.stack([picture(3, seed=seed) for seed in range(3)])


@pytest.fixture
def paths(pictures, tmp_path):
    for index, array in enumerate(pictures):
        Image.fromarray(array).save(tmp_path / f"{index}.png")
    return sorted(tmp_path.glob("*.png"))


def grad_tensor(pictures):
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255).requires_grad_()


def read_only(pictures):
    pictures = pictures.copy()
    pictures.flags.writeable = False
    return pictures


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = list(items)
    return array


FROM_ARRAYS = {
    "uint8 array": lambda p: p,
    "uint16 array": lambda p: p.astype(np.uint16) * 257,
    "float16 array": lambda p: (p / 255).astype(np.float16),
    "float32 array": lambda p: (p / 255).astype(np.float32),
    "float64 array": lambda p: p / 255,
    "foreign float32": lambda p: (p / 255).astype(np.dtype("f4").newbyteorder()),
    "foreign uint16": lambda p: (p.astype(np.uint16) * 257).astype(np.dtype("u2").newbyteorder()),
    "read-only": read_only,
    "not contiguous": lambda p: np.repeat(np.asfortranarray(p), 2, axis=2)[:, :, ::2],
    "negative strides": lambda p: np.ascontiguousarray(p[:, ::-1, ::-1])[:, ::-1, ::-1],
    "list of arrays": list,
    "object array of arrays": object_array,
    "generator": lambda p: (image for image in p),
    "PIL images": lambda p: [Image.fromarray(image) for image in p],
    "uint8 tensor": lambda p: torch.from_numpy(p).permute(0, 3, 1, 2),
    "uint16 tensor": lambda p: torch.from_numpy(p.astype(np.uint16) * 257).permute(0, 3, 1, 2),
    "float tensor": lambda p: torch.from_numpy(p).permute(0, 3, 1, 2) / 255,
    "double tensor": lambda p: torch.from_numpy(p).permute(0, 3, 1, 2).double() / 255,
    "tensor with gradient": grad_tensor,
    "list of tensors": lambda p: list(torch.from_numpy(p).permute(0, 3, 1, 2)),
    "opaque RGBA": lambda p: np.concatenate([p, np.full_like(p[..., :1], 255)], axis=-1),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FROM_ARRAYS)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_the_same_picture_in_any_form_has_the_same_features(kind, interpolation, pictures):
    X = FROM_ARRAYS[kind](pictures)
    X = list(X) if kind == "generator" else X
    atol = 5e-3 if kind == "float16 array" else 1e-5  # float16 keeps 11 bits
    expected = features(pictures, interpolation=interpolation)
    np.testing.assert_allclose(features(X, interpolation=interpolation), expected, atol=atol)


PATH_LISTS = {
    "Path": lambda paths: paths,
    "str": lambda paths: [str(path) for path in paths],
    "tuple": tuple,
    "object array": lambda paths: np.array([str(path) for path in paths], dtype=object),
    "str array": lambda paths: np.array([str(path) for path in paths]),
    "0-d arrays": lambda paths: [np.array(str(path)) for path in paths],
    "mixed": lambda paths: [
        paths[0],
        np.asarray(Image.open(paths[1])),
        torch.from_numpy(np.array(Image.open(paths[2]))).permute(2, 0, 1),
    ],
    "lazy PIL": lambda paths: [Image.open(path) for path in paths],
    "contents": lambda paths: [path.read_bytes() for path in paths],
}


@pytest.mark.parametrize("kind", PATH_LISTS)
def test_paths_in_any_form_have_the_features_of_their_arrays(kind, paths, pictures):
    np.testing.assert_allclose(features(PATH_LISTS[kind](paths)), features(pictures), atol=1e-5)


DEEP = {
    "uint8": lambda p: p,
    "uint16": lambda p: p.astype(np.uint16) * 257,
    "float32": lambda p: (p / 255).astype(np.float32),
    "float64": lambda p: p / 255,
}


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", DEEP)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_images_in_one_array_are_prepared_at_once_as_they_are_one_by_one(kind, channels, dtype, interpolation, device):
    X = DEEP[dtype](np.stack([picture(channels, seed=seed) for seed in range(5)]))
    X = X if kind == "array" else torch.from_numpy(X).permute(0, 3, 1, 2).to(device)
    names = [f"X[{index}]" for index in range(5)]
    together = resize_and_crop(to_rgb(X, names), (64, 64), (56, 56), interpolation)
    alone = torch.stack(
        [
            resize_and_crop(to_rgb(image, name), (64, 64), (56, 56), interpolation)
            for image, name in zip(X, names, strict=True)
        ]
    )
    assert together.shape == (5, 3, 56, 56) and together.dtype == alone.dtype and together.device == alone.device
    atol = 0 if interpolation == "nearest" else 1e-6
    np.testing.assert_allclose(together.cpu().double(), alone.cpu().double(), atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", DEEP)
@pytest.mark.parametrize("key", [slice(None, None, -1), slice(1, 4), [2, 0, 2, 4], [3, 4], slice(2, 2)])
def test_any_choice_from_one_array_is_the_same_choice_from_a_list(dtype, key, device):
    X = DEEP[dtype](np.stack([picture(3, seed=seed) for seed in range(5)]))
    network = nn.Sequential(nn.AvgPool2d(8))
    extractor = PatchFeatureExtractor(network, layers=["0"], image_size=64, crop_size=64, batch_size=2).fit(X)
    expected = np.asarray(extractor.transform(list(X)))[key]
    for images in (X, torch.from_numpy(X).permute(0, 3, 1, 2).to(device)):
        np.testing.assert_allclose(np.asarray(extractor.transform(images)[key]), expected, atol=1e-5)


def test_uint8_stays_uint8_until_it_is_on_the_device(device, monkeypatch):
    moved = []
    monkeypatch.setattr(_images, "to_device", lambda tensor, device: moved.append(tensor.dtype) or tensor.to(device))
    images = [to_rgb(picture(3, seed=seed), "X[0]") for seed in range(3)]
    batch = load_batch(images, device)
    assert moved == [torch.uint8]
    assert batch.dtype == torch.float32 and batch.device == device
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.cpu(), torch.stack(images).float() / 255)


def test_every_integer_value_is_the_nearest_float_to_its_share():
    shares = np.arange(256, dtype=np.float32) / np.float32(255)
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    np.testing.assert_array_equal(load_batch(bytes_, torch.device("cpu"))[0, 0].flatten(), shares)
    deep = np.arange(65536).astype(np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_rgb(deep, "X[0]")[0].flatten(), (np.arange(65536) / 65535).astype(np.float32))


def test_a_batch_of_a_mixed_list_has_each_image_as_a_share(device):
    bytes_, floats = to_rgb(picture(3), "X[0]"), to_rgb(picture(3, seed=1) / 255, "X[1]")
    batch = load_batch([bytes_, floats.to(device)], device)
    assert batch.device == device
    np.testing.assert_allclose(batch.cpu(), torch.stack([bytes_.float() / 255, floats]), atol=1e-7)


def test_tensors_stay_on_their_device(device, pictures):
    X = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device)
    extractor = PatchFeatureExtractor(nn.Sequential(nn.AvgPool2d(8)), layers=["0"], image_size=64, crop_size=64)
    for images in (X, list(X), [X[0], pictures[1], X[2].cpu()]):
        found = extractor.fit(images).transform(images)
        assert next(iter(found)).device == found.device == device
        np.testing.assert_allclose(np.asarray(found), features(pictures), atol=1e-5)


def test_input_is_not_changed(pictures):
    for kind in ("uint8 array", "float32 array", "uint8 tensor", "tensor with gradient"):
        X = FROM_ARRAYS[kind](pictures.copy())
        before = copy.deepcopy(X)
        features(X)
        assert (before == X).all()


def test_images_of_mixed_sizes_are_each_resized_on_their_own(pictures):
    larger = np.repeat(np.repeat(pictures[0], 2, axis=0), 3, axis=1)
    found = features(object_array([pictures[0], larger, pictures[1][:, :20]]))
    np.testing.assert_allclose(found[0], features(pictures)[0], atol=1e-5)
    np.testing.assert_allclose(found[1], features([larger])[0], atol=1e-5)
    np.testing.assert_allclose(found[2], features([pictures[1][:, :20]])[0], atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [lambda g: g[..., None], lambda g: g, Image.fromarray, lambda g: torch.tensor(g)[None], lambda g: torch.tensor(g)],
)
def test_grey_becomes_three_equal_channels(form):
    grey = picture()
    np.testing.assert_allclose(as_array(form(grey)), np.repeat(grey[..., None] / 255, 3, axis=-1), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", DEEP)
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_grey_images_in_one_array_need_no_channel_axis(kind, dtype, n):
    grey = DEEP[dtype](np.stack([picture(seed=seed) for seed in range(n)]))
    expected = features(list(grey))
    stack = torch.from_numpy(grey) if kind == "tensor" else grey
    X = stack if kind == "array" or n not in (3, 4) else stack[:, None]
    np.testing.assert_allclose(features(X), expected, atol=1e-6)
    np.testing.assert_allclose(features(list(stack)), expected, atol=1e-6)


def test_normalised_tensors_are_an_error_that_says_what_to_pass():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    X = ((np.stack([picture(3)] * 2) / 255 - mean) / std).astype(np.float32)
    bright = (np.full_like(X, 0.9) - mean) / std  # normalised values need not be negative
    for values in (X, X.transpose(0, 3, 1, 2), bright):
        Y = torch.from_numpy(values) if values.shape[1] == 3 else values
        for images in (Y, list(Y)):
            with pytest.raises(
                ImageReadError, match=r"X\[0\] has values from .*Normalize, ImageNet's mean.*OpenCV's are BGR"
            ):
                features(images)


def over_black(colour, alpha):
    return colour / 255 * (alpha / 255)


@pytest.mark.parametrize("form", ["array", "tensor", "PIL", "PNG", "WebP"])
def test_transparent_pixels_become_black(form, tmp_path):
    rgba = picture(4)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    image = Image.fromarray(rgba)
    if form in ("PNG", "WebP"):
        image.save(tmp_path / "x", format=form, **({"lossless": True, "exact": True} if form == "WebP" else {}))
        image = tmp_path / "x"
    X = {"array": rgba, "tensor": torch.from_numpy(rgba).permute(2, 0, 1)}.get(form, image)
    np.testing.assert_allclose(as_array(X), over_black(rgba[..., :3], rgba[..., 3:]), atol=1e-6)
    assert (as_array(X)[0, 0] == 0).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_transparency_of_deep_arrays_is_a_share_too(dtype):
    rgba = picture(4)
    deep = rgba.astype(np.uint16) * 257 if dtype == np.uint16 else rgba.astype(dtype) / 255
    np.testing.assert_allclose(as_array(deep), rgba[..., :3] / 255 * (rgba[..., 3:] / 255), atol=1e-6)


def test_grey_with_transparency_is_laid_over_black():
    grey_alpha = picture(2)
    expected = over_black(grey_alpha[..., :1].repeat(3, axis=-1), grey_alpha[..., 1:])
    np.testing.assert_allclose(as_array(Image.fromarray(grey_alpha, "LA")), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "gif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_are_looked_up(suffix, transparent, tmp_path):
    indices = picture() % 4
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [7, 7, 250]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("L")
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    image.save(tmp_path / f"x.{suffix}", **({"transparency": 1} if transparent else {}))
    expected = palette[indices] / 255
    if transparent:
        expected[indices == 1] = 0
    path = tmp_path / f"x.{suffix}"
    np.testing.assert_allclose(as_array(path if suffix == "png" else Image.open(path)), expected, atol=1e-6)


def test_one_bit_is_black_and_white(tmp_path):
    bits = picture() > 127
    Image.fromarray(bits).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode == "1"
    np.testing.assert_array_equal(as_array(tmp_path / "x.png"), np.repeat(bits[..., None], 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled_and_not_clipped(suffix, order, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.uint16)
    deep[0, :3] = 65535, 32768, 255
    mode = {"<": "I;16", ">": "I;16B"}[order]
    image = Image.frombytes(mode, SHAPE[::-1], deep.astype(f"{order}u2").tobytes())
    image.save(tmp_path / f"x.{suffix}")
    found = as_array(tmp_path / f"x.{suffix}")
    np.testing.assert_allclose(found, np.repeat(deep[..., None] / 65535, 3, axis=-1), atol=1e-6)
    assert found[0, 0, 0] == 1
    np.testing.assert_allclose(as_array(image), found)


def test_pil_integers_are_sixteen_bits_and_floats_are_shares():
    deep = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.int32)
    np.testing.assert_allclose(as_array(Image.fromarray(deep))[..., 1], deep / 65535, atol=1e-6)
    np.testing.assert_allclose(as_array(Image.fromarray((deep / 65535).astype(np.float32)))[..., 2], deep / 65535)
    with pytest.raises(ImageReadError, match=r"X\[7\] has 32-bit values outside 0 .. 65535"):
        as_array(Image.fromarray(deep * 2))
    with pytest.raises(ImageReadError, match=r"X\[7\] has values from .* Divide by"):
        as_array(Image.fromarray(deep.astype(np.float32)))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_colour_spaces_become_rgb(mode, tmp_path):
    image = Image.fromarray(picture(3)).convert(mode)
    np.testing.assert_allclose(as_array(image), np.asarray(image.convert("RGB")) / 255, atol=1e-6)
    if mode == "CMYK":
        image.save(tmp_path / "x.jpg", quality=95)
        with Image.open(tmp_path / "x.jpg") as stored:
            assert stored.mode == "CMYK"
            np.testing.assert_allclose(as_array(tmp_path / "x.jpg"), np.asarray(stored.convert("RGB")) / 255, atol=1e-6)


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(3)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(as_array(tmp_path / "x.png"), TURNED[orientation](picture(3)) / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_of_several_frames_the_first_is_taken_and_one_warning_says_so(suffix, tmp_path):
    red, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    several, single = tmp_path / f"several.{suffix}", tmp_path / f"single.{suffix}"
    red.save(several, save_all=True, append_images=[blue, red], **options)
    red.save(single)
    np.testing.assert_allclose(as_array(several), np.broadcast_to([1, 0, 0], (6, 8, 3)), atol=0.01)
    with pytest.warns(MultiPageImageWarning, match=r"2 of 3 images .*several\.\w+ \(3 pages or frames\)") as caught:
        features([several, single, several])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features([single])


def test_processes_tell_of_several_frames_too(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    with joblib.parallel_config(backend="loky"), pytest.warns(MultiPageImageWarning, match="1 of 1 images"):
        features([tmp_path / "x.tif"])


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "bmp", "tif", "tiff", "webp", "ppm", "pnm"])
def test_usual_formats_are_read(suffix, tmp_path):
    smooth = np.asarray(Image.fromarray(picture(3)[:4, :4]).resize(SHAPE[::-1], Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / f"x.{suffix}")
    error = np.abs(as_array(tmp_path / f"x.{suffix}") - smooth / 255)
    assert error.mean() < (0.05 if suffix in ("jpg", "JPEG", "webp") else 1e-6)


def encoded(form):
    buffer = io.BytesIO()
    Image.fromarray(picture(3)).save(buffer, format=form)
    return buffer.getvalue()


BAD_FILES = {
    "cut.png": lambda: encoded("PNG")[:-1000],
    "cut.jpg": lambda: encoded("JPEG")[:-300],
    "cut.bmp": lambda: encoded("BMP")[:-300],
    "cut.tif": lambda: encoded("TIFF")[:-300],
    "corrupt.png": lambda: encoded("PNG")[:60] + b"\0" * 200 + encoded("PNG")[260:],
    "empty.png": lambda: b"",
    "text.png": lambda: b"these are no pixels",
    "head.jpg": lambda: encoded("JPEG")[:20],
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_damaged_file_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(BAD_FILES[name]())
    with pytest.raises(ImageReadError, match=name.replace(".", r"\.") + r".* leave it out"):
        to_rgb(tmp_path / name, "X[0]")
    with pytest.raises(ImageReadError, match=r"X\[0\] .* leave it out"):
        to_rgb(BAD_FILES[name](), "X[0]")


def test_a_file_without_permission_is_named(paths, monkeypatch):
    monkeypatch.setattr(os, "open", mock.Mock(side_effect=PermissionError("not yours")))
    with pytest.raises(ImageReadError, match=r"0\.png cannot be opened \(PermissionError"):
        to_rgb(paths[0], "X[0]")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png; check the path"):
        to_rgb(str(tmp_path / "gone.png"), "X[0]")


def test_a_folder_is_named_and_no_image(tmp_path):
    with pytest.raises(ImageReadError, match=f"{tmp_path.name} is a directory .* no regular file"):
        to_rgb(tmp_path, "X[0]")


def test_a_path_that_can_be_none_is_named():
    with pytest.raises(ImageReadError, match="null"):
        to_rgb("a\0b.png", "X[0]")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    else:
        path.symlink_to(os.devnull)
    with pytest.raises(ImageReadError, match=rf"x\.png is a {kind} and no regular file".replace("fifo", "FIFO")):
        to_rgb(path, "X[0]")


def test_a_file_that_becomes_a_fifo_while_it_is_opened_is_not_waited_for(paths, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.png")
    monkeypatch.setattr(os, "stat", lambda path, **options: os.lstat(paths[0]))
    with pytest.raises(ImageReadError, match=r"fifo\.png is a FIFO"):
        to_rgb(tmp_path / "fifo.png", "X[0]")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) print\nshowpage\n%%EOF\n"
OTHER_FORMATS = {
    "EPS": lambda: POSTSCRIPT,
    "GIF": lambda: encoded("GIF"),
    "ICO": lambda: encoded("ICO"),
    "JPEG 2000": lambda: encoded("JPEG2000"),
    "AVIF": lambda: b"\0\0\0\x1cftypavif\0\0\0\0" + bytes(100),
    "HEIC": lambda: b"\0\0\0\x1cftypheic\0\0\0\0" + bytes(100),
    "DICOM": lambda: bytes(128) + b"DICM" + bytes(100),
    "PDF": lambda: b"%PDF-1.7\n" + bytes(100),
}


@pytest.mark.parametrize("form", OTHER_FORMATS)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_another_format_is_named_by_its_content_and_no_program_is_started(form, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=AssertionError("a program was started")))
    (tmp_path / f"x.{suffix}").write_bytes(OTHER_FORMATS[form]())
    with pytest.raises(ImageReadError, match=rf"x\.{suffix} is of the format {form}.* not read .*Convert it to PNG"):
        to_rgb(tmp_path / f"x.{suffix}", "X[0]")
    with pytest.raises(ImageReadError, match=f"is of the format {form}"):
        read_mask(tmp_path / f"x.{suffix}", "masks[0]")


def test_a_pil_image_that_another_program_would_decode_is_refused(tmp_path):
    (tmp_path / "x.eps").write_bytes(POSTSCRIPT)
    with (
        Image.open(tmp_path / "x.eps") as image,
        pytest.raises(ImageReadError, match=r"X\[0\] is of the format EPS, which Pillow decodes with another program"),
    ):
        features([image])


def png_of(width, height):
    """A PNG file that claims to be of this size, and holds no pixels."""
    png = encoded("PNG")
    header = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WebP"])
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # also Pillow's of decompression bombs
def test_an_image_of_too_many_pixels_is_refused_before_memory_is_taken(form, tmp_path):
    path = tmp_path / f"huge.{form}"
    if form == "TIFF":
        Image.new("1", (13_000, 13_000)).save(path, compression="group4")
    elif form == "WebP":
        webp = encoded("WebP")
        path.write_bytes(webp[:26] + struct.pack("<HH", 13_000, 13_000) + webp[30:])
    else:
        path.write_bytes(png_of(13_000, 13_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageReadError, match=rf"huge\.{form} has 13000 x 13000 = 169000000 pixels[\s\S]*max_pixels"):
        to_rgb(path, "X[0]")
    with pytest.raises(ImageReadError, match="limit of 100000000"):
        to_rgb(path, "X[0]", max_pixels=100_000_000)
    with pytest.raises(ImageReadError, match=r"X\[0\] has 13000 x 13000"):
        to_rgb(path.read_bytes(), "X[0]")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_photographs_and_panoramas_are_read(tmp_path):
    for size in ((4000, 3000), (20_000, 500)):
        Image.new("RGB", size, "red").save(tmp_path / "x.jpg")
        assert to_rgb(tmp_path / "x.jpg", "X[0]").shape == (3, *size[::-1])


def test_the_limit_of_pixels_is_a_parameter_and_does_not_concern_arrays(paths, pictures):
    n_pixels = SHAPE[0] * SHAPE[1]
    for X in (paths, [Image.open(path) for path in paths]):
        assert features(X, max_pixels=n_pixels).shape == (3, 8, 8, 3)
    for X in (paths, [Image.open(path) for path in paths]):
        with pytest.raises(ImageReadError, match=f"more than the limit of {n_pixels - 1}"):
            features(X, max_pixels=n_pixels - 1)
    assert features(pictures, max_pixels=1).shape == features(list(pictures), max_pixels=1).shape == (3, 8, 8, 3)
    extractor = PatchFeatureExtractor(image_size=64, max_pixels=n_pixels - 1)
    with pytest.raises(ImageReadError, match="max_pixels"):
        extractor.transform_masks([paths[0]])


@pytest.mark.filterwarnings("error")
def test_pillows_own_limit_decides_nothing(paths, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert to_rgb(paths[0], "X[0]").shape == (3, *SHAPE)


def test_control_characters_of_a_name_do_not_reach_the_message(tmp_path):
    path = tmp_path / "a\x1b[2J\n.png"
    for name in (path, path.with_name(os.fsdecode(b"\xe9.png"))):
        with pytest.raises(MissingImageError) as missing:
            to_rgb(name, "X[0]")
        name.write_bytes(b"text")
        with pytest.raises(ImageReadError) as broken:
            to_rgb(name, "X[0]")
        for error in (missing, broken):
            assert str(error.value).isprintable() and ascii(str(error.value))
            str(error.value).encode()


def exif_with(tag_type, value):
    """An EXIF block with one tag, the orientation, of any type."""
    body = value if len(value) > 4 else b""
    entry = struct.pack("<HHI", 0x0112, tag_type, len(value)) + (
        struct.pack("<I", 26) if body else value.ljust(4, b"\0")
    )
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4) + body


BROKEN_EXIF = {
    "text": exif_with(2, b"6\0"),
    "long text": exif_with(2, b"Rotate 90 CW\0"),
    "bytes": exif_with(7, b"\6\0\0\0"),
    "rational": exif_with(5, b"\6"),
    "several numbers": exif_with(3, b"\6\6"),
    "cut off": exif_with(3, b"\6")[:20],
    "no EXIF": b"Exif\0\0nothing of the kind",
}


@pytest.mark.parametrize("kind", BROKEN_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_broken_orientation_does_not_spoil_the_pixels(kind, suffix, tmp_path):
    options = {"lossless": True} if suffix == "webp" else {}
    Image.new("RGB", (40, 48), "red").save(tmp_path / f"x.{suffix}", exif=BROKEN_EXIF[kind], **options)
    assert as_array(tmp_path / f"x.{suffix}").shape in ((48, 40, 3), (40, 48, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_are_turned_once(orientation, tmp_path):
    Image.fromarray(picture(3)).save(tmp_path / "x.tif", tiffinfo={0x0112: orientation})
    turned = TURNED[orientation](picture(3))
    np.testing.assert_allclose(as_array(tmp_path / "x.tif"), turned / 255, atol=1e-6)
    assert size_of(tmp_path / "x.tif") == turned.shape[:2]


def test_a_tiff_orientation_stored_as_text_is_passed_over_or_named(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[0x0112] = 2
    tags[0x0112] = "6"
    Image.fromarray(picture(3)).save(tmp_path / "x.tif", tiffinfo=tags)
    try:
        np.testing.assert_allclose(as_array(tmp_path / "x.tif"), picture(3) / 255, atol=1e-6)
    except ImageReadError as error:
        assert "x.tif" in str(error)


def test_the_main_picture_of_an_mpo_file_is_read_without_a_warning(tmp_path):
    picture_, preview = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (8, 6), "blue")
    picture_.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[preview])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert features([tmp_path / "x.jpg"]).shape == (1, 8, 8, 3)
    assert to_rgb(tmp_path / "x.jpg", "X[0]").shape == (3, 30, 40)


def with_chunk(png, kind, content):
    """A PNG file with one more chunk after its header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


ODD_FILES = {
    "broken profile": lambda: with_chunk(encoded("PNG"), b"iCCP", b"name\0\0" + zlib.compress(b"no profile")),
    "text": lambda: with_chunk(encoded("PNG"), b"zTXt", b"note\0\0" + zlib.compress(bytes(900_000))),
    "huge text": lambda: with_chunk(encoded("PNG"), b"zTXt", b"note\0\0" + zlib.compress(bytes(70_000_000))),
    "no palette": lambda: png_without_palette(),
    "long transparency": lambda: with_chunk(encoded("PNG"), b"tRNS", bytes(300)),
}


def png_without_palette():
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert("P").save(buffer, "PNG")
    png = buffer.getvalue()
    start = png.index(b"PLTE") - 4
    return png[:start] + png[start + 12 + int.from_bytes(png[start : start + 4], "big") :]


@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_parts_of_a_file_are_passed_over_or_named(kind, tmp_path):
    (tmp_path / "odd.png").write_bytes(ODD_FILES[kind]())
    try:
        assert to_rgb(tmp_path / "odd.png", "X[0]").shape == (3, *SHAPE)
    except ImageReadError as error:
        assert "odd.png" in str(error) and kind != "text"


def test_floats_in_a_file_are_shares_and_others_are_named(tmp_path):
    values = np.linspace(0, 1, SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_allclose(as_array(tmp_path / "x.tif")[..., 0], values)
    Image.fromarray(values * 255).save(tmp_path / "x.tif")
    with pytest.raises(ImageReadError, match=r"x\.tif has values from 0 to 255; float images are in \[0, 1\].* Divide"):
        to_rgb(tmp_path / "x.tif", "X[0]")


def test_a_damaged_pil_image_is_named_by_its_position(tmp_path):
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:-1000])
    with pytest.raises(ImageReadError, match=r"X\[1\] cannot be decoded"):
        features([picture(3), Image.open(tmp_path / "cut.png")])
    closed = Image.open(tmp_path / "cut.png")
    closed.close()
    with pytest.raises(ImageReadError, match=r"X\[0\] cannot be decoded .*closed"):
        features([closed])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.img"


@given(
    form=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "PPM", "WebP", "GIF"]),
    cut=st.one_of(st.none(), st.integers(0, 9000)),
    appended=st.binary(max_size=30),
    changes=st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=4)), max_size=6),
)
def test_any_change_of_a_file_gives_an_image_or_a_documented_error(fuzzed, form, cut, appended, changes):
    content = bytearray(encoded(form))
    for position, new in changes:
        content[position % len(content) : position % len(content) + len(new)] = new
    fuzzed.write_bytes(content[:cut] + appended)
    try:
        image = to_rgb(fuzzed, "X[0]", max_pixels=10_000)  # a changed header must not ask for gigabytes
    except ImageReadError as error:
        assert "fuzzed.img" in str(error)
    else:
        assert image.ndim == 3 and image.shape[0] == 3 and 0 not in image.shape


def bad_float(value):
    X = np.full((2, 8, 8, 3), 0.5, dtype=np.float32)
    X[1, 2, 3, 0] = value
    return X


@pytest.mark.parametrize("value", [1.5, -0.01, 255, np.nan, np.inf])
@pytest.mark.parametrize("form", ["array", "tensor", "list of arrays", "list of tensors"])
def test_floats_outside_zero_to_one_are_named(value, form, device):
    X = bad_float(value)
    X = torch.from_numpy(X).permute(0, 3, 1, 2).to(device) if "tensor" in form else X
    X = list(X) if "list" in form else X
    with pytest.raises(ImageReadError, match=r"X\[1\] has values from .* float images are in \[0, 1\] without NaN"):
        features(X)


def test_a_bad_image_of_one_array_is_named_by_its_position_in_the_array(device):
    X = np.full((6, 8, 8, 3), 0.5, dtype=np.float32)
    X[4] = 2
    extractor = PatchFeatureExtractor(nn.Sequential(nn.AvgPool2d(8)), layers=["0"], image_size=64, crop_size=64)
    for images in (X, torch.from_numpy(X).permute(0, 3, 1, 2).to(device)):
        found = extractor.fit(images).transform(images)
        with pytest.raises(ImageReadError, match=r"X\[4\] has values from 2 to 2"):
            np.asarray(found[[5, 0, 4, 1]])
        assert np.asarray(found[[5, 0, 1]]).shape == (3, 8, 8, 3)


@pytest.mark.parametrize("dtype", ["int32", "int8", "int64", "bool", "complex64", "uint32"])
def test_other_dtypes_are_named_before_anything_is_done(dtype):
    X = np.zeros((2, 8, 8, 3), dtype=dtype)
    with pytest.raises(ValueError, match=f"X has dtype {dtype}; expected uint8, uint16 or floats"):
        check_images(X)
    with pytest.raises(ValueError, match=rf"X has dtype torch\.{dtype}; expected uint8"):
        check_images(torch.from_numpy(X).permute(0, 3, 1, 2))
    with pytest.raises(ImageReadError, match=rf"X\[1\] has dtype {dtype}"):
        features([picture(3), X[0]])


BATCHES_OF_NO_IMAGES = {
    "rows of numbers": (lambda: np.zeros((5, 12)), r"X of shape \(5, 12\) is no batch of images.* Reshape your data"),
    "one array or grey columns": (lambda: np.zeros((5, 8, 1)), r"\(5, 8, 1\) is one image \(H, W, C\): pass X\[None\]"),
    "one array or narrow grey": (lambda: np.zeros((8, 9, 3)), r"if these are 8 grey images .*pass X\[\.\.\., None\]"),
    "one array or grey of four": (lambda: np.zeros((8, 9, 4)), r"X of shape \(8, 9, 4\) is one image"),
    "one tensor or three grey": (lambda: torch.zeros(3, 8, 8), r"\(C, H, W\): pass X\[None\]; .*3 grey .*X\[:, None\]"),
    "one tensor or four grey": (lambda: torch.zeros(4, 8, 8), r"X of shape \(4, 8, 8\) is one image"),
    "no grey pixels": (lambda: np.zeros((5, 0, 8)), r"X of shape \(5, 0, 8\)"),
    "signed grey": (lambda: np.zeros((5, 8, 8), dtype=np.int16), "X has dtype int16"),
    "two channels": (lambda: np.zeros((5, 8, 8, 2)), "with C = 1, 3 or 4"),
    "channels in front": (lambda: np.zeros((5, 3, 8, 8)), r"expected \(n, H, W, C\)"),
    "channels at the back": (lambda: torch.zeros(5, 8, 8, 3), r"expected \(n, C, H, W\)"),
    "one tensor": (lambda: torch.zeros(3, 8, 8), r"X of shape \(3, 8, 8\)"),
    "row tensor": (lambda: torch.zeros(3), r"X of shape \(3,\)"),
    "number tensor": (lambda: torch.tensor(3.0), r"X of shape \(\)"),
    "no pixels": (lambda: np.zeros((5, 0, 8, 3)), r"X of shape \(5, 0, 8, 3\)"),
    "object array": (lambda: np.zeros((2, 8, 8, 3), dtype=object), "object array .* pass a list of images"),
    "empty list": (list, r"no images \(0 samples\)"),
    "empty array": (lambda: np.zeros((0, 8, 8, 3)), r"no images \(0 samples\)"),
    "empty tensor": (lambda: torch.zeros(0, 3, 8, 8), r"no images \(0 samples\)"),
    "numbers": (lambda: [1.0, 2.0], r"X\[0\] is a float; an image is a path"),
    "None inside": (lambda: ["a.png", None], r"X\[1\] is a NoneType"),
    "rows": (lambda: [["a.png"]], r"X\[0\] is a list"),
}


@pytest.mark.parametrize("kind", BATCHES_OF_NO_IMAGES)
def test_what_holds_no_images_is_named(kind):
    make, message = BATCHES_OF_NO_IMAGES[kind]
    with pytest.raises(ValueError, match=message):
        check_images(make())


@pytest.mark.parametrize("X", ["images", Path("images"), Image.new("L", (3, 3))])
def test_a_single_image_asks_for_a_list(X):
    with pytest.raises(
        TypeError, match=r"single .*; pass a list of images, for a folder sorted\(pathlib\.Path\(folder\)"
    ):
        check_images(X)


@pytest.mark.parametrize("X", [None, 3, np.array("a.png")])
def test_what_is_no_sequence_is_named(X):
    with pytest.raises(TypeError, match="holds no images; pass a list of paths or an array"):
        check_images(X)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 2)), np.zeros((8, 0, 3)), np.zeros(8), torch.zeros(8, 0), torch.zeros(8, 8, 3)]
)
def test_an_image_of_a_wrong_shape_is_named_by_its_position(image):
    shape = ", ".join(map(str, image.shape))
    with pytest.raises(ImageReadError, match=rf"X\[1\] has shape \({shape},?\), expected 1, 3 or 4 channels"):
        features([picture(3), image])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_the_centre_of_the_resized_image_is_cut_out(interpolation):
    image = to_rgb(picture(3), "X[0]")
    whole = resize_and_crop(image, (70, 70), (70, 70), interpolation)
    assert whole.shape == (3, 70, 70)
    np.testing.assert_array_equal(resize_and_crop(image, (70, 70), (50, 50), interpolation), whole[:, 10:60, 10:60])


@pytest.mark.parametrize("cut", range(8))
def test_the_centre_is_that_of_torchvision(cut):
    image = torch.arange(20 * 23).view(1, 20, 23)
    np.testing.assert_array_equal(center_crop(image, (20 - cut, 15)), functional.center_crop(image, [20 - cut, 15]))


def test_an_image_of_the_right_size_is_not_changed_by_the_resize():
    square = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8))
    for interpolation in ("nearest", "bilinear"):
        np.testing.assert_array_equal(resize_and_crop(square, (64, 64), (64, 64), interpolation), square)


def test_nearest_invents_no_values():
    colours = resize_and_crop(to_rgb(picture(3), "X[0]"), (200, 200), (200, 200), "nearest").flatten(1).T.unique(dim=0)
    known = torch.from_numpy(picture(3)).flatten(0, 1).unique(dim=0)
    assert {tuple(row) for row in colours.tolist()} <= {tuple(row) for row in known.tolist()}


def test_fit_and_transform_decode_no_paths(tmp_path):
    gone = [tmp_path / "gone.png"]
    extractor = PatchFeatureExtractor(nn.Sequential(nn.AvgPool2d(8)), layers=["0"], image_size=64, crop_size=64)
    found = extractor.fit(gone).transform(gone)
    assert found.shape == (1, 8, 8, 3)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        np.asarray(found)
