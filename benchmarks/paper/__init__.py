"""The tables and figures of the paper: `python -m benchmarks.paper`."""
