"""Pictures of single images: what they show, and that they show what the network sees."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import Pipeline, make_pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.detection import find_defects
from ipca_sklearn.exceptions import ImageReadError, MissingImageError
from ipca_sklearn.images._decode import size_of, to_rgb
from ipca_sklearn.inspection import hottest_box, overlay
from ipca_sklearn.inspection._pictures import defect_mask, heat_layer, open_upright


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    images = np.random.default_rng(0).integers(100, 130, (12, 80, 60, 3), dtype=np.uint8)
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=48, random_state=0)
    return make_pipeline(extractor, PatchGaussianDetector(3)).fit(images)


def test_the_hottest_box_is_around_the_region_of_the_largest_value():
    values = np.zeros((4, 4))
    values[1, 1:3] = 5, 7
    values[3, 0] = 6  # another region
    assert [defect.box for defect in find_defects(values[None], 4)[0] or ()] == [(1, 1, 1, 2), (3, 0, 1, 1)]
    assert hottest_box(values, 4, (10, 20, 40, 80)) == (20, 40, 10, 40)
    assert hottest_box(values, 9, (0, 0, 4, 4)) == (1, 2, 1, 1)


def test_the_layer_is_transparent_up_to_the_threshold(pipe):
    threshold = pipe[-1].map_threshold_
    anomaly_map = np.full((12, 12), threshold)
    assert heat_layer(pipe, anomaly_map, (80, 160)).getextrema()[3] == (0, 0)
    anomaly_map[:6] = 1.01 * threshold
    anomaly_map[:, :6] *= 2
    layer = np.asarray(heat_layer(pipe, anomaly_map, (80, 160)))
    inspected = np.zeros((80, 160), dtype=bool)
    inspected[10:70, 20:140] = True
    assert (layer[~inspected, 3] == 0).all()
    faint, strong = layer[15, 130], layer[15, 30]
    assert 0 < faint[3] < strong[3]
    assert faint[1] < strong[1]  # from red to yellow
    assert layer[65, 130, 3] == 0


def test_the_heat_map_covers_what_is_inspected_and_leaves_the_rest_grey(pipe):
    image = Image.fromarray(np.full((80, 160, 3), (200, 100, 50), dtype=np.uint8))
    anomaly_map = np.zeros((12, 12))
    anomaly_map[0, 0] = 2 * pipe[-1].map_threshold_
    drawn = np.asarray(overlay(pipe, anomaly_map, image)).astype(int)
    inspected = np.zeros((80, 160), dtype=bool)
    inspected[10:70, 20:140] = True  # 48 of 64 pixels
    grey = int(np.asarray(image.convert("L"))[0, 0])
    assert drawn.shape == (80, 160, 3)
    assert (drawn[~inspected] == grey).all()
    np.testing.assert_array_equal(drawn[60, 130], [int(0.4 * grey + 0.6 * value) for value in (0, 0, 3)])
    red, green, blue = drawn[10, 20]
    assert min(red, green) > blue + 30  # yellow


def test_a_mask_is_white_where_a_patch_is_above_the_threshold(pipe):
    anomaly_map = np.zeros((12, 12))
    anomaly_map[11, 3] = np.nextafter(pipe[-1].map_threshold_, np.inf)
    anomaly_map[5, 5] = pipe[-1].map_threshold_
    expected = np.zeros((80, 160), dtype=np.uint8)
    expected[65:70, 50:60] = 255
    (defects,) = find_defects(
        anomaly_map[None], pipe[-1].map_threshold_, image_sizes=(80, 160), covered_box=pipe[0].covered_box
    )
    np.testing.assert_array_equal(np.asarray(defect_mask(defects, (80, 160))), expected)


def pictures() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (40, 30, 4), dtype=np.uint8)
    return {
        "colours.png": Image.fromarray(colours[..., :3]),
        "grey.jpg": Image.fromarray(colours[..., 0]),
        "palette.png": Image.fromarray(colours[..., :3]).quantize(),
        "transparent.png": Image.fromarray(colours),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (40, 30), dtype=np.uint16)),
        "floats.tif": Image.fromarray(rng.random((40, 30), dtype=np.float32)),
        "cmyk.jpg": Image.fromarray(colours, "CMYK"),
    }


@pytest.mark.parametrize("name", list(pictures()))
def test_a_picture_is_what_the_network_sees_in_8_bits(name, tmp_path):
    path = tmp_path / name
    pictures()[name].save(path)
    seen = to_rgb(path, name).permute(1, 2, 0).numpy()
    seen = 255 * seen if seen.dtype == np.float32 else seen
    picture = open_upright(path)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), (seen + 1e-3).astype(np.uint8))
    assert size_of(path) == picture.size[::-1] == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_size_from_the_header_is_that_of_the_upright_image(orientation, suffix, tmp_path):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if suffix == "tif" else {"exif": exif}
    Image.new("RGB", (300, 200)).save(path, **options)
    assert size_of(path) == open_upright(path).size[::-1]
    assert size_of(path) == ((200, 300) if orientation < 5 else (300, 200))
    assert max(open_upright(path, 60).size) == 60


def test_a_float_image_in_zero_to_one_is_drawn_like_its_bytes(pipe, tmp_path):
    shares = np.linspace(0, 1, 80 * 60, dtype=np.float32).reshape(80, 60)
    Image.fromarray(shares).save(tmp_path / "x.tif")
    anomaly_map = np.zeros((12, 12))
    expected = overlay(pipe, anomaly_map, Image.fromarray((shares * 255).round().astype(np.uint8)))
    assert np.asarray(expected).max() > 200
    with Image.open(tmp_path / "x.tif") as opened:
        assert opened.mode == "F"
        for image in (opened, open_upright(tmp_path / "x.tif"), Image.fromarray((shares * 65535).astype(np.uint16))):
            drawn = overlay(pipe, anomaly_map, image)
            np.testing.assert_allclose(np.asarray(drawn, int), np.asarray(expected, int), atol=2)
    with pytest.raises(ImageReadError, match="values from 0 to 255"):
        overlay(pipe, anomaly_map, Image.fromarray(shares * 255))


def test_a_picture_of_a_file_that_has_gone_or_is_not_read_is_an_error_that_names_it(tmp_path):
    for draw in (size_of, open_upright):
        with pytest.raises(MissingImageError, match=r"no image at .*gone\.png"):
            draw(tmp_path / "gone.png")
        (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
        with pytest.raises(ImageReadError, match=r"x\.png is of the format EPS"):
            draw(tmp_path / "x.png")
