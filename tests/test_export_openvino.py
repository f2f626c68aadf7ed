"""Models of OpenVINO: scores of the pipeline, what is stored, what is refused, and the loaders of the guide."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.export import to_onnx, to_openvino
from ipca_sklearn.export._openvino import _replace_both

openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guide_tasks.md"


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (n, 50, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipe():
    extractor = PatchFeatureExtractor("resnet18", weights=None, image_size=40, crop_size=32, random_state=0)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(3, n_gaussians=16))]).fit(pictures(20))


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    place = tmp_path_factory.mktemp("openvino")
    to_openvino(pipe, place / "model.xml")
    Image.fromarray(pictures(1, seed=1)[0]).save(place / "part.png")
    return place


def test_the_model_scores_as_the_pipeline_for_any_number_and_size_of_images(pipe, folder):
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for images in (pictures(3, seed=1), pictures(1, seed=2)[:, :31, :47]):
        score, maps = compiled(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to_tuple()
        np.testing.assert_allclose(score, pipe.score_samples(images), rtol=1e-4)
        np.testing.assert_allclose(maps, pipe.transform(images), rtol=1e-3, atol=1e-4)


def test_the_files_say_what_a_program_needs(pipe, folder):
    model = openvino.Core().read_model(folder / "model.xml")
    facts = {name: model.get_rt_info(["ipca_sklearn", name]).value for name in ("offset", "map_threshold", "dtype")}
    assert float(facts["offset"]) == pipe[-1].offset_ and float(facts["map_threshold"]) == pipe[-1].map_threshold_
    assert facts["dtype"] == "uint8"
    expected = {"image_size": "40 40", "crop_size": "32 32", "map_size": "8 8", "precision": "FP32"}
    expected |= {"backbone": "'resnet18'", "weights_license": "none: random weights", "inference_precision": "f32"}
    assert {name: model.get_rt_info(["ipca_sklearn", name]).value for name in expected} == expected
    assert sorted(path.suffix for path in folder.iterdir()) == [".bin", ".png", ".xml"]
    digest = sha256((folder / "model.bin").read_bytes()).hexdigest()
    assert model.get_rt_info(["ipca_sklearn", "weights_sha256"]).value == digest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be killed at once")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # has threads, which the child does not use
@pytest.mark.parametrize("n_replaced", [0, 1])
def test_killed_between_the_two_files_no_model_is_left_rather_than_halves_of_two(tmp_path, n_replaced):
    path, replace = tmp_path / "model.xml", os.replace
    _replace_both(path, b"old", b"old weights")
    child = os.fork()
    if child == 0:
        steps = [replace] * n_replaced + [lambda *names: os._exit(9)]
        with mock.patch.object(os, "replace", lambda *names: steps.pop(0)(*names)):
            _replace_both(path, b"new", b"new weights")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not path.exists()
    with pytest.raises(RuntimeError):
        openvino.Core().read_model(path)
    _replace_both(path, b"new", b"new weights")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "model.xml": b"new",
        "model.bin": b"new weights",
    }


def test_a_file_that_cannot_be_written_leaves_the_old_model(tmp_path):
    path = tmp_path / "model.xml"
    _replace_both(path, b"old", b"old weights")
    with mock.patch.object(Path, "unlink", side_effect=OSError), pytest.raises(OSError):
        _replace_both(path, b"new", b"new weights")
    assert path.read_bytes() == b"old" and path.with_suffix(".bin").read_bytes() == b"old weights"


def test_checked_images_tell_how_far_file_and_pipeline_are_apart(pipe, tmp_path, monkeypatch):
    found = to_openvino(pipe, tmp_path / "x.xml", check=pictures(4, seed=1))
    assert found.n_images == 4 and found.n_other_labels == 0
    assert 0 <= found.score_difference <= 1e-4 and 0 < found.map_difference <= 1e-4
    monkeypatch.setitem(sys.modules["ipca_sklearn.export._openvino"].LARGEST_DIFFERENCES, "FP32", 1e-12)
    with pytest.raises(ValueError, match=r"check\[0\]: the exported file differs"):
        to_openvino(pipe, tmp_path / "new.xml", check=pictures(1, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.xml"]


def test_half_precision_takes_half_of_the_bytes_and_scores_nearly_alike(pipe, folder, tmp_path):
    found = to_openvino(pipe, tmp_path / "half.xml", precision="FP16", check=pictures(4, seed=1))
    assert 1e-6 < found.map_difference < 0.02
    whole, half = ((place / name).stat().st_size for place, name in ((folder, "model.bin"), (tmp_path, "half.bin")))
    assert 0.45 * whole < half < 0.6 * whole


def test_a_network_of_integers_takes_its_ranges_from_good_images(pipe, folder, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed")
    found = to_openvino(pipe, tmp_path / "int8.xml", precision="INT8", images=pictures(20), check=pictures(4, seed=1))
    assert 1e-4 < found.map_difference < 0.5
    model = openvino.Core().read_model(tmp_path / "int8.xml")
    quantized = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert quantized and not any("bmm" in op.get_friendly_name() for op in quantized)
    assert (tmp_path / "int8.bin").stat().st_size < (folder / "model.bin").stat().st_size


def test_bad_values_are_refused_before_any_work(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.xml"):
        to_openvino(pipe, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="'FP64' is none of 'FP32', 'FP16', 'INT8'"):
        to_openvino(pipe, tmp_path / "x.xml", precision="FP64")
    with pytest.raises(ValueError, match="takes images="):
        to_openvino(pipe, tmp_path / "x.xml", precision="INT8")
    with pytest.raises(ValueError, match="others take none"):
        to_openvino(pipe, tmp_path / "x.xml", images=pictures(2))
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_one_size_scores_as_the_pipeline_and_takes_no_other(pipe, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.ascontiguousarray(pictures(3, seed=1)[:, :40, :40])
    for size in ((40, 40), (30, 36)):  # that of the network, and another
        here = np.ascontiguousarray(images[:, : size[0], : size[1]])
        to_onnx(pipe, tmp_path / "fixed.onnx", input_size=size, check=here)
        session = onnxruntime.InferenceSession(tmp_path / "fixed.onnx")
        score, maps = session.run(None, {"images": np.ascontiguousarray(here.transpose(0, 3, 1, 2))})
        np.testing.assert_allclose(score, pipe.score_samples(here), rtol=1e-4)
        np.testing.assert_allclose(maps, pipe.transform(here), rtol=1e-3, atol=1e-4)
        assert session.get_modelmeta().custom_metadata_map["input_size"] == f"{size[0]} {size[1]}"
    with pytest.raises(ValueError, match=r"check\[0\] has 50 x 60 pixels, input_size is \(40, 40\)"):
        to_onnx(pipe, tmp_path / "new.onnx", input_size=(40, 40), check=pictures(1))


def test_onnx_files_have_the_same_metadata(pipe, folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    to_onnx(pipe, tmp_path / "x.onnx")
    facts = onnxruntime.InferenceSession(tmp_path / "x.onnx").get_modelmeta().custom_metadata_map
    model = openvino.Core().read_model(folder / "model.xml")
    assert len(facts) >= 12
    assert {name: model.get_rt_info(["ipca_sklearn", name]).value for name in facts} == facts


def code_of_guide(language):
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "read_model" in block]
    return code


def check_output(pipe, output):
    (expected,) = pipe.score_samples(pictures(1, seed=1))
    score, label = output.split()
    assert float(score) == pytest.approx(expected, rel=1e-4)
    assert label == ("normal" if expected >= pipe[-1].offset_ else "anomalous")


def test_the_python_loader_of_the_guide_scores_as_the_pipeline(pipe, folder):
    done = subprocess.run([sys.executable, "-c", code_of_guide("python")], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_output(pipe, done.stdout)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_the_check_of_the_guide_tells_copies_of_two_models_apart(folder, tmp_path):
    (code,) = re.findall(r"```bash\n(grep .*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    for end in ("xml", "bin"):
        shutil.copy(folder / f"model.{end}", tmp_path)
    told = subprocess.run(["sh", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("", "")
    (tmp_path / "model.bin").write_bytes(bytes(8))
    told = subprocess.run(["sh", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert told.stdout == "model.bin does not belong to model.xml\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the libraries of the wheel are named for Linux")
def test_the_cpp_loader_of_the_guide_scores_as_the_pipeline(pipe, folder, tmp_path):
    compiler, place = shutil.which("g++"), Path(openvino.__file__).parent
    libraries = list((place / "libs").glob("libopenvino.so.*"))
    if compiler is None or not libraries or not (place / "include").is_dir():
        pytest.skip("no g++, or the wheel of openvino has no headers")
    (tmp_path / "loader.cpp").write_text(code_of_guide("cpp"))
    command = [compiler, "-std=c++17", "loader.cpp", "-o", "loader", f"-I{place / 'include'}", str(libraries[0])]
    done = subprocess.run([*command, f"-Wl,-rpath,{place / 'libs'}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "pixels").write_bytes(pictures(1, seed=1)[0].transpose(2, 0, 1).tobytes())
    arguments = [tmp_path / "loader", folder / "model.xml", tmp_path / "pixels", "50", "60"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_output(pipe, done.stdout)
