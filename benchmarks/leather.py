"""python benchmarks/leather.py ROOT: the category `leather` of a folder in MVTec AD's layout, with EfficientNet-Lite0.

Where ROOT holds the native-scale tiles and not the official split, the figures are not comparable with published ones.
"""

from _accuracy import main

if __name__ == "__main__":
    main(__file__, "leather_tiles", "Leather tiles", "mvtec_ad/leather")
