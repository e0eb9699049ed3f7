# SPDX-License-Identifier: Apache-2.0
"""Caches of native FmmAttention: written in place where input and output are one value, copied where they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fastmmoe.exporter.ops import ATTENTION, DOMAIN
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.types import Array
from tests.support.attention_cases import SMALL, Case, make_inputs
from tests.support.attention_checks import check_outputs
from tests.support.guarded_attention import CASES as GUARDED
from tests.support.native_node import NativeNode, to_array, to_ort_value

OP = ATTENTION.name
CASES = {case.name: case for case in SMALL}
NAMES = ("ragged, groups, lse", "window", "window, decode", "small latent", "decode", "decode two long caches")
CACHES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def in_place(case: Case, inputs: dict[str, Array]) -> tuple[list[Array], dict[str, tuple[Array, Array]]]:
    """Outputs, and each cache before and after, with input and output bound to one value."""
    node = NativeNode(OP, inputs, case.attributes, 2)
    binding = node.session.io_binding()
    values = {name: to_ort_value(array) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    bound = {}
    for output in ATTENTION.outputs_for(case.attributes):
        if output.alias:
            bound[output.alias] = values[output.alias].data_ptr()
            binding.bind_ortvalue_output(output.name, values[output.alias])
        else:
            binding.bind_output(output.name)
    node.session.run_with_iobinding(binding)
    outputs = binding.get_outputs()
    for output, value in zip(ATTENTION.outputs_for(case.attributes), outputs, strict=True):
        assert not output.alias or value.data_ptr() == bound[output.alias], output.name
    return [to_array(v) for v in outputs], {n: (inputs[n], to_array(values[n])) for n in bound}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", NAMES)
def test_in_place_and_apart(name: str, cache: str) -> None:
    case = CASES[name]
    inputs = make_inputs(case, 0, np.float32, CACHES[cache])
    apart = NativeNode(OP, inputs, case.attributes, 2)(inputs)
    outputs, caches = in_place(case, {n: array.copy() for n, array in inputs.items()})
    check_outputs(case, inputs, outputs)
    for own, other in zip(outputs, apart, strict=True):
        assert own.tobytes() == other.tobytes()  # NaN of rows not in use, too
    after = np.array(case.lengths)
    for b, count in case.call:
        after[b] += count
    is_new = (np.arange(case.capacity) >= np.array(case.lengths)[:, None]) & (np.arange(case.capacity) < after[:, None])
    for name, (before, present) in caches.items():
        rows = [np.moveaxis(a, 2, 1) if a.ndim == 4 else a for a in (before, present)]
        old, now = (np.ascontiguousarray(a[~is_new]).tobytes() for a in rows)
        assert old == now, f"{name}: rows that are not new"


def test_inputs_stay_where_outputs_are_apart() -> None:
    case = CASES["window"]
    inputs = make_inputs(case)
    values = {name: to_ort_value(array) for name, array in inputs.items()}
    node = NativeNode(OP, inputs, case.attributes)
    names = [output.name for output in node.session.get_outputs()]
    check_outputs(case, inputs, [to_array(v) for v in node.session.run_with_ort_values(names, values)])
    for name, array in inputs.items():
        assert to_array(values[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", GUARDED)
def test_work_follows_the_rows_in_use(name: str, cache: str) -> None:
    """The others lie on pages that may not be touched, those before a window too: whoever copies a cache dies there."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.support.guarded_attention", "cpu", name, cache]
    for ways, expected in (([], (0, "done\n")), (["apart"], (-11, ""))):
        done = subprocess.run([*command, *ways], cwd=root, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == expected, done.stderr[-3000:]


def chain(case: Case, inputs: dict[str, Array], has_other_reader: bool) -> dict[str, Array]:
    """The node between copies of its caches, so that these are neither inputs nor outputs of the graph.

    has_other_reader: what the caches held before is an output, too.
    """
    make = onnx.helper.make_node
    names = [t.name for t in ATTENTION.inputs_for(case.attributes)]
    outputs = [t.name for t in ATTENTION.outputs_for(case.attributes)]
    caches = [name for name in names if name in ("past_key", "past_value")]
    copied = {name: f"{name}_copy" for name in caches}
    nodes = [make("Mul", [name, "one"], [copied[name]]) for name in caches]
    nodes.append(make(OP, [copied.get(n, n) for n in names], outputs, domain=DOMAIN, **case.attributes))
    results = [n if not n.startswith("present_") else f"{n}_copy" for n in outputs]
    nodes += [make("Mul", [f"present_{n[5:]}", "one"], [f"present_{n[5:]}_copy"]) for n in caches]
    if has_other_reader:
        nodes += [make("Mul", [copied[name], "one"], [f"{name}_before"]) for name in caches]
        results += [f"{name}_before" for name in caches]
    infos = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
    empty = [onnx.helper.make_empty_tensor_value_info(name) for name in results]
    graph = onnx.helper.make_graph(nodes, "chain", infos, empty, [one])
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(DOMAIN, ATTENTION.version)]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    register_native_ops(options, {})
    model: Any = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(results, session.run(results, inputs), strict=True))


@pytest.mark.parametrize("has_other_reader", [False, True])
@pytest.mark.parametrize("name", ["ragged, groups, lse", "small latent"])
def test_caches_within_a_graph(name: str, has_other_reader: bool) -> None:
    """ONNX Runtime may let present take past's memory, but not where something else reads it."""
    case = CASES[name]
    inputs = make_inputs(case)
    given = {n: a.copy() for n, a in inputs.items()}
    results = chain(case, given, has_other_reader)
    outputs = list(results.values())[: len(ATTENTION.outputs_for(case.attributes))]
    check_outputs(case, inputs, outputs)
    for cache in ("past_key", "past_value"):
        if cache in inputs:
            np.testing.assert_array_equal(given[cache], inputs[cache])
            if has_other_reader:
                np.testing.assert_array_equal(results[f"{cache}_before"], inputs[cache])
