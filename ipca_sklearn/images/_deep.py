"""Files of 16 bits a channel of which Pillow would keep 8: colour, and grey with transparency.

Pillow has no mode for them. Its decoders unpack either byte of each value, so that such a file is decoded twice, by the
decoder that has opened it (https://github.com/python-pillow/Pillow/issues/1888, Pillow 13.0). What cannot be read in
full is refused: 14 of the 2124 levels of a 12-bit camera would be left.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from PIL import Image

from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.images._formats import upright

_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR = 258, 262, 284  # tags of TIFF
# How Pillow unpacks the first byte of each value of "<channels>;16<order>", and how it unpacks the second one.
_NATIVE = "L" if sys.byteorder == "little" else "B"
_LOW_BYTE = {"B": "L", "L": "B", "N": "B" if _NATIVE == "L" else "L"}


def read_deep(image: Image.Image, name: str) -> np.ndarray | None:
    """Return the channels (H, W, 3 or 4) of an undecoded image as uint16; None if Pillow keeps all of its bits."""
    if not loses_bits(image):
        return None
    tile = getattr(image, "tile")[0]  # noqa: B009  (not all of Pillow's images declare it)
    if image.format == "PPM" and tile.codec_name == "ppm":
        return _read_ppm(image, tile.offset, tile.args[-1])
    channels, _, order = str(_arguments(tile)[0]).partition(";16")
    readable = image.format in ("PNG", "TIFF") and channels in ("RGB", "RGBA", "RGBX", "RGBa", "LA")
    if not readable or order not in _LOW_BYTE or _tag(image, _PLANAR, 1) != 1:
        raise ImageReadError(
            f"{name} has 16 bits a channel, of which 8 would be lost: of {image.format} files with so many bits, "
            "grey is read, and RGB with or without transparency in PNG and, interleaved, in TIFF. Convert it to one of "
            "these or to 8 bits, or leave it out"
        )
    if channels == "LA":  # unpacked as if its four bytes were RGBA
        grey, low_grey, alpha, low_alpha = np.moveaxis(_decode(image, "RGBA").astype(np.uint16), -1, 0)
        values = np.stack([grey << 8 | low_grey] * 3 + [alpha << 8 | low_alpha], axis=-1)
    else:
        unpacked = "RGBA" if channels == "RGBa" else channels
        values = _decode(image, f"{unpacked};16{order}").astype(np.uint16)
        values <<= 8
        values |= _decode(image, f"{unpacked};16{_LOW_BYTE[order]}")
    if channels == "RGBa":  # it is multiplied by its transparency, and so over black already
        values = values[..., :3]
    return _over_black(values, image.info.get("transparency"))


def loses_bits(image: Image.Image) -> bool:
    """Whether Pillow keeps 8 bits only of each value of an undecoded image."""
    tiles = getattr(image, "tile", None)
    if not tiles or image.mode.startswith("I") or image.mode == "F":  # decoded already, or in full
        return False
    arguments = _arguments(tiles[0])
    if image.format == "PPM":
        return max(value for value in (0, *arguments) if isinstance(value, int)) > 255
    return ";16" in str(arguments[0]) or max(_tag(image, _BITS_PER_SAMPLE, (8,))) > 8


def _arguments(tile: Any) -> tuple[Any, ...]:
    # By its place: plug-ins may give plain tuples.
    return tile[3] if isinstance(tile[3], tuple) and tile[3] else (tile[3],)


def _decode(image: Image.Image, rawmode: str) -> np.ndarray:
    """Decode the file of an image anew, unpacked in another way."""
    decoder: Any = type(image)
    with decoder(_content(image)) as again:
        again.seek(image.tell())
        again.tile = [
            tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
            for tile in again.tile
        ]
        again.load()
        return np.asarray(upright(again))


def _content(image: Image.Image) -> io.BytesIO:
    file: Any = getattr(image, "fp")  # noqa: B009  (Pillow declares it in a base class alone)
    position = file.tell()
    file.seek(0)
    content = io.BytesIO(file.read())
    file.seek(position)
    return content


def _read_ppm(image: Image.Image, offset: int, largest: int) -> np.ndarray:
    shape = (image.height, image.width, 3)
    values = np.frombuffer(_content(image).getbuffer(), ">u2", int(np.prod(shape)), offset).reshape(shape)
    return _stretched(values.clip(None, largest), largest)


def _stretched(values: np.ndarray, largest: int) -> np.ndarray:
    return ((values.astype(np.uint32) * 65535 + largest // 2) // largest).astype(np.uint16)


def _over_black(values: np.ndarray, transparent: Any) -> np.ndarray:
    """Make the pixels of the one colour that a PNG file calls transparent black."""
    if transparent is None:
        return values
    is_transparent = (values[..., :3] == np.asarray(transparent)).all(-1, keepdims=True)
    return np.where(is_transparent, np.uint16(0), values)


def as_stored(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return the values (H, W, 1) of a grey image of 16 bits or floats as light, which Pillow leaves as they are."""
    # In TIFF files white may be 0, or 4095 (12 bits); in PNG files one value may be transparent.
    if tuple(_tag(image, _BITS_PER_SAMPLE, ())) == (12,):
        values = _stretched(values, 4095)
    if _tag(image, _PHOTOMETRIC, 1) == 0:
        values = (1 if image.mode == "F" else values.dtype.type(65535)) - values
    transparent = image.info.get("transparency") if image.mode.startswith("I;16") else None
    return values if transparent is None else _over_black(values, transparent)


def _tag(image: Image.Image, number: int, default: Any) -> Any:
    """Return a tag of a TIFF file; of other images, and if it is not there, the default."""
    return getattr(image, "tag_v2", {}).get(number, default)
