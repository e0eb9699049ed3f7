# SPDX-License-Identifier: Apache-2.0
"""Sizes that wrap, and weights that are not what their shapes say, are refused in every implementation alike.

The native operators run in a process of its own: a crash is a failed test, not the end of all.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from fastmmoe.exporter.ops import DOMAIN, OPS, SPARSE_MOE, TOKEN_PRUNE, sparse_moe_reference, token_prune_reference
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.plugins import native_library_path
from fastmmoe.runtime.types import Array
from tests.support.operators import moe_attributes

Shapes = dict[str, tuple[int, ...]]

PRUNE_ATTRIBUTES: dict[str, Any] = {"window": 3, "merge": "mlerp"}
WEIGHTS = ("gate_up", "down")
MOE, PRUNE = SPARSE_MOE.name, TOKEN_PRUNE.name

# Shapes of the inputs by letter; visual_index counts up, visual_top_k is 1, all else is zeros.
MOE_SIZES = {"T": 3, "V": 2, "H": 4, "I": 5, "E": 7}
PRUNE_SIZES = {"T": 6, "V": 4, "K": 2, "M": 0, "H": 4, "E": 3}
TOO_MANY = 2**59 + 1
HUGE = 2**56  # as many rows as NumPy allows where there are no columns


def moe_shapes(T: int, V: int, H: int, I: int, E: int) -> Shapes:  # noqa: E741
    return {
        "hidden_states": (T, H),
        "router_logits": (T, E),
        "visual_index": (V,),
        "visual_top_k": (1,),
        "correction_bias": (E,),
        "gate_up": (E, 2 * I, H),
        "down": (E, H, I),
    }


def prune_shapes(T: int, V: int, K: int, M: int, H: int, E: int) -> Shapes:
    return {
        "hidden_states": (T, H),
        "residual": (T, H),
        "routing_probs": (V, E),
        "attention": (V,),
        "visual_index": (V,),
        "visual_offsets": (2,),
        "keep_slots": (K,),
        "keep_offsets": (2,),
        "merge_slots": (M,),
        "merge_offsets": (2,),
        "alpha": (1,),
    }


# Operator, sizes that differ, shapes that differ, message. A tensor with a dimension of 0 may have any others.
REFUSED: dict[str, tuple[str, dict[str, int], Shapes, str]] = {
    "pairs times I": (
        MOE,
        {"T": 16, "V": 0, "H": 0, "I": TOO_MANY},
        {},
        "H is 0, expected 1 to 262144 (hidden_states is [16, 0])",
    ),
    "no I": (MOE, {"I": 0}, {}, "I is 0, expected 1 to 262144 (gate_up is [7, 0, 4])"),
    "no E": (MOE, {"E": 0, "I": TOO_MANY}, {}, "E is 0, expected 1 to 4096 (router_logits is [3, 0])"),
    "no H, tokens": (
        MOE,
        {},
        {"hidden_states": (HUGE, 0)},
        f"T is {HUGE}, expected 0 to 16777216 (hidden_states is [{HUGE}, 0])",
    ),
    "no tokens, H": (
        MOE,
        {"T": 0, "V": 0},
        {"hidden_states": (0, HUGE)},
        f"H is {HUGE}, expected 1 to 262144 (hidden_states is [0, {HUGE}])",
    ),
    "no tokens, E": (
        MOE,
        {"T": 0, "V": 0},
        {"router_logits": (0, HUGE)},
        f"E is {HUGE}, expected 1 to 4096 (router_logits is [0, {HUGE}])",
    ),
    "H beyond the limit": (
        MOE,
        {"T": 1, "V": 1, "H": 262145, "E": 1, "I": 1},
        {},
        "H is 262145, expected 1 to 262144 (hidden_states is [1, 262145])",
    ),
    "I beyond the limit": (
        MOE,
        {"T": 1, "V": 1, "H": 1, "E": 1, "I": 262145},
        {},
        "I is 262145, expected 1 to 262144 (gate_up is [1, 524290, 1])",
    ),
    "E beyond the limit": (
        MOE,
        {"T": 1, "V": 1, "H": 1, "E": 4097, "I": 1},
        {},
        "E is 4097, expected 1 to 4096 (router_logits is [1, 4097])",
    ),
    "more visual tokens than tokens": (MOE, {"V": 4}, {}, "V is 4, expected at most T = 3"),
    "fewer experts than k": (MOE, {"E": 1}, {}, "top_k is 2, expected at most E = 1"),
    "gate_up of another I": (
        MOE,
        {},
        {"gate_up": (7, 11, 4)},
        "gate_up is [7, 11, 4], expected [E, 2I, H/p] = [7, 2I, 4]",
    ),
    "pruning, no H": (PRUNE, {"H": 0}, {}, "H is 0, expected 1 to 262144 (hidden_states is [6, 0])"),
    "pruning, no H, tokens": (
        PRUNE,
        {"T": HUGE, "H": 0},
        {},
        f"T is {HUGE}, expected 0 to 16777216 (hidden_states is [{HUGE}, 0])",
    ),
    "pruning, no tokens, H": (
        PRUNE,
        {"T": 0, "V": 0, "K": 0, "H": HUGE},
        {},
        f"H is {HUGE}, expected 1 to 262144 (hidden_states is [0, {HUGE}])",
    ),
    "pruning, no E": (PRUNE, {"E": 0}, {}, "E is 0, expected 1 to 4096 (routing_probs is [4, 0])"),
    "pruning, no E, visual": (
        PRUNE,
        {"E": 0},
        {"routing_probs": (HUGE, 0)},
        f"V is {HUGE}, expected 0 to 16777216 (routing_probs is [{HUGE}, 0])",
    ),
    "pruning, no visual, E": (
        PRUNE,
        {"V": 0, "K": 0, "E": HUGE},
        {},
        f"E is {HUGE}, expected 1 to 4096 (routing_probs is [0, {HUGE}])",
    ),
    "pruning, more visual tokens than tokens": (PRUNE, {"V": 7}, {}, "V is 7, expected at most T = 6"),
    "pruning, no sequences": (
        PRUNE,
        {},
        {"visual_offsets": (1,), "keep_offsets": (1,), "merge_offsets": (1,)},
        "B is 0, expected 1 to 65536 (visual_offsets is [1])",
    ),
    "pruning, no offsets": (
        PRUNE,
        {},
        {"visual_offsets": (0,)},
        "B is -1, expected 1 to 65536 (visual_offsets is [0])",
    ),
    "pruning, too many sequences": (
        PRUNE,
        {},
        {"visual_offsets": (65538,)},
        "B is 65537, expected 1 to 65536 (visual_offsets is [65538])",
    ),
}
LEGAL: dict[str, tuple[str, dict[str, int], list[int]]] = {
    "no tokens": (MOE, {"T": 0, "V": 0}, [0, 4]),
    "no visual tokens": (MOE, {"V": 0}, [3, 4]),
    "one of each": (MOE, {"T": 1, "V": 1, "H": 1, "I": 1, "E": 2}, [1, 1]),
    "as many experts as there may be": (MOE, {"T": 1, "V": 1, "H": 1, "I": 1, "E": 4096}, [1, 1]),
    "pruning, no tokens": (PRUNE, {"T": 0, "V": 0, "K": 0}, [0, 4]),
    "pruning, nothing kept": (PRUNE, {"K": 0}, [2, 4]),
}


def shapes_for(op: str, sizes: dict[str, int], shapes: Shapes) -> Shapes:
    return (moe_shapes(**MOE_SIZES | sizes) if op == MOE else prune_shapes(**PRUNE_SIZES | sizes)) | shapes


def make_inputs(op: str, shapes: Shapes, without: tuple[str, ...] = ()) -> dict[str, Array]:
    spec = next(spec for spec in OPS if spec.name == op)
    dtypes = {"float": np.float32, "F": np.float32, "W": np.float32, "int32": np.int32, "int8": np.int8}
    given = (t for t in spec.inputs if t.name in shapes and t.name not in without)
    inputs = {t.name: np.zeros(shapes[t.name], dtypes[t.types[0]]) for t in given}
    inputs["visual_index"][:] = np.arange(len(inputs["visual_index"]))
    if op == MOE:
        inputs["visual_top_k"][:] = 1
        return inputs
    for slots, offsets in (("visual_index", "visual_offsets"), ("keep_slots", "keep_offsets")):
        inputs[offsets][1:] = len(inputs[slots])
    return inputs


def attributes_for(op: str) -> dict[str, Any]:
    return moe_attributes(top_k=2) if op == MOE else PRUNE_ATTRIBUTES


def make_model(op: str, inputs: list[str], weights: list[onnx.TensorProto], attributes: dict[str, Any]) -> bytes:
    """One node; `inputs` in order, "" for one that is left out. Graph inputs are all but the weights."""
    spec = next(spec for spec in OPS if spec.name == op)
    types = {"float": 1, "F": 1, "W": 1, "int32": 6, "int8": 3}
    given = {tensor.name for tensor in weights}
    values = [
        onnx.helper.make_tensor_value_info(t.name, types[t.types[0]], None)
        for t in spec.inputs
        if t.name in inputs and t.name not in given
    ]
    outputs = [t.name for t in spec.outputs]
    node = onnx.helper.make_node(op, inputs, outputs, domain=DOMAIN, **attributes)
    graph = onnx.helper.make_graph([node], "g", values, [onnx.helper.make_empty_tensor_value_info(o) for o in outputs])
    graph.initializer.extend(weights)
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, spec.version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def tensor(name: str, shape: tuple[int, ...], raw: bytes | None = None, file: str = "") -> onnx.TensorProto:
    """A float tensor; its data may be less than its shape says."""
    result = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
    if file:
        result.data_location = onnx.TensorProto.EXTERNAL
        result.external_data.add(key="location", value=file)
        return result
    result.raw_data = bytes(4 * math.prod(shape)) if raw is None else raw
    return result


CHILD = """
import json, resource, sys
import numpy as np, onnxruntime
library, *paths = sys.argv[1:]
for path in paths:
    print(json.dumps({"start": path}), flush=True)
    case = json.load(open(path + ".json"))
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        options.log_severity_level = 4
        options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {}
        for name, (dtype, shape, values) in case["feeds"].items():
            feeds[name] = np.zeros(shape, dtype)
            feeds[name][...] = np.array(values, dtype) if values is not None else 0
        if case["bytes"]:
            pages = int(open("/proc/self/statm").read().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + case["bytes"],) * 2)
        result = {"shape": list(session.run(None, feeds)[0].shape)}
    except Exception as error:
        result = {"error": str(error)}
    print(json.dumps(result), flush=True)
"""


def save_case(path: Path, model: bytes, feeds: dict[str, Array], memory: int = 0) -> None:
    """A model, the inputs of one call, and how many bytes more than it has the process may take."""
    path.write_bytes(model)
    values = {name: (a.dtype.name, a.shape, a.tolist() if a.any() else None) for name, a in feeds.items()}
    Path(f"{path}.json").write_text(json.dumps({"feeds": values, "bytes": memory}))


def run_child(paths: list[Path]) -> list[dict[str, Any]]:
    """What became of each; nothing of those at and after a crash."""
    command = [sys.executable, "-c", CHILD, str(native_library_path()), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    results = [line for line in lines if "start" not in line]
    assert len(results) == len(paths), f"exit code {done.returncode} at {lines[-1:]}: {done.stderr}"
    return results


def test_references_and_torch() -> None:
    for name, (op, sizes, shapes, message) in REFUSED.items():
        sizes = {letter: min(size, HUGE) for letter, size in sizes.items()}
        inputs = make_inputs(op, shapes_for(op, sizes, shapes))
        attributes = attributes_for(op)
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        if op == MOE:
            text = SPARSE_MOE.encode(attributes)
            with pytest.raises(ValueError) as torch_error:
                torch.ops.fastmmoe.sparse_moe.default(*tensors, [], text)
            with pytest.raises(ValueError) as error:
                sparse_moe_reference(**inputs, **attributes)
        else:
            text = TOKEN_PRUNE.encode(attributes)
            with pytest.raises(ValueError) as torch_error:
                torch.ops.fastmmoe.token_prune.default(*tensors, text)
            with pytest.raises(ValueError) as error:
                token_prune_reference(**inputs, **attributes)
        assert str(torch_error.value) == str(error.value) == f"{op}: {message}", name


def test_native(tmp_path: Path) -> None:
    """Weights are initializers, which need no room where a dimension is 0."""
    cases = {name: case[:3] for name, case in REFUSED.items()}
    cases |= {name: (op, sizes, {}) for name, (op, sizes, _) in LEGAL.items()}
    paths = [tmp_path / f"{i}.onnx" for i in range(len(cases))]
    for path, (op, sizes, shapes) in zip(paths, cases.values(), strict=True):
        shapes = shapes_for(op, sizes, shapes)
        weights = [tensor(name, shapes[name]) for name in WEIGHTS if name in shapes]
        feeds = make_inputs(op, shapes, WEIGHTS)
        save_case(path, make_model(op, list(shapes), weights, attributes_for(op)), feeds)
    for name, result in zip(cases, run_child(paths), strict=True):
        if name in LEGAL:
            assert result == {"shape": LEGAL[name][2]}, name
        else:
            op, _, _, message = REFUSED[name]
            assert result.get("error", f"{result}").endswith(f"{op}: {message}"), name


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    """Refused before a kernel reads them: less data than the shape says, in the model or beside it; optional gaps."""
    shapes = shapes_for(MOE, {}, {})
    names, gate_up, down = list(shapes), shapes["gate_up"], tensor("down", shapes["down"])
    (tmp_path / "short.data").write_bytes(bytes(64))
    lies = {
        "short": tensor("gate_up", gate_up, b"\0" * 8),
        "negative": tensor("gate_up", (7, -10, 4), b""),
        "short file": tensor("gate_up", gate_up, file="short.data"),
        "wrapping file": tensor("gate_up", (7, 2 * TOO_MANY, 4), file="short.data"),
        "no file": tensor("gate_up", gate_up, file="none.data"),
    }
    feeds = make_inputs(MOE, shapes, WEIGHTS)
    models = {name: make_model(MOE, names, [lie, down], moe_attributes(top_k=2)) for name, lie in lies.items()}
    biases = [tensor("gate_up_bias", (7, 10)), tensor("down_bias", (7, 4))]
    biased = moe_attributes(top_k=2, expert_bias=1)
    whole = [tensor("gate_up", gate_up), down, *biases]
    models["gap"] = make_model(MOE, [*names, "", "gate_up_bias", "down_bias"], whole, biased)
    models["gap before a required input"] = make_model(MOE, [*names[:5], "", "down"], [down], moe_attributes(top_k=2))
    paths = [tmp_path / f"{i}.onnx" for i in range(len(models))]
    for path, model in zip(paths, models.values(), strict=True):
        save_case(path, model, feeds)
    results = dict(zip(models, run_child(paths), strict=True))
    assert all("error" in result for result in results.values()), results
    gap = f"{MOE}: input 7 is left out before others, expected no gap"
    assert results["gap"]["error"].endswith(gap)


def test_memory_that_does_not_suffice(tmp_path: Path) -> None:
    """An error, too: what lies between the projections, then what routing keeps of many tokens."""
    paths = [tmp_path / "activated.onnx", tmp_path / "routing.onnx"]
    for path, memory, sizes in (
        (paths[0], 400 << 20, {"T": 1000, "V": 0, "H": 1, "I": 1 << 18, "E": 1}),
        (paths[1], 24 << 20, {"T": 1 << 22, "V": 0, "H": 1, "I": 1, "E": 1}),
    ):
        shapes = shapes_for(MOE, sizes, {})
        weights = [tensor(name, shapes[name]) for name in WEIGHTS]
        model = make_model(MOE, list(shapes), weights, moe_attributes(top_k=1))
        save_case(path, model, make_inputs(MOE, shapes, WEIGHTS), memory)
    (activated,), (routing,) = run_child(paths[:1]), run_child(paths[1:])
    message = f"{MOE}: 1000 pairs of a token and an expert with I = 262144: no 1048576000 bytes of memory"
    assert activated["error"].endswith(message)
    assert routing["error"].endswith(f"{MOE}: memory does not suffice")
