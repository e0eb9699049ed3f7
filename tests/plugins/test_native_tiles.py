# SPDX-License-Identifier: Apache-2.0
"""FmmLinear and FmmSparseMoE in a library with AMX's tile registers in software, in ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fastmmoe.exporter.ops import linear_reference
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from tests.plugins.test_native_linear import OP as LINEAR
from tests.plugins.test_native_linear import ROUNDED as LINEAR_ROUNDED
from tests.plugins.test_native_sparse_moe_layouts import OP as SPARSE_MOE
from tests.plugins.test_native_sparse_moe_layouts import ROUNDED, TILED, check, rounded_reference
from tests.support.linear_cases import PACKINGS, linear_case
from tests.support.moe_layouts import Kind, stored_case
from tests.support.native_node import NativeNode, run_native
from tests.support.software_tiles import software_tiles

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("native tiles")]  # a library is built

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "plugins"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings, build = software_tiles(), tmp_path_factory.mktemp("native_tiles")
    headers = os.environ.get("FASTMMOE_ORT_INCLUDE", "")
    for command in (
        ["cmake", "-S", str(PLUGINS), "-B", str(build), f"-DFASTMMOE_ORT_INCLUDE={headers}", *settings],
        ["cmake", "--build", str(build), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    path = build / "libfastmmoe_ort.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FASTMMOE_CPU_ISA", raising=False)
        name = ctypes.CDLL(str(path)).FmmCpuIsa
        name.restype = ctypes.c_char_p
        assert name() == b"amx_bf16"
    return path


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_linear(library: Path, packing: LinearPacking) -> None:
    inputs, attributes = linear_case(packing, "many rows")
    results = [NativeNode(LINEAR, inputs, attributes, threads, library)(inputs)[0] for threads in (1, 2, 4)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    expected = linear_reference(inputs, attributes)
    rounded = LINEAR_ROUNDED[packing.weight_format]
    assert 0 < np.linalg.norm(results[0] - expected) <= rounded * np.linalg.norm(expected)
    if packing.weight_format != "bf16":  # the same arithmetic
        np.testing.assert_array_equal(results[0], run_native(LINEAR, inputs, attributes)[0])
    node = NativeNode(LINEAR, inputs, attributes, library=library)
    for rows in (slice(0, 1), slice(7, 9), slice(100, 171)):
        np.testing.assert_array_equal(node(inputs | {"x": inputs["x"][rows]})[0], results[0][rows])


@pytest.mark.parametrize("kind", TILED, ids=str)
def test_sparse_moe(library: Path, kind: Kind) -> None:
    for T, E, H, I in ((19, 8, 72, 40), (200, 8, 264, 136)):  # noqa: E741
        inputs, attributes = stored_case(kind, "tiles", T=T, E=E, H=H, I=I, visual=np.arange(0))
        results = [NativeNode(SPARSE_MOE, inputs, attributes, threads, library)(inputs)[0] for threads in (1, 2, 4)]
        check(results[0], rounded_reference(inputs, attributes, kind), ROUNDED)
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])
        node = NativeNode(SPARSE_MOE, inputs, attributes, library=library)
        for t in range(19):
            row = {name: inputs[name][t : t + 1] for name in ("hidden_states", "router_logits")}
            np.testing.assert_array_equal(node({**inputs, **row})[0][0], results[0][t])
