# SPDX-License-Identifier: Apache-2.0
"""Errors that libtiff finds: collected on the thread that reads, never printed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.image_reader import open_image


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
