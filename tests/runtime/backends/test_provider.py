# SPDX-License-Identifier: Apache-2.0
"""What runs a bundle, by what is asked and what bundle and machine have."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.backends import provider
from fastmmoe.runtime.backends.provider import Found, best_for_engines, choose_provider, find
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.machines.gpu import Gpu
from fastmmoe.runtime.machines.targets import RTX, TARGETS


@pytest.mark.parametrize(
    ("found", "best"),
    [
        (Found(gpu=True, tensorrt=True, cuda=True), "tensorrt"),
        (Found(gpu=True, tensorrt=True, cuda=False), "tensorrt"),
        (Found(gpu=True, tensorrt=False, cuda=True), "cuda"),
        # What is missing is said when engines are loaded.
        (Found(gpu=True, tensorrt=False, cuda=False), "tensorrt"),
        (Found(gpu=False, tensorrt=False, cuda=True), "tensorrt"),
        (Found(gpu=False, tensorrt=True, cuda=True), "tensorrt"),
    ],
)
def test_the_best_for_engines(found: Found, best: str) -> None:
    assert best_for_engines(found) == best


@pytest.mark.parametrize(
    ("target", "asked", "expected"),
    [
        ("cpu", "auto", "cpu"),
        ("cpu", "cpu", "cpu"),
        ("rtx", "auto", "cuda"),
        ("rtx", "cuda", "cuda"),
        ("rtx", "tensorrt", "tensorrt"),
        ("jetson-agx-orin", "auto", "cuda"),
        ("jetson-agx-orin", "tensorrt", "tensorrt"),
    ],
)
def test_what_a_bundle_can_do(target: str, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "find", lambda *_: Found(gpu=True, tensorrt=False, cuda=True))
    assert choose_provider(asked, Path("out"), TARGETS[target]) == expected


@pytest.mark.parametrize(
    ("target", "asked", "words"),
    [
        ("cpu", "cuda", "out: provider cuda on a bundle of target cpu, which .* export with --target rtx"),
        ("cpu", "tensorrt", "out: provider tensorrt on a bundle of target cpu, which .* export with --target rtx"),
        ("rtx", "cpu", "out: provider cpu on a bundle of target rtx, whose .* export with --target cpu"),
    ],
)
def test_what_it_cannot(target: str, asked: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{words}$"):
        choose_provider(asked, Path("out"), TARGETS[target])


FULL = {"machine": "x86_64", "distribution": True, "library": True, "gpu": True, "modules": True, "engines": True}


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ({}, Found(gpu=True, tensorrt=True, cuda=True)),
        ({"gpu": False}, Found(gpu=False, tensorrt=True, cuda=True)),
        ({"modules": False}, Found(gpu=True, tensorrt=False, cuda=True)),
        ({"engines": False}, Found(gpu=True, tensorrt=False, cuda=True)),
        ({"machine": "aarch64"}, Found(gpu=True, tensorrt=True, cuda=False)),
        ({"distribution": False}, Found(gpu=True, tensorrt=True, cuda=False)),
        ({"library": False}, Found(gpu=True, tensorrt=True, cuda=False)),
    ],
)
def test_what_is_looked_for(
    lacks: dict[str, Any], expected: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = FULL | lacks
    library = tmp_path / "library.so"
    for path, is_there in ((library, has["library"]), (tmp_path / "engines.json", has["engines"])):
        if is_there:
            path.touch()
    monkeypatch.setattr(platform, "machine", lambda: has["machine"])
    monkeypatch.setattr(provider, "has_gpu_distribution", lambda: has["distribution"])
    monkeypatch.setattr(provider, "cuda_library_path", lambda: library)
    monkeypatch.setattr(provider, "find_gpu", lambda: Gpu("L4", 89) if has["gpu"] else None)
    monkeypatch.setattr(provider, "_is_there", lambda _: has["modules"])
    assert find(tmp_path, RTX) == expected
