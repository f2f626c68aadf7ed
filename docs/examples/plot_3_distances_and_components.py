"""
Distances and components
========================

The same features, with different distances and numbers of components.
"""

# %%
# The network runs once. Every detector reads the same features.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import ExplainedVarianceDisplay

data = make_textures(96, 48, material="wood", random_state=0)
extractor = PatchFeatureExtractor(grid_size=28).fit(data.train_images)
normal = np.asarray(extractor.transform(data.train_images))
new = np.asarray(extractor.transform(data.test_images))

# %%
# All distances read the same model, so the distance of a fitted detector can be changed.
components = [2, 4, 8, 16, 32]
curves: dict[str, list[float]] = {}
for k in components:
    detector = PatchGaussianDetector(k, step_size=32).fit(normal)
    for distance in ("factor_analysis", "residual", "ppca", "mahalanobis"):
        scores = detector.set_params(distance=distance).score_samples(new)
        curves.setdefault(distance, []).append(roc_auc_score(data.test_labels, scores))

figure, axis = plt.subplots(layout="constrained")
for distance, values in curves.items():
    axis.plot(components, values, marker="o", label=distance)
axis.set(xlabel="n_components", ylabel="image ROCAUC", xscale="log", xticks=components, xticklabels=components)
axis.minorticks_off()
axis.legend()

# %%
# Where components are needed: the map of a model. Patches that need more components than it has are grey.
ExplainedVarianceDisplay.from_estimator(detector, share=0.8)
