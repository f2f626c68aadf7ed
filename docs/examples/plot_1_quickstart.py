"""
Heat maps from normal images
============================

Learn a generated leather from normal images only, and look at the heat maps of other images.
"""

# %%
# The images: 96 normal ones to learn from, and others. Every second one of these has a defect.
from sklearn.metrics import RocCurveDisplay
from sklearn.pipeline import Pipeline

from ipca_sklearn import PatchFeatureExtractor, PatchGaussianDetector
from ipca_sklearn.datasets import make_textures
from ipca_sklearn.inspection import AnomalyMapDisplay

data = make_textures(96, 24, material="leather", random_state=0)
print(data.train_images.shape, data.train_images.dtype)

# %%
# A pipeline of two estimators: a frozen network describes the patches of an image, and every patch gets a Gaussian.
pipe = Pipeline(
    [
        ("features", PatchFeatureExtractor()),
        ("detector", PatchGaussianDetector(n_components=16)),
    ]
)
pipe.fit(data.train_images)

# %%
# Heat maps of four images with defects and of a normal one.
shown = [1, 3, 5, 7, 0]
AnomalyMapDisplay.from_estimator(
    pipe,
    data.test_images[shown],
    masks=list(data.test_masks[shown]),
    titles=[str(data.defect_types[index]) for index in shown],
)

# %%
# Scores are higher for more normal images, as everywhere in scikit-learn, so its own tools apply.
RocCurveDisplay.from_predictions(data.test_labels, pipe.score_samples(data.test_images), plot_chance_level=True)
