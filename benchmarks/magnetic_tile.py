"""python benchmarks/magnetic_tile.py ROOT: the magnetic tile set (paper, Table 10) with EfficientNet-Lite0."""

from _accuracy import main

if __name__ == "__main__":
    main(__file__, "magnetic_tile", "Magnetic tile defects", "magnetic_tile")
