"""Images keep their shape, all of them can be inspected, and a region of interest leaves out the rest."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from ipca_sklearn import BatchedIncrementalPCA, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.exceptions import AspectRatioWarning, FewImagesWarning, ImageReadError
from ipca_sklearn.export import to_torch
from ipca_sklearn.features._geometry import auto_size
from ipca_sklearn.features.backbones._networks import sides_of
from ipca_sklearn.inspection import AnomalyMapDisplay, overlay
from ipca_sklearn.persistence import fit_resumable, load, load_skops, save, save_skops

HEIGHT, WIDTH = 48, 112


def pictures(n=24, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 255, (n, height, width, 3), dtype=np.uint8)


def extractor(**parameters):
    parameters = {"image_size": (32, 64), "crop_size": None, "layers": ["layer1", "layer2"]} | parameters
    return PatchFeatureExtractor("resnet18", weights=None, random_state=0, **parameters)


def pipeline(detector=None, **parameters):
    detector = detector or PatchGaussianDetector(2, step_size=8)
    return Pipeline([("features", extractor(**parameters)), ("detector", detector)])


def fitted(*args, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        return pipeline(*args, **parameters).fit(pictures())


def left_half(height=HEIGHT, width=WIDTH):
    region = np.zeros((height, width), dtype=bool)
    region[:, : width // 2] = True
    return region


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 500), (256, 256)),
        ((480, 640), (224, 288)),
        ((640, 480), (288, 224)),
        ((1240, 500), (416, 160)),
        ((500, 20_000), (32, 1632)),
        ((1, 1), (256, 256)),
    ],
)
def test_the_automatic_size_has_the_images_proportions(size, expected):
    assert auto_size(size) == expected


def test_the_automatic_size_is_that_of_the_first_image():
    images = pictures()
    made = extractor(image_size="auto").fit(images)
    assert made.image_size_ == made.crop_size_ == (160, 384)
    assert made.grid_size_ == (40, 96)
    assert made.transform(images[:1]).shape == (1, 40, 96, 192)
    assert made.covered_box((480, 1120)) == (0, 0, 480, 1120)


def test_the_automatic_size_follows_the_orientation_of_a_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pictures(1)[0]).save(tmp_path / "turned.jpg", exif=exif)
    assert extractor(image_size="auto").fit([tmp_path / "turned.jpg"]).image_size_ == (384, 160)


def test_the_automatic_size_passes_over_files_that_are_skipped(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert extractor(image_size="auto", on_error="skip").fit(paths).image_size_ == (160, 384)
    with pytest.raises(ImageReadError, match=r"a\.png"):
        extractor(image_size="auto").fit(paths)
    with pytest.raises(ImageReadError, match=r"none of the 1 images could be read.*a\.png"):
        extractor(image_size="auto", on_error="skip").fit(paths[:1])


def test_images_of_other_proportions_are_told_once_per_pass():
    images = [*pictures(2), *pictures(1, 100, 100), *pictures(1, HEIGHT * 2, WIDTH * 2)]
    made = extractor(image_size="auto").fit(images)
    with pytest.warns(AspectRatioWarning, match=r"1 of 4 images.*X\[2\] \(100 x 100\).*160 x 384") as caught:
        np.asarray(made.transform(images))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", AspectRatioWarning)
        np.asarray(made.transform(images[:2]))
        np.asarray(extractor(image_size=64).fit(images).transform(images))  # a square that was asked for


def test_a_batch_of_other_proportions_is_told():
    made = extractor(image_size="auto").fit(pictures())
    with pytest.warns(AspectRatioWarning, match=r"3 of 3 images"):
        np.asarray(made.transform(pictures(3, 90, 90)))


@pytest.mark.parametrize("crop_size", [None, (24, 40)])
def test_maps_and_masks_of_rectangles_lie_over_their_images(crop_size):
    pytest.importorskip("matplotlib")
    images, masks = pictures(), np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[1, 6:24, 28:56] = True
    pipe = fitted(crop_size=crop_size)
    size = crop_size or (32, 64)
    assert pipe.transform(images[:2]).shape == (2, size[0] // 4, size[1] // 4)
    cut = pipe[0].transform_masks(list(masks))
    assert cut.shape == (2, *size)
    top, left, height, width = pipe[0].covered_box((HEIGHT, WIDTH))
    inside = masks[1, round(top) : round(top + height), round(left) : round(left + width)]
    assert cut[1].mean() == pytest.approx(inside.mean(), abs=0.02)
    display = AnomalyMapDisplay.from_estimator(pipe, images[:2], masks=list(masks))
    assert display.axes_.shape == (2, 3)
    assert overlay(pipe, display.maps[0], Image.fromarray(images[0])).size == (WIDTH, HEIGHT)


def test_a_defect_is_where_it_is_in_the_image():
    pipe = fitted()
    images = pictures(1).repeat(2, axis=0)
    images[1, 24:36, 84:98] = 0  # rows 16 to 24 and columns 48 to 56 of 32 x 64, so 4 to 6 and 12 to 14 of 8 x 16
    before, after = np.asarray(pipe[0].transform(images))
    row, column = np.unravel_index(np.abs(after - before).sum(2).argmax(), (8, 16))
    assert row in (4, 5)
    assert column in (12, 13)


@pytest.mark.parametrize("grid_size", [5, (3, 7), None])
def test_the_grid_may_be_a_rectangle(grid_size):
    made = extractor(grid_size=grid_size).fit(pictures())
    expected = {5: (5, 5), (3, 7): (3, 7), None: (8, 16)}[grid_size]
    assert made.grid_size_ == expected
    assert made.transform(pictures(1)).shape[1:3] == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"image_size": (32, 64, 3)}, r"image_size=\(32, 64, 3\) is neither an integer nor two"),
        ({"image_size": (0, 64)}, r"image_size=\(0, 64\)"),
        ({"crop_size": (32, 65)}, r"crop_size=\(32, 65\) is larger than image_size=\(32, 64\)"),
        ({"grid_size": (2.5, 2)}, r"grid_size=\(2\.5, 2\) is neither"),
    ],
)
def test_sizes_that_are_none_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        extractor(**parameters).fit(pictures())


def test_before_a_fit_the_automatic_size_is_not_known():
    made = PatchFeatureExtractor(image_size="auto")
    for call in (lambda: made.covered_box((10, 10)), lambda: made.transform_masks([None])):
        with pytest.raises(NotFittedError):
            call()


def test_a_pixel_and_a_panorama_have_a_result():
    for size in ((1, 1), (8, 320)):
        images = pictures(2, *size)
        made = extractor(image_size="auto").fit(images)
        assert np.isfinite(np.asarray(made.transform(images))).all()


def test_networks_for_squares_say_so():
    with pytest.raises(ValueError, match=r"'vit_b_16' takes square images, these are 32 x 64"):
        PatchFeatureExtractor("vit_b_16", weights=None, image_size=(32, 64), crop_size=None).fit(pictures())


def test_tokens_of_a_rectangle_are_laid_out_as_the_image_is():
    pytest.importorskip("timm")
    images = pictures(1, 28, 56)
    made = PatchFeatureExtractor(
        "timm:vit_small_patch14_dinov2", weights=None, layers=[0], image_size=(28, 56), crop_size=None
    ).fit(images)
    assert made.grid_size_ == (2, 4)
    assert made.transform(images).shape == (1, 2, 4, 384)


# ---- regions of interest


def test_a_region_is_what_is_learnt_and_scored():
    whole, half = fitted(), fitted(region=left_half())
    images = pictures()
    assert half[0].region_.shape == half[0].grid_size_ == half[1].patch_shape_ == (8, 16)
    np.testing.assert_array_equal(half[0].region_[:, :8], True)
    np.testing.assert_array_equal(half[0].region_[:, 8:], False)
    assert half[1].pca_.components_.shape[0] == 64
    maps = half.transform(images)
    assert (maps[..., 8:] == 0).all()
    np.testing.assert_allclose(half[1].pca_.mean_, whole[1].pca_.mean_.reshape(8, 16, -1)[:, :8].reshape(64, -1))
    np.testing.assert_allclose(half.score_samples(images), -maps.max((1, 2)), rtol=1e-6)
    assert not half[1].predict_masks(half[0].transform(images))[..., 8:].any()


def test_a_defect_outside_of_the_region_changes_nothing():
    half = fitted(region=left_half(), layers=["layer1"])
    image = pictures(1)
    changed = image.copy()
    changed[:, :, 84:] = 0
    before, after = half.score_samples(image), half.score_samples(changed)
    np.testing.assert_allclose(before, after, rtol=0.3)  # the network sees a little beyond its patch
    assert before > fitted(layers=["layer1"]).score_samples(changed)


@pytest.mark.parametrize("image_score", ["max", "mean", 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_scores_thresholds_and_exports_are_of_the_region_alone(image_score, smoothing):
    detector = PatchGaussianDetector(2, step_size=8, image_score=image_score, smoothing=smoothing)
    pipe, images = fitted(detector, region=left_half()), pictures(3)
    maps, scores = pipe.transform(images), pipe.score_samples(images)
    inside = maps[:, pipe[0].region_]
    assert (maps[:, ~pipe[0].region_] == 0).all()
    assert (inside > 0).all()
    if image_score == "mean":
        np.testing.assert_allclose(scores, -inside.mean(1), rtol=1e-5)
    np.testing.assert_allclose(pipe[-1].score_maps(maps), scores, rtol=1e-6)
    exported = to_torch(pipe)(torch.from_numpy(images).movedim(-1, 1))
    np.testing.assert_allclose(exported[0].numpy(), scores, rtol=1e-3)
    np.testing.assert_allclose(exported[1].numpy(), maps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["array", "path", "PIL"])
def test_forms_of_a_region(form, tmp_path):
    picture = Image.fromarray((255 * left_half(96, 224)).astype(np.uint8))
    picture.save(tmp_path / "region.png")
    region = {"array": np.asarray(picture), "path": tmp_path / "region.png", "PIL": picture}[form]
    np.testing.assert_array_equal(extractor(region=region).fit(pictures()).region_[0], np.arange(16) < 8)


@pytest.mark.parametrize(
    ("region", "error", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), bool), ValueError, "leaves nothing to inspect: none of the 8 x 16 patches"),
        (np.ones((50, 50), bool), ValueError, r"region has 50 x 50 pixels, X\[0\] has 48 x 112"),
        ("gone.png", ImageReadError, r"gone\.png"),
        (np.ones((HEIGHT, WIDTH, 2), bool), ImageReadError, "region has shape"),
    ],
)
def test_regions_that_cannot_be_used_are_refused(region, error, message):
    with pytest.raises(error, match=message):
        extractor(region=region).fit(pictures())


def test_a_region_survives_files_copies_and_merging(tmp_path):
    pipe, images = fitted(region=left_half()), pictures(2)
    maps = pipe.transform(images)
    save(pipe, tmp_path / "model.joblib")
    save_skops(pipe, tmp_path / "model.skops")
    for again in (
        pickle.loads(pickle.dumps(pipe)),
        load(tmp_path / "model.joblib"),
        load_skops(tmp_path / "model.skops"),
    ):
        np.testing.assert_allclose(again.transform(images), maps, rtol=1e-5)
    merged = copy.copy(pipe[-1]).merge(fitted(region=left_half())[-1])
    np.testing.assert_array_equal(merged.region_, pipe[0].region_)
    with pytest.raises(ValueError, match="different regions of interest"):
        copy.copy(pipe[-1]).merge(fitted()[-1])
    with pytest.raises(ValueError, match="another region of interest"):
        pipe[-1].transform(extractor().fit(images).transform(images))


def test_a_fit_that_goes_on_has_the_same_region(tmp_path):
    picture, images = tmp_path / "region.png", pictures()
    Image.fromarray(left_half()).save(picture)
    fit_resumable(pipeline(region=picture), images, tmp_path / "fit.checkpoint")
    Image.fromarray(~left_half()).save(picture)
    with pytest.raises(ValueError, match=r"other parameters \(region of features"):
        fit_resumable(pipeline(region=picture), images, tmp_path / "fit.checkpoint")


def test_features_of_a_region_are_cached_and_read_as_arrays(tmp_path):
    images = pictures(4)
    made = extractor(region=left_half(), cache=tmp_path).fit(images)
    first, again = (np.asarray(made.transform(images)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 8, 16, 192)
    assert (first[:, :, 8:] == 0).all()
    assert (first[:, :, :8] != 0).any(-1).all()
    detector = fitted(region=left_half())[-1]
    np.testing.assert_allclose(detector.transform(first), detector.transform(made.transform(images)), rtol=1e-5)


def test_a_pca_of_a_region_has_one_gaussian_for_each_of_its_patches():
    images = pictures()
    features = extractor(region=left_half()).fit(images).transform(images)
    pca = BatchedIncrementalPCA(3).fit(features)
    assert pca.components_.shape == (64, 3, 192)
    coordinates = pca.transform(features)
    assert coordinates.shape == (24, 8, 16, 3)
    back = pca.inverse_transform(coordinates)
    assert back.shape == (24, 8, 16, 192)
    assert (back[:, :, 8:] == 0).all()


def test_pictures_leave_what_is_outside_grey():
    pytest.importorskip("matplotlib")
    pipe, image = fitted(region=left_half()), pictures(1)[0]
    drawn = np.asarray(overlay(pipe, pipe.transform(image[None])[0], Image.fromarray(image))).astype(int)
    np.testing.assert_array_equal(drawn[:, 60:, 0], drawn[:, 60:, 2])
    assert (drawn[:, :50, 0] != drawn[:, :50, 2]).any()


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        ("efficientnet_lite0", "DEFAULT", (32, None)),
        (torch.nn.Identity(), None, (32, None)),
        ("vit_b_16", "DEFAULT", (224, (224, 224))),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", (384, (384, 384))),
        ("vit_h_14", None, (224, (224, 224))),
        ("vit_b_16", "own.pt", (224, (224, 224))),
        ("timm:vit_small_patch14_dinov2", "DEFAULT", (28, None)),
        ("timm:vit_base_patch16_clip_224", "DEFAULT", (32, None)),
        ("timm:vit_small_patch8_224", "DEFAULT", (32, None)),
    ],
)
def test_auto_knows_what_a_network_can_take(backbone, weights, expected):
    assert sides_of(backbone, weights) == expected


def test_the_default_is_all_of_the_image_in_its_own_shape():
    features = PatchFeatureExtractor("resnet18", weights=None).fit(pictures(1, 500, 1240))
    assert features.image_size_ == features.crop_size_ == (160, 416)
    assert features.covered_box((500, 1240)) == (0, 0, 500, 1240)
    assert features.interpolation == "bilinear"


@pytest.mark.filterwarnings("ignore::ipca_sklearn.exceptions.FewImagesWarning")
@pytest.mark.parametrize(
    ("size", "image_size", "grid_size"),
    [((1, 1), (256, 256), (64, 64)), ((500, 20_000), (32, 1632), (8, 408)), ((20_000, 500), (1632, 32), (408, 8))],
)
def test_a_pixel_and_a_panorama_have_maps_of_their_shape(size, image_size, grid_size):
    images = np.random.default_rng(0).integers(0, 255, (3, *size, 1), dtype=np.uint8)
    features = PatchFeatureExtractor("resnet18", weights=None, random_state=0, layers=["layer1"])
    pipe = Pipeline([("features", features), ("detector", PatchGaussianDetector(1))]).fit(images)
    assert pipe[0].image_size_ == image_size
    maps = pipe.transform(images[:1])
    assert maps.shape == (1, *grid_size) and np.isfinite(maps).all()


@pytest.mark.parametrize("side", [31, 33, 65])
def test_a_side_that_strides_do_not_divide_has_a_result(side):
    assert fitted(image_size=(side, 64)).transform(pictures(2)).shape == (2, -(-side // 4), 16)
