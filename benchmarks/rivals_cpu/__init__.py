"""Learning, scoring and starting on a CPU, beside anomalib: `python -m benchmarks.rivals_cpu`."""
