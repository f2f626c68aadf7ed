"""Everything that a GPU can change, in one run: `python -m benchmarks.gpu`."""
