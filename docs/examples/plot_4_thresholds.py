"""
Thresholds without defects
==========================

``false_positive_rate`` is the share of new normal images that may be called anomalous.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import ThresholdDisplay

data = make_textures(300, 120, material="metal", random_state=0)
extractor = PatchFeatureExtractor(grid_size=28, image_size=128)
normal = np.asarray(extractor.fit_transform(data.train_images))
new = np.asarray(extractor.transform(data.test_images))

# %%
# The model scores each step of images before it learns the step, and these scores set the threshold.
# Scores of images that were learnt are too good: with their five per cent quantile, the detector calls
# far more new images anomalous.
detector = PatchGaussianDetector(n_components=16, false_positive_rate=0.05).fit(normal)
in_sample = np.quantile(detector.score_samples(normal), 0.05)
good = new[data.test_labels == 1]
print("asked for:", 0.05)
print("new normal images called anomalous:", np.mean(detector.predict(good) == -1))
print("with the quantile of the learnt images:", np.mean(detector.score_samples(good) < in_sample))

# %%
ThresholdDisplay.from_estimator(detector, new, data.test_labels)

# %%
# p-values say how often a normal image scores as low. For normal images they are spread evenly;
# defects are near 0.
p_values = detector.p_values(new)
figure, axis = plt.subplots(layout="constrained")
axis.hist(
    [p_values[data.test_labels == 1], p_values[data.test_labels == -1]], bins=20, label=["normal", "with a defect"]
)
axis.set(xlabel="p-value", ylabel="images")
axis.legend()

# %%
# Masks mark the patches above a threshold of their own.
marked = detector.predict_masks(new)
print("normal images with any mark:", np.mean(marked[data.test_labels == 1].any((1, 2))))
print("images with a defect with any mark:", np.mean(marked[data.test_labels == -1].any((1, 2))))
