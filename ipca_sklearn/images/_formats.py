"""Image files: the formats that are read, and opening one without running anything but its decoder.

Pillow chooses a decoder by the content of a file, whatever its name says, and some formats start other programs (EPS
starts Ghostscript). Here the content chooses among a few raster formats, whose decoders are called by name.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, NamedTuple

from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin

from ipca_sklearn._utils._files import printable
from ipca_sklearn._utils._typing import PathLike
from ipca_sklearn.exceptions import ImageReadError, MissingImageError

# Pillow's own threshold of suspicion (a quarter of a gigabyte of RGB), e.g. 9459 x 9459 pixels.
MAX_PIXELS = 89_478_485
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# PIL images that the user has opened may be of any format but these: Pillow decodes them with another program.
_FOREIGN_DECODERS = {"BUFR", "EMF", "EPS", "GRIB", "HDF5", "WMF"}


class Format(NamedTuple):
    """A format that is read: its decoder, the suffixes of its files, and how a file of it begins."""

    decoder: Any
    suffixes: tuple[str, ...]
    beginnings: tuple[bytes, ...]


# Not through Image.open: it warns of large images by a limit of the whole process, where `max_pixels` decides here.
FORMATS = {
    "PNG": Format(PngImagePlugin.PngImageFile, (".png",), (b"\x89PNG\r\n\x1a\n",)),
    "JPEG": Format(JpegImagePlugin.JpegImageFile, (".jfif", ".jpe", ".jpeg", ".jpg"), (b"\xff\xd8\xff",)),
    "BMP": Format(BmpImagePlugin.BmpImageFile, (".bmp",), (b"BM",)),
    "TIFF": Format(TiffImagePlugin.TiffImageFile, (".tif", ".tiff"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "WebP": Format(WebPImagePlugin.WebPImageFile, (".webp",), (b"RIFF",)),
    "PPM/PGM": Format(
        PpmImagePlugin.PpmImageFile, (".pbm", ".pgm", ".pnm", ".ppm"), (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
    ),
}
IMAGE_SUFFIXES = tuple(sorted(suffix for known in FORMATS.values() for suffix in known.suffixes))
FORMAT_NAMES = ", ".join(FORMATS)
# Suffixes of pictures that are not read: folders of them are not passed over in silence.
OTHER_IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("ai", "arw", "avif", "cr2", "cr3", "dcm", "dib", "dng", "emf", "eps", "exr", "gif", "hdr", "heic", "heif"),
        *("ico", "j2k", "jp2", "jpf", "jpx", "jxl", "nef", "orf", "pcx", "pfm", "psd", "raw", "rw2", "sgi", "svg"),
        *("tga", "wmf"),
    )
)
# How files of other formats begin, for messages: (position, bytes, name).
_OTHERS = (
    (0, b"GIF8", "GIF"),
    (0, b"%!PS", "EPS or PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "MP4, HEIF or another container"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (128, b"DICM", "DICOM"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (0, b"BLP", "BLP"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"PF", "PFM"),
    (0, b"Pf", "PFM"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or another XML"),
    (0, b"\x93NUMPY", "numpy array"),
    (0, b"PK\x03\x04", "ZIP"),
)


@contextmanager
def open_image(path: PathLike | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Iterator[Image.Image]:
    """Open an image file or its bytes; the header is read and the pixels are not yet; the image is closed at the end.

    An ImageReadError names the file (`name` for bytes) and says what is wrong, before memory for the pixels is taken;
    it is a MissingImageError if there is no file.
    """
    name = (name or "image") if isinstance(path, bytes) else printable(path)
    with io.BytesIO(path) if isinstance(path, bytes) else _open_regular(path, name) as file:
        start = file.read(132)
        known = next((one for one in FORMATS.values() if start.startswith(one.beginnings)), None)
        if known is FORMATS["WebP"] and start[8:12] != b"WEBP":
            known = None
        if known is None:
            raise ImageReadError(f"{name} {_unknown_format(start)}")
        if known is FORMATS["WebP"]:  # its decoder takes memory for the pixels as soon as it is made
            check_pixels(_webp_size(start), name, max_pixels)
        file.seek(0)
        try:
            image = known.decoder(file, None if isinstance(path, bytes) else os.fsdecode(path))
        except Exception as error:  # decoders raise SyntaxError, struct.error, MemoryError, ... on corrupt files
            raise undecodable(name, error) from error
        with image:
            check_pixels(image.size, name, max_pixels)
            yield image


def _open_regular(path: PathLike, name: str) -> BinaryIO:
    """Open a file, unless it is a FIFO, a device, a socket or a folder: reading these may never end."""
    try:
        _require_regular(os.stat(path).st_mode, name)  # opening a device can have effects
        # Should the file be replaced by a FIFO now, opening does not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError as error:
        raise MissingImageError(f"no image at {name}; check the path, or leave it out") from error
    except ImageReadError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageReadError(
            f"{name} cannot be opened ({type(error).__name__}: {printable(error)}); mend it, or leave it out"
        ) from error
    try:
        _require_regular(os.fstat(file.fileno()).st_mode, name)
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(mode: int, name: str) -> None:
    if stat.S_ISREG(mode):
        return
    tests = {"directory (a folder)": stat.S_ISDIR, "FIFO": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    kind = next((kind for kind, is_one in tests.items() if is_one(mode)), "device")
    raise ImageReadError(f"{name} is a {kind} and no regular file; leave it out")


def _unknown_format(start: bytes) -> str:
    """Say what a file is that begins so, without running a decoder."""
    if not start:
        return "is not an image, but an empty file; replace it, or leave it out"
    for position, signature, kind in _OTHERS:
        if start[position:].startswith(signature):
            return (
                f"is of the format {kind}, which is not read ({FORMAT_NAMES} are). Convert it to PNG, for example with "
                "ImageMagick (`magick old.xyz new.png`), or leave it out"
            )
    return f"is not an image, or of a format that is not read ({FORMAT_NAMES} are); convert it to PNG, or leave it out"


def _webp_size(start: bytes) -> tuple[int, int]:
    """Return width and height of a WebP file that begins so; (0, 0) if they are not where they should be."""
    kind, whole = start[12:16], int.from_bytes(start[21:25], "little")
    if kind == b"VP8X":
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    if kind == b"VP8L":
        return (whole & 0x3FFF) + 1, ((whole >> 14) & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF
    return 0, 0


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise an ImageReadError if an image of this width and height has too many pixels."""
    width, height = size
    if width * height > max_pixels:
        found = f"{width} x {height} = {width * height} pixels, more than the limit of {max_pixels}"
        raise _too_large(f"{name} has {found}", "max_pixels: decoding takes about 12 bytes a pixel")


def _too_large(what: str, limit: str) -> ImageReadError:
    """Return an error; what only Python can do is a note, which tracebacks show and the command line does not."""
    error = ImageReadError(f"{what}; cut it into parts, or leave it out")
    error.add_note(f"If you trust it, raise {limit}")
    return error


def check_opened(image: Image.Image, name: str, max_pixels: int) -> None:
    """Raise an ImageReadError for a PIL image that another program decodes, or too large and not in memory yet."""
    if image.format in _FOREIGN_DECODERS:
        raise ImageReadError(
            f"{name} is of the format {image.format}, which Pillow decodes with another program; convert it to PNG, or "
            "leave it out"
        )
    if getattr(image, "tile", None):  # it is yet to be decoded
        check_pixels(image.size, name, max_pixels)


def undecodable(name: str, error: Exception) -> ImageReadError:
    """Return the error of an image whose decoder fails."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        # The decoders of TIFF and WebP have Pillow's limit besides ours.
        found = f"more pixels than Pillow trusts ({printable(error)})"
        return _too_large(f"{name} has {found}", "PIL.Image.MAX_IMAGE_PIXELS besides max_pixels")
    return ImageReadError(
        f"{name} cannot be decoded ({type(error).__name__}: {printable(error)}); replace it or leave it out"
    )


def count_pages(image: Image.Image) -> int:
    """Return the number of pages of a TIFF file, or frames of an animation. A broken list of pages ends early."""
    if not getattr(image, "is_animated", False):
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # the first page may be readable all the same
        return 2


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) where it is absent, broken or no such number."""
    if image.format == "TIFF":  # Pillow turns these when it loads them
        return 1
    value: Any = 1
    with suppress(Exception):  # a broken EXIF block says nothing about the pixels
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and value in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned by its EXIF orientation."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)
