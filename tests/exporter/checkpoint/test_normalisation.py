# SPDX-License-Identifier: Apache-2.0
"""Mean and deviation of pixels: three numbers within what float32 can divide by, or the default."""

from __future__ import annotations

from typing import Any

import pytest

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.checkpoint.normalisation import read_mean, read_std
from fastmmoe.runtime.errors import UnsupportedModel

DEFAULT = (0.1, 0.2, 0.3)


def reader(**values: Any) -> ConfigReader:
    return ConfigReader(values, "preprocessor_config.json")


def test_each_reads_its_own_key_or_the_default() -> None:
    both = reader(image_mean=[0, 1, 0.5], image_std=[1, 2, 0.5])
    assert (read_mean(both, DEFAULT), read_std(both, DEFAULT)) == ((0.0, 1.0, 0.5), (1.0, 2.0, 0.5))
    assert all(type(value) is float for value in (*read_mean(both, DEFAULT), *read_std(both, DEFAULT)))
    assert both.unread() == []
    assert read_mean(reader(), DEFAULT) == read_std(reader(), DEFAULT) == DEFAULT


def test_the_outermost_values() -> None:
    assert read_mean(reader(image_mean=[-1e6, 0, 1e6]), DEFAULT) == (-1e6, 0.0, 1e6)
    assert read_std(reader(image_std=[1e-6, 1, 1e6]), DEFAULT) == (1e-6, 1.0, 1e6)


@pytest.mark.parametrize(
    "value", [[], [0.5], [0.5] * 4, [0.5, 0.5, float("nan")], [0.5, 0.5, 1.1e6], [float("inf"), 0.5, 0.5]]
)
def test_what_neither_can_be(value: list[float]) -> None:
    for key, read, least in (("image_mean", read_mean, "-1e6"), ("image_std", read_std, "1e-6")):
        message = rf"^preprocessor_config.json: {key} is \[.*\], expected three numbers from {least} to 1e6$"
        with pytest.raises(UnsupportedModel, match=message):
            read(reader(**{key: value}), DEFAULT)


@pytest.mark.parametrize("value", [0, -0.5, 9e-7])
def test_a_deviation_that_cannot_divide(value: float) -> None:
    with pytest.raises(UnsupportedModel, match=r"image_std is .*, expected three numbers from 1e-6 to 1e6$"):
        read_std(reader(image_std=[0.5, value, 0.5]), DEFAULT)
    assert read_mean(reader(image_mean=[0.5, value, 0.5]), DEFAULT) == (0.5, value, 0.5)


def test_another_type_is_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"image_mean is 0.5 \(float\), expected a value of type list\[float\]$"):
        read_mean(reader(image_mean=0.5), DEFAULT)
