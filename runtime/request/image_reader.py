# SPDX-License-Identifier: Apache-2.0
"""Pictures as people see them: upright, 8 bits a channel, RGB without transparency; what is not understood is refused.

* Orientation: that of EXIF or XMP is applied, 1 to 8; 0 and none mean "as stored", other values are refused.
* Depth: 16 (and 12) bits are scaled by v / maximum * 255, rounded; Pillow itself reduces RGB of 16 bits to the upper 8.
  Floats must lie in [0, 1] and are scaled by 255. Integers of 32 bits have no known range and are refused.
* Transparency, of alpha channels, palettes or one transparent colour, is laid on white.
* CMYK, YCbCr, HSV and palettes become RGB by Pillow's rules; LAB is refused. Colour profiles (ICC) are not applied.
* Of animations and files with several pages the first picture is taken.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.libtiff import collect_errors

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "MPO", "TGA", "QOI", "ICO", "ICNS"),
    *("PCX", "SGI", "PSD", "DDS", "BLP", "DIB"),
)
"""Pillow's names of what is read. Its others hold no colours (FITS, GRIB), are programs (EPS, WMF) or curiosities."""

MAX_PIXELS = 89_478_485
"""Pixels of the largest picture; Pillow warns of a decompression bomb above it."""

MAX_FILE_BYTES = 1 << 29
"""Bytes of the largest file: MAX_PIXELS with six bytes each."""

BACKGROUND = (255, 255, 255)
"""Where a picture is transparent."""

BYTES = (bytes, bytearray, memoryview)

ADVICE = "give a readable PNG, JPEG or other picture file"
COLOUR_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SWAPPED = (5, 6, 7, 8)
"""Orientations that exchange width and height."""

_ORIENTATION, _PHOTOMETRIC, _BITS_PER_SAMPLE, _WIDTH, _HEIGHT = 274, 262, 258, 256, 257
_PNG_START = b"\x89PNG\r\n\x1a\n"
_LATE_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")


class Picture:
    """A picture of which the header alone has been read, so that requests are refused before pixels are decoded.

    Args:
        source: a file (str or Path), what is in one (bytes), a PIL image at its present frame, or an array uint8
            [height, width, 3].
    Raises:
        InvalidRequest: not a picture or not a regular file, a format that is not read, too large, or without pixels.

    Attributes:
        size: (width, height), upright.
    """

    def __init__(self, source: Any) -> None:
        from PIL import Image

        self._source = source
        self._layout = _layout(source)
        if isinstance(source, np.ndarray):
            self._name = "image"
            self.size = _array_size(source)
        elif isinstance(source, Image.Image):
            self._name = f"image (PIL, {source.mode}, {source.size[0]}x{source.size[1]})"
            self.size = self._guarded(lambda: _upright_size(source, source.getexif()))
        elif isinstance(source, (str, Path, *BYTES)):
            self._name = f"image {_file_name(source)}"
            self.size = self._guarded(lambda: _file_size(source))
        else:
            raise InvalidRequest(
                f"image of type {type(source).__name__}: expected a file path, a file's bytes, a PIL image or "
                "a uint8 array"
            )
        if min(self.size) < 1:
            raise InvalidRequest(f"image of {self.size[0]}x{self.size[1]} pixels: expected at least 1x1")
        self._check_pixels()

    def decode(self) -> Image:
        """The picture in RGB, without metadata, see the rules at the top of this file.

        Raises:
            InvalidRequest: damaged, of a kind that is not understood, or too large for the memory.
        """
        from PIL import Image

        if isinstance(self._source, np.ndarray):
            return Image.fromarray(self._source)
        if isinstance(self._source, Image.Image):
            image: Image.Image = self._guarded(lambda: _upright_rgb(self._source, self._layout))
        else:
            image = self._guarded(lambda: _decode_file(self._source))
        if image.size != self.size:
            raise InvalidRequest(
                f"{self._name}: {image.size[0]}x{image.size[1]} pixels, its header said {self.size[0]}x{self.size[1]}"
            )
        return image

    def _check_pixels(self) -> None:
        width, height = self.size
        if width * height > MAX_PIXELS:
            raise InvalidRequest(
                f"{self._name}: {width}x{height} pixels, expected at most {MAX_PIXELS:,} (a decompression bomb?); "
                "make it smaller"
            )

    def _guarded(self, read: Any) -> Any:
        try:
            return read()
        except _Refused as error:
            raise InvalidRequest(f"{self._name}: {error}") from None
        except MemoryError as error:
            raise InvalidRequest(f"{self._name}: does not fit into memory; make it smaller") from error
        # Pillow reports damage by whatever its decoders run into: there is no common class but this.
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise InvalidRequest(f"{self._name}: {reason}; {ADVICE}") from error


def open_image(source: Any) -> Image:
    """The picture upright and in RGB, see the rules at the top of this file; metadata is left behind.

    Args:
        source: as of `Picture`. The orientation that a PIL image carries is applied, too.
    Raises:
        InvalidRequest: see `Picture` and its `decode`.
    """
    return Picture(source).decode()


class _Refused(Exception):
    """Why a picture is refused, without its name."""


def _file_name(source: Any) -> str:
    """A file's name on one line, shortened in the middle; how many its bytes are where they are given."""
    if isinstance(source, BYTES):
        return f"({len(source):,} bytes)"
    name = str(source)
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 200 else f"{name[:100]}...{name[-90:]}"


def _array_size(array: npt.NDArray[Any]) -> tuple[int, int]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InvalidRequest(
            f"image array {array.dtype} {list(array.shape)}: expected uint8 [height, width, 3] in RGB order; of "
            "other frames of cameras runtime.camera.frames.to_picture makes that"
        )
    return array.shape[1], array.shape[0]


def _opened(source: Any) -> BinaryIO:
    """The file, if it can be opened without waiting for another process and is not larger than any picture."""
    if isinstance(source, BYTES):
        _check_size(len(source))
        return io.BytesIO(source)
    if re.match(r"(data|https?|ftp|file|s3|gs|rtsp):", str(source), re.IGNORECASE):
        raise _Refused("addresses are not read; save the picture to a file and give its path")
    status = Path(source).stat()
    if stat.S_ISDIR(status.st_mode):
        raise _Refused(f"Is a directory; {ADVICE}")
    if not stat.S_ISREG(status.st_mode):
        raise _Refused(f"is a device, a pipe or a socket; {ADVICE}")
    _check_size(status.st_size)
    return Path(source).open("rb")


def _check_size(count: int) -> None:
    if count == 0:
        raise _Refused(f"is empty; {ADVICE}")
    if count > MAX_FILE_BYTES:
        raise _Refused(f"{count:,} bytes, expected at most {MAX_FILE_BYTES:,}; make it smaller")


def _file_size(source: Any) -> tuple[int, int]:
    from PIL import Image

    with _opened(source) as file:
        is_plain_png = _has_late_metadata(file) is False
        file.seek(0)
        with _open(file) as image:
            # Pillow decodes a PNG to look for metadata behind its pixels.
            return _upright_size(image, Image.Image.getexif(image) if is_plain_png else image.getexif())


def _decode_file(source: Any) -> Image:
    with _opened(source) as file, _open(file) as image:
        return _upright_rgb(image, _layout(image))


def _open(file: BinaryIO) -> ImageFile:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        raise _Refused(f"cannot identify image file; {ADVICE}") from None
    if image.format not in FORMATS:
        image.close()
        raise _Refused(f"files of format {image.format} are not read; {ADVICE}")
    return image


def _has_late_metadata(file: BinaryIO) -> bool | None:
    """Whether a PNG has metadata, in which an orientation may stand, behind its pixels; None = the file is not a PNG.

    All checksums are compared: Pillow does so for those in front of the pixels alone.
    """
    if file.read(len(_PNG_START)) != _PNG_START:
        return None
    kind, has_pixels, is_late = b"", False, False
    while kind != b"IEND":
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        body, checksum = file.read(length), file.read(4)
        if len(body) < length or len(checksum) < 4:
            raise _Refused(f"the PNG file is truncated; {ADVICE}")
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise _Refused(f"the PNG file is damaged, its chunk {ascii(kind)[1:]} does not fit its checksum; {ADVICE}")
        has_pixels |= kind == b"IDAT"
        is_late |= has_pixels and kind in _LATE_METADATA
    return is_late


def _orientation(exif: Any) -> int:
    value = exif.get(_ORIENTATION, 0)
    if value not in range(9):
        raise _Refused(f"EXIF orientation {value!r}: expected 1 to 8; save the picture again, upright")
    return int(value)


def _upright_size(image: Image, exif: Any) -> tuple[int, int]:
    if _orientation(exif) not in SWAPPED:
        return image.size
    # Pillow turns a TIFF when it decodes it; some of its versions give the size that will have, some that in the file.
    width, height = (cast(Any, image).tag_v2[t] for t in (_WIDTH, _HEIGHT)) if image.format == "TIFF" else image.size
    return height, width


def _layout(source: Any) -> str:
    """Pillow's word for how the file arranges the bits, which it forgets when it decodes; "" where it is not known."""
    tiles = getattr(source, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def _load(image: Image) -> None:
    tiles = getattr(image, "tile", None)
    if not tiles or tiles[0][0] != "libtiff":
        image.load()
        return
    with collect_errors() as modules:
        image.load()
    if modules:
        raise _Refused(f"the compressed TIFF data is damaged (libtiff, {modules[0]}); {ADVICE}")


def _upright_rgb(image: Image, layout: str) -> Image:
    from PIL.Image import Transpose

    _load(image)
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(_orientation(image.getexif()))
    rgb = _to_rgb(image, layout)
    if turn is not None:
        rgb = rgb.transpose(turn)
    # The orientation must not be applied again when the picture is given to another reader.
    rgb.info = {}
    return rgb


def _to_rgb(image: Image, layout: str) -> Image:
    """A new image in RGB."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        return _from_greys(np.asarray(image), _grey_table(image), transparent)
    if image.mode == "F":
        return _from_floats(image)
    if image.mode not in COLOUR_MODES:
        raise _Refused(f"colours of mode {image.mode} are not understood; convert it to RGB")
    if transparent is not None and image.mode in ("1", "L"):
        # The transparent value counts in the file's own depth, which Pillow has scaled to 8 bits.
        factor = 17 if ";4" in layout else 85 if ";2" in layout else 255 if image.mode == "1" else 1
        value = min(transparent, 1) if image.mode == "1" else transparent
        return _from_greys(np.asarray(image.convert("L")), np.arange(256, dtype=np.uint8), value * factor)
    if transparent is not None and ";16" in layout:
        raise _Refused("a transparent colour of 16 bits a channel is not understood; save it with an alpha channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    return _lay_on_background((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))


def _lay_on_background(image: Image) -> Image:
    from PIL import Image

    rgb = Image.new("RGB", image.size, BACKGROUND)
    rgb.paste(image, mask=image.getchannel("A"))
    return rgb


def _grey_table(image: Image) -> npt.NDArray[np.uint8]:
    """uint8 [65536]: the grey of every value of an image of more than 8 bits."""
    # Pillow scales what a PPM file says its greatest value is to 65535.
    if image.mode == "I" and image.format not in ("PPM", "PNG"):
        raise _Refused("32-bit integers: the range of their values is not known; convert it to 8 bits a channel")
    tags = getattr(image, "tag_v2", {})
    maximum = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    values = np.arange(65536, dtype=np.int64)
    table = np.minimum((values * 510 + maximum) // (2 * maximum), 255).astype(np.uint8)
    return 255 - table if tags.get(_PHOTOMETRIC) == 0 else table


def _from_greys(values: npt.NDArray[Any], table: npt.NDArray[np.uint8], transparent: int | None) -> Image:
    """RGB of the table's greys; transparent: the value that shows the background."""
    from PIL import Image

    greys = table[values]
    if transparent is not None:
        greys[values == transparent] = BACKGROUND[0]
    return Image.fromarray(greys).convert("RGB")


def _from_floats(image: Image) -> Image:
    from PIL import Image

    values = np.asarray(image)
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest <= 1) or getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        raise _Refused(
            f"floating-point values from {lowest:g} to {highest:g}: expected 0 (black) to 1 (white); convert it to 8 "
            "bits a channel"
        )
    return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8)).convert("RGB")
