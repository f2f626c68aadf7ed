"""The code of the guide that logs a model with MLflow: what is loaded and served is what was fitted."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: the group serving")
CODE = Path(__file__).resolve().parent.parent / "docs" / "serving" / "mlflow_model.py"
pytestmark = pytest.mark.skipif(not CODE.is_file(), reason="docs/ is part of the repository, not of a package")

IMAGES = np.random.default_rng(0).integers(0, 255, (28, 64, 64, 3), dtype=np.uint8)
IMAGES[24:, 10:40, 10:40] = 255  # defects


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=64)
    return Pipeline([("features", extractor), ("detector", PatchGaussianDetector(4))]).fit(IMAGES[:20])


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module of the guide, with a store of MLflow in a folder of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)  # artifacts are written beside the data base
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        spec = importlib.util.spec_from_file_location("mlflow_model_of_the_guide", CODE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patched.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module
    mlflow.set_tracking_uri(before)


def test_a_logged_model_answers_as_the_one_that_was_fitted(guide: ModuleType, pipe: Pipeline, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    testclient = pytest.importorskip("fastapi.testclient", reason="httpx is not installed: the group serving")
    from mlflow.pyfunc import scoring_server

    new = IMAGES[20:]
    for number, image in enumerate(new):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    expected = pipe.predict(paths)
    assert set(expected) == {1, -1}

    address = guide.log(pipe)
    loaded = mlflow.sklearn.load_model(address)
    np.testing.assert_array_equal(loaded.score_samples(paths), pipe.score_samples(paths))
    table = pd.DataFrame({"path": paths})
    served = mlflow.pyfunc.load_model(address)
    np.testing.assert_array_equal(served.predict(table), expected)
    client = testclient.TestClient(scoring_server.init(served))
    answer = client.post("/invocations", json={"dataframe_split": table.to_dict(orient="split", index=False)})
    assert answer.status_code == 200 and answer.json() == {"predictions": expected.tolist()}

    of_arrays = mlflow.pyfunc.load_model(guide.log(pipe, inputs=guide.ARRAYS))
    np.testing.assert_array_equal(of_arrays.predict(new), pipe.predict(new))


def test_the_logged_model_names_all_that_its_scores_depend_on_and_holds_no_pickle(
    guide: ModuleType, pipe: Pipeline
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(guide.log(pipe)))
    requirements = (folder / "requirements.txt").read_text()
    for name in ("ipca_sklearn", "torch", "torchvision", "scikit-learn", "skops"):
        assert f"\n{name}==" in f"\n{requirements}"
    assert "+" not in requirements  # the build of torch, which no index lists under its version
    assert (folder / "model.skops").is_file() and not list(folder.glob("*.pkl"))
    run = mlflow.last_active_run()
    assert "## Thresholds" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model_card.md")
