"""
One pass, and more images later
===============================

An incremental PCA beside an exact one, and a detector that continues to learn.
"""

# %%
# Many small data sets at once: 200 samples of 100 patches with 20 features each. The model keeps k x 20
# numbers per patch, whatever the number of samples.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from ipca_sklearn import BatchedIncrementalPCA, PatchGaussianDetector

rng = np.random.default_rng(0)
X = rng.normal(size=(200, 100, 20)) * np.geomspace(4, 0.2, 20)
exact = np.array([PCA(5).fit(X[:, patch]).explained_variance_ for patch in range(100)])

figure, axis = plt.subplots(layout="constrained")
for step_size in (4, 8, 16, 32, 64):
    pca = BatchedIncrementalPCA(n_components=5, step_size=step_size).fit(X)
    error = np.abs(pca.explained_variance_ / exact - 1)
    axis.plot(range(1, 6), 100 * np.median(error, axis=0), marker="o", label=f"step_size={step_size}")
axis.set(xlabel="component", ylabel="error of its variance, per cent (median patch)", yscale="log", xticks=range(1, 6))
axis.legend()

# %%
# Larger steps truncate less often. ``n_oversamples`` keeps a few more directions while learning,
# which helps as well:
pca = BatchedIncrementalPCA(n_components=5, step_size=16, n_oversamples=5).fit(X)
print(
    "largest median error with n_oversamples=5:", np.median(np.abs(pca.explained_variance_ / exact - 1), axis=0).max()
)

# %%
# ``fit`` is a loop of ``partial_fit`` over steps, bit for bit, so images may be added at any time.
first, later = X[:96], X[96:]
detector = PatchGaussianDetector(n_components=5).fit(first)
detector.partial_fit(later)
print(detector.n_samples_seen_, np.array_equal(detector.pca_.mean_, PatchGaussianDetector(5).fit(X).pca_.mean_))
