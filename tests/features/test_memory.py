"""Peak memory of a fit does not depend on the number of images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from PIL import Image

SCRIPT = """
import resource, sys
import torch
from sklearn.pipeline import make_pipeline
from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector

paths = [sys.argv[1]] * int(sys.argv[2])
extractor = PatchFeatureExtractor("mobilenet_v3_small", weights=None, random_state=0, image_size=128)
make_pipeline(extractor, PatchGaussianDetector(8)).fit(paths)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(path, n_images):
    command = [sys.executable, "-c", SCRIPT, str(path), str(n_images)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_four_times_the_images_need_the_same_memory(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path)
    few, many = peak(path, 80), peak(path, 320)  # up to 64 images are kept until the end
    assert abs(many / few - 1) < 0.05, (few, many)
