# SPDX-License-Identifier: Apache-2.0
"""What a build needs beside what the system has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fastmmoe.runtime.backends.tensorrt import builder_memory
from fastmmoe.runtime.backends.tensorrt.api import EngineBuildFailed
from fastmmoe.runtime.backends.tensorrt.builder_memory import available_bytes, check_builder_memory, largest_constants
from fastmmoe.runtime.bundle.manifest import FileEntry, Manifest
from tests.support.double import Double
from tests.support.manifests import toy_manifest
from tests.support.toy_engines import write_engine_bundle


def manifest_with(sizes: dict[str, int]) -> Manifest:
    """A manifest with weights of these sizes."""
    files = {f"{graph}.data": FileEntry(bytes=size, sha256="0" * 64) for graph, size in sizes.items()}
    return msgspec.structs.replace(toy_manifest("deepseek_vl2"), files=files)


def test_memory_is_what_programs_may_take_and_swap(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    text = "MemTotal: 90 kB\nMemAvailable:  40 kB\nSwapTotal: 9 kB\nSwapFree: 2 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    assert available_bytes(tmp_path) == 42 * 1024
    assert (available_bytes() or 0) > 1 << 20
    assert available_bytes(tmp_path / "none") is None


def test_each_engine_is_built_alone() -> None:
    assert largest_constants(manifest_with({"vision": 7, "embedding": 9, "language_model": 8})) == 9


def test_experts_do_not_go_through_the_builder(double: Double, tmp_path: Path) -> None:
    experts = write_engine_bundle(tmp_path / "toy", double.modules().trt).experts
    size = sum(tensor.bytes for tensor in experts.inputs.values())
    manifest = msgspec.structs.replace(manifest_with({"vision": 3, "language_model": size + 5}), experts=experts)
    assert size > 5 and largest_constants(manifest) == 5
    assert largest_constants(manifest_with({})) == 0


@pytest.mark.parametrize(
    ("available", "words"),
    [
        (None, []),
        (int(3.4e9), []),
        (
            int(3.2e9),
            [
                "memory: 3.2 GB of memory and swap are free; a build of 1.0 GB of weights was seen to take 3.3 "
                "times as much: end other programs or add swap"
            ],
        ),
    ],
)
def test_what_is_said(available: int | None, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder_memory, "available_bytes", lambda: available)
    lines: list[str] = []
    check_builder_memory(manifest_with({"vision": 10**9}), lines.append)
    assert lines == words


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder_memory, "available_bytes", lambda: 10**9 - 1)
    words = r"^1\.0 GB of memory and swap are free; the weights .* are 1\.0 GB: end"
    with pytest.raises(EngineBuildFailed, match=words):
        check_builder_memory(manifest_with({"vision": 10**9}), print)
