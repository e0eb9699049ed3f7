# SPDX-License-Identifier: Apache-2.0
"""Errors that libtiff finds: collected on the thread that reads, never printed."""

from __future__ import annotations

import io
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request import libtiff
from fastmmoe.runtime.request.image_reader import open_image
from fastmmoe.runtime.request.libtiff import collect_errors


def tiff(*, is_damaged: bool) -> bytes:
    """A small TIFF file, compressed by libtiff."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_deflate")
    data = bytearray(file.getvalue())
    if is_damaged:
        data[20:60] = bytes(range(40))
    return bytes(data)


def load(data: bytes) -> None:
    """Decode it, whatever Pillow says."""
    with suppress(OSError):
        Image.open(io.BytesIO(data)).load()


def test_errors_are_collected_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with collect_errors() as found:
        load(tiff(is_damaged=False))
        assert found == []
        load(tiff(is_damaged=True))
    assert found and set(found) == {"ZIPDecode"}
    assert capfd.readouterr() == ("", "")


def test_errors_of_other_threads_are_theirs() -> None:
    with collect_errors() as found:
        other = threading.Thread(target=load, args=(tiff(is_damaged=True),))
        other.start()
        other.join()
        assert found == []
        load(tiff(is_damaged=True))
        assert found


def test_afterwards_libtiff_speaks_again(capfd: pytest.CaptureFixture[str]) -> None:
    with suppress(ZeroDivisionError), collect_errors():
        raise ZeroDivisionError
    load(tiff(is_damaged=True))
    assert "ZIPDecode" in capfd.readouterr().err
    with collect_errors() as found:
        load(tiff(is_damaged=True))
    assert found


def test_without_libtiff_nothing_is_collected(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libtiff.ctypes, "CDLL", lambda _: SimpleNamespace())
    with collect_errors() as found:
        load(tiff(is_damaged=True))
    assert found == [] and "ZIPDecode" in capfd.readouterr().err


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg", "group4"])
def test_damaged_compressed_tiffs_are_one_line(
    compression: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mode = "1" if compression == "group4" else "RGB"
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    assert open_image(Image.open(file)).size == image.size
    damaged = bytearray(file.getvalue())
    damaged[20:60] = bytes(range(40))
    path = tmp_path / "picture"
    path.write_bytes(damaged)
    for source in (path, Image.open(io.BytesIO(bytes(damaged)))):
        with pytest.raises(InvalidRequest, match=r"^image "):
            open_image(source)
    assert capfd.readouterr() == ("", "")
