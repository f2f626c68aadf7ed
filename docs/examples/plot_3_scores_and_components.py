"""
Scores and components
=====================

The same features, different scores and numbers of components: what each of them sees.
"""

# %%
# The network runs once: features are computed, kept, and read by every detector.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import ExplainedVarianceDisplay

data = make_textures(96, 48, material="wood", random_state=0)
extractor = PatchFeatureExtractor("efficientnet_lite0", grid_size=28).fit(data.train_images)
normal = np.asarray(extractor.transform(data.train_images))
new = np.asarray(extractor.transform(data.test_images))

# %%
# All scores read the same model, so a fitted detector can change its mind about the score.
components = [2, 4, 8, 16, 32]
curves: dict[str, list[float]] = {}
for k in components:
    detector = PatchGaussianDetector(k, step_size=32).fit(normal)
    for score in ("factor_analysis", "residual", "ppca", "mahalanobis"):
        scores = detector.set_params(score=score).score_samples(new)
        curves.setdefault(score, []).append(roc_auc_score(data.test_labels, scores))

figure, axis = plt.subplots(layout="constrained")
for score, values in curves.items():
    axis.plot(components, values, marker="o", label=score)
axis.set(xlabel="n_components", ylabel="image ROCAUC", xscale="log", xticks=components, xticklabels=components)
axis.minorticks_off()
axis.legend()

# %%
# Where components are needed: the map of a model, with the places that need more than it has in
# grey.
ExplainedVarianceDisplay.from_estimator(detector, share=0.8)
