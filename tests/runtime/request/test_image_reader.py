# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind against pixels computed by hand; what is damaged or not understood is one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request import image_reader
from fastmmoe.runtime.request.image_reader import FORMATS, Picture, open_image
from fastmmoe.runtime.types import Array

WHITE = 255

# 2 wide, 3 high, every pixel another colour.
UPRIGHT = np.array(
    [[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]], [[0, 250, 250], [120, 120, 120]]], np.uint8
)
# As a camera that was held in this way stores UPRIGHT (TIFF 6.0, tag Orientation: where row 0 and column 0 lie).
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[:, ::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[::-1].swapaxes(0, 1),
}


def pixels(source: Any) -> Array:
    """What is read of a picture, whose size the header alone must tell."""
    picture = Picture(source)
    image = picture.decode()
    assert (image.mode, image.size) == ("RGB", picture.size)
    return np.asarray(image)


def exif(orientation: Any) -> Image.Exif:
    data = Image.Exif()
    data[274] = orientation
    return data


def png(
    shape: tuple[int, int],
    bits: int,
    colour: int,
    rows: Sequence[bytes],
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG file of (height, width), its rows packed, with chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", body), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(shape: tuple[int, int], data: bytes, **tags: int) -> bytes:
    """A little-endian TIFF file of (height, width) in one strip; tags by name."""
    numbers = {"bits": 258, "photometric": 262, "sample_format": 339}
    entries = {256: shape[1], 257: shape[0], 259: 1, 262: 1, 273: 8, 277: 1, 278: shape[0], 279: len(data)}
    entries |= {numbers[name]: value for name, value in tags.items()}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    start = 8 + len(data)
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(entries)) + directory + bytes(4)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    """Function bytes -> a file that holds them."""

    def save(data: bytes) -> Path:
        path = tmp_path / "picture"
        path.write_bytes(data)
        return path

    return save


Saved = Callable[[bytes], Path]


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_every_orientation(name: str, options: dict[str, Any], orientation: int, tmp_path: Path) -> None:
    scale = 16  # so that lossy formats keep the colours
    image = Image.fromarray(STORED[orientation](UPRIGHT).repeat(scale, 0).repeat(scale, 1))
    image.save(tmp_path / "a", name, exif=exif(orientation), **options)
    expected = UPRIGHT.repeat(scale, 0).repeat(scale, 1).astype(int)
    opened = Image.open(tmp_path / "a")
    for source in (tmp_path / "a", opened, opened, Image.open(tmp_path / "a").convert("RGB")):
        if name == "TIFF" and source is not opened and isinstance(source, Image.Image):
            continue  # Pillow itself turned it and took the orientation away
        assert np.abs(pixels(source) - expected).max() <= 12


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_metadata_behind_the_pixels_and_in_xmp(orientation: int, saved: Saved) -> None:
    stored = STORED[orientation](UPRIGHT)
    rows = [row.tobytes() for row in stored]
    block = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="%d"/>' % orientation
    for kind, data in ((b"eXIf", block), (b"iTXt", xmp)):
        assert np.array_equal(pixels(saved(png(stored.shape[:2], 8, 2, rows, before=[(kind, data)]))), UPRIGHT)
        assert np.array_equal(pixels(saved(png(stored.shape[:2], 8, 2, rows, after=[(kind, data)]))), UPRIGHT)


def test_a_picture_is_turned_once(tmp_path: Path) -> None:
    Image.fromarray(STORED[6](UPRIGHT)).save(tmp_path / "a.png", exif=exif(6))
    once = open_image(tmp_path / "a.png")
    assert once.info == {}
    assert np.array_equal(pixels(once), UPRIGHT)
    lazy = Image.open(tmp_path / "a.png")
    open_image(lazy)
    assert lazy.size == (3, 2), "the caller's image changed"


def test_orientations_that_say_nothing(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=exif(0))
    assert np.array_equal(pixels(tmp_path / "a.png"), UPRIGHT)
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", exif=exif(9))
    with pytest.raises(InvalidRequest, match="EXIF orientation 9: expected 1 to 8"):
        open_image(tmp_path / "a.png")


DEEP = np.array([[0, 128, 129, 257], [32768, 32896, 65406, 65535]], np.uint16)
DEEP_GREYS = np.round(DEEP / 65535 * 255)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png((2, 4), 16, 0, [row.astype(">u2").tobytes() for row in DEEP]), DEEP_GREYS),
        (tiff((2, 4), DEEP.tobytes(), bits=16), DEEP_GREYS),
        (tiff((2, 4), DEEP.tobytes(), bits=16, photometric=0), 255 - DEEP_GREYS),
        (tiff((1, 2), bytes([0x80, 0x0F, 0xFF]), bits=12), np.round(np.array([[0x800, 0xFFF]]) / 4095 * 255)),
        (b"P5 4 2 65535\n" + DEEP.astype(">u2").tobytes(), DEEP_GREYS),
        (b"P5 2 1 1023\n" + struct.pack(">HH", 512, 1023), np.round(np.array([[512, 1023]]) / 1023 * 255)),
        (b"P2 2 1 65535\n32768 65535\n", np.array([[128, 255]])),
        (tiff((1, 3), np.array([0, 0.5, 1], "<f4").tobytes(), bits=32, sample_format=3), np.array([[0, 128, 255]])),
        (b"Pf 3 1 -1.0\n" + np.array([0, 0.25, 1], "<f4").tobytes(), np.array([[0, 64, 255]])),
    ],
    ids=["png", "tiff", "white-is-zero", "12 bits", "pgm", "10 bits", "plain pgm", "float tiff", "pfm"],
)
def test_depth_is_scaled(data: bytes, expected: Array, saved: Saved) -> None:
    path = saved(data)
    for source in (path, Image.open(path)):
        assert np.array_equal(pixels(source), np.repeat(expected[:, :, None], 3, axis=2))


def test_depth_of_pictures_in_memory() -> None:
    for dtype in ("<u2", ">u2"):
        assert np.array_equal(pixels(Image.fromarray(DEEP.astype(dtype)))[:, :, 0], DEEP_GREYS)
    assert pixels(Image.new("F", (1, 1), 0.2)).tolist() == [[[51, 51, 51]]]
    wide = png((1, 1), 16, 2, [struct.pack(">HHH", 0x1234, 0xFFFF, 0x80FF)])
    assert pixels(Image.open(io.BytesIO(wide))).tolist() == [[[0x12, 0xFF, 0x80]]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I", (2, 2), 70000), "32-bit integers: the range of their values is not known"),
        (Image.new("F", (2, 2), 255.0), "floating-point values from 255 to 255: expected 0 .black. to 1 .white."),
        (Image.new("F", (2, 2), -0.1), "floating-point values from -0.1"),
        (Image.new("F", (2, 2), float("nan")), "floating-point values from nan"),
        (Image.new("F", (2, 2), float("inf")), "floating-point values from inf"),
        (Image.new("LAB", (2, 2)), "colours of mode LAB are not understood"),
        (tiff((1, 2), bytes(8), bits=32), "32-bit integers"),
        (tiff((1, 2), bytes(4), bits=16, sample_format=2), "32-bit integers"),
        (tiff((1, 2), bytes(8), bits=32, sample_format=3, photometric=0), "floating-point values"),
        (png((1, 1), 16, 2, [bytes(6)], before=[(b"tRNS", bytes(6))]), "a transparent colour of 16 bits"),
    ],
)
def test_values_without_a_known_meaning_are_refused(image: Any, message: str, saved: Saved) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_image(saved(image) if isinstance(image, bytes) else image)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png((1, 2), 1, 0, [b"\x80"], before=[(b"tRNS", b"\0\1")]), [WHITE, 0]),
        (png((1, 2), 1, 0, [b"\x80"], before=[(b"tRNS", b"\0\0")]), [255, WHITE]),
        (png((1, 2), 2, 0, [b"\x90"], before=[(b"tRNS", b"\0\2")]), [WHITE, 85]),
        (png((1, 2), 4, 0, [b"\x5a"], before=[(b"tRNS", b"\0\5")]), [WHITE, 170]),
        (png((1, 2), 8, 0, [b"\5\6"], before=[(b"tRNS", b"\0\5")]), [WHITE, 6]),
        (png((1, 2), 16, 0, [b"\0\5\x80\0"], before=[(b"tRNS", b"\0\5")]), [WHITE, 128]),
        (png((1, 2), 8, 4, [b"\0\0\x40\xff"]), [WHITE, 64]),
        (png((1, 2), 16, 4, [b"\0\0\0\0\x40\0\xff\xff"]), [WHITE, 64]),
        (png((1, 2), 8, 2, [b"\1\1\1\2\2\2"], before=[(b"tRNS", b"\0\1\0\1\0\1")]), [WHITE, 2]),
        (png((1, 2), 8, 6, [b"\0\0\0\0\x40\x40\x40\xff"]), [WHITE, 64]),
        (png((1, 2), 8, 3, [b"\0\1"], before=[(b"PLTE", b"\0\0\0\7\7\7"), (b"tRNS", b"\0")]), [WHITE, 7]),
        (png((1, 2), 8, 3, [b"\0\1"], before=[(b"PLTE", b"\0\0\0\0\0\0"), (b"tRNS", b"\x33\xff")]), [204, 0]),
    ],
    ids=["1", "1 black", "2", "4", "L", "I;16", "LA", "LA 16", "RGB", "RGBA", "P", "P half"],
)
def test_transparency_is_laid_on_white(data: bytes, expected: list[int], saved: Saved) -> None:
    for source in (saved(data), Image.open(io.BytesIO(data))):
        assert pixels(source).tolist() == [[[value] * 3 for value in expected]]


def test_transparency_of_pictures_in_memory() -> None:
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 128))
    for image in (half, half.convert("RGBa"), half.convert("LA"), half.convert("LA").convert("La")):
        blended = np.array([0, 100, 200]) if image.mode.startswith("RGB") else np.full(3, 81)
        expected = blended * 128 / 255 + 255 * 127 / 255
        assert np.abs(pixels(image)[0, 0] - expected).max() <= 1
    palette = Image.new("PA", (1, 1))
    palette.putpixel((0, 0), (0, 0))
    assert pixels(palette).tolist() == [[[255, 255, 255]]]
    gif = io.BytesIO()
    Image.new("P", (2, 2)).save(gif, "GIF", transparency=0)
    assert pixels(Image.open(gif)).min() == 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "YCbCr", "HSV", "1", "RGBX"])
def test_opaque_modes_are_converted_as_pillow_does(mode: str, golden: Path) -> None:
    source = Image.open(golden / "dsvl2-inputs" / "img2_300x260.png")
    image = (source.convert("RGBA") if mode == "RGBX" else source).convert(mode)
    assert np.array_equal(pixels(image), np.asarray(image.convert("RGB")))


def test_cmyk_of_adobe_is_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("name", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_pictures_is_read(name: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (4, 4), (value,) * 3) for value in (40, 200))
    first.save(
        tmp_path / "a", name, save_all=True, append_images=[second], **({"lossless": True} if name == "WEBP" else {})
    )
    assert np.abs(pixels(tmp_path / "a").astype(int) - 40).max() <= 1


def test_array_path_and_picture_are_the_same(golden: Path) -> None:
    path = golden / "dsvl2-inputs" / "img2_300x260.png"
    expected = np.asarray(Image.open(path).convert("RGB"))
    for source in (path, str(path), Image.open(path), expected):
        assert np.array_equal(pixels(source), expected)


@pytest.mark.parametrize("name", ["img0_700x500", "img1_420x980", "img2_300x260"])
def test_golden_pictures_are_read_as_the_official_processors_do(name: str, golden: Path) -> None:
    path = golden / "dsvl2-inputs" / f"{name}.png"
    assert np.array_equal(pixels(path), np.asarray(Image.open(path).convert("RGB")))


def closed_picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image


def test_unusable_pictures(tmp_path: Path, golden: Path) -> None:
    path = golden / "dsvl2-inputs" / "img2_300x260.png"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    names = {
        "text.png": b"no picture",
        "cut.png": whole[: len(whole) // 2],
        "flipped.png": bytes(flipped),
        "empty": b"",
    }
    names |= {"a\nb.png": b"no picture", "a.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"}
    for name, data in names.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
    cases: list[tuple[Any, str]] = [
        (tmp_path / "text.png", "cannot identify image file"),
        (tmp_path / "cut.png", "truncated"),
        (Image.open(tmp_path / "cut.png"), "truncated"),
        (tmp_path / "flipped.png", "damaged, its chunk 'IDAT' does not fit its checksum"),
        (tmp_path / "a\nb.png", r"a\\nb.png': cannot identify image file; give a readable PNG"),
        (tmp_path / "a.eps", "files of format EPS are not read"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "absent.png", "No such file"),
        (tmp_path / "pipe.png", "is a device, a pipe or a socket"),
        (tmp_path / "socket.png", "is a device, a pipe or a socket"),
        ("/dev/zero", "is a device, a pipe or a socket"),
        ("https://example.com/a.jpg", "image https://example.com/a.jpg: addresses are not read; save the picture"),
        ("HTTPS://example.com/a.jpg", "image HTTPS://example.com/a.jpg: addresses are not read; save the picture"),
        ("Data:image/png;base64,AAAA", "addresses are not read"),
        ("data:image/png;base64," + "A" * 5000, "addresses are not read"),
        ("a\0b.png", "null byte"),
        (tmp_path / ("a" * 300), "File name too long"),
        (tmp_path, "Is a directory"),
        (closed_picture(path), "image .PIL, RGB, 300x260."),
        (Image.new("RGB", (0, 5)), "image of 0x5 pixels: expected at least 1x1"),
        (np.zeros((0, 7, 3), np.uint8), "image of 7x0 pixels: expected at least 1x1"),
        (np.zeros((4, 4), np.uint8), r"image array uint8 \[4, 4\]: expected uint8 \[height, width, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"image array uint8 \[4, 4, 4\]: expected uint8"),
        (np.zeros((4, 4, 3), np.float32), r"image array float32 \[4, 4, 3\]: expected uint8"),
        (7, "image of type int: expected a file path"),
    ]
    for source, message in cases:
        with pytest.raises(InvalidRequest, match=message) as error:
            open_image(source)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


def test_bytes_of_a_file_are_its_picture(golden: Path) -> None:
    data = (golden / "dsvl2-inputs" / "img2_300x260.png").read_bytes()
    expected = pixels(golden / "dsvl2-inputs" / "img2_300x260.png")
    for source in (data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(pixels(source), expected)
    cases = [(b"", r"^image \(0 bytes\): is empty"), (b"abc", r"^image \(3 bytes\): cannot identify image file")]
    cases.append((data[:-20], rf"^image \({len(data) - 20:,} bytes\): the PNG file is truncated"))
    for source, message in cases:
        with pytest.raises(InvalidRequest, match=message):
            open_image(source)


def test_size_limits(golden: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png((12_000, 9_000), 1, 0, [bytes(1125)] * 12_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for source in (saved(bomb), Image.open(io.BytesIO(bomb))):
            with pytest.raises(InvalidRequest, match="9000x12000 pixels, expected at most 89,478,485"):
                open_image(source)
    path = golden / "dsvl2-inputs" / "img2_300x260.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidRequest, match="decompression bomb"):
        open_image(path)
    monkeypatch.setattr(image_reader, "MAX_FILE_BYTES", 100)
    with pytest.raises(InvalidRequest, match="bytes, expected at most 100"):
        open_image(path)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    picture = Picture(tmp_path / "a.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    with pytest.raises(InvalidRequest, match="5x4 pixels, its header said 4x4"):
        picture.decode()


def samples() -> list[bytes]:
    """One small picture in every format that Pillow writes and reads."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    Image.init()
    found = []
    for name in sorted({*FORMATS, *Image.SAVE} & Image.OPEN.keys() & Image.SAVE.keys()):
        for mode in ("RGB", "P", "L", "1"):
            file = io.BytesIO()
            try:
                image.convert(mode).save(file, name)
            except (OSError, ValueError, KeyError, AttributeError):
                continue
            found.append(file.getvalue())
            break
    return found


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(min(len(changed), 200) if rng.random() < 0.7 else len(changed)))
        changed[at] = (0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256)))[rng.integers(6)]
    return bytes(changed[: int(rng.integers(1, len(changed)))] if rng.random() < 0.2 else changed)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_format(saved: Saved) -> None:
    rng = np.random.default_rng(5)
    originals = samples()
    assert len(originals) > 15
    refused = 0
    for index in range(500):
        path = saved(mutate(originals[index % len(originals)], rng))
        try:
            assert min(pixels(path).shape) >= 1
        except InvalidRequest as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 150
