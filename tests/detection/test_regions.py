"""Defects as a list: against a flood fill, whatever the orientation, and at their places in the original image."""

from __future__ import annotations

import json
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.pipeline import make_pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.detection import find_defects
from ipca_sklearn.detection._regions import label_regions
from ipca_sklearn.exceptions import SkippedImagesWarning

small_maps = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 3))
distances = st.sampled_from([0, 0.9, 1, 1.5, 2, 3, 4.5, 100])


def flood(marked, pitch=(1, 1), distance=0.0):
    """Return the sets of patches with chains of gaps <= distance between them, by comparing all with all."""
    left, regions = set(zip(*np.nonzero(marked), strict=True)), []
    while left:
        region, border = set(), [left.pop()]
        while border:
            at = border.pop()
            region.add(at)
            for other in list(left):
                gaps = (max(0, abs(a - b) - 1) * step for a, b, step in zip(at, other, pitch, strict=True))
                if sum(gap**2 for gap in gaps) <= distance**2 + 1e-9:
                    left.remove(other)
                    border.append(other)
        regions.append(region)
    return regions


@given(small_maps, distances, st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_regions_are_those_of_a_flood_fill(values, distance, high, wide, min_area):
    size = values.shape[0] * high, values.shape[1] * wide
    (found,) = find_defects(values[None], 1, merge_distance=distance, image_sizes=size, min_area=min_area)
    expected = {}
    for region in flood(values > 1, (high, wide), distance):
        rows, columns = (np.array(axis) for axis in zip(*region, strict=True))
        inside = [values[at] for at in region]
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        if len(region) * high * wide >= min_area:
            expected[top * high, left * wide, (bottom - top) * high, (right - left) * wide, min(region)] = (
                len(region) * high * wide,
                (rows.mean() * high + (high - 1) / 2, columns.mean() * wide + (wide - 1) / 2),
                (max(inside), np.mean(inside)),
            )
    assert [defect.max_value for defect in found] == sorted((d.max_value for d in found), reverse=True)
    assert len(found) == len(expected)
    painted = np.zeros(size, int)
    for defect in found:
        top, left, height, width = defect.box
        column = left // wide + defect.mask[0].argmax() // wide  # of the first patch: it tells equal boxes apart
        area, centroid, (largest, mean) = expected[*defect.box, (top // high, column)]
        assert defect.area == area == defect.mask.sum()
        np.testing.assert_allclose(defect.centroid, centroid)
        assert defect.max_value == largest
        np.testing.assert_allclose(defect.mean_value, mean)
        painted[top : top + height, left : left + width] += defect.mask
    if min_area <= high * wide:  # nothing is left out
        np.testing.assert_array_equal(painted, np.kron(values > 1, np.ones((high, wide), int)))


@given(small_maps, distances, st.sampled_from([1, 2]))
def test_turned_and_scaled_maps_have_the_same_regions(values, distance, connectivity):
    def measured(maps, threshold=1.0):
        found = find_defects(maps[None], threshold, merge_distance=distance, connectivity=connectivity)[0]
        return sorted(
            (d.area, *sorted(d.box[2:]), d.max_value / threshold, round(d.mean_value / threshold, 4)) for d in found
        )

    expected = measured(values)
    for turned in (values[::-1], values[:, ::-1], values.T, np.rot90(values)):
        assert measured(turned) == expected
    assert measured(values.astype(np.float64) * 1024, 1024.0) == expected


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)), st.integers(1, 3))
def test_outlines_enclose_exactly_the_mask(marked, scale):
    size = marked.shape[0] * scale, marked.shape[1] * scale
    painted = np.zeros(size, int)
    for defect in find_defects(marked[None], 0.5, image_sizes=size)[0]:
        assert len(defect.outlines) == label_regions(defect.mask, 1)[1]
        for polygon in defect.outlines:
            (x, y), (x2, y2) = polygon.T, np.roll(polygon, -1, axis=0).T
            assert ((x != x2) | (y != y2)).all()
            for row in range(size[0]):
                crosses = (y <= row) != (y2 <= row)  # the line through the centres of the row's pixels
                at = x[crosses] + (row + 0.5 - y[crosses]) / (y2 - y)[crosses] * (x2 - x)[crosses]
                painted[row] += (at[:, None] > np.arange(size[1]) + 0.5).sum(axis=0) % 2
    np.testing.assert_array_equal(painted, np.kron(marked, np.ones((scale, scale), int)))


def test_p_values_count_the_normal_maxima_that_are_as_large():
    maps = np.array([[[3.0, 0.0, 2.0, 0.0, 9.0]]])
    found = find_defects(maps, 1, normal_maxima=[1, 2, 3, 4])[0]
    assert [(d.max_value, d.p_value) for d in found] == [(9, 1 / 5), (3, 3 / 5), (2, 4 / 5)]
    assert [d.p_value for d in find_defects(maps, 1, normal_maxima=[])[0]] == [1, 1, 1]
    assert find_defects(maps, 1)[0][0].p_value is None


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool]
)
def test_tensors_have_the_defects_of_arrays(dtype):
    maps = torch.zeros(2, 4, 6)
    maps[0, 1:3, 2:4] = 1
    found = find_defects(maps.clone().to(dtype).requires_grad_(dtype.is_floating_point), 0.5)
    assert found == find_defects(maps.numpy(), 0.5)
    assert [[d.box for d in defects] for defects in found] == [[(1, 2, 2, 2)], []]


def test_a_threshold_is_not_rounded_to_the_dtype_of_the_maps():
    value = np.float32(0.1)
    maps = np.full((1, 2, 2), value)
    assert len(find_defects(maps, np.nextafter(float(value), 0))[0]) == 1
    assert find_defects(maps, float(value)) == find_defects(maps, np.nextafter(float(value), 1)) == [[]]
    assert find_defects(maps, np.inf) == [[]]


def test_a_map_that_is_nan_has_no_list_and_a_warning():
    maps = np.zeros((3, 2, 2))
    maps[1] = np.nan
    with pytest.warns(SkippedImagesWarning, match="1 of 3 images have no list of defects but None.*: 1"):
        assert find_defects(maps, 0.5, image_sizes=[(4, 4), None, (4, 4)]) == [[], None, []]
    maps[1, 0] = 0
    with pytest.raises(ValueError, match=r"maps\[1\] is NaN in 2 of 4 places"):
        find_defects(maps, 0.5)


def test_no_images_have_no_defects_and_a_thousand_defects_are_all_there():
    assert find_defects(np.zeros((0, 3, 3)), 1) == []
    maps = np.zeros((1, 64, 64))
    maps[0, ::2, ::2] = 1 + np.arange(1024).reshape(32, 32)
    (found,) = find_defects(maps, 0.5, image_sizes=(3000, 4000), region=np.ones((64, 64)))
    assert [defect.max_value for defect in found] == list(range(1024, 0, -1))
    assert len({defect.box[:2] for defect in found}) == 1024
    (merged,) = find_defects(maps, 0.5, image_sizes=(3000, 4000), merge_distance=62.5)
    assert len(merged) == 1 and merged[0].area == sum(defect.area for defect in found)
    assert json.loads(json.dumps(merged[0].as_dict()))["area"] == merged[0].area


def test_an_image_smaller_than_its_map_keeps_all_defects_in_it():
    maps = np.zeros((1, 16, 16))
    maps[0, 3, 5], maps[0, 15, 15] = 2, 1
    (found,) = find_defects(maps, 0.5, image_sizes=(5, 3))
    assert [(d.box, d.area, d.mask.shape) for d in found] == [((1, 1, 1, 1), 1, (1, 1)), ((4, 2, 1, 1), 1, (1, 1))]


def test_only_patches_of_the_region_count():
    maps = np.full((1, 2, 3), -1.0)
    region = np.array([[True, False, False], [False, False, True]])
    assert [d.box for d in find_defects(maps, -2, region=region)[0]] == [(0, 0, 1, 1), (1, 2, 1, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": np.zeros((2, 2))}, r"maps has shape \(2, 2\), expected \(n, h, w\)"),
        ({"maps": np.zeros((1, 0, 2))}, r"maps has shape \(1, 0, 2\)"),
        ({"maps": np.zeros((1, 2, 2), complex)}, "real numbers"),
        ({"threshold": np.nan}, "threshold=nan"),
        ({"min_area": -1}, "min_area=-1 must be"),
        ({"min_area": np.nan}, "min_area=nan must be"),
        ({"merge_distance": np.inf}, "merge_distance=inf must be"),
        ({"connectivity": 3}, "connectivity=3 must be 1"),
        ({"image_sizes": [(4, 4)] * 3}, "3 sizes for 2 maps"),
        ({"image_sizes": (4, 0)}, r"image_sizes\[0\]=\(4, 0\) is no size"),
        ({"image_sizes": [(4, 4), 5]}, r"image_sizes\[1\]=5 is no size"),
        ({"region": np.ones((3, 3))}, r"region has shape \(3, 3\)"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    given = {"maps": np.zeros((2, 2, 2)), "threshold": 0.5} | options
    with pytest.raises((ValueError, TypeError), match=message):
        find_defects(given.pop("maps"), given.pop("threshold"), **given)


# Original images of two sizes, with a black square at a known place in each.
SQUARES = {(240, 320): (96, 64, 48, 48), (480, 640): (300, 400, 60, 90)}


@pytest.mark.parametrize("crop", [None, (96, 128)])
def test_a_square_is_found_where_it_was_drawn_in_the_original(crop, tmp_path):
    rng = np.random.default_rng(0)

    def image(size, square=None):
        pixels = rng.integers(120, 136, (240, 320, 3), dtype=np.uint8)
        pixels = pixels.repeat(size[0] // 240, axis=0).repeat(size[1] // 320, axis=1)
        if square is not None:
            top, left, height, width = square
            pixels[top : top + height, left : left + width] = 0
        return Image.fromarray(pixels)

    extractor = PatchFeatureExtractor(
        "resnet18",
        layers=["layer1"],
        weights=None,
        image_size=(120, 160),
        crop_size=crop,
        random_state=0,
        on_error="skip",
    )
    detector = PatchGaussianDetector(4, solver="gram_eigh")
    pipe = make_pipeline(extractor, detector).fit([image((240, 320)) for _ in range(24)])
    paths = []
    for size, square in SQUARES.items():
        paths.append(tmp_path / f"{size[0]}.png")
        image(size, square).save(paths[-1])
    (tmp_path / "broken.png").write_bytes(b"nothing")
    features = pipe[0].transform([*paths, tmp_path / "broken.png"])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = pipe[-1].predict_regions(features, min_area=400)
    assert [warning.category for warning in seen] == [SkippedImagesWarning]  # once
    assert found[2] is None
    assert features.image_sizes() == [*SQUARES, None]
    sharp: list = []
    for defects, (size, (top, left, height, width)) in zip(found[:2], SQUARES.items(), strict=True):
        patch = size[0] / 30
        np.testing.assert_allclose(
            defects[0].centroid, [top + (height - 1) / 2, left + (width - 1) / 2], atol=2 * patch
        )
        assert defects[0].p_value == 1 / (1 + len(pipe[-1].calibration_maxima_))
        # The network sees a few patches around: half of the largest value is about the outline of the square.
        (anomaly_map,) = maps = pipe[-1].transform(features[len(sharp) : len(sharp) + 1])
        mapping = {"image_sizes": size, "covered_box": extractor.covered_box}
        sharp += find_defects(maps, anomaly_map.max() / 2, **mapping)
        box = np.array(sharp[-1][0].box)
        box[2:] += box[:2]
        assert np.abs(box - [top, left, top + height, left + width]).max() <= 3 * patch
    # The marked patches are the union of the regions.
    detector = pipe[-1]
    everything = detector.predict_regions(features[:2])
    for marked, defects in zip(detector.predict_masks(features[:2]), everything, strict=True):
        assert label_regions(marked)[1] == len(defects)
    maps = detector.transform(features[:2])
    given = {"normal_maxima": detector.calibration_maxima_, "region": detector.region_}
    sizes = list(SQUARES)
    assert everything == find_defects(
        maps, detector.map_threshold_, image_sizes=sizes, covered_box=extractor.covered_box, **given
    )
    # Answers of one pass are those of each method, as JSON has them.
    with pytest.warns(SkippedImagesWarning):
        answers = detector.inspect(features, min_area=400)
        labels, scores, p_values = (
            function(features) for function in (pipe[-1].predict, pipe[-1].score_samples, pipe[-1].p_values)
        )
    assert answers == json.loads(json.dumps(answers))
    assert [answer["label"] for answer in answers] == labels.tolist()
    assert [answer["score"] for answer in answers[:2]] == scores[:2].tolist()
    assert [answer["p_value"] for answer in answers[:2]] == p_values[:2].tolist()
    assert [answer["defects"] for answer in answers[:2]] == [[one.as_dict() for one in found[i]] for i in (0, 1)]
    assert answers[2] == {"label": -1, "score": None, "p_value": None, "defects": None}
    with mock.patch.object(PatchGaussianDetector, "transform", side_effect=AssertionError):  # the network does not run
        assert detector.predict_regions(features[:2], maps=maps) == everything
    with pytest.raises(ValueError, match=r"maps of shape .* for 1 images; expected \(1, "):
        detector.predict_regions(features[:1], maps=maps)
    # Arrays and tensors of features: a pixel is a patch, or the size is told.
    array = np.asarray(features[:2])
    in_patches = detector.predict_regions(array)
    assert in_patches == find_defects(maps, detector.map_threshold_, **given)
    assert detector.predict_regions(torch.from_numpy(array)) == in_patches
    if crop is None:
        assert detector.predict_regions(array, image_sizes=sizes) == everything


def test_regions_need_neighbours():
    X = np.random.default_rng(0).normal(size=(40, 6, 4))
    detector = PatchGaussianDetector(2).fit(X)
    with pytest.raises(ValueError, match=r"predict_regions needs features of shape \(n, H, W, m\)"):
        detector.predict_regions(X)


def test_two_touching_corners_are_one_region_unless_edges_are_asked_for():
    maps = np.eye(3)[None]
    assert [len(find_defects(maps, 0.5, connectivity=c)[0]) for c in (1, 2)] == [3, 1]
