"""Files of more than 8 bits a channel are read in full, or refused by name."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ipca_sklearn import PatchFeatureExtractor
from ipca_sklearn.exceptions import ImageReadError
from ipca_sklearn.images._decode import to_rgb

SHAPE = (13, 11)
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
TURNED = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1)}


def deep(channels, seed=0):
    return np.random.default_rng(seed).integers(0, 65536, (*SHAPE, channels)).astype(np.uint16)


def shares(image):
    return to_rgb(image, "X[7]").permute(1, 2, 0).numpy() / 1.0


def over_black(pixels):
    """The light (H, W, 3) of 16-bit grey, grey and alpha, RGB or RGBA."""
    light = pixels / 65535
    light = light[..., :-1] * light[..., -1:] if light.shape[-1] in (2, 4) else light
    return np.broadcast_to(light, (*light.shape[:2], 3))


def filtered(lines, n_bytes):
    """The lines of a PNG file (rows, bytes of a row), with each of the five filters in turn."""
    out, above = b"", np.zeros(lines.shape[1], dtype=int)
    for row, line in enumerate(lines.astype(int)):
        left, corner = (np.concatenate([np.zeros(n_bytes, dtype=int), one[:-n_bytes]]) for one in (line, above))
        distances = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))
        paeth = np.choose(distances.argmin(0), [left, above, corner])
        predicted = [0, left, above, (left + above) // 2, paeth][row % 5]
        out += bytes([row % 5]) + ((line - predicted) % 256).astype(np.uint8).tobytes()
        above = line
    return out


def png(pixels, *, interlaced=False, chunks=()):
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    parts = [pixels[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [pixels]
    n_bytes = 2 * pixels.shape[2]
    lines = b"".join(
        filtered(np.frombuffer(part.astype(">u2").tobytes(), np.uint8).reshape(len(part), -1), n_bytes)
        for part in parts
        if part.size
    )
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, kind, 0, 0, int(interlaced))
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    written = (
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def tiff(pixels, *, order="<", packed=False, photometric=None, extra=None, planar=1, orientation=1, bits=16):
    """A TIFF file; `packed` is deflated, with differences of neighbours."""
    height, width, channels = pixels.shape
    photometric = (2 if channels > 2 else 1) if photometric is None else photometric
    values = np.diff(pixels, axis=1, prepend=np.uint16(0)) if packed else pixels
    planes = [values] if planar == 1 else np.moveaxis(values, 2, 0)
    strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    if bits == 12:
        joined = "".join(f"{value:012b}" + "0000" * (width % 2 and (column + 1) % width == 0)
                         for column, value in enumerate(pixels.reshape(-1).tolist()))  # fmt: skip
        strips = [int(joined, 2).to_bytes(len(joined) // 8, "big")]
    starts = 8 + np.cumsum([0, *map(len, strips)])
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [8 if packed else 1]),
            262: (3, [photometric]), 273: (4, starts[:-1].tolist()), 274: (3, [orientation]), 277: (3, [channels]),
            278: (4, [height]), 279: (4, list(map(len, strips))), 284: (3, [planar]),
            317: (3, [2 if packed else 1])}  # fmt: skip
    if extra is not None:
        tags[338] = (3, [extra])
    at, entries, tail = int(starts[-1]), b"", b""
    behind = at + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(content) > 4:
            content, tail = struct.pack(f"{order}I", behind + len(tail)), tail + content
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    return start + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + tail


def ppm(pixels, largest=65535):
    return b"P6\n# a comment\n%d %d\n%d\n" % (*pixels.shape[1::-1], largest) + pixels.astype(">u2").tobytes()


FILES = {
    **{f"{n} in PNG": (lambda n=n: (png(deep(n)), over_black(deep(n)))) for n in (1, 2, 3, 4)},
    **{f"{n} interlaced": (lambda n=n: (png(deep(n), interlaced=True), over_black(deep(n)))) for n in (1, 2, 3, 4)},
    **{
        f"{n} in TIFF, {order}, {packed}": (
            lambda n=n, order=order, packed=packed: (
                tiff(deep(n), order=order, packed=packed, extra=2 if n == 4 else None), over_black(deep(n))
            )
        )
        for n in (1, 3, 4) for order in "<>" for packed in (False, True)
    },
    "TIFF with a fourth channel of no meaning": lambda: (tiff(deep(4), extra=0), deep(4)[..., :3] / 65535),
    "TIFF that is multiplied by its alpha": lambda: (tiff(deep(4), extra=1), deep(4)[..., :3] / 65535),
    "grey TIFF with white as 0": lambda: (tiff(deep(1), photometric=0), 1 - over_black(deep(1))),
    "packed grey TIFF with white as 0": lambda: (tiff(deep(1), photometric=0, packed=True), 1 - over_black(deep(1))),
    "grey TIFF of 12 bits": lambda: (tiff(deep(1) // 16, bits=12), (deep(1) // 16 / 4095).repeat(3, -1)),
    "PPM": lambda: (ppm(deep(3)), over_black(deep(3))),
    "PPM of 12 bits": lambda: (ppm(deep(3) // 16, 4095), deep(3) // 16 / 4095),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_each_bit_of_a_file_is_read(kind, tmp_path):
    content, expected = FILES[kind]()
    (tmp_path / "x").write_bytes(content)
    atol = 1e-5 if "12 bits" in kind else 1e-7  # stretched to 16 bits
    np.testing.assert_allclose(shares(tmp_path / "x"), expected, atol=atol, rtol=0)
    with Image.open(tmp_path / "x") as lazy:
        for _ in range(2):  # nothing is lost by reading
            np.testing.assert_allclose(shares(lazy), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_deep_files_are_turned_once(form, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    content = png(deep(3), chunks=[chunk]) if form == "PNG" else tiff(deep(3), orientation=orientation)
    (tmp_path / "x").write_bytes(content)
    np.testing.assert_allclose(shares(tmp_path / "x"), TURNED[orientation](over_black(deep(3))), atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_a_deep_png_file_is_black(channels, tmp_path):
    pixels = deep(channels)
    pixels[3, 4] = 300  # another low byte is another colour
    pixels[5, 6] = 301
    chunk = (b"tRNS", struct.pack(f">{channels}H", *[300] * channels))
    (tmp_path / "x.png").write_bytes(png(pixels, chunks=[chunk]))
    expected = over_black(pixels).copy()
    expected[3, 4] = 0
    np.testing.assert_allclose(shares(tmp_path / "x.png"), expected, atol=1e-7)


def p3(pixels):
    return b"P3\n%d %d\n65535\n" % pixels.shape[1::-1] + " ".join(map(str, pixels.reshape(-1).tolist())).encode()


REFUSED = {
    "separate planes": lambda: tiff(deep(3), planar=2),
    "packed separate planes": lambda: tiff(deep(3), planar=2, packed=True),
    "CMYK": lambda: tiff(deep(4), photometric=5),
    "plain PPM": lambda: p3(deep(3)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_lose_bits_is_refused_by_name(kind, tmp_path):
    (tmp_path / "x").write_bytes(REFUSED[kind]())
    with pytest.raises(ImageReadError, match=r"x has 16 bits a channel, of which 8 would be lost.*Convert it"):
        to_rgb(tmp_path / "x", "X[0]")
    with Image.open(tmp_path / "x") as lazy, pytest.raises(ImageReadError, match=r"X\[0\] has 16 bits a channel"):
        to_rgb(lazy, "X[0]")


@pytest.mark.parametrize("form", ["float RGB", "float grey", "signed"])
def test_other_numbers_are_read_or_refused_by_name(form, tmp_path):
    values = np.linspace(0, 1, 3 * SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(*SHAPE, 3)
    if form == "float grey":
        Image.fromarray(values[..., 0]).save(tmp_path / "x.tif")
        np.testing.assert_allclose(shares(tmp_path / "x.tif")[..., 1], values[..., 0])
        return
    content = tiff(deep(3)) if form == "float RGB" else tiff(deep(1))
    sample_format = struct.pack("<HHII", 339, 3, 1, 3 if form == "float RGB" else 2)
    where = content.index(struct.pack("<HHI", 317, 3, 1))  # in place of the predictor
    (tmp_path / "x.tif").write_bytes(content[:where] + sample_format + content[where + 12 :])
    with pytest.raises(ImageReadError, match=r"x\.tif"):
        to_rgb(tmp_path / "x.tif", "X[0]")


def test_a_deep_file_that_is_damaged_is_named(tmp_path):
    packed = tiff(deep(3), packed=True)
    broken = {
        "a.png": png(deep(3))[:-200],
        "a.ppm": ppm(deep(3))[:-200],
        "a.tif": packed[:20] + bytes(100) + packed[120:],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=name):
            to_rgb(tmp_path / name, "X[0]")


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_eight_bits_and_the_same_times_257_are_one_picture_in_all_files(tmp_path):
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        shallow = rng.integers(0, 256, (*SHAPE, channels), dtype=np.uint8)
        Image.fromarray(shallow[..., 0] if channels == 1 else shallow).save(tmp_path / "8.png")
        forms = {"16.png": png(shallow.astype(np.uint16) * 257)}
        if channels != 2:
            forms["16.tif"] = tiff(shallow.astype(np.uint16) * 257, extra=2 if channels == 4 else None)
        if channels == 3:
            forms["16.ppm"] = ppm(shallow.astype(np.uint16) * 257)
        extractor = PatchFeatureExtractor("resnet18", weights=None, random_state=0, image_size=32).fit(
            [tmp_path / "8.png"]
        )
        expected = np.asarray(extractor.transform([tmp_path / "8.png"]))
        for name, content in forms.items():
            (tmp_path / name).write_bytes(content)
            found = np.asarray(extractor.transform([tmp_path / name]))
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_reading_leaves_no_file_open(tmp_path):
    (tmp_path / "x.tif").write_bytes(tiff(deep(3), packed=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        to_rgb(tmp_path / "x.tif", "X[0]")


def test_an_opened_image_whose_plug_in_gives_plain_tuples_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        image.tile = [tuple(tile) for tile in image.tile]
        np.testing.assert_array_equal(to_rgb(image, "X[0]").permute(1, 2, 0).numpy(), pixels)
