"""
Choosing parameters, with and without defects
=============================================

A grid search on images, with a cache: the network runs once per image, and each fold is learnt once for all
numbers of components.
"""

# %%
# 60 normal images and 20 with defects. Labels are +1 and -1.
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import Pipeline

from ipca_sklearn import FeatureCache, PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.model_selection import DetectorGridSearchCV, OneClassKFold

data = make_textures(60, 40, material="fabric", random_state=0)
defects = data.test_labels == -1
images = np.concatenate([data.train_images, data.test_images[defects]])
labels = np.array([1] * 60 + [-1] * int(defects.sum()))

# %%
# Training folds hold normal images only; every fold is tested with all the defects. The cache keeps
# the features on disk.
folder = tempfile.TemporaryDirectory()
cache = FeatureCache(folder.name, max_bytes=2_000_000_000)
pipe = Pipeline(
    [
        ("features", PatchFeatureExtractor(image_size=128, cache=cache)),
        ("detector", PatchGaussianDetector(n_gaussians=64)),
    ]
)
grid = {"detector__n_components": [1, 2, 4, 8, 16, 32]}
search = DetectorGridSearchCV(pipe, grid, scoring="roc_auc", cv=OneClassKFold(3)).fit(images, labels)
print(search.best_params_, "from", search.n_fits_, "fits")
print("cache:", cache.n_images, "images,", round(cache.n_bytes / 1e6), "MB")

# %%
# Without defects, the search compares ``score``, the likelihood of held-out normal images under
# probabilistic PCA.
likelihood = DetectorGridSearchCV(pipe, grid, cv=OneClassKFold(3)).fit(images[labels == 1])
print(likelihood.best_params_)

# %%
# Both criteria beside each other, with the spread over the folds.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axis, result, name in zip(axes, (search, likelihood), ("image ROCAUC", "held-out log-likelihood"), strict=True):
    k = grid["detector__n_components"]
    axis.errorbar(k, result.cv_results_["mean_test_score"], result.cv_results_["std_test_score"], marker="o", capsize=3)
    axis.set(xscale="log", xticks=k, xticklabels=k, xlabel="n_components", ylabel=name)
folder.cleanup()
