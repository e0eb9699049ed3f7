# SPDX-License-Identifier: Apache-2.0
"""Bundles whose vision tower multiplies bfloat16 or int8: graphs, features beside those of float, files that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastmmoe.exporter.check.sessions import MappedOnnxRuntime
from fastmmoe.exporter.ops.schema import attribute_value
from fastmmoe.runtime.backends.fit import check_linears
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import graph_file, read_manifest
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.types import Array
from tests.end_to_end.conftest import SMALL, SMALL_FLAGS

Bundles = Callable[[str], Path]
# Of the features' norm, what a tower of one block may differ from float32.
FAR = {"bf16": 1e-2, "int8": 3e-2}


@pytest.fixture(scope="session")
def towers(bundle: Callable[..., Path]) -> Bundles:
    """Function format of --vision -> the small bundle with it."""
    return lambda vision: bundle(SMALL, *SMALL_FLAGS, *([] if vision == "float" else ["--vision", vision]))


def tower(path: Path, **settings: Any) -> OnnxRuntime:
    return OnnxRuntime(path, read_manifest(path), Settings(**settings), graphs=("vision",))


def features(path: Path, backend: OnnxRuntime | None = None) -> Array:
    """Of a picture of one tile."""
    manifest = read_manifest(path)
    side = manifest.processor.tile_size
    cut = family_of(manifest.processor).cut(manifest.processor, [(side, side)], None, 0)
    shape = (sum(cut.tile_counts), 3, side, side)
    inputs = cut.tile_inputs(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))
    found: Array = (backend or tower(path)).image_features(inputs)
    return found


def nodes(path: Path, *, portable: bool = False) -> list[onnx.NodeProto]:
    return list(onnx.load(path / graph_file("vision", portable=portable), load_external_data=False).graph.node)


@pytest.mark.parametrize("vision", ["bf16", "int8"])
def test_the_graph(vision: str, towers: Bundles) -> None:
    """Every linear layer is packed, what follows it is part of it, and attention is one operator."""
    kinds = Counter(node.op_type for node in nodes(towers(vision)))
    assert (kinds["FmmLinear"], kinds["FmmVisionAttention"]) == (6, 1)  # a block and the projector
    assert not {"MatMul", "Gemm", "Attention", "Gelu", "Split"} & set(kinds)
    assert kinds["Add"] == 1  # of positions
    linears = [
        {a.name: attribute_value(a) for a in n.attribute} for n in nodes(towers(vision)) if n.op_type == "FmmLinear"
    ]
    assert [one["activation"] for one in linears] == ["none", "none", "gelu_tanh", "none", "gelu", "none"]
    assert [one["has_residual"] for one in linears] == [0, 1, 0, 1, 0, 0]


def test_a_tower_of_floats_has_no_operator(towers: Bundles) -> None:
    assert {node.domain for node in nodes(towers("float"))} == {""}
    assert not (towers("float") / graph_file("vision", portable=True)).exists()


@pytest.mark.parametrize("vision", ["bf16", "int8"])
def test_features(vision: str, towers: Bundles) -> None:
    """Near those of float as they run; the same bits on any number of threads; the portable graph is the exact one."""
    exact, path = features(towers("float")), towers(vision)
    found = features(path)
    assert 0 < np.linalg.norm(found - exact) < FAR[vision] * np.linalg.norm(exact)
    for threads in (1, 4):
        np.testing.assert_array_equal(features(path, tower(path, threads=threads)), found)
    portable = features(path, tower(path, portable=True))
    of_check = features(path, MappedOnnxRuntime(path, read_manifest(path), "vision"))
    np.testing.assert_allclose(portable, of_check, atol=1e-5)
    # What is left is the rounding of the weights, and all there is where the processor multiplies floats.
    assert np.linalg.norm(of_check - exact) <= np.linalg.norm(found - exact)


def test_a_file_that_computes_otherwise_is_refused(towers: Bundles, tmp_path: Path) -> None:
    path, manifest = tmp_path / "vision.onnx", read_manifest(towers("bf16"))
    check_linears(towers("bf16") / path.name, manifest)
    model = onnx.load(towers("bf16") / path.name, load_external_data=False)
    (node,) = (node for node in model.graph.node if node.op_type == "FmmVisionAttention")
    next(a for a in node.attribute if a.name == "compute").s = b"float32"
    onnx.save(model, path)
    with pytest.raises(BundleMismatch, match=r"has compute float32, expected bfloat16"):
        check_linears(path, manifest)
