"""A frame at a time, beside the network alone and anomalib's PaDiM: `python -m benchmarks.latency`."""
