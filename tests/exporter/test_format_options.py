# SPDX-License-Identifier: Apache-2.0
"""The options of weights' formats, as a command line has them."""

from __future__ import annotations

import argparse

import pytest

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.format_options import add_formats


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_formats(parser)
    return parser.parse_args(arguments)


def test_nothing_given_is_the_configuration_s_default() -> None:
    assert ExportConfig(**vars(parse())) == ExportConfig()


def test_each_has_its_field() -> None:
    given = ["--weights", "int4", "--experts", "int8", "--dense", "bf16", "--vision", "int8", "--group-size", "64"]
    found = ExportConfig(**vars(parse(*given, "--zero-points")))
    assert (found.weights, found.experts, found.dense, found.vision) == ("int4", "int8", "bf16", "int8")
    assert (found.group_size, found.zero_points) == (64, True)


@pytest.mark.parametrize("wrong", [["--dense", "fp8"], ["--vision", "int4"], ["--weights", "fp16"]])
def test_other_formats_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*wrong)
