# SPDX-License-Identifier: Apache-2.0
"""The commands of trtexec, word for word."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from fastmmoe.runtime.backends.tensorrt.profiles import Profile
from fastmmoe.runtime.backends.tensorrt.trtexec import commands
from fastmmoe.runtime.machines.targets import DATA_CENTER, JETPACK_7, RTX

PREFILL: Profile = {"x": ((1, 4), (2, 4), (8, 4)), "keep.0": ((0,), (3,), (5,))}
DECODE: Profile = {"x": ((1, 4), (1, 4), (1, 4)), "keep.0": ((0,), (0,), (0,))}
DIRECTORY = Path("/my bundles/o")
COMMON = [
    "trtexec",
    "--onnx=/my bundles/o/language_model.onnx",
    "--saveEngine=/my bundles/o/language_model.engine",
    "--dynamicPlugins=/my bundles/o/libfastmmoe_trt.so",
]
SHAPES = [
    "--profile=0",
    "--minShapes=x:1x4,keep.0:0",
    "--optShapes=x:2x4,keep.0:3",
    "--maxShapes=x:8x4,keep.0:5",
    "--profile=1",
    "--minShapes=x:1x4,keep.0:0",
    "--optShapes=x:1x4,keep.0:0",
    "--maxShapes=x:1x4,keep.0:0",
]
PROFILES = {"language_model": (PREFILL, DECODE)}


def test_two_profiles() -> None:
    note, command = commands(DIRECTORY, JETPACK_7, PROFILES, 512)
    assert note.startswith("# trtexec writes no engines.json")
    assert shlex.split(command.replace("\\\n", "")) == [
        *COMMON,
        "--stronglyTyped",
        "--preview=+aliasedPluginIO1003",
        "--maxAuxStreams=0",
        "--memPoolSize=workspace:512",
        "--timingCacheFile=/my bundles/o/timing.cache",
        "--skipInference",
        *SHAPES,
    ]


def test_one_profile_has_no_number() -> None:
    _, command = commands(DIRECTORY, JETPACK_7, {"vision": (PREFILL,)}, None)
    assert "--profile" not in command and "--memPoolSize" not in command
    assert shlex.split(command.replace("\\\n", ""))[-3:] == SHAPES[1:4]


def test_networks_are_always_typed_from_11_on() -> None:
    for tensorrt, is_given in ((DATA_CENTER, False), (replace(DATA_CENTER, releases=JETPACK_7.releases), True)):
        *_, command = commands(DIRECTORY, tensorrt, PROFILES, None)
        assert ("--stronglyTyped" in command) is is_given


def test_what_rtx_does_otherwise() -> None:
    *notes, command = commands(DIRECTORY, RTX, PROFILES, None)
    assert notes[1].endswith("; fastmmoe build for SM 80, SM 86, SM 89, SM 120, without one")
    assert command.startswith("tensorrt_rtx ") and "--timingCacheFile" not in command
