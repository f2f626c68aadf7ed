"""Accuracy on a labelled set of images, beside anomalib on the same network: `python -m benchmarks.accuracy`."""
