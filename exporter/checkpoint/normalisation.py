# SPDX-License-Identifier: Apache-2.0
"""Mean and deviation of pixels, which the files of image processors give."""

from __future__ import annotations

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.runtime.request.config import Rgb


def read_mean(reader: ConfigReader, default: Rgb) -> Rgb:
    """What is subtracted from pixels in [0, 1]."""
    return _read_rgb(reader, "image_mean", default, -1e6, "three numbers from -1e6 to 1e6")


def read_std(reader: ConfigReader, default: Rgb) -> Rgb:
    """What they are divided by, in float32."""
    return _read_rgb(reader, "image_std", default, 1e-6, "three numbers from 1e-6 to 1e6")


def _read_rgb(reader: ConfigReader, key: str, default: Rgb, least: float, expected: str) -> Rgb:
    values = reader.get(key, list(default), list[float])
    reader.check(key, values, len(values) == 3 and all(least <= value <= 1e6 for value in values), expected)
    return float(values[0]), float(values[1]), float(values[2])
