"""Log a fitted pipeline with MLflow, and load it for predictions: `python mlflow_model.py MODEL IMAGE ...`."""

import sys
from importlib.metadata import version

import mlflow
import numpy as np
import pandas as pd
from mlflow.types import ColSpec, Schema, TensorSpec

from ipca_sklearn import persistence
from ipca_sklearn.inspection import model_card

# All that scores depend on, in the versions of now. MLflow would guess them from what is imported.
REQUIREMENTS = [
    f"{name}=={version(name).partition('+')[0]}"
    for name in ("ipca_sklearn", "torch", "torchvision", "scikit-learn", "numpy", "scipy", "pillow", "skops", "mlflow")
]
PATHS = Schema([ColSpec("string", "path")])  # a table with a column of paths, which the server can read
ARRAYS = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])  # RGB images (n, height, width, 3) of one size


LABELS = Schema([TensorSpec(np.dtype(np.int64), (-1,))])  # +1 normal, -1 anomalous


def log(pipe, inputs=PATHS):
    """Log a model with its card, and return its address."""
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            pipe,
            name="inspector",
            serialization_format="skops",  # executes nothing when it is loaded; a pickle does
            skops_trusted_types=persistence.trusted_types(),
            pip_requirements=REQUIREMENTS,
            signature=mlflow.models.ModelSignature(inputs=inputs, outputs=LABELS),
        )
        mlflow.log_text(model_card(pipe).to_markdown(), "model_card.md")
    return logged.model_uri


if __name__ == "__main__":
    address = log(persistence.load(sys.argv[1]))
    pipe = mlflow.sklearn.load_model(address)  # the pipeline itself, with all of its methods
    served = mlflow.pyfunc.load_model(address)  # what `mlflow models serve` runs
    table = pd.DataFrame({"path": sys.argv[2:]})
    for path, label, score in zip(sys.argv[2:], served.predict(table), pipe.score_samples(table), strict=True):
        print(path, label, score)
