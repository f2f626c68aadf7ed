"""Code that several benchmarks use. Importing this package alone loads nothing."""
