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


GUARDED = """
import ctypes, mmap, sys
import numpy as np
import onnxruntime as ort
sys.path[:0] = ["."]
from tests.support.native_node import NativeNode
from tests.support.attention_cases import Case, make_inputs
from tests.support.attention_checks import check_outputs

rows = int(sys.argv[1])
heads, width, used = 3, 64, 4 * 64  # 16 rows of a head are one page
case = Case("guarded", 6, heads, width, 1 << 16, (used - rows,), ((0, rows),))
inputs = make_inputs(Case("small", 6, heads, width, used, (used - rows,), ((0, rows),)))
libc = ctypes.CDLL(None, use_errno=True)
values, kept, seen = {}, [], {}
for name, array in inputs.items():
    if not name.startswith("past_") or name == "past_lengths":
        values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        continue
    memory = mmap.mmap(-1, heads * case.capacity * width * 4)
    cache = np.frombuffer(memory, np.float32).reshape(1, heads, case.capacity, width)
    cache[:, :, :used] = array
    values[name], seen[name] = ort.OrtValue.ortvalue_from_numpy(cache), cache
    kept.append(memory)
    for head in cache[0]:
        free = head[used:]
        assert free.ctypes.data % mmap.PAGESIZE == 0
        assert libc.mprotect(ctypes.c_void_p(free.ctypes.data), ctypes.c_size_t(free.nbytes), 0) == 0
session = NativeNode("FmmAttention", inputs, case.attributes, 2).session
binding = session.io_binding()
for name, value in values.items():
    binding.bind_ortvalue_input(name, value)
binding.bind_output("output")
if sys.argv[2] == "in place":
    for name in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{name}", values[f"past_{name}"])
else:
    binding.bind_output("present_key"), binding.bind_output("present_value")
session.run_with_iobinding(binding)
present = [seen[f"past_{name}"][:, :, :used].copy() for name in ("key", "value")]
small = Case("small", 6, heads, width, used, (used - rows,), ((0, rows),))
check_outputs(small, inputs, [binding.get_outputs()[0].numpy(), *present])
print("done")
"""


@pytest.mark.parametrize("rows", [1, 100])
def test_rows_not_in_use_are_not_touched(rows: int) -> None:
    """They lie in pages that may neither be read nor written: whoever copies a cache dies there."""
    root = Path(__file__).resolve().parents[2]
    for way, code in (("in place", 0), ("apart", -11)):
        command = [sys.executable, "-c", GUARDED, str(rows), way]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, "done\n" if code == 0 else ""), done.stderr[-3000:]


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
