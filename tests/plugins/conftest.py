# SPDX-License-Identifier: Apache-2.0
"""What the tests of native operators and kernels share: models of one node, inputs, the cases of both."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from fastmmoe.exporter.ops import DOMAIN, OPS
from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.backends.native import register_native_ops
from fastmmoe.runtime.types import Array

SPECS = {spec.name: spec for spec in OPS}
WEIGHTS = ("gate_up", "down")


def one_node_model(op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> bytes:
    """A model whose inputs are `inputs` with any shape, except the weights, which are initializers."""
    spec = SPECS[op]
    weights = [onnx.numpy_helper.from_array(inputs[name], name) for name in WEIGHTS if name in inputs]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, list(inputs), [t.name for t in spec.outputs], domain=DOMAIN, **attributes)],
        "one_node",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in inputs.items()
            if name not in WEIGHTS
        ],
        [onnx.helper.make_empty_tensor_value_info(t.name) for t in spec.outputs],
        weights,
    )
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, spec.version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


class NativeNode:
    """One node in a session of its own."""

    def __init__(self, op: str, inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # a refused input is logged as well as raised
        register_native_ops(options, {})
        model = one_node_model(op, inputs, attributes)
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: dict[str, Array]) -> list[Array]:
        values = {name: to_ort_value(array) for name, array in inputs.items() if name not in WEIGHTS}
        names = [output.name for output in self.session.get_outputs()]
        return [value.numpy() for value in self.session.run_with_ort_values(names, values)]


def to_ort_value(array: Array) -> onnxruntime.OrtValue:
    """The array, which ONNX Runtime takes with bfloat16 by its bits only."""
    if array.dtype != ml_dtypes.bfloat16:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(order="C"))
    bits = array.copy(order="C").view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)


@pytest.fixture
def native_node() -> type[NativeNode]:
    """Class NativeNode: a session of one native node."""
    return NativeNode


@pytest.fixture
def run_native() -> Callable[..., list[Array]]:
    """Function (op, inputs, attributes, threads=1) -> outputs."""

    def run(op: str, inputs: dict[str, Array], attributes: dict[str, Any], threads: int = 1) -> list[Array]:
        return NativeNode(op, inputs, attributes, threads)(inputs)

    return run


def make_moe_inputs(
    T: int = 17,
    E: int = 16,
    H: int = 24,
    I: int = 20,  # noqa: E741
    *,
    visual: Array | None = None,
    visual_top_k: int = 2,
    weight_dtype: Any = np.float32,
    expert_bias: bool = False,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs of FmmSparseMoE; by default every third token is visual."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {
        "hidden_states": normal(T, H),
        "router_logits": 2 * normal(T, E),
        "visual_index": (np.arange(0, T, 3) if visual is None else visual).astype(np.int32),
        "visual_top_k": np.array([visual_top_k], np.int32),
        "correction_bias": 0.2 * normal(E),
        "gate_up": (normal(E, 2 * I, H) / np.sqrt(H)).astype(weight_dtype),
        "down": (normal(E, H, I) / np.sqrt(I)).astype(weight_dtype),
    }
    if expert_bias:
        inputs |= {"gate_up_bias": normal(E, 2 * I), "down_bias": normal(E, H)}
    return inputs


MOE_ATTRIBUTES: dict[str, Any] = {
    "top_k": 6,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": 0,
    "routed_scaling_factor": 1.0,
    "reduction_weights": "preserve_sum",
    "activation": "swiglu",
    "swiglu_limit": 7.0,
    "expert_bias": 0,
    "weight_format": "float",
    "group_size": 0,
    "zero_points": 0,
}


@pytest.fixture
def moe_inputs() -> Callable[..., dict[str, Array]]:
    """Function make_moe_inputs."""
    return make_moe_inputs


@pytest.fixture
def moe_attributes() -> Callable[..., dict[str, Any]]:
    """Function (changes) -> all attributes of FmmSparseMoE."""

    def attributes(**changes: Any) -> dict[str, Any]:
        return MOE_ATTRIBUTES | changes

    return attributes


MoeCase = tuple[dict[str, Array], dict[str, Any]]

# Attributes that choose groups of experts, by topk_method; they need a number of experts that 8 divides.
MOE_GROUPS: dict[str, dict[str, int]] = {
    "greedy": {},
    "group_limited_greedy": {"n_group": 8, "topk_group": 4},
    "noaux_tc": {"n_group": 8, "topk_group": 4},
}
SCORING_FUNCS = ("softmax", "sigmoid", "topk_softmax")


def make_moe_cases() -> Iterator[tuple[str, MoeCase]]:
    """Names and cases of FmmSparseMoE whose H and I every kernel takes: routing, ties, sizes, uneven loads."""
    size: dict[str, Any] = {"H": 32, "I": 48}
    for (method, groups), scoring in itertools.product(MOE_GROUPS.items(), SCORING_FUNCS):
        routing = MOE_ATTRIBUTES | groups | {"topk_method": method, "scoring_func": scoring}
        for norm, reduction in itertools.product((0, 1), ("preserve_sum", "none")):
            changes = {"norm_topk_prob": norm, "reduction_weights": reduction, "routed_scaling_factor": 2.5}
            name = f"{method}-{scoring}-norm{norm}-{reduction}"
            yield name, (make_moe_inputs(T=33, E=32, **size), routing | changes)
        inputs = make_moe_inputs(T=24, E=72, **size)
        inputs["router_logits"] = np.round(inputs["router_logits"] / 2)
        inputs["correction_bias"][:] = 0
        yield f"ties-{method}-{scoring}", (inputs, routing)
    for method in ("group_limited_greedy", "noaux_tc"):
        inputs = make_moe_inputs(T=8, E=128, **size)
        inputs["router_logits"] = np.round(inputs["router_logits"])
        inputs["correction_bias"][:] = 0
        routing = MOE_ATTRIBUTES | {"topk_method": method, "n_group": 64, "topk_group": 9}
        yield f"ties of many groups-{method}", (inputs, routing)
    for method, scoring in itertools.product(("group_limited_greedy", "noaux_tc"), ("softmax", "sigmoid")):
        routing = {"topk_method": method, "scoring_func": scoring, "n_group": 16, "topk_group": 3}
        yield f"groups that hold too few-{method}-{scoring}", (make_moe_inputs(**size), MOE_ATTRIBUTES | routing)
    for T, E in itertools.product((0, 1, 2, 17), (64, 72, 128)):
        yield f"T{T}-E{E}", (make_moe_inputs(T=T, E=E, **size), MOE_ATTRIBUTES)
    for activation, expert_bias in itertools.product(("swiglu", "swiglu_oai"), (0, 1)):
        changes = {"activation": activation, "expert_bias": expert_bias, "swiglu_limit": 1.5}
        for T in (5, 17):
            inputs = make_moe_inputs(T=T, expert_bias=bool(expert_bias), **size)
            yield f"{activation}-bias{expert_bias}-T{T}", (inputs, MOE_ATTRIBUTES | changes)
    for name, visual in (("none", np.arange(0)), ("all", np.arange(17))):
        yield f"{name} visual", (make_moe_inputs(visual=visual, **size), MOE_ATTRIBUTES)
        normed = MOE_ATTRIBUTES | {"norm_topk_prob": 1}
        yield f"{name} visual, one expert", (make_moe_inputs(visual=visual, visual_top_k=1, **size), normed)
    for T in (8, 70):
        inputs = make_moe_inputs(T=T, visual_top_k=1, **size)
        inputs["router_logits"][:, 5] += 50
        yield f"one expert takes all {T}", (inputs, MOE_ATTRIBUTES | {"top_k": 1})
    yield "top_k of all experts", (make_moe_inputs(visual_top_k=16, **size), MOE_ATTRIBUTES | {"top_k": 16})


MOE_CASES = dict(make_moe_cases())


@pytest.fixture(params=MOE_CASES)
def moe_case(request: pytest.FixtureRequest) -> MoeCase:
    """Inputs and attributes of FmmSparseMoE, one case after the other; read them, do not change them."""
    return MOE_CASES[request.param]


def make_prune_inputs(
    T: int = 60,
    K: int = 20,
    M: int = 3,
    *,
    visual: Array | None = None,
    alpha: float = 0.5,
    H: int = 12,
    E: int = 8,
    seed: int = 0,
) -> dict[str, Array]:
    """Random inputs of FmmTokenPrune; by default 44 visual tokens in runs of 30 and 14."""
    rng = np.random.default_rng(seed)
    visual = np.r_[3:33, 40:54] if visual is None else visual
    V = len(visual)
    logits = rng.standard_normal((V, E))
    return {
        "hidden_states": rng.standard_normal((T, H)).astype(np.float32),
        "residual": rng.standard_normal((T, H)).astype(np.float32),
        "routing_probs": (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32),
        "attention": rng.random(V).astype(np.float32),
        "visual_index": visual.astype(np.int32),
        **slots_of([V], [K], [M]),
        "alpha": np.array([alpha], np.float32),
    }


@pytest.fixture
def prune_inputs() -> Callable[..., dict[str, Array]]:
    """Function make_prune_inputs."""
    return make_prune_inputs


def slots_of(V: list[int], K: list[int], M: list[int]) -> dict[str, Array]:
    """Slots and offsets, in the contract's order, of sequences with these counts."""
    visual, keep, merge = (np.cumsum([0, *counts], dtype=np.int32) for counts in (V, K, M))
    slots = [np.zeros(offsets[-1], np.int8) for offsets in (keep, merge)]
    names = ("visual_offsets", "keep_slots", "keep_offsets", "merge_slots", "merge_offsets")
    return dict(zip(names, (visual, slots[0], keep, slots[1], merge), strict=True))


def pack_prune_inputs(*sequences: dict[str, Array]) -> dict[str, Array]:
    """One request of several, all with the first one's alpha."""
    first_rows = itertools.accumulate((len(s["residual"]) for s in sequences), initial=0)
    visual = [s["visual_index"] + first for s, first in zip(sequences, first_rows, strict=False)]
    counts = ([len(s[name]) for s in sequences] for name in ("visual_index", "keep_slots", "merge_slots"))
    joined = {name: np.concatenate([s[name] for s in sequences]) for name in list(sequences[0])[:4]}  # up to attention
    index = np.concatenate(visual).astype(np.int32)
    return {**joined, "visual_index": index, **slots_of(*counts), "alpha": sequences[0]["alpha"]}


MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}
PruneCase = tuple[dict[str, Array], dict[str, Any]]


def make_ordinary_prune_cases() -> Iterator[tuple[str, PruneCase]]:
    """Names and cases over windows, attributes and how many tokens are visual and survive."""
    for window in (1, 2, 3, 4, 7, 64):
        for merge in ("mlerp", "mean"):
            for alpha in (0.0, 0.3, 1.0):
                inputs = make_prune_inputs(M=min(5, merge_capacity(44, 20, window)), alpha=alpha)
                yield f"window{window}-{merge}-alpha{alpha}", (inputs, {"window": window, "merge": merge})
    yield "no merging", (make_prune_inputs(M=0), MLERP)
    for name, visual in (("prefill", np.r_[3:33, 40:54]), ("decode", np.arange(0))):
        inputs = make_prune_inputs(K=len(visual), M=0, visual=visual)
        inputs["hidden_states"][5] = np.nan
        yield f"keeping all-{name}", (inputs, MLERP)
    for T in (0, 1):
        yield f"no visual tokens of {T}", (make_prune_inputs(T=T, K=0, M=0, visual=np.arange(0)), MLERP)
    for name, visual in (("some", np.arange(12)), ("all", np.arange(60))):
        yield f"keeping none-{name} visual", (make_prune_inputs(K=0, M=0, visual=visual), MLERP)
    yield "windows of one token", (make_prune_inputs(visual=np.arange(0, 60, 2), K=10, M=4), MLERP)


def make_hostile_prune_cases() -> Iterator[tuple[str, PruneCase]]:
    """Names and cases of ties and of values that are not finite or too great to add."""
    inputs = make_prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"] = np.round(inputs["attention"] * 4) / 4
    yield "ties of many values", (inputs, MLERP)
    inputs = make_prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"][:] = 0.25
    yield "ties of one value", (inputs, MLERP)
    inputs = make_prune_inputs(M=4)
    inputs["routing_probs"][:] = 0.125
    inputs["attention"] = np.where(np.arange(44) % 3 == 0, np.float32(-0.0), np.float32(0.0))
    yield "ties of zero and minus zero", (inputs, MLERP)
    inputs = make_prune_inputs(K=40, M=1)
    inputs["routing_probs"][5, 2] = np.nan
    inputs["routing_probs"][17] = np.inf
    inputs["attention"][[8, 9]] = np.nan, -np.inf
    inputs["attention"][20:30] *= -1
    yield "rows that are not finite", (inputs, MLERP)
    inputs = make_prune_inputs(K=20, M=8, visual=np.flatnonzero(np.arange(60) % 3))
    inputs["routing_probs"][[4, 7, 30], 1] = np.nan
    yield "short windows beside rows that are not finite", (inputs, MLERP)
    inputs = make_prune_inputs()
    inputs["attention"][10:20] = 3e38
    yield "attention beyond the range of float sums", (inputs, MLERP)
    inputs = make_prune_inputs()
    inputs["routing_probs"][:] = np.nan
    yield "all routing rows bad", (inputs, MLERP)


def make_packed_prune_cases() -> Iterator[tuple[str, PruneCase]]:
    """Names and cases of several sequences; means and maxima differ among them, visual rows of some are adjacent."""

    def sequence(seed: int, T: int, K: int, M: int, visual: Array) -> dict[str, Array]:
        inputs = make_prune_inputs(T, K, M, visual=visual, seed=seed)
        inputs["attention"] *= np.float32(4.0**-seed)
        inputs["routing_probs"][:, seed] += np.float32(seed)
        return inputs

    ends, starts = sequence(1, 27, 9, 2, np.r_[2:12, 16:27]), sequence(2, 31, 7, 2, np.r_[0:11, 20:25])
    whole, text = sequence(3, 14, 11, 0, np.arange(11)), sequence(4, 5, 0, 0, np.arange(0))
    dropped, full = sequence(5, 8, 0, 0, np.arange(5)), sequence(6, 7, 3, 1, np.arange(7))
    yield "packed-one kept whole, one without images", (pack_prune_inputs(ends, whole, text), MLERP)
    yield "packed-adjacent runs", (pack_prune_inputs(text, ends, starts), MLERP)
    yield "packed-many", (pack_prune_inputs(whole, starts, ends, dropped, text, full, full, ends), MLERP)
    yield "packed-keeping all", (pack_prune_inputs(whole, text, whole), MLERP)
    ties, bad = pack_prune_inputs(ends, starts), pack_prune_inputs(starts, full, ends)
    ties["routing_probs"][:], ties["attention"][:] = 0.125, 0.25
    bad["routing_probs"][[3, 20, 21, 30], 2] = np.nan
    yield from (("packed-ties", (ties, MLERP)), ("packed-not finite", (bad, MLERP)))


PACKED_PRUNE_CASES = dict(make_packed_prune_cases())
PRUNE_CASES = dict([*make_ordinary_prune_cases(), *make_hostile_prune_cases()]) | PACKED_PRUNE_CASES


@pytest.fixture(params=PACKED_PRUNE_CASES)
def packed_prune_case(request: pytest.FixtureRequest) -> PruneCase:
    """The cases of several sequences."""
    return PACKED_PRUNE_CASES[request.param]


@pytest.fixture(params=PRUNE_CASES)
def prune_case(request: pytest.FixtureRequest) -> PruneCase:
    """Inputs and attributes of FmmTokenPrune, one case after the other; read them, do not change them."""
    return PRUNE_CASES[request.param]


@dataclasses.dataclass(frozen=True)
class GoldenPruneCase:
    """A case computed from the formulas in float64; rows that are not visual tokens hold random text."""

    inputs: dict[str, Array]
    attributes: dict[str, Any]
    expected: dict[str, Array]

    def check(self, outputs: list[Array], tolerance: float) -> None:
        """Choices and text rows equal, other values within `tolerance` of the greatest expected one."""
        hidden_out, residual_out, kept_index, visual_out = outputs
        visual_index = self.inputs["visual_index"]
        survivors = np.searchsorted(visual_index, kept_index[visual_out])
        np.testing.assert_array_equal(survivors, self.expected["source"])
        is_text = ~np.isin(kept_index, visual_index)
        text = np.setdiff1d(np.arange(len(self.inputs["residual"])), visual_index)
        np.testing.assert_array_equal(kept_index[is_text], text)
        for name, values, output in (
            ("hidden", self.inputs["hidden_states"], hidden_out),
            ("residual", self.inputs["residual"], residual_out),
        ):
            expected = self.expected[f"{name}_out"]
            atol = tolerance * np.abs(expected).max(initial=0.0)
            np.testing.assert_allclose(output[visual_out].astype(np.float32), expected, rtol=0, atol=atol)
            np.testing.assert_array_equal(output[is_text], values[text])


@pytest.fixture(params=range(14))
def golden_prune_case(request: pytest.FixtureRequest, golden: Path) -> GoldenPruneCase:
    """One recorded case after the other."""
    with np.load(golden / "fastmmoe" / "prune_cases.npz") as arrays:
        index = json.loads(str(arrays["index"]))
        prefix = f"{request.param}_"
        data = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
    assert len(index) == 14
    settings = index[request.param]
    V, K, window = settings["visual"], settings["keep"], settings["window"]
    M = min(int(np.floor(K * settings["merge_ratio"] + 1e-9)), merge_capacity(V, K, window))
    visual_index = data["visual_index"].astype(np.int32)
    T = int(visual_index[-1]) + 3
    hidden_states, residual = np.random.default_rng(0).standard_normal((2, T, settings["hidden"])).astype(np.float32)
    hidden_states[visual_index], residual[visual_index] = data["hidden"], data["residual"]
    inputs = {
        "hidden_states": hidden_states,
        "residual": residual,
        "routing_probs": data["routing"].astype(np.float32),
        "attention": data["attention"].astype(np.float32),
        "visual_index": visual_index,
        **slots_of([V], [K], [M]),
        "alpha": np.array([settings["alpha"]], np.float32),
    }
    return GoldenPruneCase(inputs, {"window": window, "merge": settings["merge"]}, data)
