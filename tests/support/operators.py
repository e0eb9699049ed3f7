# SPDX-License-Identifier: Apache-2.0
"""Inputs, attributes and golden cases of the custom operators, for every implementation of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.types import Array

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
# Of the output's greatest value: float32 arithmetic, then rounding to the output's type.
TOLERANCE = {np.dtype(np.float32): 1e-5, FLOAT16: 1e-3, BFLOAT16: 8e-3}
MERGES = ("mlerp", "mean")
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}


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
    "weight_layout": "logical",
    "expert_size": 0,
}


def moe_attributes(**changes: Any) -> dict[str, Any]:
    """All attributes of FmmSparseMoE."""
    return MOE_ATTRIBUTES | changes


def moe_inputs(
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


def prune_inputs(
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


def assert_close(actual: Array, expected: Array) -> None:
    """Equal type and shape, and values within the type's TOLERANCE."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    wide = expected.astype(np.float32)
    scale = np.abs(wide[np.isfinite(wide)]).max(initial=1e-30)
    np.testing.assert_allclose(actual.astype(np.float32), wide, rtol=0, atol=TOLERANCE[expected.dtype] * scale)


GOLDEN_PRUNE_CASES = 14


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


def golden_prune_case(golden: Path, number: int) -> GoldenPruneCase:
    """The recorded case of this number, below GOLDEN_PRUNE_CASES."""
    with np.load(golden / "fastmmoe" / "prune_cases.npz") as arrays:
        index = json.loads(str(arrays["index"]))
        prefix = f"{number}_"
        data = {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}
    assert len(index) == GOLDEN_PRUNE_CASES
    settings = index[number]
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
