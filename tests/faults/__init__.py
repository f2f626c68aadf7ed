"""Runs of faults, see `python -m tests.faults --help`."""
