"""Benchmarks: `python -m benchmarks.<question>` from the repository root; README.md lists the questions."""
