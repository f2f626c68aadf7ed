"""Parts that do not lie alike are found, brought to the mean training image, and their maps go back."""

from __future__ import annotations

import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from torch import nn

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector, ProductRouter, distributed, export, persistence
from ipca_sklearn.exceptions import AlignmentWarning, SkippedImagesWarning
from ipca_sklearn.features._alignment import map_to_image
from ipca_sklearn.features._fitting import foreground
from ipca_sklearn.features._registration import Pose, Search, correlation, moved

pytestmark = [
    pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning"),
]
SIDE = 96
torch.manual_seed(0)


class Small(nn.Module):
    """A map of stride 4, whose values see 7 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1))

    def forward(self, images):
        return self.layer(images)


NETWORK = Small()


def plate(angle=0.0, down=0.0, right=0.0, *, spot=None, seed=0, background=0.15):
    """A plate without symmetry (uint8), turned by degrees and moved; a bright spot at its own coordinates."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    y, x = y - down, x - right
    turn = np.deg2rad(angle)
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x

    def cover(distance):
        return np.clip(0.5 - distance / 2, 0, 1)

    body = cover(np.maximum(np.abs(u) - 26, np.abs(v) - 16)) * (1 - cover(np.hypot(u + 16, v + 6) - 5))
    tone = 0.6 - 0.3 * cover(np.maximum(np.abs(u - 12) - 8, np.abs(v - 5) - 2))
    if spot is not None:
        tone = tone + 0.4 * cover(np.hypot(u - spot[0], v - spot[1]) - 3)
    shown = background * (1 - body) + tone * body
    shown = shown[..., None] + 0.01 * np.random.default_rng(seed).standard_normal((SIDE, SIDE, 1))
    return np.rint(255 * np.clip(np.repeat(shown, 3, 2), 0, 1)).astype(np.uint8)


def plates(n, *, turned=True, seed=0):
    random = np.random.default_rng(seed)
    places = [(random.uniform(0, 360) if turned else 0, *random.uniform(-9, 9, 2)) for _ in range(n)]
    places[0] = (0, 0, 0)
    return np.stack([plate(*place, seed=number) for number, place in enumerate(places)]), places


def extractor(align="rigid", **parameters):
    parameters = {"image_size": SIDE, "engine": "torch", "margin": 0} | parameters
    return PatchFeatureExtractor(NETWORK, layers=["layer"], align=align, random_state=0, **parameters)


def pipeline(**parameters):
    return Pipeline([("features", extractor(**parameters)), ("detector", PatchGaussianDetector(4, n_gaussians=64))])


@pytest.fixture(scope="module")
def fitted():
    return pipeline().fit(plates(24)[0])


def test_a_pose_and_its_inverse_cancel():
    pose = Pose(0.7, 5.0, -3.0)
    y, x = pose.inverted().applied(*pose.applied(2.0, 11.0))
    np.testing.assert_allclose([y, x], [2, 11], atol=1e-12)


@pytest.mark.parametrize(("angle", "down", "right"), [(0, 3, -7), (33, 4, 2), (181, -6, 5), (300, 0, 8)])
def test_the_search_finds_angle_and_shift(angle, down, right):
    reference, picture = (plate(*place)[..., 0].astype(np.float32) / 255 for place in ((), (angle, down, right)))
    pose = Search(reference, rigid=True).pose(picture)
    assert abs((np.degrees(pose.angle) - angle + 180) % 360 - 180) < 1
    np.testing.assert_allclose([pose.down, pose.right], [down, right], atol=0.6)
    assert correlation(moved(picture, pose), reference) > 0.95
    if angle == 0:
        pose = Search(reference, rigid=False).pose(picture)
        assert pose.angle == 0
        np.testing.assert_allclose([pose.down, pose.right], [down, right], atol=0.4)


@pytest.mark.parametrize("align", ["translation", "rigid"])
def test_a_moved_image_has_the_features_of_the_image_where_it_was_before_it_was_moved(align):
    images, places = plates(8, turned=align == "rigid")
    made = extractor(align).fit(images)
    found = made.transform(images)
    table = found.alignment()
    assert table["aligned"].all()
    expected = np.array([place[0] for place in places])
    apart = (table["angle"] - table["angle"][0] - expected + 180) % 360 - 180
    assert np.abs(apart).max() < 1.5
    features = np.asarray(found)[:, 6:-6, 6:-6]
    as_they_were = np.asarray(extractor(None).fit(images).transform(images))[:, 6:-6, 6:-6]
    away, before = (np.abs(values[1:] - values[0]).mean() for values in (features, as_they_were))
    assert away < 0.35 * before


def test_maps_are_those_of_the_images_as_they_were(fitted):
    spot = (2.0, -9.0)
    places = [(0, 0, 0), (90, 5, -4), (205, -7, 3)]
    images = np.stack([plate(*place, spot=spot, seed=90) for place in places])
    maps = fitted.transform(images)
    assert maps.shape == (3, SIDE // 4, SIDE // 4)
    for values, (angle, down, right) in zip(maps, places, strict=True):
        turn = np.deg2rad(angle)
        row = np.sin(turn) * spot[0] + np.cos(turn) * spot[1] + down + SIDE / 2
        column = np.cos(turn) * spot[0] - np.sin(turn) * spot[1] + right + SIDE / 2
        peak = np.unravel_index(values.argmax(), values.shape)
        assert np.hypot(peak[0] + 0.5 - row / 4, peak[1] + 0.5 - column / 4) < 2.5
    assert (fitted.predict(images) == -1).all()


def test_scores_from_maps_are_nearly_those_from_features(fitted):
    images = np.concatenate([plates(6, seed=5)[0], [plate(40, spot=(2.0, -9.0))]])
    scores = fitted.score_samples(images)
    np.testing.assert_allclose(fitted[-1].score_maps(fitted.transform(images)), scores, rtol=0.05)
    assert fitted[-1].map_region_ is None and fitted[-1].region_ is not None


def test_a_map_keeps_its_largest_value_and_stays_where_nothing_moves():
    values = np.random.default_rng(0).uniform(1, 2, (12, 9))
    values[7, 4] = 9
    assert map_to_image(values, Pose(), (48, 36)) is values
    placed = map_to_image(values, Pose(np.pi / 2, 0.0, 0.0), (48, 36))
    assert placed.max() == 9
    moved_down = map_to_image(values, Pose(0.0, 8.0, -4.0), (48, 36))
    np.testing.assert_array_equal(moved_down[2:, :-1], values[:-2, 1:])
    assert (moved_down[:2] == 0).all() and (moved_down[:, -1] == 0).all()


def test_an_image_without_the_part_is_left_as_it_is_and_told(fitted):
    flat = np.full((1, SIDE, SIDE, 3), 40, np.uint8)
    with pytest.warns(AlignmentWarning, match=r"1 of 1 images could not be aligned: X\[0\]"):
        features = np.asarray(fitted[0].transform(flat))
    with warnings.catch_warnings():
        warnings.simplefilter("error", AlignmentWarning)
        table = fitted[0].transform(flat).alignment()
    assert not table["aligned"][0] and table["angle"][0] == table["down"][0] == 0
    plain = np.asarray(extractor(None).fit(flat).transform(flat))
    region = fitted[0].region_
    np.testing.assert_allclose(features[0][region], plain[0][region], atol=1e-5)


def test_images_that_are_alike_everywhere_are_told_at_fit():
    noise = np.random.default_rng(0).integers(0, 255, (6, SIDE, SIDE, 3), dtype=np.uint8)
    with pytest.warns(AlignmentWarning, match=r"the part was found in \d of the first 6 images only"):
        extractor().fit(noise)


@pytest.mark.parametrize("align", ["translation", "rigid"])
def test_an_image_without_a_part_is_no_reference_although_it_is_the_first(align):
    images, _ = plates(8, turned=align == "rigid")
    empty = np.full_like(images[0], 40)
    made = extractor(align, region="auto")
    with pytest.warns(AlignmentWarning, match=r"1 of 9 images could not be aligned: X\[0\].*may show no part") as seen:
        made.fit(np.stack([empty, *images]))
    assert len(seen) == 1
    assert made.transform(images).alignment()["aligned"].all()
    assert made.region_.mean() < 0.6


def test_without_a_part_in_most_images_everything_is_inspected_and_that_is_told():
    random = np.random.default_rng(0)
    ground = random.normal(60, 4, (8, SIDE, SIDE, 1)).clip(0, 255).astype(np.uint8).repeat(3, 3)
    with pytest.warns(AlignmentWarning) as seen:
        made = extractor(region="auto").fit(ground)
    texts = " ".join(str(warning.message) for warning in seen)
    assert "images that show no part should be taken out" in texts
    assert "region='auto': the part is not known, so what all of the first images show is inspected" in texts
    assert made.region_ is None or made.region_.mean() > 0.6


def test_a_picture_has_the_same_place_in_any_form(fitted):
    image = plate(70, 3, -5)
    forms = [
        [image],
        image[None].astype(np.float32) / 255,
        image[None, ..., 0],
        torch.from_numpy(image).permute(2, 0, 1)[None],
        [torch.from_numpy(image[..., 0])],
    ]
    features = [np.asarray(fitted[0].transform(form)) for form in forms]
    for other in features[1:]:
        np.testing.assert_allclose(other, features[0], atol=1e-4)


def test_the_part_alone_is_inspected_with_region_auto():
    images, _ = plates(10)
    made = extractor(region="auto").fit(images)
    y, x = (np.mgrid[: SIDE // 4, : SIDE // 4] - (SIDE // 4 - 1) / 2) * 4
    part = (np.abs(x) < 24) & (np.abs(y) < 14)
    assert made.region_[part].all()
    assert made.region_.mean() < 0.6 < extractor().fit(images).region_.mean()


def test_the_foreground_is_the_region_that_differs_and_none_if_nothing_does(global_random_seed):
    random = np.random.default_rng(global_random_seed)
    features = random.normal(size=(5, 20, 20, 6)) * 0.1
    part = np.zeros((20, 20), bool)
    part[6:14, 5:12] = True
    hole = np.zeros_like(part)
    hole[9:11, 8:10] = True
    features[:, part & ~hole] += random.normal(size=6) + 3
    seen = np.ones_like(part)
    found = foreground(features, seen)
    assert found[part].all()  # with its hole
    assert not found[[0, 4, 15, 19]].any()
    assert not foreground(np.ones((3, 20, 20, 6)), seen).any()


def test_an_empty_foreground_is_told():
    class Same(Small):
        def forward(self, images):
            return self.layer(images) * 0

    images, _ = plates(4)
    made = PatchFeatureExtractor(
        Same(), layers=["layer"], image_size=SIDE, margin=0, engine="torch", align="rigid", region="auto"
    )
    made.backbone.layer[2].weight.data.zero_()
    with pytest.warns(AlignmentWarning, match="nothing differs from the background"):
        made.fit(images)
    assert made.region_ is None or made.region_.mean() > 0.5


def test_a_region_lies_over_the_first_image_and_moves_with_the_part():
    images, _ = plates(8)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[32:64, 24:72] = True
    made = extractor(region=mask).fit(images)
    assert made.region_.sum() == 8 * 12
    maps = PatchGaussianDetector(4, n_gaussians=16).fit(made.transform(images)).transform(made.transform(images[:1]))
    inspected = maps[0] > 0
    assert inspected[9:15, 7:17].mean() > 0.9
    assert not inspected[:5].any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"align": None, "region": "auto"}, "region='auto' needs align"),
        ({"tile_size": 32, "margin": "auto"}, "align='rigid' with tile_size=32"),
        ({"align": "affine"}, "align"),
    ],
)
def test_parameters_that_do_not_go_together_are_named(parameters, message):
    made = extractor(**parameters)
    with pytest.raises(ValueError, match=message):
        made.fit(plates(2)[0])
    assert not hasattr(made, "reference_")


def test_what_does_not_align_says_so(fitted):
    images, _ = plates(4)
    with pytest.raises(ValueError, match="align='rigid': a module or a file does not search"):
        export.to_torch(fitted)
    with pytest.raises(ValueError, match="aligned to one mean image"):
        ProductRouter(PatchGaussianDetector(4)).fit(fitted[0].transform(images), ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="learns a mean image, which partitions do not share"):
        distributed.fit(pipeline(), [list(images[:2]), list(images[2:])])


def test_stored_and_cloned_pipelines_align_alike(tmp_path, fitted):
    images = plates(3, seed=9)[0]
    expected = fitted.transform(images)
    joblib.dump(fitted, tmp_path / "model.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "model.joblib").transform(images), expected)
    again = clone(fitted).fit(plates(24)[0])
    np.testing.assert_allclose(again.transform(images), expected, rtol=1e-4, atol=1e-4)
    lazy = pickle.loads(pickle.dumps(fitted[0].transform(images)))
    np.testing.assert_array_equal(fitted[-1].transform(lazy), expected)
    assert set(clone(fitted[0]).get_params()) >= {"align", "region"}


def test_skops_files_hold_the_mean_image(tmp_path):
    images = plates(6)[0]
    made = PatchFeatureExtractor(
        "resnet18",
        layers=["layer1"],
        weights=None,
        image_size=SIDE,
        engine="torch",
        align="translation",
        random_state=0,
    ).fit(images)
    persistence.save_skops(made, tmp_path / "model.skops")
    loaded = persistence.load_skops(tmp_path / "model.skops")
    np.testing.assert_array_equal(loaded.reference_, made.reference_)
    np.testing.assert_array_equal(loaded.transform(images).alignment(), made.transform(images).alignment())


def test_features_of_a_cache_are_placed_too(tmp_path):
    images = plates(8)[0]
    paths = list(images)
    cached = extractor(cache=tmp_path / "cache").fit(paths)
    detector = PatchGaussianDetector(4, n_gaussians=16).fit(cached.transform(paths))
    first, second = (detector.transform(cached.transform(paths)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(detector.transform(cached.transform(paths)[2:4]), first[2:4])
    other = extractor(cache=tmp_path / "cache").fit(paths[::-1])  # another mean image: other features
    assert not np.allclose(np.asarray(other.transform(paths)), np.asarray(cached.transform(paths)))


def test_an_unreadable_image_is_skipped_and_has_no_place(tmp_path, fitted):
    (tmp_path / "x.png").write_text("no image")
    skipping = extractor(on_error="skip").fit(list(plates(4)[0]))
    features = skipping.transform([plate(20), tmp_path / "x.png"])
    with pytest.warns(SkippedImagesWarning):
        assert np.isnan(np.asarray(features)[1][skipping.region_]).all()
    table = features.alignment()
    assert table["aligned"].tolist() == [True, False] and np.isnan(table["quality"][1])


def test_alignment_is_asked_of_aligned_images_only():
    images = plates(2)[0]
    features = extractor(None).fit(images).transform(images)
    with pytest.raises(ValueError, match="align is None"):
        features.alignment()
    maps = np.ones((2, 3, 3))
    assert features.maps_to_images(maps) is maps
