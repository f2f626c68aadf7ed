"""Ground truth: marked where it is not zero, or refused; no defect is lost on the way to a smaller mask."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy import ndimage

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn._utils._proportions import same_proportions
from ipca_sklearn.exceptions import AspectRatioWarning, ImageReadError, MaskWarning
from ipca_sklearn.images._masks import read_mask, shrink_mask

HEIGHT, WIDTH = 64, 96


def defects():
    """Numbers of three defects: a rectangle, a line of one pixel, and a single pixel."""
    numbers = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    numbers[10:30, 20:50] = 1
    numbers[50, 5:80] = 2
    numbers[40, 90] = 3
    return numbers


MARKED = defects() > 0


def coloured(colours):
    return np.array([(0, 0, 0), *colours], dtype=np.uint8)[defects()]


def palette(colours, indices=None):
    image = Image.fromarray(defects() if indices is None else indices).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    return image


CLASSES = {
    "1": lambda n: np.where(n > 0, 1, 0),
    "2": lambda n: np.where(n > 0, 2, 0),
    "100": lambda n: np.where(n > 0, 100, 0),
    "127": lambda n: np.where(n > 0, 127, 0),
    "1, 2 and 3": lambda n: n,
    "40, 80 and 120": lambda n: 40 * n,
    "100, 200 and 255": lambda n: np.array([0, 100, 200, 255])[n],
    "255, 1 and 1": lambda n: np.array([0, 255, 1, 1])[n],
    "1, 255 and 1": lambda n: np.array([0, 1, 255, 1])[n],
    "255, 127 and 2": lambda n: np.array([0, 255, 127, 2])[n],
    "20, 254 and 255": lambda n: np.array([0, 20, 254, 255])[n],
}
ARRAYS = {
    "uint8": lambda v: v.astype(np.uint8),
    "uint16": lambda v: v.astype(np.uint16),
    "big-endian uint16": lambda v: v.astype(">u2"),
    "uint32": lambda v: v.astype(np.uint32),
    "int16": lambda v: v.astype(np.int16),
    "int64": lambda v: v.astype(np.int64),
    "float32": lambda v: v.astype(np.float32),
    "float of whole numbers": lambda v: v.astype(np.float64),
    "float to 1": lambda v: v / 255,
    "float16 to 1": lambda v: (v / 255).astype(np.float16),
    "last axis": lambda v: v.astype(np.uint8)[..., None],
    "grey RGB": lambda v: np.repeat(v.astype(np.uint8)[..., None], 3, axis=2),
    "blue": lambda v: v.astype(np.uint8)[..., None] * np.array([0, 0, 1], np.uint8),
    "opaque RGBA": lambda v: np.dstack([*[v.astype(np.uint8)] * 3, np.full_like(v, 255, np.uint8)]),
    "tensor": lambda v: torch.from_numpy(v.astype(np.uint8)),
    "tensor of int64": lambda v: torch.from_numpy(v.astype(np.int64))[None],
    "tensor of floats": lambda v: torch.from_numpy(v.astype(np.float32))[None].requires_grad_(),
    "bfloat16": lambda v: torch.from_numpy((v > 0).astype(np.float32)).bfloat16() * 2,
    "tensor of colours": lambda v: torch.from_numpy(v.astype(np.uint8)).expand(3, -1, -1),
    "PIL": lambda v: Image.fromarray(v.astype(np.uint8)),
    "PIL of 16 bits": lambda v: Image.fromarray(v.astype(np.uint16)),
    "PIL of 32 bits": lambda v: Image.fromarray(v.astype(np.int32)),
    "PIL of floats": lambda v: Image.fromarray(v.astype(np.float32)),
    "PIL with its own grey palette": lambda v: Image.fromarray(v.astype(np.uint8)).convert("P"),
    "PIL RGB": lambda v: Image.fromarray(v.astype(np.uint8)).convert("RGB"),
    "PIL LA": lambda v: Image.fromarray(v.astype(np.uint8)).convert("LA"),
}


@pytest.mark.parametrize("form", ARRAYS)
@pytest.mark.parametrize("classes", CLASSES)
def test_every_class_is_marked_in_every_form(classes, form):
    mask = ARRAYS[form](CLASSES[classes](defects()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_mask(mask, "mask"), MARKED)


SUFFIXES = {"png": {}, "bmp": {}, "tif": {"compression": "tiff_lzw"}, "webp": {"lossless": True}, "pgm": {}}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("classes", CLASSES)
def test_every_class_is_marked_in_every_file(classes, suffix, tmp_path):
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(CLASSES[classes](defects()).astype(np.uint8)).save(path, **SUFFIXES[suffix])
    np.testing.assert_array_equal(read_mask(path, "mask"), MARKED)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_mask(opened, "mask"), MARKED)


def test_more_than_255_classes_in_16_bits(tmp_path):
    numbers = np.array([0, 1, 300, 1000])[defects()]
    Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "mask.png")
    for mask in (tmp_path / "mask.png", numbers.astype(np.uint16), numbers):
        np.testing.assert_array_equal(read_mask(mask, "mask"), MARKED)


def test_one_bit_and_bool(tmp_path):
    Image.fromarray(MARKED).save(tmp_path / "mask.png")
    for mask in (tmp_path / "mask.png", Image.fromarray(MARKED), MARKED, torch.from_numpy(MARKED)):
        np.testing.assert_array_equal(read_mask(mask, "mask"), MARKED)


@pytest.mark.parametrize("value", [1, 77, 128, 255])
def test_a_mask_of_one_value_is_marked_everywhere_or_nowhere(value):
    assert read_mask(np.full((3, 4), value, np.uint8), "mask").all()
    assert not read_mask(np.zeros((3, 4), np.uint8), "mask").any()


PALETTES = {
    "VOC": [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)],
    "dark": [(0, 0, 0), (0, 0, 64), (0, 1, 0), (2, 0, 0)],
    "grey": [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)],
    "white": [(0, 0, 0), (255, 255, 255), (255, 255, 255), (255, 255, 255)],
}


@pytest.mark.parametrize("colours", PALETTES)
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_of_a_palette_the_index_counts(colours, suffix, tmp_path):
    palette(PALETTES[colours]).save(tmp_path / f"mask.{suffix}")
    for mask in (tmp_path / f"mask.{suffix}", palette(PALETTES[colours])):
        np.testing.assert_array_equal(read_mask(mask, "mask"), MARKED)


@pytest.mark.parametrize(
    ("colours", "what"),
    [
        ([(255, 255, 255), (0, 0, 0), (0, 0, 0), (0, 0, 0)], "index 0 has a colour"),
        ([(0, 0, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)], "index 0 has a colour"),
        ([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 0)], "an index above 0 is black"),
    ],
)
def test_a_palette_that_contradicts_its_indices_is_refused(colours, what, tmp_path):
    palette(colours).save(tmp_path / "mask.png")
    with pytest.raises(ImageReadError, match=rf"mask\.png has a palette in which {what}"):
        read_mask(tmp_path / "mask.png", "masks[0]")


def test_a_transparent_index_0_is_background_whatever_its_colour(tmp_path):
    image = palette([(9, 9, 9), (255, 0, 0), (0, 255, 0), (0, 0, 255)])
    image.save(tmp_path / "mask.png", transparency=0)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", "mask"), MARKED)
    image.save(tmp_path / "mask.png", transparency=2)
    with pytest.raises(ImageReadError, match="palette"):
        read_mask(tmp_path / "mask.png", "mask")


@pytest.mark.parametrize("form", ["array", "tensor", "PIL", "file"])
def test_colours_are_marked_and_what_is_transparent_is_not(form, tmp_path):
    pixels = np.dstack([coloured([(128, 0, 0), (0, 64, 0), (0, 0, 1)]), np.full_like(defects(), 255)])
    pixels[:5, :, :3] = 200
    pixels[:5, :, 3] = 0
    pixels[10:30, 20:50, 3] = 100  # half transparent, as overlays are
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    forms = {
        "array": pixels,
        "tensor": torch.from_numpy(pixels).movedim(2, 0),
        "PIL": Image.fromarray(pixels),
        "file": tmp_path / "mask.png",
    }
    np.testing.assert_array_equal(read_mask(forms[form], "mask"), MARKED)


@pytest.mark.parametrize("form", [lambda m: m, Image.fromarray, lambda m: m / np.float32(255)])
@pytest.mark.parametrize(
    ("colour", "alpha", "what"),
    [(0, 255 * MARKED, "it is black on transparent"), (255 * MARKED, 0 * MARKED, "all that is not black is transp")],
)
def test_a_mask_that_would_be_transparent_is_refused(colour, alpha, what, form):
    mask = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    mask[..., 0], mask[..., 3] = colour, alpha
    with pytest.raises(ImageReadError, match=what):
        read_mask(form(mask), "masks[3]")


# --- smoothed edges ---------------------------------------------------------------------------------------------------


def shapes():
    y, x = np.mgrid[:120, :160]
    found = (y - 70) ** 2 + (x - 110) ** 2 < 30**2
    found[20:60, 15:60] = found[100:104, 10:40] = True
    return found


def as_jpeg(quality):
    buffer = io.BytesIO()
    Image.fromarray(shapes().astype(np.uint8) * 255).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


SMOOTHED = {
    "blur of 0.5": lambda image: image.filter(ImageFilter.GaussianBlur(0.5)),
    "blur of 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "bilinear": lambda image: image.resize((480, 360), Image.Resampling.BILINEAR),
    "Lanczos": lambda image: image.resize((400, 300), Image.Resampling.LANCZOS),
    "smaller": lambda image: image.resize((80, 60), Image.Resampling.BOX),
    **{f"JPEG of {quality}": lambda image, quality=quality: as_jpeg(quality) for quality in (30, 75, 95, 100)},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("smoothing", SMOOTHED)
def test_smoothed_edges_are_cut_at_half(smoothing, dtype):
    smoothed = SMOOTHED[smoothing](Image.fromarray(shapes().astype(np.uint8) * 255))
    values = np.asarray(smoothed)
    assert np.unique(values).size > 3
    form = {np.uint8: values, np.uint16: values.astype(np.uint16) * 257, np.float32: values / np.float32(255)}[dtype]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_mask(form, "mask"), values > 127)
        np.testing.assert_array_equal(read_mask(smoothed, "mask"), values > 127)


def test_spots_that_smoothing_has_made_faint_are_told():
    image = shapes().astype(np.uint8) * 255
    image[5, 120:140] = 255
    smoothed = Image.fromarray(image).filter(ImageFilter.GaussianBlur(2))
    with pytest.warns(MaskWarning, match=r"1 of 1 masks have smoothed edges, and spots .*\(masks\[4\]\).*not marked"):
        found = read_mask(smoothed, "masks[4]")
    assert found.any() and not found[:10, 115:].any()


def test_classes_in_a_jpeg_are_refused(tmp_path):
    for values in (2, 100):
        Image.fromarray(shapes().astype(np.uint8) * values).save(tmp_path / "mask.jpg")
        with pytest.raises(ImageReadError, match=r"mask\.jpg is a JPEG .*store masks as PNG"):
            read_mask(tmp_path / "mask.jpg", "masks[0]")
    two = shapes() * np.where(np.arange(160) < 80, 60, 255).astype(np.uint8)
    Image.fromarray(two).save(tmp_path / "mask.jpg")
    with pytest.raises(ImageReadError, match="is a JPEG"):
        read_mask(tmp_path / "mask.jpg", "masks[0]")


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MARKED + np.uint8(1), r"masks\[1\] has no pixel of value 0.*\(from 1 to 2 of 255\)"),
        (np.where(MARKED, 200, 100).astype(np.uint8), r"no pixel of value 0"),
        (-1 * MARKED, "values from -1 to 0; a mask has no negative"),
        (np.where(MARKED, np.nan, 0), "no NaN"),
        (np.where(MARKED, np.inf, 0), "no NaN"),
        (1.5 * MARKED, r"from 0 to 1\.5 that are no whole numbers"),
        (MARKED * 1j, "dtype complex128"),
        (MARKED.astype(object), "dtype object"),
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\); a mask has height and width"),
        (np.zeros((4, 0), np.uint8), r"shape \(4, 0\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (torch.zeros(2, 4, 5), r"shape \(2, 4, 5\)"),
        ([[0, 1]], r"masks\[1\] is a list"),
    ],
)
def test_what_is_no_mask_is_named(mask, message):
    with pytest.raises(ImageReadError, match=message):
        extractor().transform_masks([None, mask])


def png_of_16_bits(values):
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colours_are_not_halved_in_silence(channels, tmp_path):
    (tmp_path / "mask.png").write_bytes(png_of_16_bits(np.repeat(MARKED[..., None], channels, axis=2) * 200))
    with pytest.raises(ImageReadError, match=r"mask\.png has colours of 16 bits"):
        read_mask(tmp_path / "mask.png", "mask")
    (tmp_path / "mask.png").write_bytes(png_of_16_bits(MARKED[..., None] * 200))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", "mask"), MARKED)


def test_a_mask_of_several_pages_is_refused(tmp_path):
    pages = [Image.fromarray((defects() == number).astype(np.uint8)) for number in (1, 2, 3)]
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageReadError, match=r"mask\.tif has 3 pages"):
        read_mask(tmp_path / "mask.tif", "mask")


# --- proportions ------------------------------------------------------------------------------------------------------


def extractor(**parameters):
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    made = PatchFeatureExtractor("efficientnet_lite0", weights=None, random_state=0, **parameters)
    return made.fit([image])


def save_image(path, turned=None):
    exif = Image.Exif()
    if turned is not None:
        exif[0x0112] = turned
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(path, exif=exif)
    return path


FORMS = {
    "array": lambda values, path: values,
    "tensor": lambda values, path: torch.from_numpy(values.copy()),
    "PIL": lambda values, path: Image.fromarray(values),
    "file": lambda values, path: Image.fromarray(values).save(path) or path,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_of_other_proportions_than_its_image_is_named_with_both_sizes(form, tmp_path):
    made, path = extractor(image_size=(HEIGHT, WIDTH)), tmp_path / "mask.png"
    images = [save_image(tmp_path / "a.png"), save_image(tmp_path / "b.png")]
    name = r"mask\.png" if form == "file" else r"masks\[1\]"
    for wrong, hint in ((np.rot90(MARKED), "turned by 90 degrees"), (MARKED[:40], ""), (MARKED[:, :-8], "")):
        sizes = rf"{name} has shape \({wrong.shape[0]}, {wrong.shape[1]}\), its image \(64, 96\) \(.*b\.png\).*{hint}"
        with pytest.raises(ValueError, match=sizes):
            made.transform_masks([None, FORMS[form](wrong.astype(np.uint8), path)], images)
    right = FORMS[form](MARKED.astype(np.uint8), path)
    np.testing.assert_array_equal(made.transform_masks([None, right], images)[1], MARKED)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_orientation_of_image_and_mask_counts(orientation, tmp_path):
    made = extractor(image_size=(WIDTH, HEIGHT))
    image = save_image(tmp_path / "image.jpg", orientation)
    stored = Image.fromarray(MARKED)
    with pytest.raises(ValueError, match=r"has shape \(64, 96\), its image \(96, 64\)"):
        made.transform_masks([stored], [image])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "mask.png", exif=exif)
    (cut,) = made.transform_masks([tmp_path / "mask.png"], [image])
    assert cut.shape == (WIDTH, HEIGHT) and cut.sum() == MARKED.sum()


def test_masks_may_be_larger_or_smaller_than_their_image():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    made = extractor(image_size=(HEIGHT, WIDTH))
    for scale in (0.5, 0.3, 2, 3.7):
        size = round(WIDTH * scale), round(HEIGHT * scale)
        made.transform_masks([Image.new("L", size, 255)], [image])


def test_masks_without_images_are_compared_with_those_of_the_fit():
    made = extractor()
    with pytest.warns(AspectRatioWarning, match=r"1 of 2 masks have other proportions .*masks\[1\].*images="):
        made.transform_masks([MARKED, MARKED.T])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.transform_masks([MARKED, None])


def test_masks_and_images_are_as_many_and_a_list():
    with pytest.raises(ValueError, match="1 masks for 2 images"):
        extractor().transform_masks([MARKED], [np.zeros((HEIGHT, WIDTH, 3))] * 2)
    with pytest.raises(TypeError, match=r"masks is a single str"):
        extractor().transform_masks("mask.png")


@pytest.mark.parametrize(
    ("size", "other", "same"),
    [
        ((64, 96), (96, 64), False),
        ((64, 96), (32, 48), True),
        ((667, 1000), (67, 100), True),
        ((667, 1000), (66, 100), True),
        ((2000, 3000), (1990, 3000), False),
        ((64, 96), (64, 64), False),
        ((4, 6), (6, 4), False),
    ],
)
def test_proportions_are_the_same_up_to_whole_pixels(size, other, same):
    assert same_proportions(size, other) is same_proportions(other, size) is same


# --- smaller masks ----------------------------------------------------------------------------------------------------


def shares(mask, size):
    """The marked share of each cell, by counting on the finest grid that both share."""
    fine = np.repeat(np.repeat(mask, size[0], axis=0), size[1], axis=1).astype(float)
    return fine.reshape(size[0], mask.shape[0], size[1], mask.shape[1]).mean((1, 3))


@given(st.integers(0, 10_000), st.integers(2, 24), st.integers(2, 24), st.integers(1, 12), st.integers(1, 12))
def test_no_defect_is_lost_and_nothing_is_invented(seed, height, width, rows, columns):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0.02, 0.2, 0.6])
    cells = shrink_mask(mask, (rows, columns))
    share = shares(mask, (rows, columns))
    assert cells.shape == (rows, columns)
    assert cells[share >= 0.5].all()
    assert not cells[share == 0].any()
    numbers, n_defects = ndimage.label(mask, np.ones((3, 3)))
    fine = np.repeat(np.repeat(numbers, rows, axis=0), columns, axis=1)
    marked = np.repeat(np.repeat(cells, height, axis=0), width, axis=1)
    assert set(range(1, n_defects + 1)) <= set(np.unique(fine[marked]).tolist())
    regions, _ = ndimage.label(cells, np.ones((3, 3)))
    for defect in range(1, n_defects + 1):
        touched = shares(numbers == defect, (rows, columns)) > 0
        assert len(np.unique(regions[cells & touched])) == 1  # what measures of regions count


def test_a_large_defect_with_a_thin_tail_stays_in_one_piece():
    """Else measures of regions would count the tail as a defect of its own."""
    mask = np.zeros((300, 300), dtype=bool)
    mask[40:120, 40:120] = True
    mask[80, 120:260] = True
    cells = shrink_mask(mask, (97, 101))
    assert ndimage.label(cells, np.ones((3, 3)))[1] == 1
    assert cells.mean() == pytest.approx(mask.mean(), rel=0.15)  # a cell is three pixels wide, and so is the tail


def test_a_cell_of_which_just_half_is_marked_belongs_to_a_large_defect():
    mask = np.zeros((6, 4), dtype=bool)
    mask[:3] = True
    np.testing.assert_array_equal(shrink_mask(mask, (3, 2))[:, 0], [True, True, False])


def test_a_mask_of_the_size_itself_is_as_it_was():
    np.testing.assert_array_equal(shrink_mask(MARKED, MARKED.shape), MARKED)


@pytest.mark.parametrize("scale", [4, 7, 16])
def test_single_pixels_and_scratches_survive_and_areas_stay(scale):
    mask = np.zeros((1024, 1536), dtype=bool)
    mask[3, 5] = mask[1000:1002, 900:902] = True
    mask[500, 200:1300] = True  # a scratch
    mask[100:400, 300:800] = True
    size = 1024 // scale, 1536 // scale
    cells = shrink_mask(mask, size)
    assert ndimage.label(cells, np.ones((3, 3)))[1] == ndimage.label(mask, np.ones((3, 3)))[1] == 4
    y, x = 1024 / size[0], 1536 / size[1]
    scratch = cells[int(500.5 / y)]
    assert scratch[int(200 / x) + 1 : int(1299 / x)].all()
    large = cells[int(90 / y) : int(450 / y)].sum() * x * y
    assert large == pytest.approx(300 * 500, rel=2 * scale / 300)


def test_defects_survive_in_transform_masks():
    made = extractor(image_size=(32, 48))
    mask = np.zeros((640, 960), np.uint8)
    mask[7, 11] = mask[300:303, 500:503] = 255
    (cut,) = made.transform_masks([mask])
    assert cut[0, 0] and cut[15, 25] and cut.sum() == 2
