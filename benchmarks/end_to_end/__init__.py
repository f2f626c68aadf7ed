"""From image files to a fitted model to anomaly maps, beside anomalib: `python -m benchmarks.end_to_end`."""
