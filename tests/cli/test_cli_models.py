"""fit, update, predict, evaluate, info and export, as a user runs them on a folder of images."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn.pipeline import make_pipeline
from typer.testing import CliRunner

from ipca_sklearn import PatchFeatureExtractor, PatchFeatures, PatchGaussianDetector
from ipca_sklearn.cli import _images, app
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.metrics import (
    aupro_score,
    image_average_precision_score,
    pixel_f1_max_score,
    pixel_f1_score,
    pixel_roc_auc_score,
)
from ipca_sklearn.persistence import digest_images, load, save

runner = CliRunner()
SETTINGS = ["--image-size", "64", "--crop-size", "64", "--k", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder in MVTec AD's layout, and a model of it."""
    root = tmp_path_factory.mktemp("cli") / "fabric"
    data = make_textures(40, 8, size=64, random_state=0)
    for index, image in enumerate(data.train_images):
        save_image(root / "train" / "good" / f"{index}.png", image)
    for index, (image, mask, kind) in enumerate(zip(data.test_images, data.test_masks, data.defect_types, strict=True)):
        save_image(root / "test" / str(kind) / f"{index}.png", image)
        if kind != "good":
            save_image(root / "ground_truth" / str(kind) / f"{index}_mask.png", (255 * mask).astype(np.uint8))
    done = run("fit", root / "train", "-o", root / "model.joblib", *SETTINGS, "--false-positive-rate", "0.1")
    assert "40 images learnt" in done.stdout
    return root


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.squeeze(image)).save(path)


def run(*arguments, code=0, text=None):
    done = runner.invoke(app, [str(argument) for argument in arguments], input=text)
    assert done.exit_code == code, done.output
    return done


def test_predict_gives_the_scores_of_the_model(root, tmp_path):
    run("predict", root / "model.joblib", root / "test", "-o", tmp_path / "rows.csv", "--device", "cpu")
    run("predict", root / "model.joblib", root / "test", "-o", tmp_path / "rows.jsonl", "--device", "cpu")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [line["path"] for line in lines]
    pipe = load(root / "model.joblib")
    paths = [line["path"] for line in lines]
    np.testing.assert_allclose([line["score"] for line in lines], pipe.score_samples(paths), rtol=1e-5)
    np.testing.assert_array_equal([line["label"] for line in lines], pipe.predict(paths))
    assert all(0 < line["p_value"] <= 1 and line["error"] is None for line in lines)


def test_an_unreadable_image_is_a_row_with_its_error_and_exit_code_3(root, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = next((root / "train" / "good").iterdir())
    done = run("predict", root / "model.joblib", good, broken, tmp_path / "none.png", "--device", "cpu", code=3)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [bool(row["error"]) for row in rows] == [False, True, True]
    assert "broken.png" in rows[1]["error"] and rows[1]["score"] == ""
    assert "2 of 3 images cannot be read" in done.stderr


def test_files_that_go_while_predict_runs_are_rows_with_the_reason(root, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        shutil.copy(next((root / "test" / "good").iterdir()), tmp_path / f"{name}.png")
    sizes, opened = PatchFeatures.image_sizes, _images.open_upright

    def sizes_of_what_is_there(features):
        (tmp_path / "a.png").unlink(missing_ok=True)  # scored, but not measured
        return sizes(features)

    def open_what_is_there(path, *options, **named):
        (tmp_path / "b.png").unlink(missing_ok=True)  # measured, but not drawn
        return opened(path, *options, **named)

    monkeypatch.setattr(PatchFeatures, "image_sizes", sizes_of_what_is_there)
    monkeypatch.setattr(_images, "open_upright", open_what_is_there)
    outputs = ["-o", tmp_path / "rows.jsonl", "--maps", tmp_path.with_name("maps"), "--report", tmp_path / "r.html"]
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "c", "never")]
    done = run("predict", root / "model.joblib", *paths, *outputs, "--device", "cpu", code=3)
    assert "of 3 images are anomalous" in done.stderr and "3 of 4 images cannot be read" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["score"] is not None for row in rows] == [True, True, True, False]
    for row in rows[:2]:
        assert row["error"].startswith("scored, but then it could not be read again: no image at")
    assert rows[0]["top"] is None and rows[1]["top"] is not None
    assert rows[2]["error"] is None and rows[3]["error"].startswith("no image at")


def test_paths_come_through_a_pipe(root):
    paths = "\n".join(map(str, sorted((root / "test").rglob("*.png"))[:3]))
    done = run("predict", root / "model.joblib", "-", "--device", "cpu", text=paths)
    assert [row["path"] for row in csv.DictReader(done.stdout.splitlines())] == paths.split("\n")


def test_heat_maps_and_masks_are_pictures_of_the_size_of_the_image(root, tmp_path):
    image = next((root / "train" / "good").iterdir())
    large = tmp_path / "large.png"
    Image.open(image).resize((150, 90)).save(large)
    folders = [tmp_path / "maps", tmp_path / "masks"]
    run("predict", root / "model.joblib", large, "--maps", folders[0], "--masks", folders[1], "--device", "cpu")
    for folder, mode in zip(folders, ("RGB", "L"), strict=True):
        with Image.open(folder / "000001_large.png") as picture:
            assert picture.size == (150, 90) and picture.mode == mode


def test_update_equals_more_training_and_leaves_the_old_file_where_another_is_named(root, tmp_path):
    before = (root / "model.joblib").read_bytes()
    more = sorted((root / "test" / "good").iterdir())
    run("update", root / "model.joblib", root / "test" / "good", "-o", tmp_path / "new.joblib", "--device", "cpu")
    expected = load(root / "model.joblib")
    expected[-1].partial_fit(expected[0].transform(more))
    updated = load(tmp_path / "new.joblib")
    np.testing.assert_allclose(updated.score_samples(more), expected.score_samples(more), rtol=1e-5)
    assert updated[-1].n_samples_seen_ == 40 + len(more)
    assert (root / "model.joblib").read_bytes() == before
    told = json.loads(run("info", tmp_path / "new.joblib", "--json").stdout)
    assert [record["n_images"] for record in told["learnt from"]] == [40, len(more)]
    state = updated[-1].pca_.fitted_.state
    kind = "exact scatter matrices" if hasattr(state, "matrix") else "incremental updates"
    assert told["gaussians"] == updated[-1].n_gaussians_ and told["learnt by"] == kind
    n_bytes = sum(part.nbytes for part in vars(state).values() if hasattr(part, "nbytes"))
    assert told["memory of the model, MB"] == round(n_bytes / 1e6, 1)
    assert told["components"] == 4 and told["images learnt"] == 40 + len(more)
    assert told["distance"] == "factor_analysis" and told["false positive rate"] == 0.1


def test_info_prints_one_card_in_three_forms_and_figures_of_this_file_alone(root, tmp_path):
    model, figures = root / "model.joblib", tmp_path / "figures.json"
    figures.write_text(run("evaluate", model, root, "--json", "--device", "cpu").stdout)
    told = json.loads(run("info", model, "--format", "json").stdout)
    assert told == json.loads(run("info", model, "--json").stdout) and told["figures"] is None
    (record,) = told["learnt from"]
    good = sorted((root / "train" / "good").iterdir())
    assert record["digest"] == digest_images(good) and record["n_learnt"] == told["images learnt"] == len(good)
    assert told["licence of the weights"] == "apache-2.0" and told["versions"]["torch"] == torch.__version__
    text = run("info", model).stdout
    assert f"{len(good)} of {len(good)} images" in text and record["digest"] in text
    assert "figures: none were given" in text and "licence of the weights: apache-2.0" in text
    page = run("info", model, "--format", "markdown", "--figures", figures).stdout
    assert "## Measured figures" in page and "| image_roc_auc |" in page and record["digest"] in page
    shutil.copy(model, tmp_path / "copy.joblib")
    assert json.loads(run("info", tmp_path / "copy.joblib", "--json", "--figures", figures).stdout)["figures"]
    run("threshold", tmp_path / "copy.joblib", "--score", "-9", "--device", "cpu")
    refused = run("info", tmp_path / "copy.joblib", "--figures", figures, code=1)
    assert "has another: evaluate this model" in refused.stderr and str(figures) in refused.stderr


def test_info_names_figures_in_errors_of_figures_alone(root, tmp_path):
    pipe = load(root / "model.joblib")
    pipe[-1].set_params(distance="residual")  # the thresholds are for another one
    save(pipe, tmp_path / "changed.joblib")
    refused = run("info", tmp_path / "changed.joblib", code=1)
    assert "the thresholds are for scores with distance=" in refused.stderr and "--figures" not in refused.stderr


@pytest.mark.parametrize(
    ("given", "n_gaussians", "kind"),
    [("patch", 256, "incremental updates"), ("1", 1, "exact scatter matrices"), ("016", 16, "exact scatter matrices")],
)
def test_gaussians_says_how_many_the_patches_share_and_info_how_they_are_learnt(
    root, tmp_path, given, n_gaussians, kind
):
    model = tmp_path / "model.joblib"
    run("fit", root / "train", "-o", model, *SETTINGS, "--gaussians", given)
    told = json.loads(run("info", model, "--json").stdout)
    assert (told["gaussians"], told["learnt by"]) == (n_gaussians, kind)
    assert load(model)[-1].n_gaussians == (None if given == "patch" else n_gaussians)
    assert f"gaussians: {n_gaussians}\n" in run("info", model).stdout


def test_update_learns_rotated_copies_where_the_fit_did(root, tmp_path):
    augmented = {"augment": "rotation", "n_augmented": 2, "random_state": 0}
    extractor = PatchFeatureExtractor(image_size=64, crop_size=64, **augmented)
    pipe = make_pipeline(extractor, PatchGaussianDetector(4, n_gaussians=16)).fit(
        sorted(map(str, (root / "train" / "good").iterdir()))
    )
    save(pipe, tmp_path / "model.joblib")
    run("update", tmp_path / "model.joblib", root / "test" / "good", "--device", "cpu")
    fitted = load(tmp_path / "model.joblib")[-1].pca_.fitted_
    assert fitted.count == 44 and fitted.state.count == 44 * 3 * 16  # images, and samples of a Gaussian


def test_threshold_stores_what_was_chosen_and_from_what(root, tmp_path):
    good, bad = root / "test" / "good", [path for path in (root / "test").iterdir() if path.name != "good"]
    options = [option for path in bad for option in ("--bad", path)]
    new = tmp_path / "new.joblib"
    done = run("threshold", root / "model.joblib", "--good", good, *options, "--recall", "1", "-o", new)
    chosen = load(new)[-1].chosen_threshold_
    assert chosen.missed.n_errors == 0 < chosen.missed.n_images == 4 == chosen.false_positives.n_images
    assert f"false alarms: {chosen.false_positives.n_errors} of 4 images (" in done.stdout
    assert "missed defects: 0 of 4 images (0.0% to " in done.stdout
    assert load(root / "model.joblib")[-1].chosen_threshold_ is None
    printed = run("info", new).stdout
    assert f"chosen threshold: recall=1.0, from {good}, " in printed and "at 95%" in printed
    run("threshold", new, "--score", "-7.5")
    assert load(new)[-1].offset_ == -7.5
    assert "--recall 0.9 takes images" in run("threshold", new, "--recall", "0.9", code=1).stderr


def test_evaluate_prints_figures_with_intervals_per_type_and_draws(root, tmp_path):
    done = run("evaluate", root / "model.joblib", root, "--picture", tmp_path / "roc.png", "--device", "cpu")
    assert "image ROCAUC" in done.stdout and "normal images are called anomalous" in done.stdout
    told = json.loads(run("evaluate", root / "model.joblib", root, "--json", "--device", "cpu").stdout)
    assert told["defects"][0]["defects"] == "all" and told["n_normal"] == 4 and told["confidence_level"] == 0.95
    for row in told["defects"]:
        assert all(low <= high and 0 <= low <= 1 for low, high in row["intervals"].values())
        low, high = row["intervals"]["pixel_roc_auc"]
        shown = f"{row['pixel_roc_auc']:.3f} ({low:.2f}-{high:.2f})"
        assert any(line.startswith(row["defects"]) and shown in line for line in done.stdout.splitlines())
        assert f"{row['pro']:.3f} (" in done.stdout and f"{row['region_f1']:.3f} (" in done.stdout
    for found in told["defects"][0]["found_by_size"]:
        assert f" {found['n_found']} of {found['n_defects']}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    kinds = [row["defects"] for row in told["defects"][1:]]
    (few,) = [line for line in done.stderr.splitlines() if "fewer than 30 images" in line]
    assert "normal (4)" in few and all(f"{kind} (" in few for kind in kinds)
    with Image.open(tmp_path / "roc.png") as picture:
        assert min(picture.size) > 300


def test_evaluate_gives_the_figures_of_the_functions(root):
    told = json.loads(run("evaluate", root / "model.joblib", root, "--json", "--device", "cpu").stdout)["defects"][0]
    pipe = load(root / "model.joblib")
    mask_paths = sorted((root / "ground_truth").rglob("*.png"))
    defects = [root / "test" / path.parent.name / path.name.replace("_mask", "") for path in mask_paths]
    normal = sorted((root / "test" / "good").iterdir())
    features = pipe[0].transform([*normal, *defects])
    masks, maps = pipe[0].transform_masks([*[None] * 4, *mask_paths]), pipe[-1].transform(features)
    labels, scores = np.repeat([1, -1], [4, len(defects)]), pipe[-1].score_maps(maps)
    assert told["image_average_precision"] == pytest.approx(image_average_precision_score(labels, scores), abs=1e-6)
    assert told["pixel_f1_max"] == pytest.approx(pixel_f1_max_score(masks, maps), abs=1e-4)
    assert told["pixel_f1"] == pytest.approx(pixel_f1_score(masks, pipe[-1].predict_masks(features)), abs=1e-3)
    assert told["aupro_0.05"] == pytest.approx(aupro_score(masks, maps, max_fpr=0.05), abs=1e-4)
    assert told["found"] == np.mean(scores[4:] < pipe[-1].offset_)


def test_evaluate_draws_overlap_curves_where_normal_pixels_are_enough(root, tmp_path):
    picture = tmp_path / "pimo.png"
    done = run("evaluate", root / "model.joblib", root, "--pimo", picture, "--device", "cpu")
    assert "there is no AUPIMO: 4 normal images" in done.stderr and "no PIMO curve is drawn" in done.stderr
    assert not picture.exists()
    shutil.copytree(root / "test", tmp_path / "set" / "test")
    shutil.copytree(root / "ground_truth", tmp_path / "set" / "ground_truth")
    for number, image in enumerate(sorted((root / "train" / "good").iterdir())[:25]):  # 25 of 4096 pixels
        mirrored = np.fliplr(np.asarray(Image.open(image)))  # a copy would be known as learnt
        save_image(tmp_path / "set" / "test" / "good" / f"more_{number}.png", mirrored)
    done = run("evaluate", root / "model.joblib", tmp_path / "set", "--pimo", picture, "--json", "--device", "cpu")
    assert all(0 <= row["aupimo"] <= 1 for row in json.loads(done.stdout)["defects"])
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300


def test_evaluate_counts_pixels_inside_of_the_region_alone(root, tmp_path):
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    save_image(tmp_path / "region.png", half)
    model = tmp_path / "model.joblib"
    run("fit", root / "train", "-o", model, *SETTINGS, "--region", tmp_path / "region.png")
    told = json.loads(run("evaluate", model, root, "--json", "--device", "cpu").stdout)["defects"][0]
    pipe = load(model)
    mask_paths = sorted((root / "ground_truth").rglob("*.png"))
    images = [root / "test" / path.parent.name / path.name.replace("_mask", "") for path in mask_paths]
    images += sorted((root / "test" / "good").iterdir())
    masks = pipe[0].transform_masks([*mask_paths, *[None] * 4])
    maps = pipe.transform(images)
    inside = pixel_roc_auc_score(masks[:, :, :32], maps[:, :, : maps.shape[2] // 2])
    assert told["pixel_roc_auc"] == pytest.approx(inside, abs=1e-4)
    assert abs(told["pixel_roc_auc"] - pixel_roc_auc_score(masks, maps)) > 1e-3


def test_export_writes_files_for_openvino_and_says_how_well_they_agree(root, tmp_path):
    openvino = pytest.importorskip("openvino")
    output = tmp_path / "model.xml"
    done = run(
        "export", root / "model.joblib", "-o", output, "--format", "openvino", "--check", root / "train" / "good"
    )
    assert "images checked" in done.stdout and "0 labels differ" in done.stdout
    model = openvino.Core().read_model(output)
    assert model.get_rt_info(["ipca_sklearn", "precision"]).value == "FP32"


def test_bench_prints_a_row_for_each_engine(root):
    done = run("bench", root / "model.joblib", "--images", "4")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[2:]}
    assert rows["torch"].count("img/s") == 2 and rows["torch"].endswith("ms")
    assert {"openvino", "onnxruntime"} <= set(rows)


def test_export_writes_a_file_that_onnxruntime_runs(root, tmp_path):
    run("export", root / "model.joblib", "-o", tmp_path / "model.onnx")
    path = next((root / "train" / "good").iterdir())
    image = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)[None]
    score, _ = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": image})
    np.testing.assert_allclose(score, load(root / "model.joblib").score_samples([path]), rtol=1e-4)


def test_a_folder_without_images_among_others_is_told(root, tmp_path):
    (tmp_path / "none").mkdir()
    image = next((root / "train" / "good").iterdir())
    done = run("predict", root / "model.joblib", image, tmp_path / "none", "--device", "cpu")
    assert re.search(r"warning: no images in \S*none: only the others are read", done.stderr)
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere", "-o", "m.joblib"], "no image at nowhere"),
        (["fit", ".", "-o", "m.joblib"], "no images in ."),
        (["predict", "nowhere.joblib", "x.png"], "no model at nowhere.joblib"),
        (["info", "other.joblib"], "is not a whole model file"),
        (["fit", "x.png", "-o", "m.joblib", "--false-positive-rate", "much"], "--false-positive-rate"),
    ],
)
def test_errors_are_one_line_and_a_traceback_only_if_asked_for(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.joblib").write_bytes(b"something else")
    if "x.png" in arguments and "fit" in arguments:
        save_image(tmp_path / "x.png", np.zeros((8, 8, 3), np.uint8))
    done = run(*arguments, code=1)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "m.joblib").exists()
    with pytest.raises((OSError, ValueError)):
        runner.invoke(app, ["--debug", *arguments], catch_exceptions=False)


def inverted(root, folder, kinds=("good",)):
    """Copy test images of a data set, in another light: as negatives."""
    for kind in kinds:
        for path in sorted((root / "test" / kind).iterdir()):
            save_image(folder / "test" / kind / path.name, 255 - np.asarray(Image.open(path)))
    return folder


def test_evaluate_tells_when_the_light_has_changed_and_what_to_do(root, tmp_path):
    done = run("evaluate", root / "model.joblib", root, "--device", "cpu")
    assert "called anomalous where" not in done.stderr and "less normal" not in done.stderr
    done = run("evaluate", root / "model.joblib", inverted(root, tmp_path), "--json", "--device", "cpu")
    (told,) = [line for line in done.stderr.splitlines() if "are called anomalous" in line]
    assert told.startswith("warning: 4 of 4 normal images (100%) are called anomalous where about 10.0% were expected")
    for remedy in ("light", "camera", "ipca-sklearn update", "--false-positive-rate"):
        assert remedy in told
    facts = json.loads(done.stdout)
    assert facts["false_positive_rate"] == 1 and facts["expected_false_positive_rate"] == 0.1


def test_predict_tells_when_most_images_are_called_anomalous(root, tmp_path):
    good = sorted((root / "train" / "good").iterdir())[:11]
    done = run("predict", root / "model.joblib", *good, "--device", "cpu")
    n_alarms = sum(row["label"] == "-1" for row in csv.DictReader(done.stdout.splitlines()))
    assert "called anomalous" not in done.stderr
    assert f"\n{n_alarms} of {len(good)} images are anomalous\n" in done.stderr
    for path in good:
        save_image(tmp_path / path.name, 255 - np.asarray(Image.open(path)))
    done = run("predict", root / "model.joblib", tmp_path, "--device", "cpu")
    assert "warning: 11 of 11 images (100%) are called anomalous. If these images are normal" in done.stderr
    done = run("predict", root / "model.joblib", *sorted(tmp_path.iterdir())[:9], "--device", "cpu")
    assert "called anomalous" not in done.stderr  # too few to tell


def test_evaluate_does_without_what_it_does_not_need(root, tmp_path):
    """Without train/good, masks or one of the kinds of images, the other figures are the same."""
    whole = json.loads(run("evaluate", root / "model.joblib", root, "--json", "--device", "cpu").stdout)
    shutil.copytree(root / "test", tmp_path / "test")
    done = run("evaluate", root / "model.joblib", tmp_path, "--json", "--device", "cpu")
    assert "4 of 4 anomalous images have no mask" in done.stderr
    found = json.loads(done.stdout)
    assert found["defects"][0]["image_roc_auc"] == whole["defects"][0]["image_roc_auc"]
    assert all(row["pixel_roc_auc"] is None and row["aupro"] is None for row in found["defects"])
    assert "  -                   -" in run("evaluate", root / "model.joblib", tmp_path, "--device", "cpu").stdout
    first = min(path for path in (root / "ground_truth").rglob("*.png"))
    (tmp_path / "ground_truth" / first.parent.name).mkdir(parents=True)
    shutil.copy(first, tmp_path / "ground_truth" / first.parent.name)
    done = run("evaluate", root / "model.joblib", tmp_path, "--json", "--device", "cpu")
    assert "3 of 4 anomalous images have no mask" in done.stderr
    assert 0 <= json.loads(done.stdout)["defects"][0]["pixel_roc_auc"] <= 1
    only_good = inverted(root, tmp_path / "only_good")
    done = run("evaluate", root / "model.joblib", only_good, "--picture", tmp_path / "roc.png", "--device", "cpu")
    assert "no ROC curve is drawn" in done.stderr and "of 4 normal images" in done.stdout
    shutil.rmtree(tmp_path / "test" / "good")
    done = run("evaluate", root / "model.joblib", tmp_path, "--device", "cpu")
    assert "there are no normal images" in done.stdout


def test_a_table_of_an_unknown_form_is_refused(root):
    assert "neither .csv nor .jsonl" in run("predict", root / "model.joblib", root, "-o", "x.xlsx", code=1).stderr


def test_hidden_files_and_folders_are_left_out(root, tmp_path):
    folder = tmp_path / "good"
    paths = sorted((root / "train" / "good").iterdir())[:20]
    for index, path in enumerate(paths):
        save_image(folder / ("first", "second")[index % 2] / path.name, np.asarray(Image.open(path)))
    for name in ("first/._0.png", ".Trashes/0.png", "first/.thumbnails/0.png", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    done = run("fit", folder, "-o", tmp_path / "model.joblib", *SETTINGS)
    assert "20 images learnt" in done.stdout
    done = run("predict", tmp_path / "model.joblib", folder, "--device", "cpu")
    expected = sorted((folder / "first").glob("[0-9]*.png")) + sorted((folder / "second").iterdir())
    assert [row["path"] for row in csv.DictReader(done.stdout.splitlines())] == list(map(str, expected))
    hidden = folder / "first" / "._0.png"  # named by hand, it is read
    done = run("predict", tmp_path / "model.joblib", hidden, "--device", "cpu", code=3)
    assert "._0.png is not an image" in done.stdout


def test_help_names_every_command_and_the_exit_codes():
    text = run("--help").stdout
    for name in ("demo", "fit", "update", "predict", "watch", "evaluate", "info", "export", "Exit codes"):
        assert name in text


def test_unreadable_images_stop_learning_or_are_skipped_with_one_line(root, tmp_path):
    folder = tmp_path / "good"
    for path in sorted((root / "train" / "good").iterdir())[:20]:
        save_image(folder / path.name, np.asarray(Image.open(path)))
    (folder / "broken.png").write_text("no image")
    model = tmp_path / "model.joblib"
    done = run("fit", folder, "-o", model, *SETTINGS, code=1)
    assert "broken.png is not an image" in done.stderr
    done = run("fit", folder, "-o", model, *SETTINGS, "--on-error", "skip")
    assert "20 images learnt" in done.stdout
    told = [line for line in done.stderr.splitlines() if "broken.png" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: 1 of 21 images could not be read")
    folder = folder.rename(tmp_path / "more")
    for path in folder.glob("[!b]*.png"):
        save_image(path, np.fliplr(np.asarray(Image.open(path))))  # other pixels: other images
    run("update", model, folder, "--device", "cpu", code=1)
    done = run("update", model, folder, "--device", "cpu", "--on-error", "skip")
    assert "40 images learnt" in done.stdout
    assert load(model)[-1].learnt_from_[1]["n_images"] == 20


def test_fit_shuffles_unless_told_not_to(root, tmp_path):
    for options, order in (([], np.random.default_rng(0).permutation(40)), (["--no-shuffle"], np.arange(40))):
        run("fit", root / "train", "-o", tmp_path / "model.joblib", *SETTINGS, *options)
        pipe = load(tmp_path / "model.joblib")
        paths = sorted((root / "train" / "good").iterdir())
        expected = pipe[-1].__class__(**pipe[-1].get_params()).fit(pipe[0].transform([paths[i] for i in order]))
        assert pipe[-1].offset_ == pytest.approx(expected.offset_, rel=1e-4)


@pytest.fixture
def tall(tmp_path):
    """Images of 96 x 64 in MVTec AD's layout with a defect and its mask, and a model of them."""
    rng = np.random.default_rng(0)
    for part, n_images in (("train/good", 20), ("test/good", 3), ("test/hole", 3)):
        for index in range(n_images):
            save_image(tmp_path / part / f"{index}.png", rng.integers(90, 160, (96, 64, 3), dtype=np.uint8))
    mask = np.zeros((96, 64), np.uint8)
    mask[10:40, 20:30] = 1
    for index in range(3):
        save_image(tmp_path / "ground_truth" / "hole" / f"{index}_mask.png", mask)
    run("fit", tmp_path / "train", "-o", tmp_path / "model.joblib", "--k", "2", "--device", "cpu")
    return tmp_path


def test_evaluate_names_a_mask_that_is_not_its_images_and_reads_classes(tall):
    hole = tall / "ground_truth" / "hole"
    before = run("evaluate", tall / "model.joblib", tall, "--json", "--device", "cpu")
    mask = np.asarray(Image.open(hole / "1_mask.png"))
    for values in (mask * 2, mask * 255):
        save_image(hole / "1_mask.png", values)
        after = run("evaluate", tall / "model.joblib", tall, "--json", "--device", "cpu")
        assert json.loads(after.stdout) == json.loads(before.stdout)
    save_image(hole / "1_mask.png", mask * 0)
    done = run("evaluate", tall / "model.joblib", tall, "--json", "--device", "cpu")
    assert "1 of 3 anomalous images have a mask that marks nothing of what is inspected" in done.stderr
    assert "1_mask.png" in done.stderr
    save_image(hole / "1_mask.png", mask.T)
    done = run("evaluate", tall / "model.joblib", tall, "--device", "cpu", code=1)
    assert "1_mask.png has shape (64, 96), its image (96, 64)" in done.stderr
    assert "1.png)" in done.stderr and "turned by 90 degrees" in done.stderr
